"""The steps that a probe has recorded, and the order of their rows, as a History."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding, worst_first
from gradexp.history.history import History
from gradexp.history.step import STATUSES, VECTOR_QUANTITIES, Array
from gradexp.probe.graph import Row, numbered
from gradexp.probe.order import merged
from gradexp.probe.readings import ProbeStep, stacked_over_time

_OF_WEIGHTS = ("weight_grad", "weight", "update", *VECTOR_QUANTITIES)
# Steps that are put in place at a time, so that no second copy of all is made.
_BLOCK = 256

Number = TypeVar("Number", np.float64, np.int8)


class Record:
    """What was recorded, step by step.

    Args:
        names: The modules that may be recorded, in the model's order.
        quantities: What is recorded of them.
        networks: Number of networks.
        seeds: Theirs.
        per_sample: Whether each sample's sizes are recorded too.

    Attributes:
        steps: Label of each step.
        readings: What was measured in it.
        findings: What was found in it beside the sizes, worst first.
        feeds: Which rows feed which.
        kinds: Class and shapes of weights of a module, by name.
    """

    def __init__(
        self,
        names: Iterable[str],
        quantities: Sequence[str],
        networks: int,
        seeds: Sequence[int],
        per_sample: bool = False,
    ) -> None:
        self.names = list(names)
        self.steps: list[int] = []
        self.readings: list[ProbeStep] = []
        self.findings: list[tuple[Finding, ...]] = []
        self.feeds: set[tuple[Row, Row]] = set()
        self.kinds: dict[str, str] = {}
        self._quantities = quantities
        self._networks = networks
        self._seeds = list(seeds)
        self._per_sample = per_sample
        self._rows: dict[Row, int] = {}
        self._order: dict[Row, None] = {}  # of those that were called, as in the forward pass

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def row_of(self, name: str, call: int = 0) -> int:
        """Return the number of a row, a new one for a new row."""
        return self._rows.setdefault((name, call), len(self._rows))

    def rows_of(self, names: Iterable[str]) -> dict[str, int]:
        """Return the number of each module's first row."""
        return {name: self.row_of(name) for name in names}

    def keep_order(self, calls: Sequence[Row]) -> None:
        """Put rows that are new where they belong among the others.

        Args:
            calls: The rows of one step in the order of their calls.
        """
        if not self._order.keys() >= set(calls):
            places = {name: place for place, name in enumerate(self.names)}
            rows = merged([*self._order], [*dict.fromkeys(calls)], lambda row: (places[row[0]], row[1]))
            self._order = dict.fromkeys(rows)

    def add(self, label: int, reading: ProbeStep) -> None:
        """Add a step."""
        self.steps.append(label)
        self.readings.append(reading)
        self.findings.append(())

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Add to the last step what is known of it beside its sizes."""
        self.findings[-1] = worst_first([*self.findings[-1], *findings])

    def take_updates(self, reading: ProbeStep) -> bool:
        """Move updates in a later reading to the last step, to which they belong; return whether there were any."""
        if "update" in reading.log10:
            self.readings[-1].take_over("update", reading)
            return True
        return False

    def is_unmoved(self, names: Iterable[str]) -> bool:
        """Return whether the last step has left weights of some rows as they were, though they have a gradient."""
        status, rows = self.readings[-1].status, [self.row_of(name) for name in names]
        if not rows or not {"update", "weight_grad"} <= status.keys():
            return False
        if not (status["update"][:, rows] == STATUSES.index("zero")).all():
            return False
        gradient = status["weight_grad"][:, rows]
        return bool(np.isin(gradient, [STATUSES.index(word) for word in ("ok", "subnormal")]).any())

    def history(self, chosen: slice = slice(None)) -> History:
        """Return some of the steps."""
        readings, steps = self.readings[chosen], self.steps[chosen]
        # A lazy module shows only when it is first called whether it has a weight of two dimensions.
        all_rows = [(n, 0) for n in self.names if not self.steps or (n, 0) in self._rows]
        rows = [*self._order, *(row for row in all_rows if row not in self._order)]
        columns = [self._rows.get(row, -1) for row in rows]
        # A module's weights are the same in all its calls.
        of_weights = [self._rows.get((name, 0), -1) for name, _ in rows]
        log10, status = {}, {}
        for quantity in self._quantities:
            indices = of_weights if quantity in _OF_WEIGHTS else columns
            log10[quantity] = self._stacked([r.log10.get(quantity) for r in readings], indices, np.float64(np.nan))
            codes = [r.status.get(quantity) for r in readings]
            status[quantity] = self._stacked(codes, indices, np.int8(STATUSES.index("not_called")))
        history = History("train", [name for name, _ in rows], list(steps), list(self._seeds), log10, status)
        history.calls = [call for _, call in rows]
        history.feeds = numbered(self.feeds, {row: number for number, row in enumerate(rows)})
        history.kinds = [self.kinds.get(name, "") for name, _ in rows]
        for dtypes in {tuple(reading.dtypes.items()): None for reading in readings}:
            history.dtypes = dict(dtypes) | history.dtypes
        for name in {name: None for reading in readings for name in reading.stats}:
            indices = of_weights if name.startswith("weight_grad.") else columns
            history.stats[name] = self._stacked([r.stats.get(name) for r in readings], indices, np.float64(np.nan))
        for name in ("total_grad", "loss"):
            values = [getattr(reading, name) for reading in readings]
            if any(value is not None for value in values):
                unknown = np.full(self._networks, np.nan)
                setattr(history, name, np.stack([unknown if value is None else value for value in values]))
        history.time_log10, history.time_status = stacked_over_time(readings)
        if any(self.findings[chosen]):
            history.findings = self.findings[chosen]
        if self._per_sample:
            history.samples = self._samples(readings, columns)
        return history

    def _samples(self, readings: Sequence[ProbeStep], columns: Sequence[int]) -> Array:
        """Return each sample's sizes, shape ``(step, network, column, sample)``, nan beyond the samples of a cell."""
        counts = [log10.shape[1] for reading in readings for log10 in reading.samples.values()]
        stacked = np.full((len(readings), self._networks, len(columns), max(counts, default=0)), np.nan)
        for step, reading in enumerate(readings):
            for index, column in enumerate(columns):
                if column in reading.samples:
                    log10 = reading.samples[column]
                    stacked[step, :, index, : log10.shape[1]] = log10
        return stacked

    def _stacked(
        self, steps: Sequence[NDArray[Any] | None], columns: Sequence[int], otherwise: Number
    ) -> NDArray[Number]:
        """Return ``(step, network, column)``."""
        stacked: NDArray[Number] = np.full((len(steps), self._networks, len(columns)), otherwise)
        begin = 0
        for width, group in groupby(steps, lambda step: 0 if step is None else step.shape[1]):
            same_width = list(group)
            places = [index for index, column in enumerate(columns) if 0 <= column < width]
            taken = [columns[place] for place in places]
            for start in range(0, len(same_width) if places else 0, _BLOCK):
                block = same_width[start : start + _BLOCK]
                values = np.stack([step for step in block if step is not None])
                stacked[begin + start : begin + start + len(block), :, places] = values[:, :, taken]
            begin += len(same_width)
        return stacked
