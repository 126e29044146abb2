"""Names and numbers as the sentence of a finding shows them."""

import re
from collections.abc import Iterable, Sequence


def named(name: str) -> str:
    """Return a module's name for a sentence: in quotes if it looks like a number, as in ``nn.Sequential``.

    Examples:
        >>> named("blocks.3"), named("3"), named("0.2"), named("3 #2"), named("")
        ('blocks.3', "'3'", "'0.2'", "'3' #2", 'the model')
    """
    return re.sub(r"^\d+(\.\d+)*(?= #|$)", r"'\g<0>'", name) or "the model"


def listed(names: Iterable[str], most: int = 4) -> str:
    """Return some modules' names for a sentence.

    Examples:
        >>> listed(["a", "2", "c", "d"], most=2)
        "a, '2' and 2 more"
    """
    return first_few([named(name) for name in names], most)


def first_few(texts: Sequence[str], most: int) -> str:
    """Return the first of some texts, and how many more there are; one more takes no more room than to say so.

    Examples:
        >>> first_few(["0", "1", "2", "3"], 2), first_few(["0", "1", "2"], 2)
        ('0, 1 and 2 more', '0, 1, 2')
    """
    shown = len(texts) if len(texts) == most + 1 else most
    return ", ".join(texts[:shown]) + (f" and {len(texts) - shown} more" if len(texts) > shown else "")


def loss_text(loss: float) -> str:
    """Return a loss with three decimals, so that losses can be compared with each other and with that of guessing.

    Examples:
        >>> loss_text(2.3), loss_text(0.01234), loss_text(1e-5), loss_text(2.5e11)
        ('2.300', '0.012', '1e-05', '2.5e+11')
    """
    return f"{loss:.3f}" if 1e-3 <= abs(loss) < 1e4 or loss == 0 else f"{loss:.3g}"


def number(value: float) -> str:
    """Return three digits of a number, large ones up to a million as ``24,300``.

    Examples:
        >>> number(24312.0), number(0.09804), number(2.5e11)
        ('24,300', '0.098', '2.5e+11')
    """
    if 1000 <= abs(value) < 1e6:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """Return a number of things.

    Examples:
        >>> counted(1, "step"), counted(0, "step")
        ('1 step', '0 steps')
    """
    return f"{count} {noun}" + "s" * (count != 1)


def shortened(text: str, most: int = 300) -> str:
    """Return a text, or the beginning of one that is long."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
