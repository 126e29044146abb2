"""The change of each weight by the last step of the optimizer that holds it."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.history.finding import Finding
from gradexp.history.step import Status
from gradexp.numerics.norms import has_values
from gradexp.numerics.torch_internals import foreach_subtract_
from gradexp.probe.hooks import Hooks
from gradexp.probe.optimizers import held_by
from gradexp.probe.passes import version
from gradexp.probe.piling import Piled
from gradexp.probe.readings import PendingStep, TensorSize, measure_all
from gradexp.probe.stepping import Stepping
from gradexp.probe.trace import Trace
from gradexp.probe.weights import Weights


class Updates:
    """What the steps of some optimizers change, seen from hooks before and after them.

    Args:
        optimizers: The next step of each after ``expect`` is watched.
        weights: Whose changes are wanted.
        networks: Independent networks along the first dimension.
        recorder: Tells which backward passes come before a step.
        when_known: A method that is called when each optimizer has made its step after ``expect``. It is held weakly.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        weights: Weights,
        networks: int,
        recorder: Hooks,
        when_known: Callable[[], None],
    ) -> None:
        self.measured: list[tuple[str, TensorSize]] = []
        self.missing: list[tuple[str, Status]] = []  # rows without a number, and the status of each
        self.steppings: list[Stepping] = []
        self._optimizers = optimizers
        self._weights = weights
        self._when_known = weakref.WeakMethod(when_known)
        self._steps = [_StepsOfOne(optimizer, self, weights, networks, recorder) for optimizer in optimizers]

    @property
    def is_empty(self) -> bool:
        """Whether no step was seen since ``add``."""
        return not self.measured and not self.missing

    def expect(self, piled: Mapping[int, Piled]) -> None:
        """Watch each optimizer's next step, or the one it is making if that runs the backward pass, as LBFGS does.

        Args:
            piled: Parameters whose ``.grad`` holds something of an earlier step, as in ``Passes.piled``.
        """
        for steps in self._steps:
            steps.expect(piled)

    def see_step(self) -> None:
        """Tell that the updates are known, if no optimizer is still to step."""
        when_known = self._when_known()
        if when_known is not None and not any(steps.is_due for steps in self._steps):
            when_known()

    def is_late(self, trace: Trace) -> bool:
        """Return whether an optimizer has used up the gradients that a collect is to record."""
        return any(steps.is_late(trace) for steps in self._steps)

    def remove(self) -> None:
        """Remove the hooks."""
        for steps in self._steps:
            steps.remove()

    def add(self, pending: PendingStep, row_of: Callable[[str], int]) -> None:
        """Add what was measured since the last time."""
        for name, part in self.measured:
            pending.add("update", row_of(name), part)
        for name, status in self.missing:
            pending.mark("update", row_of(name), status)
        self.measured, self.missing = [], []

    def findings(self, is_unmoved: Callable[[Sequence[str]], bool]) -> list[Finding]:
        """Return what was wrong with the steps that ``add`` has added.

        Args:
            is_unmoved: Whether the weights of some rows have a gradient, and are as they were before the step.
        """
        steppings, self.steppings = self.steppings, []
        return [f for stepping in steppings for f in stepping.findings(is_unmoved(stepping.names))]

    def see_missing(self, weights: Mapping[str, list[nn.Parameter]]) -> None:
        """Note the rows whose weights no optimizer holds, and those with a weight that several hold."""
        holders = Counter(key for optimizer in self._optimizers for key in held_by(optimizer))
        for name, group in weights.items():
            counts = [holders[id(weight)] for weight in group]
            if counts and max(counts) == 0:
                is_trained = any(weight.requires_grad for weight in group)
                self.missing.append((name, "not_optimized" if is_trained else "frozen"))
            elif counts and max(counts) > 1:  # the change by one of them alone would not be the weight's
                self.missing.append((name, "hook_missed"))


class _StepsOfOne:
    """The steps of one optimizer.

    Args:
        optimizer: Held by its hooks.
        updates: Takes what is measured.
        weights: Whose changes are wanted, where the optimizer holds them.
        networks: Independent networks along the first dimension.
        recorder: Tells which backward passes come before a step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, updates: Updates, weights: Weights, networks: int, recorder: Hooks
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._updates = weakref.ref(updates)
        self._weights = weights
        self._networks = networks
        self._recorder = recorder
        self.is_due = False
        self._in_step = False
        self._trace_at_step: Trace | None = None
        self._backwards_at_step = 0
        self._rows: dict[str, list[nn.Parameter]] = {}
        self._before: list[tuple[str, nn.Parameter, Tensor]] = []
        self._piled: Mapping[int, Piled] = {}
        self._stepping: Stepping | None = None
        self._handles = [
            optimizer.register_step_pre_hook(_weakly(self, _StepsOfOne._see_before)),
            optimizer.register_step_post_hook(_weakly(self, _StepsOfOne._see_after)),
        ]

    def expect(self, piled: Mapping[int, Piled]) -> None:
        self.is_due = True
        self._piled = piled
        if self._in_step and not self._rows:
            self._see_before()

    def is_late(self, trace: Trace) -> bool:
        return trace is self._trace_at_step and 0 < len(trace.passes) == self._backwards_at_step

    def remove(self) -> None:
        self.is_due = False
        self._forget()
        for handle in self._handles:
            handle.remove()

    def _see_before(self) -> None:
        self._in_step = True
        optimizer = self._optimizer()
        if self.is_due and optimizer is not None:
            held = held_by(optimizer)
            self._rows = dict(self._weights.items())
            self._before = [
                (name, weight, _wide(weight.detach()).clone())
                for name, weights in self._rows.items()
                for weight in weights
                if id(weight) in held and has_values(weight)
            ]
            weights = [(name, weight) for name, weight, _ in self._before]
            self._stepping = Stepping(optimizer, weights, self._still_piled([weight for _, weight in weights]))

    def _still_piled(self, weights: Sequence[nn.Parameter]) -> dict[int, Tensor]:
        """Return which weights' gradients were not set to zero and filled anew since the collect."""
        trace = self._recorder.trace
        is_quiet = trace is not None and len(trace.passes) == 0
        with torch.no_grad():
            return {
                id(weight): self._piled[id(weight)].is_still(weight.grad, version(weight.grad), is_quiet)
                for weight in weights
                if id(weight) in self._piled and weight.grad is not None
            }

    def _see_after(self) -> None:
        self._in_step = False
        self._trace_at_step = self._recorder.trace
        optimizer = self._optimizer()
        if self._trace_at_step is not None and optimizer is not None:
            self._trace_at_step.passes.see_step(held_by(optimizer))
        self._backwards_at_step = len(self._trace_at_step.passes) if self._trace_at_step else 0
        updates = self._updates()
        if self.is_due and updates is not None:
            self.is_due = False
            names = [name for name, _, _ in self._before]
            changes = [before for _, _, before in self._before]  # with the sign turned, which no norm sees
            with torch.no_grad():
                foreach_subtract_(changes, [weight.detach() for _, weight, _ in self._before])
            sizes = measure_all(changes, self._networks)
            updates.measured += zip(names, sizes, strict=True)
            if self._stepping is not None:
                changed = zip(self._before, changes, strict=True)
                self._stepping.see_after([(name, weight, change) for (name, weight, _), change in changed], sizes)
                updates.steppings.append(self._stepping)
            updates.see_missing(self._rows)
            self._forget()
            updates.see_step()

    def _forget(self) -> None:
        self._rows = {}
        self._before = []
        self._piled = {}
        self._stepping = None


def _weakly(owner: _StepsOfOne, method: Callable[[_StepsOfOne], None]) -> Callable[..., None]:
    """Return a hook that does not keep its owner alive."""
    reference = weakref.ref(owner)

    def hook(*_: Any) -> None:
        alive = reference()
        if alive is not None:
            method(alive)

    return hook


def _wide(weight: Tensor) -> Tensor:
    # The difference of two 16-bit numbers needs more than 16 bits.
    return weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
