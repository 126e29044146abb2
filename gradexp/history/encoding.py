"""Text for consoles that cannot show every character."""

from functools import cache

_PLAIN = {
    "█": "#",
    **dict.fromkeys("▉▊▋▌", "="),
    **dict.fromkeys("▍▎▏", "-"),
    **dict(zip("▁▂▃▄▅▆▇", "1234567", strict=True)),  # heights
    "…": "~",
    "·": ".",
    "±": "+-",
    "×": "x",
    "‖": "|",
    "²": "^2",
    "∂": "d",
}


def printable(text: str, encoding: str | None) -> str:
    """Return a text in characters that an encoding has; None has all.

    Examples:
        >>> printable("███▎ name…", "ascii")
        '###- name~'
    """
    encoding = encoding or "utf-8"
    return "".join(character if _has(encoding, character) else _plain(character, encoding) for character in text)


def _plain(character: str, encoding: str) -> str:
    return _PLAIN.get(character, character).encode(encoding, "replace").decode(encoding)


@cache
def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
