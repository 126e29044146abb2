"""A claim of a source beside what was measured: it holds, or it fails."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Claim:
    """A statement that a measurement can contradict.

    Args:
        text: The statement, in one line.
        measured: What was found, in words.
        expected: What it takes for the claim to hold, in words.
        holds: Whether it does.
    """

    text: str
    measured: str
    expected: str
    holds: bool


@dataclass(frozen=True)
class Findings:
    """What an experiment has found.

    Args:
        claims: Each compared with a measurement.
        figures: Name -> picture; the first is the one of the gallery.
    """

    claims: list[Claim]
    figures: "dict[str, Figure]"


def near(text: str, measured: float | None, expected: float, within: float) -> Claim:
    """Claim that a number is the expected one, up to ``within``."""
    holds = measured is not None and abs(measured - expected) <= within  # nan is near nothing
    digits = 4 if not expected else max(4, 2 + math.floor(math.log10(abs(expected) / within)))
    return Claim(text, number(measured, digits), f"{number(expected, digits)} ± {within:.2g}", holds)


def above(text: str, measured: float | None, limit: float) -> Claim:
    """Claim that a number is larger than ``limit``."""
    return Claim(text, number(measured), f"> {number(limit)}", measured is not None and measured > limit)


def below(text: str, measured: float | None, limit: float) -> Claim:
    """Claim that a number is smaller than ``limit``."""
    return Claim(text, number(measured), f"< {number(limit)}", measured is not None and measured < limit)


def between(text: str, measured: float | None, low: float, high: float) -> Claim:
    """Claim that a number lies in a range."""
    holds = measured is not None and low <= measured <= high
    return Claim(text, number(measured), f"{number(low)} to {number(high)}", holds)


def same(text: str, measured: object, expected: object) -> Claim:
    """Claim that two words or counts are equal."""
    return Claim(text, str(measured), str(expected), measured == expected)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number as text with ``digits`` digits, ``none`` for None."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{digits}g}"
