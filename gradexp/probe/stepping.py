"""What an optimizer's step was given, and what became of it, where its sizes alone do not tell the cause."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.probe.passes import version
from gradexp.probe.piling import has_gradient
from gradexp.probe.readings import TensorSize

# A step that moves fewer of the numbers than this is mostly rounded away.
_MOST, _NEARLY_ALL, _HARDLY_ANY = 0.5, 0.1, 0.001


class Stepping:
    """What one step of an optimizer was given.

    Args:
        optimizer: About to step.
        weights: The weights that it holds, each with the name of its row.
        piled: Whether ``.grad`` of the weights, by id, held something of an earlier step that is not 0.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[tuple[str, nn.Parameter]],
        piled: Mapping[int, Tensor],
    ) -> None:
        self.names: list[str] = list(dict.fromkeys(name for name, _ in weights))
        self._of_rate = rate_findings(optimizer, self.names)
        gradients = [gradient for _, weight in weights if (gradient := weight.grad) is not None]
        self._left: list[Tensor | None] = []  # of each gradient, whether it is not 0
        # On the host the step's size tells first whether that will be asked; a device would have to be waited for.
        self._gradients = [(x, version(x)) for x in gradients] if all(x.is_cpu for x in gradients) else None
        if self._gradients is None:
            self._left = list(map(has_gradient, gradients))
        trained = len(gradients)
        self._piled = [piled[id(weight)] for _, weight in weights if id(weight) in piled]
        self._is_piled = 0 < trained <= 2 * len(self._piled)
        self._moved: list[tuple[str, Tensor]] = []
        self._dtype = torch.float32

    def see_after(self, changes: Sequence[tuple[str, nn.Parameter, Tensor]], sizes: Iterable[TensorSize]) -> None:
        """Count which numbers of 16 bits the step has changed, of those that have a gradient.

        Args:
            changes: Row, weight, and its change.
            sizes: Of the changes.
        """
        if self._gradients is not None and not any(isinstance(size[0], float) and size[0] for size in sizes):
            is_same = ((x, version(x) == before) for x, before in self._gradients)
            self._left = [has_gradient(x) if same else None for x, same in is_same]
        self._gradients = None
        for name, weight, change in changes:
            if weight.dtype in (torch.bfloat16, torch.float16) and has_gradient(weight.grad) is not None:
                assert weight.grad is not None
                due = weight.grad.detach() != 0
                self._moved.append((name, torch.stack([(due & (change != 0)).sum(), due.sum()])))
                self._dtype = weight.dtype

    def findings(self, is_unmoved: bool) -> list[Finding]:
        """Return what was wrong with the step.

        Args:
            is_unmoved: Whether it left all weights as they were, though the backward pass brought a gradient.
        """
        names = tuple(self.names)
        if is_unmoved and self._of_rate:
            return self._of_rate
        if is_unmoved and not any(left is None or bool(left) for left in self._left):
            text = f"a step does not change the weights of {listed(names)}: their gradients were set to zero between "
            text += "loss.backward() and optimizer.step()"
            remedy = "optimizer.zero_grad() before loss.backward() or after optimizer.step(), not in between"
            return [Finding("updates", text, names, remedy, 3)]
        found = self._rounded_away()
        if self._is_piled and _any(self._piled):
            text = f"the gradients of {listed(names)} are not set to zero between steps: each "
            text += "step uses those of earlier steps too"
            found.append(Finding("gradients pile up", text, names, "optimizer.zero_grad() after optimizer.step()", 2))
        return found

    def _rounded_away(self) -> list[Finding]:
        if not self._moved:
            return []
        counts = torch.stack([count.cpu() for _, count in self._moved]).double().numpy()
        share = counts[:, 0] / np.maximum(counts[:, 1], 1)
        rows = np.flatnonzero((counts[:, 1] > 0) & (share < _MOST))
        total = counts[:, 0].sum() / max(counts[:, 1].sum(), 1)
        if not rows.size or not 0 < total < _MOST:  # a step that moves nothing is told by its size
            return []
        names = tuple(dict.fromkeys(self._moved[row][0] for row in rows.tolist()))
        dtype = str(self._dtype).removeprefix("torch.")
        text = f"most of each step is rounded away in {dtype}: it changes {_range(share[rows])} of the numbers of "
        text += f"{listed(names)} that have a gradient"
        remedy = f"weights in float32, and {dtype} by torch.autocast only"
        return [Finding("updates", text, names, remedy, 2 if total < _NEARLY_ALL else 1)]


def rate_findings(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> list[Finding]:
    """Return why an optimizer's step leaves some rows as they were, if it is the learning rate."""
    if not all(_is_zero(group.get("lr")) for group in optimizer.param_groups):
        return []
    text = (
        f"a step does not change the weights of {listed(names)}: the learning rate of {type(optimizer).__name__} is 0"
    )
    return [Finding("updates", text, tuple(names), "a learning rate above 0; in a warm-up, wait for its end", 3)]


def _range(share: NDArray[np.float64]) -> str:
    least, most = float(share.min()), float(share.max())
    if most < _HARDLY_ANY:
        return f"fewer than {_HARDLY_ANY:.1%}"
    low, high = f"{least:.1%}", f"{most:.1%}"
    return f"only {high}" if low == high else f"only {low} to {high}"


def _is_zero(rate: object) -> bool:
    if isinstance(rate, Tensor):
        return rate.is_cpu and rate.numel() == 1 and float(rate) == 0
    return isinstance(rate, (int, float)) and rate == 0


def _any(flags: Sequence[Tensor]) -> bool:
    return any(bool(flag) for flag in flags)
