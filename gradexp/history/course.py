"""The recorded steps of a training up to one of them: what is wrong with a training shows over steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding
from gradexp.history.step import SEEN, STATUSES, Array


@dataclass(frozen=True)
class Course:
    """Recorded steps, the last of which is judged.

    Args:
        names: Name of each row.
        steps: Label of each step.
        log10: Quantity -> array of shape ``(step, network, row)``, nan where there is no number.
        status: Quantity -> codes of the same shape.
        loss: The loss's value, shape ``(step, network)``, or None if it was not given.
        dtypes: Quantity -> number format of its tensors.
        kinds: Class and shape of weights of each row's module; empty if not known.
        feeds: Pairs of rows, of which the first one feeds the second one; the second is the number of rows for the
            loss.
        found: What is known of the last step already.
    """

    names: Sequence[str]
    steps: Sequence[int]
    log10: Mapping[str, Array]
    status: Mapping[str, NDArray[np.int8]]
    loss: Array | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    kinds: Sequence[str] = ()
    feeds: Sequence[tuple[int, int]] = ()
    found: tuple[Finding, ...] = ()

    def has(self, *quantities: str) -> bool:
        """Return whether all of some quantities were recorded."""
        return all(quantity in self.log10 for quantity in quantities)

    def rows(self, quantity: str, *words: str, step: int = -1) -> NDArray[np.bool_]:
        """Return which rows have one of some statuses in every network, shape ``(row,)``; none if not recorded."""
        if quantity not in self.status:
            return np.zeros(len(self.names), dtype=bool)
        codes = [STATUSES.index(word) for word in words]
        return np.asarray(np.isin(self.status[quantity][step], codes).all(axis=0))

    def seen(self, quantity: str, step: int = -1) -> NDArray[np.bool_]:
        """Return which rows have a value, if only one that is 0 or not finite, in every network."""
        return self.rows(quantity, *(STATUSES[code] for code in SEEN), step=step)

    def has_nonfinite(self, *quantities: str, step: int = -1) -> bool:
        """Return whether some quantity of a step is inf or nan in a row."""
        code = STATUSES.index("nonfinite")
        return any(bool((self.status[name][step] == code).any()) for name in quantities if name in self.status)

    def modules(self, rows: NDArray[np.bool_]) -> tuple[str, ...]:
        """Return the module names of some rows, each once."""
        return tuple(dict.fromkeys(self.names[row] for row in np.flatnonzero(rows).tolist()))


def largest(values: Array) -> Array:
    """Return the largest finite value over all axes but the first, nan where there is none."""
    flat = values.reshape(len(values), -1)
    found = np.where(np.isfinite(flat), flat, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(found), found, np.nan)
