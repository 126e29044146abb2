"""What a row's own parameters tell: the gradients of its weights and vectors at the collect, and the weights."""

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.numerics.norms import has_values
from gradexp.numerics.torch_internals import in_transform, is_traced, scaler_states, steps_in_backward
from gradexp.probe.calls import ProbeSpec, statistics
from gradexp.probe.parameters import RowParameters
from gradexp.probe.parametrized import Computing
from gradexp.probe.readings import PendingStep, TensorSize, measure_all, tensor_size

_ByName = Mapping[str, list[nn.Parameter]]


class Weights:
    """The parameters of each row: those with the dimensions of a weight as one weight, the others as one vector.

    Args:
        rows: Which parameters each row stands for, by its name.
        plan: The number of networks, and further statistics of gradients.
        computed: Whether the weights that parametrized layers compute with are to be measured.
    """

    def __init__(self, rows: Mapping[str, RowParameters], plan: ProbeSpec, computed: bool) -> None:
        self._rows = rows
        self._plan = plan
        self._is_computed = computed
        self._computing: set[str] = set()  # rows whose modules may compute a weight
        self._computed: dict[int, TensorSize] = {}  # id of what computes a weight -> the size of that
        self._passing: dict[int, list[TensorSize]] = {}  # id of a parameter -> its gradient in each backward pass
        self._handles: list[Any] = []
        self._used_up = True  # some weights may need to be watched

    def items(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """Yield the name and the weights, as they are now, of each row whose module is still there."""
        for name, parameters in self._rows.items():
            weights = parameters.weights()
            if weights or not parameters.is_gone:
                yield name, weights

    def vectors(self) -> dict[str, list[nn.Parameter]]:
        """Return the vectors of each row, by its name."""
        return {name: parameters.vectors() for name, parameters in self._rows.items()}

    def watch(self) -> None:
        """See what is gone at the collect: computed weights, and gradients that an optimizer uses up earlier."""
        if self._is_computed:
            self._computing = {name for name, row in self._rows.items() if row.computes()}
            computing = (
                x for name in self._computing for x in self._rows[name].computed() if isinstance(x, Computing)
            )
            for module in {id(module): module for module in computing}.values():
                hook = _ComputedHook(self._computed, id(module), self._plan.networks)
                self._handles.append(module.register_forward_hook(hook))
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
        self._computed.clear()

    def have_passed(self) -> bool:
        """Return whether a watched weight has received a gradient."""
        return any(self._passing.values())

    def add_gradients(
        self,
        pending: PendingStep,
        quantity: str,
        parameters: _ByName,
        rows: Mapping[str, int],
        moved: Container[int],
    ) -> dict[int, TensorSize]:
        """Add what ``.grad`` of some parameters holds or has held, or the status of a missing gradient.

        Args:
            pending: The step to add to.
            quantity: ``"weight_grad"`` or ``"vector_grad"``.
            parameters: Those of each row.
            rows: The row of each name.
            moved: Ids of parameters whose gradient a hook has taken away from ``.grad``.

        Returns:
            The size of each gradient that was measured, by the id of its parameter.
        """
        cells: list[tuple[int, int]] = []  # row, and id of a parameter
        gradients: dict[int, Tensor] = {}
        for name, group in parameters.items():
            row, missing = rows[name], len(group) or 1  # a module without weights has nothing to train
            for parameter in group:
                gradient = parameter.grad
                if gradient is None or not parameter.requires_grad:
                    continue
                missing -= 1
                if has_values(gradient):
                    cells.append((row, id(parameter)))
                    gradients[id(parameter)] = gradient
                else:
                    pending.mark(quantity, row, "hook_missed")
            if missing:
                trained = [parameter for parameter in group if parameter.requires_grad]
                self._mark_missing(pending, quantity, row, trained, missing < len(group), moved)
        sizes = dict(zip(gradients, measure_all(list(gradients.values()), self._plan.networks), strict=True))
        pending.add_all(quantity, [row for row, _ in cells], [sizes[key] for _, key in cells])
        if self._plan.stats and quantity == "weight_grad":
            for row, key in cells:
                for name, value in statistics(quantity, gradients[key], self._plan):
                    pending.add_statistic(name, row, value)
        return sizes

    def _mark_missing(
        self,
        pending: PendingStep,
        quantity: str,
        row: int,
        trained: list[nn.Parameter],
        has_gradient: bool,
        moved: Container[int],
    ) -> None:
        """Set the status of a row without all its gradients, or add those that an optimizer has used up."""
        if not trained:
            pending.mark(quantity, row, "frozen")
            return
        for weight in trained:
            if weight.grad is None and steps_in_backward(weight):
                self._used_up = True
                sizes = self._passing.get(id(weight))
                has_gradient |= sizes != []
                if sizes is None or len(sizes) > 1:
                    # After unseen or several backward passes there is no one gradient to speak of.
                    pending.mark(quantity, row, "hook_missed")
                else:
                    for size in sizes:
                        pending.add(quantity, row, size)
            elif weight.grad is None and id(weight) in moved:
                has_gradient = True
                pending.mark(quantity, row, "hook_missed")
        if not has_gradient:
            pending.mark(quantity, row, "unused")

    def add_total(
        self,
        pending: PendingStep,
        parameters: Iterable[nn.Parameter],
        measured: Mapping[int, TensorSize],
        moved: Container[int],
    ) -> None:
        """Add the gradients of all parameters as one, unless some were used up in the backward pass."""
        networks = self._plan.networks
        others = []
        for parameter in parameters:
            if networks == 1 and id(parameter) in measured:
                continue
            gradient = parameter.grad
            if gradient is None:
                if parameter.requires_grad and (id(parameter) in moved or steps_in_backward(parameter)):
                    return
            elif networks > 1 and (not parameter.dim() or parameter.shape[0] % networks):
                return
            elif id(parameter) not in measured:
                if not has_values(gradient):
                    return
                others.append(gradient)
        add_joint(pending, [*measured.values()], others, networks)

    def add_norms(self, pending: PendingStep, parameters: _ByName, rows: Mapping[str, int]) -> None:
        """Add the weights themselves: those that the layers compute with."""
        cells: list[tuple[int, Tensor]] = []
        for name, group in parameters.items():
            weights: Sequence[Tensor | Computing] = self._rows[name].computed() if name in self._computing else group
            if not weights:
                pending.mark("weight", rows[name], "frozen")
            for weight in weights:
                if isinstance(weight, Computing) and id(weight) in self._computed:
                    pending.add("weight", rows[name], self._computed[id(weight)])
                elif isinstance(weight, Tensor) and has_values(weight):
                    cells.append((rows[name], weight))
                else:
                    pending.mark("weight", rows[name], "hook_missed")
        sizes = measure_all([weight for _, weight in cells], self._plan.networks)
        pending.add_all("weight", [row for row, _ in cells], sizes)

    def add_vectors(self, pending: PendingStep, vectors: _ByName, rows: Mapping[str, int]) -> None:
        """Add the norms of the vectors themselves."""
        for name, group in vectors.items():
            if not group:
                pending.mark("vector", rows[name], "frozen")
            for vector in group:
                if has_values(vector):
                    pending.add("vector", rows[name], tensor_size(vector, self._plan.networks))
                else:
                    pending.mark("vector", rows[name], "hook_missed")


def add_joint(pending: PendingStep, measured: Sequence[TensorSize], others: Sequence[Tensor], networks: int) -> None:
    """Add the joint size of some gradients, those that are measured and others, as that of all."""
    sizes = [*measured, *measure_all(_joined(others) if networks == 1 else others, networks)]
    for size in [_joint_size(sizes)] if networks == 1 and all(map(_is_plain, sizes)) else sizes:
        pending.add("total_grad", 0, size)


def _joined(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors with the joint norm of some, with few that are small."""
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    large = []
    for tensor in tensors:
        if type(tensor) is Tensor and tensor.dim() == 1 and tensor.layout is torch.strided:
            small.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        else:
            large.append(tensor)
    with torch.no_grad():
        return [*large, *map(torch.cat, small.values())]


def _is_plain(size: TensorSize) -> bool:
    """Return whether a size is a number on the host whose square is an ordinary float64 number."""
    return isinstance(size[0], float) and not size[1] and (not size[0] or 1e-140 < size[0] < 1e140)


def _joint_size(sizes: Sequence[TensorSize]) -> TensorSize:
    """Return the size of several tensors together."""
    norm = math.sqrt(sum([size[0] * size[0] for size in sizes if isinstance(size[0], float)]))
    return norm, 0.0, sum(count for _, _, count, _ in sizes), sizes[0][3] if sizes else torch.float32


def scale_of_loss(scaler: torch.amp.GradScaler, like: Tensor) -> Tensor:
    """Return the factor by which a GradScaler multiplies the loss, without waiting for the device."""
    scale: Tensor = scaler.scale(torch.ones((), device=like.device))
    return scale


def is_unscaled(scaler: torch.amp.GradScaler, optimizers: Iterable[torch.optim.Optimizer]) -> bool:
    """Say whether the scaler has divided the weights' gradients by its scale already.

    Raises:
        RuntimeError: If it cannot be known, or the scaler has made its step.
    """
    states = scaler_states(scaler)
    keys = [id(optimizer) for optimizer in optimizers] or list(states)
    # Of an optimizer whose turn has not come the scaler knows nothing yet.
    stages = {states[key]["stage"].name if key in states else "READY" for key in keys}
    if len(stages) > 1:
        raise RuntimeError(
            "the gradients of some optimizers are unscaled and of others not; give the probe its optimizer, or "
            "unscale those of all before collect"
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


class _ComputedHook:
    """Measure a weight when it is computed; a copied or pickled model gets a hook that does nothing in its place."""

    __torch_unserializable__ = True

    def __init__(self, sizes: dict[int, TensorSize], key: int, networks: int) -> None:
        self.sizes = sizes
        self.key = key
        self.networks = networks

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if not is_traced() and not in_transform() and isinstance(output, Tensor) and has_values(output):
            self.sizes[self.key] = tensor_size(output.detach(), self.networks)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")
