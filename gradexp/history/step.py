"""One recorded step: numbers, statuses, slopes."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

QUANTITIES = ("output", "output_grad", "weight_grad", "weight", "update")

STATUSES = ("ok", "zero", "subnormal", "nonfinite", "unused", "frozen", "not_called", "hook_missed")
"""What a cell can be; a History holds the index. Only ``ok`` and ``subnormal`` cells have a number.

ok: as expected. zero: every element is exactly 0. subnormal: elements are below the smallest normal number of
their dtype, so digits are lost. nonfinite: an element is inf or nan. unused: a parameter that no loss reached.
frozen: a parameter that takes no gradient. not_called: a module that was not run. hook_missed: a gradient that
should have been seen but was not.
"""

SEEN = [STATUSES.index(name) for name in ("ok", "zero", "subnormal", "nonfinite")]


QUANTILES = (0.05, 0.5, 0.95)


def mean(values: Array) -> float | None:
    """Return the mean over the numbers that are there, or None."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else None


def standard_error(values: Array) -> float | None:
    """Return the standard error of the mean over networks, or None for fewer than two."""
    there = values[np.isfinite(values)]
    return float(there.std(ddof=1) / math.sqrt(there.size)) if there.size > 1 else None


def mean_over_networks(values: Array) -> Array:
    """Average ``(network, layer)`` over networks, skipping nan, without numpy's warning for empty columns."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    total = np.where(there, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
