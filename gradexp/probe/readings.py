"""From sizes of tensors, which may still be on a device, to one number and one status per layer on the host."""

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradexp.history.probe_steps import ProbeStep
from gradexp.history.step import STATUSES, Array, Status
from gradexp.numerics.norms import LOG10_2, ScaledNorm, scaled_norm, scaled_norms

TensorSize = tuple[float | Tensor, float | Tensor, int, torch.dtype]
"""One measured tensor: its norm as m and e (see ``scaled_norm``), its elements per network, and its format."""

Value = float | Tensor

_COUNT, _FORMAT = itemgetter(2), itemgetter(3)
_CODES = {name: code for code, name in enumerate(STATUSES)}
_NEPER = 2 * np.log(10)  # times log10 of a norm: natural log of its square


def tensor_size(tensor: Tensor, networks: int) -> TensorSize:
    """Return the size of a tensor, in each network."""
    return *scaled_norm(tensor, networks), tensor.numel() // networks, tensor.dtype


def measure_all(tensors: Sequence[Tensor], networks: int) -> list[TensorSize]:
    """Return the size of each tensor, faster than one after the other."""
    sizes = scaled_norms(tensors, networks)
    return [(norm, e, x.numel() // networks, x.dtype) for x, (norm, e) in zip(tensors, sizes, strict=True)]


class PendingStep:
    """Measured tensors by quantity and row, on their way to the host. Those of one cell count as one tensor."""

    def __init__(self, networks: int) -> None:
        self._networks = networks
        # Rows of each quantity, and their tensors: one pass over all cells is much faster than one for each.
        self._cells: dict[str, tuple[list[int], list[TensorSize]]] = {}
        self._absent: list[tuple[str, int, Status]] = []
        self._stats: dict[str, list[tuple[int, Value]]] = {}
        self._samples: list[tuple[int, ScaledNorm]] = []
        self._scale: tuple[Sequence[str], Value] | None = None
        self._over_time: dict[str, PendingStep] = {}
        self.loss: Value | None = None

    def add(self, quantity: str, row: int, size: TensorSize) -> None:
        """Add a tensor to a cell. One without elements, such as the gradient of no sample, is left out."""
        self.add_all(quantity, (row,), (size,))

    def add_all(self, quantity: str, rows: Sequence[int], sizes: Sequence[TensorSize]) -> None:
        """Add a tensor to each of some cells."""
        if not all(map(_COUNT, sizes)):
            rows = [row for row, size in zip(rows, sizes, strict=True) if size[2]]
            sizes = [size for size in sizes if size[2]]
        if sizes:
            own_rows, own_sizes = self._cells.setdefault(quantity, ([], []))
            own_rows += rows
            own_sizes += sizes

    def add_rows(self, quantity: str, sizes: Sequence[TensorSize]) -> None:
        """Add a tensor to each of the first rows."""
        self.add_all(quantity, range(len(sizes)), sizes)

    def mark(self, quantity: str, row: int, status: Status) -> None:
        """Set the status of a cell without a number."""
        self._absent.append((quantity, row, status))

    def add_statistic(self, name: str, row: int, value: Value) -> None:
        """Add a statistic of one tensor of a cell."""
        self._stats.setdefault(name, []).append((row, value))

    def add_samples(self, row: int, sizes: ScaledNorm) -> None:
        """Add the norms of some samples of a row."""
        self._samples.append((row, sizes))

    def over_time(self, name: str) -> "PendingStep":
        """Return the step in which the rows are the time steps of a recurrent layer."""
        return self._over_time.setdefault(name, PendingStep(self._networks))

    def divide(self, quantities: Sequence[str], scale: Value) -> None:
        """Divide some quantities by a factor that multiplied the loss. Their status stays that of the tensors."""
        self._scale = (quantities, scale)
        for steps in self._over_time.values():
            steps.divide(quantities, scale)

    def read(self, rows: int) -> ProbeStep:
        """Copy everything to the host, in one transfer from each device, and judge each cell."""
        measured = [size for _, sizes in self._cells.values() for size in sizes]
        norms, exponents, counts, dtypes = (list(map(itemgetter(part), measured)) for part in range(4))
        values = [*norms, *exponents]
        values += [value for pairs in self._stats.values() for _, value in pairs]
        values += [value for _, sizes in self._samples for value in sizes]
        values += [self._scale[1]] if self._scale else []
        values += [] if self.loss is None else [self.loss]
        on_host = _HostValues(values)
        log10 = _log10(*(on_host.table(len(measured), self._networks) for _ in range(2)))
        reading = ProbeStep(rows, self._networks)
        self._judge(reading, log10, np.array(counts), dtypes)
        for name, pairs in self._stats.items():
            by_row: dict[int, list[Array]] = {}
            for (row, _), value in zip(pairs, on_host.table(len(pairs), self._networks), strict=True):
                by_row.setdefault(row, []).append(value)
            reading.stats[name] = np.full((self._networks, rows), np.nan)
            for row, values_of_row in by_row.items():
                reading.stats[name][:, row] = np.mean(values_of_row, axis=0)
        for row, _ in self._samples:
            samples = _log10(on_host.next(), on_host.next()).reshape(self._networks, -1)
            reading.samples[row] = np.hstack([reading.samples[row], samples]) if row in reading.samples else samples
        for quantity, row, status in self._absent:
            reading.open(quantity)
            reading.log10[quantity][:, row] = np.nan
            reading.status[quantity][:, row] = _CODES[status]
        if self._scale:
            self._undo_scale(reading, float(on_host.next()[0]))
        if self.loss is not None:
            reading.loss = np.broadcast_to(on_host.next(), (self._networks,)).astype(float)
        reading.take_out_total()
        for name, steps in self._over_time.items():
            reading.over_time[name] = steps.read(1 + max(max(own) for own, _ in steps._cells.values()))
        return reading

    def _judge(
        self, reading: ProbeStep, log10: Array, counts: NDArray[np.int64], dtypes: Sequence[torch.dtype]
    ) -> None:
        """Join the tensors of each cell, turn outputs into rms, and fill in numbers and statuses."""
        first_cell = {quantity: index * reading.rows for index, quantity in enumerate(self._cells)}
        in_place = [np.array(own) + first_cell[quantity] for quantity, (own, _) in self._cells.items()]
        cells = np.concatenate(in_place) if in_place else np.zeros(0, int)
        tiny = {dtype: math.log10(torch.finfo(dtype).smallest_normal) for dtype in set(dtypes)}
        smallest = np.array([*map(tiny.__getitem__, dtypes)])
        if len(cells) and np.bincount(cells).max() > 1:
            order = np.argsort(cells, kind="stable")
            cells, first = np.unique(cells[order], return_index=True)
            with np.errstate(invalid="ignore"):  # nan with a number is nan
                log10 = np.logaddexp.reduceat(log10[order] * _NEPER, first) / _NEPER
            counts, smallest = np.add.reduceat(counts[order], first), np.maximum.reduceat(smallest[order], first)
        rms = log10 - 0.5 * np.log10(np.maximum(counts, 1))[:, None]
        # An element below the smallest normal number has lost digits; the rms stands for the elements.
        codes = np.where(rms < smallest[:, None], _CODES["subnormal"], _CODES["ok"])
        codes[log10 == -np.inf] = _CODES["zero"]
        codes[np.isnan(log10) | (log10 == np.inf)] = _CODES["nonfinite"]
        size = np.where(np.isfinite(log10), log10, np.nan)
        # Those of one quantity stand side by side.
        bounds = np.searchsorted(cells // reading.rows, np.arange(len(first_cell) + 1))
        for (quantity, start), part in zip(first_cell.items(), map(slice, bounds, bounds[1:]), strict=True):
            reading.open(quantity)
            rows = cells[part] - start
            values = size[part] if quantity != "output" else np.where(np.isfinite(size[part]), rms[part], np.nan)
            reading.log10[quantity][:, rows] = values.T
            reading.status[quantity][:, rows] = codes[part].T
        for quantity in sorted(self._cells):
            formats = {str(dtype).removeprefix("torch.") for dtype in set(map(_FORMAT, self._cells[quantity][1]))}
            reading.dtypes[quantity] = "/".join(sorted(formats))

    def _undo_scale(self, reading: ProbeStep, scale: float) -> None:
        assert self._scale is not None
        for quantity in self._scale[0]:
            if quantity in reading.log10:
                reading.log10[quantity] -= np.log10(scale)
        if "output_grad" in self._scale[0]:
            reading.samples = {row: log10 - np.log10(scale) for row, log10 in reading.samples.items()}


class _HostValues:
    """Values on the host, after one copy from each device, taken in the order in which they were given."""

    def __init__(self, values: Sequence[Value]) -> None:
        by_device: dict[torch.device, list[int]] = {}
        if set(map(type, values)) - {float}:
            for index, value in enumerate(values):
                if isinstance(value, Tensor):
                    by_device.setdefault(value.device, []).append(index)
        self._values: list[Any] = list(values)
        self._taken = 0
        for device, indices in by_device.items():
            dtype = torch.float32 if device.type == "mps" else torch.float64
            tensors = [self._values[index].reshape(-1).to(dtype) for index in indices]
            flat = torch.cat(tensors).cpu().numpy().astype(float)
            ends = np.cumsum([len(tensor) for tensor in tensors])[:-1]
            for index, array in zip(indices, np.split(flat, ends), strict=True):
                self._values[index] = array if array.size > 1 else array.item()

    def next(self) -> Array:
        """Return the next value."""
        self._taken += 1
        return np.atleast_1d(self._values[self._taken - 1])

    def table(self, count: int, networks: int) -> Array:
        """Return the next values, shape ``(count, networks)``; a single number is that of all networks."""
        values = self._values[self._taken : self._taken + count]
        self._taken += count
        if networks == 1:
            return np.array(values, dtype=float).reshape(-1, 1)
        return np.stack([np.broadcast_to(value, (networks,)) for value in values])


def _log10(norms: Array, exponents: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        log10: Array = np.log10(norms) + exponents * LOG10_2
    return log10


def loss_value(loss: Tensor | float, networks: int) -> Value:
    """Return a loss as one value, or one for each network, still on its device.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is a tensor of another shape.
    """
    if isinstance(loss, Tensor):
        if loss.numel() not in (1, networks):
            raise ValueError(f"loss must be one number, got a tensor of shape {tuple(loss.shape)}")
        return loss.detach().reshape(-1).double()
    if isinstance(loss, bool) or not isinstance(loss, (int, float, np.number)):
        raise TypeError(f"loss must be a number or a tensor, got {loss!r}")
    return float(loss)
