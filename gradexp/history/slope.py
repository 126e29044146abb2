"""How a gradient changes along a line of layers: evenly, in a slope, or in single steps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradexp.history.step import Array

# A step counts as single if it differs from the others by a decade: the random spread of one layer of He's
# initialisation is 0.97 / sqrt(width) decades, so that it takes one of 8 units to reach that at three deviations.
_SINGLE = 1.0
# A slope of a decade per layer leaves no learning rate for all layers, after two decades at the latest.
STEEP, STEEP_IN_ALL = 1.0, 2.0
# How many standard errors a mean is away from 0 before it is a slope, and no random walk.
_SIGNIFICANT = 3.0
_FEW = 4
# Fewer steps do not tell their random spread.
_ENOUGH = 10


@dataclass(frozen=True)
class Line:
    """Layers or blocks of which each feeds the next one.

    Args:
        labels: Their names, from the input on.
        values: log10 of the size at each one; -inf for exactly 0, at the first ones only.
        kinds: What each is; steps through those that are most frequent make up the slope.
        unit: What one of them is called.
    """

    labels: Sequence[str]
    values: Array
    kinds: Sequence[str]
    unit: str = "layer"

    @cached_property
    def first(self) -> int:
        """The first one that has a number."""
        return int(np.flatnonzero(np.isfinite(self.values))[0])

    @cached_property
    def steps(self) -> Array:
        """The change towards the input from each one with a number to the one before; the last one comes last."""
        return np.asarray(-np.diff(self.values[self.first :]))

    @cached_property
    def total(self) -> float:
        """The change towards the input over the whole line."""
        return float(self.values[self.first] - self.values[-1])

    def like(self) -> Array:
        """Return which steps go through the most frequent kind of layer."""
        kinds = list(self.kinds[self.first + 1 :])
        if not kinds:
            return np.zeros(0, bool)
        most = Counter(kinds).most_common(1)[0][0]
        return np.array([kind == most for kind in kinds])

    def single(self) -> list[int]:
        """Return the steps that take more than their share, the largest first."""
        steps = self.steps
        if not len(steps):
            return []
        if len(steps) > _FEW:
            usual = np.full(len(steps), np.median(steps))
        else:  # where one step would be the median itself
            usual = np.array([np.median(np.delete(steps, i)) if len(steps) > 1 else 0.0 for i in range(len(steps))])
        excess = np.abs(steps - usual)
        found = np.flatnonzero((excess >= np.maximum(_SINGLE, np.abs(usual) / 2)) & (np.abs(steps) >= _SINGLE))
        return sorted((int(i) for i in found), key=lambda i: -abs(steps[i]))

    def even(self) -> Array:
        """Return the steps that make up the slope: through like layers, without single ones."""
        chosen = self.like()
        chosen[self.single()] = False
        return np.asarray(self.steps[chosen])

    def rate(self) -> float:
        """Return the slope per layer; that of all steps where no two are alike."""
        even = self.even()
        return float(even.mean()) if len(even) else 0.0

    def spread(self, limit: float) -> float:
        """Return by how much the line changes by chance alone, if each step is random: three deviations.

        Args:
            limit: The most to return.
        """
        even = self.even()
        if len(even) < _ENOUGH or self.single():
            return 0.0
        return min(limit, float(_SIGNIFICANT * even.std(ddof=1) * np.sqrt(len(even))))

    def is_steep(self) -> bool:
        """Return whether the gradient changes by a decade and more per layer, over two decades in all."""
        even = self.even()
        return abs(self.rate()) >= STEEP and abs(float(even.sum())) >= STEEP_IN_ALL and is_slope(even)


def is_slope(steps: Array) -> bool:
    """Return whether steps go one way on the whole, by more than their random spread explains."""
    if len(steps) < 2:
        return False
    return bool(abs(steps.mean()) >= _SIGNIFICANT * steps.std(ddof=1) / np.sqrt(len(steps)))


def factor(log10: float) -> str:
    """Write a factor, such as ``0.204``, ``17`` or ``10^-8.0``."""
    return f"{10**log10:.3g}" if abs(log10) < 4 else f"10^{log10:.1f}"


def power(log10: float) -> str:
    """Write a power of ten, such as ``10^-7.6``."""
    return f"10^{round(log10, 1) + 0.0:+.1f}"


def times(log10: float) -> str:
    """Write a factor behind a verb, such as ``x0.204`` or ``by 10^-8.0``."""
    return f"x{factor(log10)}" if abs(log10) < 4 else f"by {factor(log10)}"


def is_kept(rate: float) -> bool:
    """Return whether a size stays the same but for x0.995 to x1.005 per layer."""
    return abs(rate) < 0.0022


def change(rate: float, unit: str) -> str:
    """Say how a size changes per layer."""
    if is_kept(rate):
        return "keeps its size"
    return f"{'shrinks' if rate < 0 else 'grows'} {times(rate)} per {unit}"
