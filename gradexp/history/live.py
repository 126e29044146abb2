"""What one recorded step has for a logger: numbers by tag, few enough for curves."""

from collections.abc import Iterable

import numpy as np

from gradexp.history.curves import Means, curves_of, quantities_of
from gradexp.history.history import History
from gradexp.history.tensorboard import course_series, total_series
from gradexp.kinds import texts

MOST = 60
"""Numbers of one step, unless patterns of layers ask for more."""

_BESIDE = 5  # first over last, two counts, total, loss


class LiveCurves:
    """The tags and numbers of one step after the other, as in ``History.to_tensorboard``, and ``gradient/loss``.

    Args:
        layers: Patterns of names: each row that one matches has curves of its own. None: a curve for each layer of a
            small model; of a deep one for each role, its mean over blocks, and for the layers of some blocks; in all
            at most ``MOST``.
    """

    def __init__(self, layers: str | Iterable[str] | None) -> None:
        self._layers = None if layers is None else texts("layers", layers, "patterns of names")
        self._rows: tuple[list[str], list[int], int] | None = None
        self._curves: dict[str, list[int]] = {}
        self._means = Means([], 0)

    def check(self, names: list[str]) -> None:
        """Check that the patterns match some of the modules that may be recorded.

        Raises:
            ValueError: If one matches none.
            TypeError: If it is no string.
        """
        if self._layers is not None:
            curves_of(names, [0] * len(names), self._layers)

    def numbers(self, step: History) -> dict[str, float]:
        """Return the numbers of a history of one step by tag, nan where there is none.

        Raises:
            ValueError: If a pattern matches no row.
            TypeError: If it is no string.
        """
        quantities = quantities_of(step.log10, step.stats, step.samples)
        rows = (step.names, step.calls, len(quantities))
        if rows != self._rows:
            most = max(1, (MOST - _BESIDE) // max(1, len(quantities)))
            self._curves = curves_of(step.names, step.calls, self._layers, most, has_blocks=True)
            self._means = Means(self._curves.values(), step.depth)
            self._rows = rows
        series = course_series(step) | total_series(step)
        numbers = {tag: float(np.asarray(values, dtype=float)[0]) for tag, values in series.items()}
        if step.loss is not None:
            numbers["gradient/loss"] = float(step.loss[0].mean())
        if quantities:
            means = self._means.of(np.stack([values[0] for values in quantities.values()]))
            for quantity, own in zip(quantities, means.tolist(), strict=True):
                numbers.update(zip((f"{quantity}/{name}" for name in self._curves), own, strict=True))
        return numbers
