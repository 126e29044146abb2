"""Gradients and norms of the watched modules' weights, and the state of a GradScaler."""

import weakref
from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradexp.numerics.norms import has_values
from gradexp.numerics.torch_internals import parameters_of, scaler_states, steps_in_backward
from gradexp.probe.calls import ProbeSpec, statistics
from gradexp.probe.readings import PendingStep, TensorSize, measure_all, tensor_size

_ByName = Mapping[str, list[nn.Parameter]]


class Weights:
    """The parameters of two or more dimensions that modules directly own, as one weight per module.

    Args:
        modules: The watched modules by name, held weakly.
        plan: The numbers to take: of how many networks, and which further statistics of gradients.
    """

    def __init__(self, modules: Mapping[str, nn.Module], plan: ProbeSpec) -> None:
        self._modules = [
            (name, weakref.ref(module), least_dimensions(module), hasattr(module, "has_uninitialized_params"))
            for name, module in modules.items()
        ]
        self._plan = plan
        self._passing: dict[int, list[TensorSize]] = {}  # id of a weight -> its gradient in each backward pass
        self._handles: list[Any] = []
        self._used_up = True  # some weights may need to be watched

    def items(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Yield the name and the weights, as they are now, of each module that is still there."""
        for name, reference, least, was_lazy in self._modules:
            module = reference()
            if module is None:
                continue
            parameters = [p for p in parameters_of(module) if not (was_lazy and is_lazy(p))]
            yield name, [parameter for parameter in parameters if parameter.dim() >= least]

    def watch(self) -> None:
        """See the gradients of weights that an optimizer inside the backward pass uses up before the collect."""
        if not self._used_up:
            return
        self._used_up = False
        for _, weights in self.items():
            for weight in weights:
                if weight.requires_grad and steps_in_backward(weight) and id(weight) not in self._passing:
                    self._used_up = True
                    sizes = self._passing[id(weight)] = []
                    self._handles.append(weight.register_hook(_WeightHook(sizes, self._plan.networks)))

    def unwatch(self) -> None:
        """Remove the hooks and forget what they saw."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passing.clear()

    def have_passed(self) -> bool:
        """Return whether a watched weight has received a gradient."""
        return any(self._passing.values())

    def add_gradients(
        self, pending: PendingStep, weights: _ByName, rows: Mapping[str, int], moved: Container[int]
    ) -> None:
        """Add what ``.grad`` of each module's weights holds or has held, or the status of a missing gradient.

        Args:
            pending: The step to add to.
            weights: The weights of each module.
            rows: The row of each module.
            moved: Ids of weights whose gradient a hook has taken away from ``.grad``.
        """
        measurable: list[tuple[int, Tensor]] = []
        for name, parameters in weights.items():
            row = rows[name]
            trained = [weight for weight in parameters if weight.requires_grad]
            gradients = [gradient for weight in trained if (gradient := weight.grad) is not None]
            if len(gradients) < max(1, len(parameters)):  # a module without weights has nothing to train
                self._mark_missing(pending, row, trained, bool(gradients), moved)
            for gradient in gradients:
                if has_values(gradient):
                    measurable.append((row, gradient))
                else:
                    pending.mark("weight_grad", row, "hook_missed")
        sizes = measure_all([gradient for _, gradient in measurable], self._plan.networks)
        for (row, gradient), size in zip(measurable, sizes, strict=True):
            pending.add("weight_grad", row, size)
            if self._plan.stats:
                for name, value in statistics("weight_grad", gradient, self._plan):
                    pending.add_statistic(name, row, value)

    def _mark_missing(
        self,
        pending: PendingStep,
        row: int,
        trained: list[nn.Parameter],
        has_gradient: bool,
        moved: Container[int],
    ) -> None:
        """Set the status of a module without all its gradients, or add those that an optimizer has used up."""
        if not trained:
            pending.mark("weight_grad", row, "frozen")
            return
        for weight in trained:
            if weight.grad is None and steps_in_backward(weight):
                self._used_up = True
                sizes = self._passing.get(id(weight))
                has_gradient |= sizes != []
                if sizes is None or len(sizes) > 1:
                    # After unseen or several backward passes there is no one gradient to speak of.
                    pending.mark("weight_grad", row, "hook_missed")
                else:
                    for size in sizes:
                        pending.add("weight_grad", row, size)
            elif weight.grad is None and id(weight) in moved:
                has_gradient = True
                pending.mark("weight_grad", row, "hook_missed")
        if not has_gradient:
            pending.mark("weight_grad", row, "unused")

    def add_norms(self, pending: PendingStep, weights: _ByName, rows: Mapping[str, int]) -> None:
        """Add the norms of the weights themselves."""
        for name, parameters in weights.items():
            if not parameters:
                pending.mark("weight", rows[name], "frozen")
            for weight in parameters:
                if has_values(weight):
                    pending.add("weight", rows[name], tensor_size(weight, self._plan.networks))
                else:
                    pending.mark("weight", rows[name], "hook_missed")


def least_dimensions(module: nn.Module) -> int:
    """Return the least number of dimensions of a weight.

    In a stacked layer the networks' dimension comes first, and a bias has two.
    """
    networks = module.__dict__.get("networks")
    parameters = [p for p in parameters_of(module) if not is_lazy(p)]
    return 3 if any(parameter.dim() == 3 and parameter.shape[0] == networks for parameter in parameters) else 2


def scale_of_loss(scaler: torch.amp.GradScaler, like: Tensor) -> Tensor:
    """Return the factor by which a GradScaler multiplies the loss, without waiting for the device."""
    scale: Tensor = scaler.scale(torch.ones((), device=like.device))
    return scale


def is_unscaled(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer | None) -> bool:
    """Return whether the scaler has divided the weights' gradients by its scale already.

    Raises:
        RuntimeError: If that differs between optimizers, or the scaler has made its step.
    """
    states = scaler_states(scaler)
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

    def __init__(self, sizes: list[TensorSize], networks: int) -> None:
        self.sizes = sizes
        self.networks = networks

    def __call__(self, gradient: Tensor) -> None:
        self.sizes.append(tensor_size(gradient, self.networks))
