"""Profiles as a table in the terminal: first, middle and last layer, all layers at a glance, and the change."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gradexp.history.columns import power_of_ten
from gradexp.history.encoding import printable
from gradexp.history.slope import power
from gradexp.history.step import STATUSES, Array
from gradexp.sinks.sparkline import ASCII_BLOCKS, BLOCKS, sparkline

_WIDEST = 24  # characters of a bar
_NARROWEST = 16  # below it the middle layer is left out
_SPACE = 2


@dataclass(frozen=True)
class _Row:
    label: str
    sizes: dict[int, str]
    log10: Array
    status: NDArray[np.int8] | None
    beside: Array | None
    change: str
    style: str


class ProfileTable:
    """A table of profiles, on a scale that is the same for a healthy and a broken one.

    Args:
        depth: Number of layers.
        console: The terminal that the table is printed to.
        title: What the rows have in common.
    """

    def __init__(self, depth: int, console: Console, title: str = "") -> None:
        self.depth = depth
        self.console = console
        self.title = title
        self.rows: list[_Row] = []
        self._is_unicode = console.encoding.startswith("utf")

    def add(
        self,
        label: str,
        log10: Array,
        status: NDArray[np.int8] | None = None,
        style: str = "",
        beside: Array | None = None,
        backwards: bool = True,
    ) -> None:
        """Add a row.

        Args:
            label: Its name.
            log10: The sizes, shape ``(layer,)``.
            status: Why a layer has no number; None: every layer has one.
            style: How it is printed.
            beside: Sizes that share the scale of its bars.
            backwards: Whether the change is from the last layer to the first, as a gradient goes.
        """
        words = ["none"] * log10.size if status is None else [STATUSES[code] for code in status]
        sizes = {layer: power_of_ten(log10[layer - 1], words[layer - 1]) for layer in (1, self._middle, self.depth)}
        change = float(log10[0] - log10[-1]) * (1 if backwards else -1)
        arrow = ("←" if backwards else "→") if self._is_unicode else ("<-" if backwards else "->")
        text = f"{arrow} {power(change)}" if self.depth > 1 and math.isfinite(change) else ""
        self.rows.append(_Row(printable(label, self.console.encoding), sizes, log10, status, beside, text, style))

    @property
    def _middle(self) -> int:
        return (self.depth + 1) // 2

    def table(self) -> Table:
        """Return the table, as wide as the terminal has room."""
        label = max(len(self.title), *(len(row.label) for row in self.rows))
        last = max(len("change"), *(len(row.change) for row in self.rows))
        for some in ((1, self._middle, self.depth), (1, self.depth)):
            layers = list(dict.fromkeys(some))
            numbers = sum(self._width(layer) + _SPACE for layer in layers)
            bar = self.console.width - label - numbers - last - 2 * _SPACE
            if bar >= min(_NARROWEST, self.depth):
                break
        bar = max(1, min(bar, _WIDEST, self.depth))
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column(self.title, no_wrap=True)
        for layer in layers:
            table.add_column(f"layer {layer}", justify="right", no_wrap=True)
        span = f"1 to {self.depth}"
        heads = (f"{span}, log scale", span, f"1-{self.depth}", "")
        table.add_column(next(head for head in heads if len(head) <= bar), no_wrap=True)
        table.add_column("change", no_wrap=True)
        blocks = BLOCKS if self._is_unicode else ASCII_BLOCKS
        for row in self.rows:
            drawn = sparkline(row.log10, row.status, bar, blocks, row.beside)
            table.add_row(row.label, *(row.sizes[layer] for layer in layers), drawn, row.change, style=row.style)
        return table

    def _width(self, layer: int) -> int:
        return max(len(f"layer {layer}"), *(len(row.sizes[layer]) for row in self.rows))
