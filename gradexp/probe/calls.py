"""One call of one module: what it returned, and the gradients that come back to that.

A module's output is measured at once, since the next operation may overwrite it. The gradient of each output tensor
is seen at the node of the graph that made the tensor, which is right also where the next operation works in place,
where module backward hooks raise. Hooks return None, which leaves outputs and gradients as they are.
"""

import dataclasses
import math
import weakref
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gradexp.numerics.norms import ScaledNorm, has_values, norm_on_host, scaled_norm
from gradexp.numerics.torch_internals import (
    backward_number,
    base_of,
    creation_number,
    forward_hooks_of,
    in_dispatch_mode,
    outside_dispatch_modes,
    version_of,
)
from gradexp.probe.graph import Graph, Source
from gradexp.probe.passes import BackwardPass, ForwardPass, Passes, accumulator
from gradexp.probe.readings import PendingStep, TensorSize, tensor_size

Statistic = Callable[[Tensor], Tensor]
Position = tuple[Any, int]  # a node of the graph and which of its outputs, or of its inputs

# A walk through more nodes than this would take longer than a step.
_LONGEST_WALK = 20_000
# The smallest share of a difference in its first term that is not lost to rounding.
_TOLERANCE, _LARGEST_SHARE = 1e-5, 0.5


@dataclasses.dataclass(frozen=True)
class ProbeSpec:
    """The numbers to take of each call of a module.

    Args:
        outputs: Whether to take the sizes of outputs.
        gradients: Whether to take the sizes of their gradients.
        per_sample: Whether to take the norm of each sample's gradient too.
        stats: Further statistics of each measured tensor, by name.
        networks: Number of independent networks along the first dimension of each tensor.
        is_stack: Whether there is such a dimension, even for one network.
        time: Whether to take each time step of recurrent layers too.
    """

    outputs: bool = True
    gradients: bool = True
    per_sample: bool = False
    stats: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    networks: int = 1
    is_stack: bool = False
    time: bool = False


class Inside(Protocol):
    """What is recorded of the inside of a module in one call.

    Attributes:
        layers: Names of the rows inside, from the input on; those of one group stand side by side.
    """

    layers: list[list[str]]

    def add(
        self,
        pending: PendingStep,
        row_of: Callable[[str, int], int],
        names: Container[str],
        passes: Sequence[BackwardPass] | None,
    ) -> list[str]:
        """Add it to a step and return the names of its rows, of which some may lack a gradient."""


class Measured(NamedTuple):
    """What is measured of a gradient beside its size.

    Args:
        stats: Further statistics, one value per network.
        samples: The norm of each sample's part.
    """

    stats: Sequence[tuple[str, Tensor]] = ()
    samples: ScaledNorm | None = None


_ONLY_SIZE = Measured()
_NONE: frozenset[BackwardPass] = frozenset()

Arrival = tuple[BackwardPass, frozenset[BackwardPass], TensorSize, Measured]
"""A gradient of an output tensor: the pass that brought it, and earlier ones over the same graph whose gradients are
added to it; its size, and what else is measured of it. A plain tuple, since a named one takes as long as a norm."""


class ModuleCall:
    """One call of one module: sizes of its output tensors, and of the gradients that came back to them.

    Args:
        name: The module's name.
        run: The forward pass that the call belongs to.
        plan: The numbers to take.
        passes: The backward passes since the last collect.
        position: The call's place in the order of the forward pass.
    """

    expected: bool = False  # an output tensor takes part in autograd
    is_rerun: bool = False  # by a checkpoint, so that its outputs are measured already
    uncertain = False  # a gradient could pass by unseen
    is_passed_by = False  # by a backward pass that does not add to .grad
    is_empty: bool = False  # it returned tensors without a single element, of which there is nothing to measure
    missed: tuple[str, ...] = ()  # quantities of which something is unseen
    stats: Sequence[tuple[str, Tensor]] = ()  # of outputs, one value per network
    inside: Inside | None = None
    earlier: Sequence[list[Arrival]] = ()  # of output tensors that a checkpoint has made anew since
    fed_by: frozenset[Source] = frozenset()  # if a graph tells it

    def __init__(self, name: str, run: ForwardPass, plan: ProbeSpec, passes: Passes, position: int) -> None:
        self.name = name
        self.run = run
        self.plan = plan
        self.passes = passes
        self.position = position
        self.index: int = run.calls.get(name, 0)
        run.calls[name] = self.index + 1
        self.outputs: list[TensorSize] = []
        self.arrivals: list[list[Arrival]] = []  # of each output tensor

    def begin_rerun(self) -> None:
        """Expect the outputs once more, from a checkpoint."""
        self.is_rerun = True
        self.earlier = [*self.earlier, *self.arrivals]
        self.arrivals = []

    def miss_gradient(self) -> None:
        """Note that a gradient is unseen."""
        self.missed += ("output_grad",)

    def see_output(self, module: nn.Module, args: Any, output: Any, graph: Graph | None = None) -> Sequence[Any]:
        """Measure what the module returned, and hook the gradients; return handles of hooks that would stay.

        Args:
            module: The module.
            args: Of the call.
            output: What it returned.
            graph: In which to look for what feeds it.
        """
        has_numbers = False
        is_empty = True
        taking_part = []
        for tensor in (output,) if type(output) is Tensor else tensors_in(output):
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            has_numbers = True
            if not tensor.numel():
                continue
            is_empty = False
            if self.plan.outputs and not self.is_rerun:
                self._measure_output(tensor)
            if tensor.requires_grad:
                taking_part.append(tensor)
        self.is_empty = has_numbers and is_empty
        if not has_numbers:
            self.missed = ("output", "output_grad")
        if not self.plan.gradients or not taking_part:
            return ()
        self.expected = True
        if graph is not None:
            graph.add(self, taking_part)
        if self.run.leaf is None:
            self.run.leaf = first_leaf(taking_part[0])
        return self._hook(taking_part, module, args)

    def counted(self, passes: Sequence[BackwardPass]) -> list[tuple[TensorSize, Measured]] | None:
        """Return the gradient of each output tensor that has one, as the sum over some passes, or None if unseen."""
        if self.earlier and any(arrival[0] in passes for arrivals in self.earlier for arrival in arrivals):
            return None  # of other tensors than the last ones: they could not be added up
        gradients = []
        for arrivals in self.arrivals:
            if len(arrivals) == 1:
                backward, _, size, more = arrivals[0]
                if backward in passes:
                    gradients.append((size, more))
                continue
            present = {arrival[0] for arrival in arrivals}
            brought = [backward for backward in passes if backward in present]
            if not brought:
                continue
            last, earlier = brought[-1], frozenset(brought[:-1])
            sums = [(size, more) for backward, added, size, more in arrivals if (backward, added) == (last, earlier)]
            if not sums:
                return None
            gradients.append(sums[0])
        return gradients

    def has_failed(self) -> bool:
        """Return whether only passes brought gradients that did not run to their end."""
        passes = [arrival[0] for arrivals in self.arrivals for arrival in arrivals]
        return bool(passes) and not any(backward.is_finished for backward in passes)

    def _measure_output(self, tensor: Tensor) -> None:
        size = _measured(tensor, self.plan.networks)
        if size is None:
            self.missed += ("output",)
            return
        self.outputs.append(size)
        if self.plan.stats:
            self.stats = [*self.stats, *statistics("output", tensor, self.plan)]

    def _hook(self, tensors: Sequence[Tensor], module: nn.Module, args: Any) -> Sequence[Any]:
        if len(tensors) == 1:
            gradient, hooked = _gradient_of(tensors[0], self, module, args)
            return gradient.attach(hooked)
        uses = inner_uses(tensors)
        if uses is None:
            self.miss_gradient()
            return ()
        handles: list[Any] = []
        for tensor, consumers in zip(tensors, uses, strict=True):
            gradient, hooked = _gradient_of(tensor, self, module, args)
            gradient.with_samples = False
            if consumers:
                gradient.inner = InnerGradient(consumers)
            handles += gradient.attach(hooked)
        return handles


class OutputGradient:
    """The gradient of one output tensor, seen at the node of the graph that made the tensor.

    It is seen after all hooks on the tensor itself, which may replace the gradient.

    Args:
        call: The call that returned the tensor.

    Attributes:
        with_samples: Whether to take the norm of each sample's part.
        inner: What comes back through other outputs of the same call, if those depend on the tensor.
        shape: The tensor's shape, where the gradient comes in another one.
    """

    with_samples: bool = False
    inner: "InnerGradient | None" = None
    shape: torch.Size | None = None
    _index = 0
    _kept: Sequence[tuple[BackwardPass, Tensor]] = ()  # while the graph is kept for more passes

    def __init__(self, call: ModuleCall) -> None:
        if call.plan.per_sample:
            self.with_samples = True
        self._call = call
        self._arrivals: list[Arrival] = []
        call.arrivals.append(self._arrivals)

    def attach(self, tensor: Tensor) -> Sequence[Any]:
        """Hook the node; return handles of hooks that would stay, since other nodes go with their graph."""
        # The hook must not hold the tensor or the node: that cycle is never freed.
        node = tensor.grad_fn
        if node is None:
            return [tensor.register_hook(self._see_alone)]
        self._index = tensor.output_nr
        node.register_prehook(self)
        return ()

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        """See the gradient among those of all outputs of the node."""
        gradient = gradients[self._index]
        if gradient is not None:
            self._see(gradient)

    def _see_alone(self, gradient: Tensor) -> None:
        self._see(gradient)

    def _see(self, gradient: Tensor) -> TensorSize | None:
        """Measure the gradient; return its size if it counts."""
        call = self._call
        passes = call.passes
        if not passes.is_open:
            return None
        backward = passes.by_number.get(backward_number()) or passes.running(call.name, call.run, gradient)
        if not backward.accumulates:
            call.is_passed_by = True
            if backward.accumulates is None:
                call.miss_gradient()
            return None
        call.run.backwards.add(backward)
        if self.inner is None and not (backward.keeps_graph or self._kept or self.with_samples or call.plan.stats):
            size = _measured(gradient, call.plan.networks)
            if size is None:
                call.miss_gradient()
            else:
                self._arrivals.append((backward, _NONE, size, _ONLY_SIZE))
            return size
        if not has_values(gradient):
            call.miss_gradient()
            return None
        if self.inner is not None:
            direct, is_known = self.inner.taken_from(gradient)
            if not is_known:
                call.miss_gradient()
            if direct is None:
                return None
            gradient = direct
        size = self._add(backward, _NONE, gradient)
        if self._kept or backward.keeps_graph:
            self._keep(backward, gradient)
        return size

    def _keep(self, backward: BackwardPass, gradient: Tensor) -> None:
        """Add up the gradients that several passes bring over one graph."""
        kept = [(each, part) for each, part in self._kept if each.is_finished and not each.is_thrown]
        if kept:
            with outside_dispatch_modes(), torch.no_grad():
                total = gradient + sum(part for _, part in kept)
            self._add(backward, frozenset(each for each, _ in kept), total)
        self._kept = [*kept, (backward, gradient.detach().clone())] if backward.keeps_graph else ()

    def _add(self, backward: BackwardPass, earlier: frozenset[BackwardPass], gradient: Tensor) -> TensorSize:
        plan = self._call.plan
        size = _measured(gradient, plan.networks)
        assert size is not None
        more = self._more(gradient) if plan.stats or self.with_samples else _ONLY_SIZE
        self._arrivals.append((backward, earlier, size, more))
        return size

    def _more(self, gradient: Tensor) -> Measured:
        plan = self._call.plan
        gradient = gradient if self.shape is None else gradient.reshape(self.shape)
        stats = statistics("output_grad", gradient, plan) if plan.stats else ()
        return Measured(stats, _sample_norms(gradient, plan) if self.with_samples else None)


class ViewGradient(OutputGradient):
    """The gradient of an output that is a view of a tensor which others may use too.

    An operation in place on the view leaves its hook behind: what comes after the operation reaches only the
    base's hook. So the view's gradient is right only if the base's is the same, or if it is a part of the base.

    Args:
        call: The call that returned the view.
        view: The view.
        base: What it is a view of.
    """

    def __init__(self, call: ModuleCall, view: Tensor, base: Tensor) -> None:
        super().__init__(call)
        self._is_whole = base.numel() == view.numel()
        self._version = version_of(view)
        self._relatives = weakref.ref(view), weakref.ref(base)  # with the same version
        self._size: TensorSize | None = None

    def attach(self, tensor: Tensor) -> Sequence[Any]:
        """Hook the nodes of the view and of its base."""
        base = base_of(tensor)
        assert base is not None
        handles = super().attach(tensor)
        node = base.grad_fn
        if node is None:
            return [*handles, base.register_hook(self._see_base)]
        index = base.output_nr
        node.register_prehook(lambda gradients: self._see_base(gradients[index]))
        return handles

    def _see(self, gradient: Tensor) -> TensorSize | None:
        """Measure the gradient, and remember its size until the base's turn comes."""
        self._size = super()._see(gradient)
        return self._size

    def _see_base(self, gradient: Tensor | None) -> None:
        # The base's turn comes later in each backward pass.
        size, self._size = self._size, None
        call = self._call
        if gradient is None or not call.passes.is_open or "output_grad" in call.missed:
            return
        if not call.passes.running(call.name, call.run, gradient).accumulates:
            return
        versions = {version_of(tensor) for reference in self._relatives if (tensor := reference()) is not None}
        if versions == {self._version}:  # nobody has worked in place on it; without a gradient it is unused
            return
        if size is None:
            call.miss_gradient()
        elif self._is_whole and isinstance(size[0], float) and has_values(gradient):
            norm, exponent, *_ = _measured(gradient, 1) or (math.nan, 0.0)
            if not math.isclose(norm, size[0], rel_tol=1e-9) or exponent != size[1]:
                call.miss_gradient()


class InnerGradient:
    """What comes back to an output through other outputs of the same call.

    The gradient of the output as such, which torch's full backward hooks call ``grad_output``, is that of the
    tensor less this.

    Args:
        consumers: The nodes between the outputs that take the tensor, and as which of their inputs.
    """

    def __init__(self, consumers: Sequence[Position]) -> None:
        self._number = -1  # of the backward pass
        self._sum: Tensor | None = None
        for node, position in consumers:
            node.register_hook(partial(self._see, position))

    def taken_from(self, gradient: Tensor) -> tuple[Tensor | None, bool]:
        """Return what is left of the tensor's gradient, or None if nothing is, and whether its digits are right."""
        inner, self._sum = self._sum, None
        if inner is None or self._number != backward_number():
            return gradient, True
        with outside_dispatch_modes(), torch.no_grad():
            direct = gradient - inner.sum_to_size(gradient.shape)
        (left, e), (total, f) = ((float(m), float(e)) for m, e in (scaled_norm(direct), scaled_norm(gradient)))
        share = min(_LARGEST_SHARE, torch.finfo(gradient.dtype).eps / _TOLERANCE)
        return (direct if left or not total else None), not left or not math.ldexp(left, int(e - f)) < share * total

    def _see(self, position: int, gradients: Sequence[Tensor | None], _: Any) -> None:
        gradient = gradients[position]
        number = backward_number()
        if number != self._number:
            self._number, self._sum = number, None
        if gradient is not None:
            with torch.no_grad():
                self._sum = gradient.detach() if self._sum is None else self._sum + gradient


def inner_uses(tensors: Sequence[Tensor]) -> list[list[Position]] | None:
    """Return where the way from some outputs to others ends: the nodes that take those, and as which input.

    Returns:
        Nodes and numbers of their inputs for each tensor; None if the way is too long to be walked.
    """
    leaves = [tensor.grad_fn is None for tensor in tensors]
    sources: list[Position] = [
        (accumulator(tensor) if is_leaf else tensor.grad_fn, tensor.output_nr)
        for tensor, is_leaf in zip(tensors, leaves, strict=True)
    ]
    uses: dict[Position, list[Position]] = {source: [] for source in sources}
    # A node that takes an output was added to the graph later than the output's own.
    oldest = 0 if any(leaves) else min(creation_number(node) for node, _ in sources)
    waiting = [node for node, _ in sources]
    visited = set(waiting)
    while waiting:
        node = waiting.pop()
        for position, (source, number) in enumerate(node.next_functions):
            if source is None:
                continue
            if (source, number) in uses:
                uses[source, number].append((node, position))
            if source not in visited and creation_number(source) >= oldest:
                visited.add(source)
                waiting.append(source)
        if len(visited) > _LONGEST_WALK:
            return None
    return [uses[source] for source in sources]


def has_node(tensor: Tensor, name: str) -> bool:
    """Return whether a graph has a node of some name."""
    waiting = [tensor.grad_fn]
    visited = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is not None:
            if node.name() == name:
                return True
            new = {source for source, _ in node.next_functions} - visited
            visited |= new
            waiting += new
    return False


def first_leaf(tensor: Tensor) -> Any:
    """Return the node that adds to ``.grad`` of some leaf of a tensor's graph, or None if none is near."""
    if tensor.grad_fn is None:
        return accumulator(tensor)
    waiting, visited = [tensor.grad_fn], 0
    while waiting and visited < _LONGEST_WALK:
        node, visited = waiting.pop(), visited + 1
        sources = [source for source, _ in node.next_functions if source is not None]
        if not sources and hasattr(node, "variable"):
            return node
        waiting += sources
    return None


def _gradient_of(tensor: Tensor, call: ModuleCall, module: nn.Module, args: Any) -> tuple[OutputGradient, Tensor]:
    """Return what sees the gradient of an output, and the tensor to hook."""
    base = base_of(tensor)
    if base is None:
        return OutputGradient(call), tensor
    # Brings the graph of a view up to date whose base was changed in place: torch crashes on a hook without.
    _ = tensor.grad_fn
    if not base.requires_grad:
        call.uncertain = True
        return OutputGradient(call), tensor
    if not _is_own_view(module, base, args):
        return ViewGradient(call, tensor, base), tensor
    gradient = OutputGradient(call)
    gradient.shape = tensor.shape
    return gradient, base


def _is_own_view(module: nn.Module, base: Tensor, args: Any) -> bool:
    """Return whether nobody else knows a view's base, which then has the view's gradient whatever is done to it.

    ``nn.Linear`` computes outputs of three and more dimensions as views of a matrix that it shows to nobody.
    """
    plain = type(module) is nn.Linear and "forward" not in module.__dict__
    hooks_are_ours = all(getattr(hook, "is_ours", False) for hook in forward_hooks_of(module))
    return plain and hooks_are_ours and not any(arg is base or base_of(arg) is base for arg in tensors_in(args))


def _sample_norms(gradient: Tensor, plan: ProbeSpec) -> ScaledNorm:
    shape = gradient.shape[plan.is_stack :]
    return scaled_norm(gradient, max(1, plan.networks * (shape[0] if shape else 1)))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield each tensor in nested tuples, lists, dicts and dataclasses once."""
    visited: set[int] = set()
    todo = deque([value])
    while todo:
        item = todo.popleft()
        if id(item) in visited:
            continue
        visited.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            todo.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            todo.extend(item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            todo.extend(getattr(item, field.name, None) for field in dataclasses.fields(item))


def _measured(tensor: Tensor, networks: int) -> TensorSize | None:
    """Return the size of a tensor, None if it has no values.

    It is hidden from modes that count or replace operations, such as tracers.
    """
    if not in_dispatch_mode():
        norm = norm_on_host(tensor) if networks == 1 else None
        if norm is not None:  # the most frequent case, without another question
            return norm, 0.0, tensor.numel(), tensor.dtype
        return tensor_size(tensor, networks) if has_values(tensor) else None
    if not has_values(tensor):
        return None
    with outside_dispatch_modes():
        return tensor_size(tensor, networks)


def statistics(quantity: str, tensor: Tensor, plan: ProbeSpec) -> list[tuple[str, Tensor]]:
    """Return each of the plan's statistics of a tensor under ``quantity.name``, one value per network.

    Raises:
        ValueError: If a statistic is not one number.
    """
    named = []
    with torch.no_grad():
        for name, statistic in plan.stats.items():
            slices = tensor.detach().unbind() if plan.networks > 1 else (tensor.detach(),)
            values = [torch.as_tensor(statistic(network)) for network in slices]
            if values[0].numel() != 1:
                shape = tuple(values[0].shape)
                raise ValueError(f"stats['{name}'] must return one number, got a tensor of shape {shape}")
            named.append((f"{quantity}.{name}", torch.stack([value.reshape(()) for value in values])))
    return named
