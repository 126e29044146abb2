"""From sizes of tensors, which may still be on a device, to one number and one status per layer on the host."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradexp.history.step import STATUSES, Array
from gradexp.numerics.norms import LOG10_2, ScaledNorm, scaled_norm, scaled_norms

TensorSize = tuple[float | Tensor, float | Tensor, int, torch.dtype]
"""One measured tensor: its norm as m and e (see ``scaled_norm``), its elements per network, and its format."""

Value = float | Tensor

_CODES = {name: code for code, name in enumerate(STATUSES)}
_NEPER = 2 * np.log(10)  # times log10 of a norm: natural log of its square


def tensor_size(tensor: Tensor, networks: int) -> TensorSize:
    """Return the size of a tensor, in each network."""
    return *scaled_norm(tensor, networks), tensor.numel() // networks, tensor.dtype


def measure_all(tensors: Sequence[Tensor], networks: int) -> list[TensorSize]:
    """Return the size of each tensor, faster than one after the other."""
    sizes = scaled_norms(tensors, networks)
    return [(*size, x.numel() // networks, x.dtype) for x, size in zip(tensors, sizes, strict=True)]


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
    """

    rows: int
    networks: int
    log10: dict[str, Array] = field(default_factory=dict)
    status: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    stats: dict[str, Array] = field(default_factory=dict)
    samples: dict[int, Array] = field(default_factory=dict)

    def open(self, quantity: str) -> None:
        """Add a quantity whose cells are all ``not_called`` yet."""
        if quantity not in self.log10:
            self.log10[quantity] = np.full((self.networks, self.rows), np.nan)
            self.status[quantity] = np.full((self.networks, self.rows), _CODES["not_called"], np.int8)


class PendingStep:
    """Measured tensors by quantity and row, on their way to the host. Those of one cell count as one tensor."""

    def __init__(self, networks: int) -> None:
        self._networks = networks
        # As three lists, whose order is the same: one pass over all cells is much faster than one for each.
        self._quantities: list[str] = []
        self._rows: list[int] = []
        self._sizes: list[TensorSize] = []
        self._absent: list[tuple[str, int, str]] = []
        self._stats: dict[str, list[tuple[int, Value]]] = {}
        self._samples: list[tuple[int, ScaledNorm]] = []
        self._scale: tuple[Sequence[str], Value] | None = None

    def add(self, quantity: str, row: int, size: TensorSize) -> None:
        """Add a tensor to a cell. One without elements, such as the gradient of no sample, is left out."""
        if not size[2]:
            return
        self._quantities.append(quantity)
        self._rows.append(row)
        self._sizes.append(size)

    def mark(self, quantity: str, row: int, status: str) -> None:
        """Set the status of a cell without a number."""
        self._absent.append((quantity, row, status))

    def add_statistic(self, name: str, row: int, value: Value) -> None:
        """Add a statistic of one tensor of a cell."""
        self._stats.setdefault(name, []).append((row, value))

    def add_samples(self, row: int, sizes: ScaledNorm) -> None:
        """Add the norms of some samples of a row."""
        self._samples.append((row, sizes))

    def divide(self, quantities: Sequence[str], scale: Value) -> None:
        """Divide some quantities by a factor that multiplied the loss. Their status stays that of the tensors."""
        self._scale = (quantities, scale)

    def read(self, rows: int) -> ProbeStep:
        """Copy everything to the host, in one transfer from each device, and judge each cell."""
        norms, exponents, counts, dtypes = zip(*self._sizes, strict=True) if self._sizes else ((), (), (), ())
        values = [*norms, *exponents]
        values += [value for pairs in self._stats.values() for _, value in pairs]
        values += [value for _, sizes in self._samples for value in sizes]
        values += [self._scale[1]] if self._scale else []
        on_host = _HostValues(values)
        log10 = _log10(*(on_host.table(len(self._sizes), self._networks) for _ in range(2)))
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
        return reading

    def _judge(
        self, reading: ProbeStep, log10: Array, counts: NDArray[np.int64], dtypes: Sequence[torch.dtype]
    ) -> None:
        """Join the tensors of each cell, turn outputs into rms, and fill in numbers and statuses."""
        first_cell = {
            quantity: index * reading.rows for index, quantity in enumerate(dict.fromkeys(self._quantities))
        }
        cells = np.array([*map(first_cell.__getitem__, self._quantities)], int) + np.array(self._rows, int)
        formats = set(zip(self._quantities, dtypes, strict=True))
        tiny = {dtype: math.log10(torch.finfo(dtype).smallest_normal) for _, dtype in formats}
        smallest = np.array([*map(tiny.__getitem__, dtypes)])
        if len(cells) and np.bincount(cells).max() > 1:
            order = np.argsort(cells, kind="stable")
            cells, first = np.unique(cells[order], return_index=True)
            log10 = np.logaddexp.reduceat(log10[order] * _NEPER, first) / _NEPER
            counts, smallest = np.add.reduceat(counts[order], first), np.maximum.reduceat(smallest[order], first)
        rms = log10 - 0.5 * np.log10(np.maximum(counts, 1))[:, None]
        # An element below the smallest normal number has lost digits; the rms stands for the elements.
        codes = np.where(rms < smallest[:, None], _CODES["subnormal"], _CODES["ok"])
        codes[log10 == -np.inf] = _CODES["zero"]
        codes[np.isnan(log10) | (log10 == np.inf)] = _CODES["nonfinite"]
        size = np.where(np.isfinite(log10), log10, np.nan)
        for quantity, start in first_cell.items():
            reading.open(quantity)
            chosen = (cells >= start) & (cells < start + reading.rows)
            values = (
                size[chosen] if quantity != "output" else np.where(np.isfinite(size[chosen]), rms[chosen], np.nan)
            )
            reading.log10[quantity][:, cells[chosen] - start] = values.T
            reading.status[quantity][:, cells[chosen] - start] = codes[chosen].T
        for quantity, name in sorted((quantity, str(dtype).removeprefix("torch.")) for quantity, dtype in formats):
            reading.dtypes[quantity] = "/".join(filter(None, (reading.dtypes.get(quantity), name)))

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
