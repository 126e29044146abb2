"""The change of each weight by the optimizer's last step."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradexp.numerics.norms import has_values
from gradexp.probe.hooks import Hooks
from gradexp.probe.readings import PendingStep, TensorSize, tensor_size
from gradexp.probe.trace import Trace
from gradexp.probe.weights import Weights


class Updates:
    """What each step of an optimizer changes, seen from hooks before and after it.

    Args:
        optimizer: The optimizer, whose next step after ``expect`` is watched.
        weights: The weights whose changes are measured.
        networks: Number of independent networks along the first dimension.
        recorder: The hooks that know which backward passes come before a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Weights, networks: int, recorder: Hooks) -> None:
        self._due = False
        self._in_step = False
        self._recorder = recorder
        self._trace_at_step: Trace | None = None
        self._backwards_at_step = 0
        self.measured: list[tuple[str, TensorSize]] = []
        self._weights = weights
        self._networks = networks
        self._before: dict[str, list[Tensor]] = {}
        self._handles = [
            optimizer.register_step_pre_hook(_weakly(self, Updates._see_before)),
            optimizer.register_step_post_hook(_weakly(self, Updates._see_after)),
        ]

    def expect(self) -> None:
        """Watch the next step, or the one that is being made if it runs the backward pass itself, as LBFGS does."""
        self._due = True
        if self._in_step and not self._before:
            self._see_before()

    def is_late(self, trace: Trace) -> bool:
        """Return whether the optimizer has used up the gradients that a collect is to record."""
        return trace is self._trace_at_step and 0 < len(trace.passes) == self._backwards_at_step

    def remove(self) -> None:
        """Remove the hooks."""
        self._due = False
        self._before = {}
        for handle in self._handles:
            handle.remove()

    def add(self, pending: PendingStep, row_of: Callable[[str], int]) -> None:
        """Add the changes that were measured since the last time."""
        for name, size in self.measured:
            pending.add("update", row_of(name), size)
        self.measured = []

    def _see_before(self) -> None:
        self._in_step = True
        if self._due:
            self._before = {
                name: [weight.detach().clone() for weight in weights if has_values(weight)]
                for name, weights in self._weights.items()
            }

    def _see_after(self) -> None:
        self._in_step = False
        self._trace_at_step = self._recorder.trace
        self._backwards_at_step = len(self._trace_at_step.passes) if self._trace_at_step else 0
        if self._due:
            self._due = False
            for name, weights in self._weights.items():
                old = self._before.get(name, [])
                for weight, before in zip([w for w in weights if has_values(w)], old, strict=True):
                    change = _wide(weight.detach()) - before
                    self.measured.append((name, tensor_size(change, self._networks)))
            self._before = {}


def _weakly(owner: Updates, method: Callable[[Updates], None]) -> Callable[..., None]:
    """Return a hook that does not keep its owner alive."""
    reference = weakref.ref(owner)

    def hook(*_: Any) -> None:
        updates = reference()
        if updates is not None:
            method(updates)

    return hook


def _wide(weight: Tensor) -> Tensor:
    # The difference of two 16-bit numbers needs more than 16 bits.
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
