"""Texts as names of folders."""

import re

_LONGEST = 120  # bytes, of the 255 that file systems allow
# What separates folders, what no name may hold on one system or another, and what moves a terminal's cursor.
_ODD = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f-\x9f]')


def folder_name(text: str) -> str:
    """Return a text as the name of one folder: without slashes and the like, and of at most 120 bytes.

    Examples:
        >>> folder_name("init=he,data.path=my/own file.npz")
        'init=he,data.path=my-own file.npz'
    """
    return _ODD.sub("-", text).encode()[:_LONGEST].decode(errors="ignore")
