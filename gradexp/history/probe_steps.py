"""Recorded steps as a probe read them, and how they become the arrays of a history."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding
from gradexp.history.step import STATUSES, VECTOR_QUANTITIES, Array

Row = tuple[str, int]
"""Name of a row, and which call of its module in a pass."""

LOSS: Row = ("", -1)
"""Stands for the loss, in place of a row."""

_OF_WEIGHTS = ("weight_grad", "weight", "update", *VECTOR_QUANTITIES)
_CODES = {name: code for code, name in enumerate(STATUSES)}
# Steps that are put in place at a time, so that no second copy of all is made.
_BLOCK = 256

Number = TypeVar("Number", np.float64, np.int8)


@dataclass
class ProbeStep:
    """One recorded step. Arrays have shape ``(network, row)``; a row is one call of one module.

    Args:
        rows: Number of rows.
        networks: Number of networks.
        log10: Quantity -> numbers, nan where there is none.
        status: Quantity -> index into ``STATUSES``.
        dtypes: Quantity -> number formats of its tensors, such as ``"float32"``.
        stats: Statistic -> mean over the tensors that make up a cell.
        samples: Row -> log10 norm of each sample's output gradient, shape ``(network, sample)``.
        total_grad: log10 norm of all parameters' gradients together, shape ``(network,)``; None if not recorded.
        loss: Its value, shape ``(network,)``; None if not given.
        over_time: Recurrent layer -> what it did at each time step, in place of the rows.
    """

    rows: int
    networks: int
    log10: dict[str, Array] = field(default_factory=dict)
    status: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    stats: dict[str, Array] = field(default_factory=dict)
    samples: dict[int, Array] = field(default_factory=dict)
    total_grad: Array | None = None
    loss: Array | None = None
    over_time: dict[str, "ProbeStep"] = field(default_factory=dict)

    def open(self, quantity: str) -> None:
        """Add a quantity whose cells are all ``not_called`` yet."""
        if quantity not in self.log10:
            self.log10[quantity] = np.full((self.networks, self.rows), np.nan)
            self.status[quantity] = np.full((self.networks, self.rows), _CODES["not_called"], np.int8)

    def take_over(self, quantity: str, later: "ProbeStep") -> None:
        """Take the cells of a quantity that were measured only later."""
        log10, status = later.log10.pop(quantity), later.status.pop(quantity)
        if quantity in self.log10:  # from another optimizer's step
            rows = self.log10[quantity].shape[1]
            absent = status[:, :rows] == _CODES["not_called"]
            log10[:, :rows] = np.where(absent, self.log10[quantity], log10[:, :rows])
            status[:, :rows] = np.where(absent, self.status[quantity], status[:, :rows])
        self.log10[quantity], self.status[quantity] = log10, status

    def take_out_total(self) -> None:
        """Make the joint norm of all gradients, which was added as a quantity of the first row, what it is."""
        if "total_grad" in self.log10:
            log10, status = self.log10.pop("total_grad")[:, 0], self.status.pop("total_grad")[:, 0]
            self.total_grad = np.where(status == _CODES["zero"], -np.inf, log10)
            self.dtypes.pop("total_grad", None)


class Subject(NamedTuple):
    """What a record is of.

    Args:
        names: The modules that may be recorded, in the model's order.
        quantities: What is recorded of them.
        networks: Number of networks.
        seeds: Theirs.
        per_sample: Whether each sample's sizes are recorded too.
        parameters: Number of the model's parameters; None if not known.
    """

    names: list[str]
    quantities: list[str]
    networks: int
    seeds: list[int]
    per_sample: bool = False
    parameters: int | None = None


class Layout(NamedTuple):
    """The rows of a history in their order.

    Args:
        names: Their modules' names.
        calls: Which call of its module each is.
        columns: Their numbers in the readings, -1 for none.
        of_weights: The same of their modules' first rows.
        feeds: Which feed which.
        kinds: Class and shapes of weights of each one's module.
    """

    names: list[str]
    calls: list[int]
    columns: list[int]
    of_weights: list[int]
    feeds: list[tuple[int, int]]
    kinds: list[str]


def layout_of(
    names: Iterable[str],
    numbers: Mapping[Row, int],
    order: Collection[Row],
    feeds: Iterable[tuple[Row, Row]],
    kinds: Mapping[str, str],
    is_empty: bool,
) -> Layout:
    """Put rows in their order.

    Args:
        names: The modules that may be recorded, in the model's order.
        numbers: The rows' numbers in the readings.
        order: Those that were called, as in the forward pass.
        feeds: Which rows feed which.
        kinds: Class and shapes of weights of a module, by name.
        is_empty: Whether no step is recorded yet.
    """
    # A lazy module shows only when it is first called whether it has a weight of two dimensions.
    all_rows = [(name, 0) for name in names if is_empty or (name, 0) in numbers]
    called = set(order)
    rows = [*order, *(row for row in all_rows if row not in called)]
    places = {**{row: place for place, row in enumerate(rows)}, LOSS: len(rows)}
    return Layout(
        [name for name, _ in rows],
        [call for _, call in rows],
        [numbers.get(row, -1) for row in rows],
        # A module's weights are the same in all its calls.
        [numbers.get((name, 0), -1) for name, _ in rows],
        sorted((places[a], places[b]) for a, b in feeds if a in places and b in places),
        [kinds.get(name, "") for name, _ in rows],
    )


def history_fields(
    subject: Subject,
    layout: Layout,
    steps: list[int],
    readings: Sequence[ProbeStep],
    findings: list[tuple[Finding, ...]],
) -> dict[str, Any]:
    """Return the fields of a ``History`` of some steps.

    Args:
        subject: What they are of.
        layout: The rows.
        steps: Their labels.
        readings: What was measured in them.
        findings: What was found in them beside the sizes.
    """
    columns, of_weights = layout.columns, layout.of_weights
    fields: dict[str, Any] = {"phase": "train", "names": [*layout.names], "steps": steps, "seeds": [*subject.seeds]}
    fields |= {"log10": {}, "status": {}, "dtypes": {}, "stats": {}}
    for quantity in subject.quantities:
        own = of_weights if quantity in _OF_WEIGHTS else columns
        sizes, codes = ([getattr(r, kind).get(quantity) for r in readings] for kind in ("log10", "status"))
        fields["log10"][quantity] = _stacked(subject.networks, sizes, own, np.float64(np.nan))
        fields["status"][quantity] = _stacked(subject.networks, codes, own, np.int8(_CODES["not_called"]))
    fields |= {"calls": [*layout.calls], "feeds": [*layout.feeds], "kinds": [*layout.kinds]}
    for dtypes in {tuple(reading.dtypes.items()): None for reading in readings}:
        fields["dtypes"] = dict(dtypes) | fields["dtypes"]
    for name in {name: None for reading in readings for name in reading.stats}:
        own = of_weights if name.startswith("weight_grad.") else columns
        values = [r.stats.get(name) for r in readings]
        fields["stats"][name] = _stacked(subject.networks, values, own, np.float64(np.nan))
    for name in ("total_grad", "loss"):
        values = [getattr(reading, name) for reading in readings]
        if any(value is not None for value in values):
            unknown = np.full(subject.networks, np.nan)
            fields[name] = np.stack([unknown if value is None else value for value in values])
    fields["time_log10"], fields["time_status"] = _stacked_over_time(readings)
    if any(findings):
        fields["findings"] = findings
    if subject.per_sample:
        fields["samples"] = _samples(subject.networks, readings, columns)
    return fields


def _samples(networks: int, readings: Sequence[ProbeStep], columns: Sequence[int]) -> Array:
    """Return each sample's sizes, shape ``(step, network, column, sample)``, nan beyond the samples of a cell."""
    counts = [log10.shape[1] for reading in readings for log10 in reading.samples.values()]
    stacked = np.full((len(readings), networks, len(columns), max(counts, default=0)), np.nan)
    for step, reading in enumerate(readings):
        for index, column in enumerate(columns):
            if column in reading.samples:
                log10 = reading.samples[column]
                stacked[step, :, index, : log10.shape[1]] = log10
    return stacked


def _stacked(
    networks: int, steps: Sequence[NDArray[Any] | None], columns: Sequence[int], otherwise: Number
) -> NDArray[Number]:
    """Return ``(step, network, column)``."""
    stacked: NDArray[Number] = np.full((len(steps), networks, len(columns)), otherwise)
    own = np.asarray(columns)
    begin = 0
    for width, group in groupby(steps, lambda step: 0 if step is None else step.shape[1]):
        same_width = list(group)
        places = np.flatnonzero((own >= 0) & (own < width))
        taken = own[places]
        for start in range(0, len(same_width) if len(places) else 0, _BLOCK):
            block = same_width[start : start + _BLOCK]
            values = np.stack([step for step in block if step is not None])
            stacked[begin + start : begin + start + len(block), :, places] = values[:, :, taken]
        begin += len(same_width)
    return stacked


def _stacked_over_time(steps: Sequence[ProbeStep]) -> tuple[dict[str, Array], dict[str, NDArray[np.int8]]]:
    """Return ``"quantity/name"`` -> log10 and status of each time step, shape ``(step, network, time)``."""
    cells = [
        (index, f"{quantity}/{name}", inner.log10[quantity], inner.status[quantity])
        for index, step in enumerate(steps)
        for name, inner in step.over_time.items()
        for quantity in inner.log10
    ]
    lengths: dict[str, int] = {}
    for _, key, values, _ in cells:
        lengths[key] = max(lengths.get(key, 0), values.shape[1])
    networks = steps[0].networks if steps else 1
    log10 = {key: np.full((len(steps), networks, length), np.nan) for key, length in lengths.items()}
    status = {key: np.full(values.shape, _CODES["not_called"], np.int8) for key, values in log10.items()}
    for index, key, values, codes in cells:
        log10[key][index, :, : values.shape[1]] = values
        status[key][index, :, : values.shape[1]] = codes
    return log10, status
