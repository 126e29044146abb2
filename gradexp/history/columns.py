"""The columns of numbers in a table: which there are, and how a number or a range of numbers is written."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradexp.history.derived import sample_spread, update_ratio
from gradexp.history.step import STATUSES, Array, Step, mean_over_networks

_QUANTITIES = {
    "output_grad": ("output", "grad"),
    "weight_grad": ("weight", "grad"),
    "output": ("output", "rms"),
    "weight": ("weight", "norm"),
    "update": ("update", "norm"),
    "vector_grad": ("vector", "grad"),
    "vector": ("vector", "norm"),
}


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Args:
        head: Its heading, in two lines.
        values: One number per row, nan where there is none; log10 of it if ``is_log10``.
        statuses: Why there is none, per row.
        is_log10: Whether the values are logarithms.
        is_share: Whether the values are shares, for percent.
        is_extra: Whether somebody asked for it, so that it must be shown.
    """

    head: tuple[str, str]
    values: Array
    statuses: Sequence[str]
    is_log10: bool = True
    is_share: bool = False
    is_extra: bool = False

    def cell(self, rows: Sequence[int], digits: int) -> str:
        """Write the number of a row, or the range over some rows, or why there is none.

        Args:
            rows: The rows.
            digits: Significant digits of a range; a single number has three.
        """
        values = self.values[list(rows)]
        values = values[np.isfinite(values)]
        if not values.size:
            return self.statuses[rows[0]]
        if len(rows) == 1:
            return self._written(float(values[0]), 3)
        low, high = (self._written(float(x), digits) for x in (values.min(), values.max()))
        return low if low == high else f"{low}…{high}"

    def _written(self, value: float, digits: int) -> str:
        if self.is_log10:
            return power_of_ten(value, "", digits)
        if self.is_share:
            return f"{100 * value:.0f}%"
        return re.sub(r"e([+-])0(?=\d)", r"e\1", f"{value:.{max(digits, 2)}g}").replace("e+", "e")


def columns_of(step: Step) -> list[Column]:
    """Return the columns of a step, the one that matters most first."""
    columns = []
    ratio = update_ratio(step.log10)
    hidden = ("weight", "update") if ratio is not None else ()
    for quantity, head in _QUANTITIES.items():
        if quantity in step.log10 and quantity not in hidden:
            statuses = [STATUSES[code] for code in step.status[quantity][0]]
            columns.append(Column(head, step.profile(quantity), statuses))
        if quantity == "weight_grad" and ratio is not None:
            statuses = [STATUSES[code] for code in step.status["update"][0]]
            columns.append(Column(("update/", "weight"), mean_over_networks(ratio), statuses, is_extra=True))
    no_reason = [""] * step.depth
    for key, values in step.stats.items():
        quantity, _, name = key.partition(".")
        is_share = name in ("dead", "saturated") or name.endswith(("_dead", "_saturated", "_share", "_fraction"))
        head = (quantity.replace("_", " "), name)
        columns.append(Column(head, mean_over_networks(values), no_reason, False, is_share, is_extra=True))
    spread = sample_spread(step.samples)
    if spread is not None:
        columns.append(Column(("samples", "sd log10"), mean_over_networks(spread), no_reason, False, is_extra=True))
    return columns


def power_of_ten(log10: float, status: str, digits: int = 3) -> str:
    """Return a size, which may be far outside float64, in some digits, or the status of a missing one."""
    if not math.isfinite(log10):
        return status
    exponent = math.floor(log10)
    number = f"{10 ** (log10 - exponent):.{digits - 1}f}"
    if number.startswith("10"):
        number, exponent = f"{1:.{digits - 1}f}", exponent + 1
    return f"{number}e{exponent:+03d}" if digits > 2 else f"{number}e{exponent}"
