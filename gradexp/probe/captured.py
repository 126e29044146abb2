"""Recording a training step that was captured as a CUDA graph: the norms are kernels of the graph itself.

A replayed graph runs no Python, so that no hook can see it. Here the hooks run once, while it is captured: the norms
that they take become part of the graph, which writes them into one buffer at every replay. To read a step is to copy
that buffer.
"""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradexp.history.history import History
from gradexp.history.probe_steps import ProbeStep
from gradexp.history.step import QUANTITIES, STATUSES
from gradexp.numerics.norms import has_values, scaled_norm, scaled_norms
from gradexp.probe.readings import PendingStep

_QUANTITIES = QUANTITIES[:3]


class CapturedProbe:
    """Norms of outputs, output gradients and weight gradients of a captured step, for each module with a weight.

    Args:
        model: The model, whose hooks are there inside the ``with`` block only.

    Examples:
        >>> model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)), torch.ones(8, 4)
        >>> def step():
        ...     model.zero_grad(set_to_none=False)
        ...     model(x).square().mean().backward()
        ...     probe.measure()
        >>> with CapturedProbe(model) as probe:  # on a GPU: with torch.cuda.graph(graph): step()
        ...     step()
        >>> probe.collect(0)  # on a GPU: after each graph.replay()
        >>> probe.history.names, probe.history.log10["output_grad"].shape
        (['0', '2'], (1, 1, 2))
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules()).items()
        self._layers = {
            name: module for name, module in modules if isinstance(getattr(module, "weight", None), nn.Parameter)
        }
        self._rows = {name: row for row, name in enumerate(self._layers)}
        self._handles: list[RemovableHandle] = []
        # (quantity, row, elements, format) of each norm, and the norm as m and e, of the pass that goes on.
        self._cells: list[tuple[str, int, int, torch.dtype]] = []
        self._sizes: list[tuple[float | Tensor, float | Tensor]] = []
        self._measured: list[tuple[str, int, int, torch.dtype]] = []
        self._buffer: Tensor | None = None
        self._steps: list[int] = []
        self._readings: list[ProbeStep] = []

    def __enter__(self) -> Self:
        """Put the hooks in place: inside this block the step is captured."""
        for name, module in self._layers.items():
            self._handles.append(module.register_forward_hook(partial(self._see_output, self._rows[name])))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks away; what was captured stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def measure(self) -> None:
        """Take the norms of the weights' gradients, and lay all norms of this pass side by side.

        To be called at the end of the step, after backward, inside the capture. Nothing waits for the device.
        """
        weights = [(row, self._layers[name].weight.grad) for name, row in self._rows.items()]
        seen = [(row, grad) for row, grad in weights if isinstance(grad, Tensor) and has_values(grad)]
        for (row, grad), size in zip(seen, scaled_norms([grad for _, grad in seen]), strict=True):
            self._add("weight_grad", row, grad, size)
        self._measured, sizes = self._cells, self._sizes
        self._cells, self._sizes = [], []
        if not sizes:
            self._buffer = None
            return
        device = next((value.device for size in sizes for value in size if isinstance(value, Tensor)), None)
        values = [value for size in sizes for value in size]
        self._buffer = torch.cat([_one(value, device) for value in values])

    def collect(self, step: int) -> None:
        """Keep what the step that was replayed last has measured, with one copy from the device.

        Args:
            step: Its label.

        Raises:
            RuntimeError: If no step was captured.
        """
        if self._buffer is None:
            raise RuntimeError("no step was captured: call probe.measure() after backward, inside the capture")
        values = self._buffer.cpu().reshape(-1, 2).tolist()
        pending = PendingStep(networks=1)
        for (quantity, row, elements, dtype), (norm, exponent) in zip(self._measured, values, strict=True):
            pending.add(quantity, row, (norm, exponent, elements, dtype))
        self._steps.append(step)
        self._readings.append(pending.read(len(self._rows)))

    @property
    def history(self) -> History:
        """All steps that were collected."""
        absent = STATUSES.index("not_called")
        log10 = {quantity: self._stacked("log10", quantity, np.nan) for quantity in _QUANTITIES}
        status = {quantity: self._stacked("status", quantity, absent).astype(np.int8) for quantity in _QUANTITIES}
        return History("train", list(self._rows), list(self._steps), [0], log10, status)

    def _stacked(self, field: str, quantity: str, absent: float) -> Any:
        missing = np.full((1, len(self._rows)), absent)
        arrays: Sequence[Any] = [getattr(reading, field).get(quantity, missing) for reading in self._readings]
        return np.stack(arrays) if arrays else np.empty((0, *missing.shape))

    def _see_output(self, row: int, _module: nn.Module, _args: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or not has_values(output):
            return
        self._see("output", row, output)
        if output.requires_grad:
            output.register_hook(partial(self._see, "output_grad", row))

    def _see(self, quantity: str, row: int, tensor: Tensor) -> None:
        self._add(quantity, row, tensor, scaled_norm(tensor.detach()))

    def _add(self, quantity: str, row: int, tensor: Tensor, size: tuple[float | Tensor, float | Tensor]) -> None:
        self._cells.append((quantity, row, tensor.numel(), tensor.dtype))
        self._sizes.append(size)


def _one(value: float | Tensor, device: torch.device | None) -> Tensor:
    """Return a number as a tensor of one element; one from the host is written by a kernel, which can be captured."""
    if isinstance(value, Tensor):
        return value.reshape(1).double()
    return torch.full((1,), value, dtype=torch.float64, device=device)
