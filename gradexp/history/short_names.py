"""Names of modules in little room, without two becoming alike."""

import re
from collections import Counter
from collections.abc import Sequence


def shown_name(name: str, call: int = 0) -> str:
    """Return a row's name in printable characters, with the number of its call if that is not the first.

    Examples:
        >>> shown_name("cell", 2), shown_name("")
        ('cell #3', '(model)')
    """
    plain = "".join(character if character.isprintable() else "?" for character in name) or "(model)"
    return plain + (f" #{call + 1}" if call else "")


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to a width, the longest parts first; different names stay different.

    Numbers, which are those of blocks, are kept, and so is the last part of a name as long as there is room. Names
    that cannot become shorter without becoming alike stay longer.

    Args:
        names: Dotted names, printable.
        width: The most characters, if it can be.

    Examples:
        >>> short_names(["encoder.layer.10.attention.output.dense"], 30)
        ['encod.layer.10.atte.outp.dense']
        >>> short_names(["features.denseblock1.denselayer12.conv1"], 14)
        ['f.d1.d12.conv1']
    """
    shown = list(names)
    for least in (3, 1, 0):
        shorter = [name if len(name) <= width else _shortened(name, least, width) for name in names]
        alike = _alike(names, shorter)
        shown = [old if new in alike else new for old, new in zip(shown, shorter, strict=True)]
    return shown


def _alike(names: Sequence[str], shown: Sequence[str]) -> set[str]:
    """Return what would be shown of two different names."""
    counts = Counter(new for _, new in set(zip(names, shown, strict=True)))
    return {new for new, count in counts.items() if count > 1}


def _shortened(name: str, least: int, width: int) -> str:
    """Take letters from the ends of a name's parts until it fits; at least some stay, or its middle goes."""
    *parts, last = name.split(".")
    stems = [re.fullmatch(r"(.*?)([0-9,…#-]*)", part, re.DOTALL) for part in parts]
    letters = [stem[1] if stem else "" for stem in stems]
    numbers = [stem[2] if stem else "" for stem in stems]
    too_many = len(name) - width
    while too_many > 0 and max(map(len, letters), default=0) > max(least, 1):
        longest = max(range(len(letters)), key=lambda index: (len(letters[index]), index))
        letters[longest] = letters[longest][:-1]
        too_many -= 1
    short = ".".join([*map("".join, zip(letters, numbers, strict=True)), last])
    if least or too_many <= 0:
        return short
    keep = max(len(last) - too_many - 1, 2)
    if len(last) <= keep + 1:
        return short
    return short[: len(short) - len(last)] + f"{last[: keep // 2]}…{last[keep // 2 - keep :]}"
