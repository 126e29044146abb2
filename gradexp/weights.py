"""What the watched modules' own weights tell: their gradients at the collect, and what the optimizer does to them."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradexp.cells import Part, Sheet, measure, measure_all
from gradexp.hooks import Recorder
from gradexp.norms import has_values
from gradexp.window import Plan, Window, statistics

_ByName = Mapping[str, list[nn.Parameter]]


class Weights:
    """The parameters of two or more dimensions that modules directly own, as one weight per module.

    Args:
        modules: By name, held weakly.
        plan: The number of networks, and further statistics of gradients.
    """

    def __init__(self, modules: Mapping[str, nn.Module], plan: Plan) -> None:
        self._modules = [
            (name, weakref.ref(module), least_dimensions(module), hasattr(module, "has_uninitialized_params"))
            for name, module in modules.items()
        ]
        self._plan = plan
        self._passing: dict[int, list[Part]] = {}  # id of a weight -> its gradient in each backward pass
        self._handles: list[Any] = []
        self._used_up = True  # some weights may need to be watched

    def items(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Yield the name and the weights, as they are now, of each module that is still there."""
        for name, reference, least, was_lazy in self._modules:
            module = reference()
            if module is None:
                continue
            own = [p for p in module._parameters.values() if p is not None and not (was_lazy and is_lazy(p))]
            yield name, [parameter for parameter in own if parameter.dim() >= least]

    def watch(self) -> None:
        """See the gradients of weights that an optimizer inside the backward pass uses up before the collect."""
        if not self._used_up:
            return
        self._used_up = False
        for _, weights in self.items():
            for weight in weights:
                if weight.requires_grad and weight._post_accumulate_grad_hooks and id(weight) not in self._passing:
                    self._used_up = True
                    parts = self._passing[id(weight)] = []
                    self._handles.append(weight.register_hook(_WeightHook(parts, self._plan.networks)))

    def unwatch(self) -> None:
        """Remove the hooks and forget what they saw."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passing.clear()

    def have_passed(self) -> bool:
        """Say whether a watched weight has received a gradient."""
        return any(self._passing.values())

    def add_gradients(self, sheet: Sheet, weights: _ByName, rows: Mapping[str, int]) -> None:
        """Add what ``.grad`` of each module's weights holds, or has held, or why there is nothing."""
        there: list[tuple[int, Tensor]] = []
        for name, own in weights.items():
            row = rows[name]
            gradients = [g for weight in own if weight.requires_grad and (g := weight.grad) is not None]
            if len(gradients) < max(1, len(own)):  # a module without weights has nothing to train
                self._mark_missing(sheet, row, [weight for weight in own if weight.requires_grad], bool(gradients))
            for gradient in gradients:
                if has_values(gradient):
                    there.append((row, gradient))
                else:
                    sheet.mark("weight_grad", row, "hook_missed")
        for (row, gradient), part in zip(there, measure_all([g for _, g in there], self._plan.networks), strict=True):
            sheet.add("weight_grad", row, part)
            if self._plan.stats:
                for name, value in statistics("weight_grad", gradient, self._plan):
                    sheet.add_statistic(name, row, value)

    def _mark_missing(self, sheet: Sheet, row: int, trained: list[nn.Parameter], some: bool) -> None:
        """Say why some weights of a module have no gradient, or add the one that an optimizer has used up."""
        if not trained:
            sheet.mark("weight_grad", row, "frozen")
            return
        for weight in trained:
            if weight.grad is None and weight._post_accumulate_grad_hooks:
                self._used_up = True
                parts = self._passing.get(id(weight))
                some |= parts != []
                if parts is None or len(parts) > 1:
                    # After unseen or several backward passes there is no one gradient to speak of.
                    sheet.mark("weight_grad", row, "hook_missed")
                else:
                    for part in parts:
                        sheet.add("weight_grad", row, part)
        if not some:
            sheet.mark("weight_grad", row, "unused")

    def add_norms(self, sheet: Sheet, weights: _ByName, rows: Mapping[str, int]) -> None:
        """Add the weights themselves."""
        for name, own in weights.items():
            if not own:
                sheet.mark("weight", rows[name], "frozen")
            for weight in own:
                if has_values(weight):
                    sheet.add("weight", rows[name], measure(weight, self._plan.networks))
                else:
                    sheet.mark("weight", rows[name], "hook_missed")


def least_dimensions(module: nn.Module) -> int:
    """Return how many dimensions a parameter needs to be a weight.

    In a stacked layer the networks' dimension comes first, and a bias has two.
    """
    networks = module.__dict__.get("networks")
    own = [p for p in module._parameters.values() if p is not None and not is_lazy(p)]
    return 3 if any(parameter.dim() == 3 and parameter.shape[0] == networks for parameter in own) else 2


class Updates:
    """What each step of an optimizer changes, seen from hooks before and after it.

    Args:
        optimizer: Its next step after ``expect`` is watched.
        weights: Whose changes are wanted.
        networks: Independent networks along the first dimension.
        recorder: Tells which backward passes come before a step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Weights, networks: int, recorder: Recorder) -> None:
        self._due = False
        self._in_step = False
        self._recorder = recorder
        self._window_at_step: Window | None = None
        self._backwards_at_step = 0
        self.measured: list[tuple[str, Part]] = []
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

    def is_late(self, window: Window) -> bool:
        """Say whether the optimizer has used up the gradients that a collect is to record."""
        return window is self._window_at_step and 0 < window.count_backwards() == self._backwards_at_step

    def remove(self) -> None:
        """Remove the hooks."""
        self._due = False
        self._before = {}
        for handle in self._handles:
            handle.remove()

    def add(self, sheet: Sheet, row_of: Callable[[str], int]) -> None:
        """Add what was measured since the last time."""
        for name, part in self.measured:
            sheet.add("update", row_of(name), part)
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
        self._window_at_step = self._recorder.window
        self._backwards_at_step = self._window_at_step.count_backwards() if self._window_at_step else 0
        if self._due:
            self._due = False
            for name, weights in self._weights.items():
                old = self._before.get(name, [])
                for weight, before in zip([w for w in weights if has_values(w)], old, strict=True):
                    change = _wide(weight.detach()) - before
                    self.measured.append((name, measure(change, self._networks)))
            self._before = {}


def scale_of_loss(scaler: torch.amp.GradScaler, like: Tensor) -> Tensor:
    """Return the factor by which a GradScaler multiplies the loss, without waiting for the device."""
    scale: Tensor = scaler.scale(torch.ones((), device=like.device))
    return scale


def is_unscaled(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer | None) -> bool:
    """Say whether the scaler has divided the weights' gradients by its scale already.

    Raises:
        RuntimeError: If it cannot be known, or the scaler has made its step.
    """
    states = scaler._per_optimizer_states
    if optimizer is not None:
        states = {id(optimizer): states[id(optimizer)]} if id(optimizer) in states else {}
    stages = {state["stage"].name for state in states.values()}
    if len(stages) > 1:
        raise RuntimeError(
            "the gradients of some optimizers are unscaled and of others not; give the probe its optimizer"
        )
    if stages == {"STEPPED"}:
        raise RuntimeError("collect must be called before scaler.step(optimizer)")
    return stages == {"UNSCALED"}


class _WeightHook:
    """Measure the gradient that a backward pass brings to a weight."""

    __torch_unserializable__ = True

    def __init__(self, parts: list[Part], networks: int) -> None:
        self.parts = parts
        self.networks = networks

    def __call__(self, gradient: Tensor) -> None:
        self.parts.append(measure(gradient, self.networks))


def _weakly(owner: Updates, method: Callable[[Updates], None]) -> Callable[..., None]:
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
