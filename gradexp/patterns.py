"""Patterns of dotted names, as users type them to choose modules."""

import re
from functools import cache


def is_match(name: str, pattern: str) -> bool:
    """Return whether a pattern is that of a name.

    ``?`` is a character, ``[a-c]`` one of some, ``*`` any run of characters inside a part of the name, and ``**`` any
    run, dots included; ``**.`` may also be nothing.

    Examples:
        >>> is_match("blocks.3.mlp", "blocks.*.mlp"), is_match("blocks.3.mlp.fc", "blocks.*")
        (True, False)
    """
    return _compiled(pattern).fullmatch(name) is not None


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    pieces = re.findall(r"\*\*\.|\*\*|\*|\?|\[[^\]]+\]|.", pattern, re.DOTALL)
    return re.compile("".join(_WILDCARDS.get(piece) or _one_of(piece) for piece in pieces), re.DOTALL)


_WILDCARDS = {"**.": r"(?:.*\.)?", "**": ".*", "*": r"[^.]*", "?": r"[^.]"}


def _one_of(piece: str) -> str:
    if len(piece) < 3:
        return re.escape(piece)
    chosen = piece[1:-1].replace("\\", r"\\")
    return f"[^{chosen[1:]}]" if chosen[0] == "!" else f"[{chosen}]"
