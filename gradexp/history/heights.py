"""Sizes as pictures in text, on a scale that is fixed: what is stable looks flat, what vanishes looks steep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gradexp.history.step import Array

_HEIGHTS = "▁▂▃▄▅▆▇"
_REACH = 3.0  # decades on either side of the last layer, at least
_MARKS = {"zero": "0", "nonfinite": "x"}


@dataclass(frozen=True)
class Scale:
    """The decades that a picture shows: at least three above and three below the last layer's size.

    Args:
        low: log10 of the least size.
        middle: log10 of the last layer's size.
        high: log10 of the greatest size.
    """

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, log10: Array) -> "Scale | None":
        """Return the scale for the sizes of all layers, or None if there is no number."""
        finite = log10[np.isfinite(log10)]
        if not finite.size:
            return None
        last = float(finite[-1])
        return cls(min(last - _REACH, float(finite.min())), last, max(last + _REACH, float(finite.max())))

    @property
    def step(self) -> float:
        """Decades from one height to the next."""
        return (self.high - self.low) / (len(_HEIGHTS) - 1)

    def height(self, log10: float, status: str = "ok") -> str:
        """Return one character as high as a size; ``0`` for zero, ``x`` for inf or nan, ``·`` for unknown."""
        if not math.isfinite(log10):
            return _MARKS.get(status, "·")
        return _HEIGHTS[round((log10 - self.low) / self.step)]

    def heights(self, log10: Sequence[float], statuses: Sequence[str], width: int) -> str:
        """Return a row of heights; where there are more than fit, each one is the mean of a few.

        Zeros and infinities among those few are not averaged away.
        """
        count = len(log10)
        if count <= width:
            return "".join(self.height(x, status) for x, status in zip(log10, statuses, strict=True))
        edges = [index * count // width for index in range(width + 1)]
        groups = [range(begin, end) for begin, end in pairwise(edges)]
        return "".join(self._of_group([log10[i] for i in group], [statuses[i] for i in group]) for group in groups)

    def _of_group(self, log10: list[float], statuses: list[str]) -> str:
        for status in ("nonfinite", "zero"):
            if status in statuses:
                return _MARKS[status]
        finite = [x for x in log10 if math.isfinite(x)]
        return self.height(sum(finite) / len(finite)) if finite else "·"

    def marker(self, log10: float, status: str, width: int) -> str:
        """Return a line with a mark at a size, and a bar at the last layer's, ``|``; zeros are at the left end."""
        line = [" "] * width
        line[self._at(self.middle, width)] = "|"
        if math.isfinite(log10):
            line[self._at(log10, width)] = "█"
        elif status in _MARKS:
            line[0 if status == "zero" else -1] = _MARKS[status]
        else:
            return ""
        return "".join(line).rstrip()

    def head(self, width: int) -> str:
        """Return the heading of a column of markers: the decades at its ends and its middle."""
        low, high = self.low - self.middle, self.high - self.middle
        ends = f"{low:+.0f}", f"{high:+.0f}"
        line = list(" " * width)
        line[: len(ends[0])] = ends[0]
        line[-len(ends[1]) :] = ends[1]
        middle = self._at(self.middle, width)
        if len(ends[0]) < middle < width - len(ends[1]) - 1:
            line[middle] = "0"
        return "".join(line)

    def _at(self, log10: float, width: int) -> int:
        return round((log10 - self.low) / (self.high - self.low) * (width - 1))


@dataclass(frozen=True)
class Picture:
    """Sizes drawn beside the lines of a table: heights over the rows of a line, or marks if each is one row.

    Args:
        scale: The scale that all lines share.
        log10: log10 of each row's size, nan where there is none.
        statuses: Status of each row.
        longest: Most rows of a line.
    """

    scale: Scale
    log10: Array
    statuses: Sequence[str]
    longest: int

    def width(self, most: int) -> int:
        """Return how many characters it takes of those that it may have."""
        return min(most, max(self.longest, len("gradient"))) if self.longest > 1 else most

    def head(self, width: int) -> tuple[str, str]:
        """Return the two lines above it."""
        return ("gradient", "by block") if self.longest > 1 else ("gradient", self.scale.head(width))

    def draw(self, rows: Sequence[int], width: int) -> str:
        """Draw some rows."""
        log10, statuses = self.log10[list(rows)].tolist(), [self.statuses[row] for row in rows]
        if self.longest > 1:
            return self.scale.heights(log10, statuses, width)
        return self.scale.marker(log10[0], statuses[0], width)
