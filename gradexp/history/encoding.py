"""Text for consoles that cannot show every character."""

_PLAIN = str.maketrans(
    {"█": "#", **dict.fromkeys("▉▊▋▌", "="), **dict.fromkeys("▍▎▏", "-"), "…": "~", "‖": "|", "²": "^2"}
)


def printable(text: str, encoding: str | None) -> str:
    """Return a text in characters that an encoding has; None has all.

    Example:
        >>> printable("███▎ name…", "ascii")
        '###- name~'
    """
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        plain = text.translate(_PLAIN)
        return plain.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8")
    return text
