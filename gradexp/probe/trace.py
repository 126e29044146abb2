"""What hooks see between two collects: passes of a model, calls of its modules, and gradients that come back.

A module's output is measured at once, since the next operation may overwrite it, and the gradient of each output
tensor is hooked. That gradient is right also where the next operation works in place, where module backward hooks
raise. Hooks return None, which leaves outputs and gradients as they are.
"""

import dataclasses
import math
import sys
import weakref
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.numerics.norms import ScaledNorm, has_values, scaled_norm
from gradexp.numerics.torch_internals import (
    after_backward,
    backward_number,
    base_of,
    forward_hooks_of,
    in_dispatch_mode,
    is_dynamo_loaded,
    is_recomputing,
    is_transformed,
    is_view,
    outside_dispatch_modes,
    version_of,
)
from gradexp.probe.readings import PendingStep, TensorSize, tensor_size

Statistic = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class ProbeSpec:
    """The numbers to take of each call of a module.

    Args:
        outputs: Whether to take the sizes of outputs.
        gradients: Whether to take the sizes of their gradients.
        per_sample: Whether to take the norm of each sample's gradient too.
        stats: Further statistics of each measured tensor, by name.
        networks: Number of independent networks along the first dimension of each tensor.
    """

    outputs: bool = True
    gradients: bool = True
    per_sample: bool = False
    stats: Mapping[str, Statistic] = dataclasses.field(default_factory=dict)
    networks: int = 1


class ForwardPass:
    """One forward pass of the model."""

    def __init__(self, with_graph: bool) -> None:
        self.with_graph = with_graph
        self.calls: dict[str, int] = {}  # of each module
        self.backwards: set[BackwardPass] = set()  # that came back through it

    @property
    def is_finished(self) -> bool:
        """Whether a backward pass through it ran to its end."""
        return any(backward.is_finished for backward in self.backwards)


class BackwardPass:
    """One backward pass. What it brought counts only if it runs to its end.

    Args:
        is_batched: Whether it carries a batch of gradients through each tensor, as vectorised Jacobians do.
    """

    def __init__(self, is_batched: bool) -> None:
        self.is_batched = is_batched
        self.is_finished = False
        after_backward(self.finish)

    def finish(self) -> None:
        """Note that the pass has come to its end."""
        self.is_finished = True


class ModuleCall:
    """One call of one module: sizes of its output tensors, and of the gradients that came back to them."""

    expected = False  # an output tensor takes part in autograd
    is_rerun = False  # by a checkpoint, so that its outputs are measured already
    uncertain = False  # a gradient could pass by unseen
    is_empty = False  # it returned tensors without a single element, of which there is nothing to measure
    missed: tuple[str, ...] = ()  # quantities of which something is unseen

    def __init__(self, trace: "Trace", name: str, run: ForwardPass) -> None:
        self.trace = trace
        self.name = name
        self.run = run
        self.index = run.calls.get(name, 0)
        run.calls[name] = self.index + 1
        self.outputs: list[TensorSize] = []
        self.gradients: list[tuple[BackwardPass, TensorSize]] = []
        self.stats: list[tuple[BackwardPass | None, str, Tensor]] = []  # one value per network
        self.samples: list[tuple[BackwardPass, ScaledNorm]] = []

    def see_gradient(self, gradient: Tensor) -> None:
        """Measure the gradient of an output tensor (a hook on that tensor)."""
        if self.trace.open and gradient is not None:
            backward = self.trace.backward(gradient)
            self.run.backwards.add(backward)
            if backward.is_batched or not has_values(gradient):
                self.missed += ("output_grad",)
                return
            plan = self.trace.plan
            self.gradients.append((backward, _measured(gradient, plan.networks)))
            if plan.stats:
                self.stats += [(backward, *named) for named in statistics("output_grad", gradient, plan)]

    def see_only_gradient(self, gradient: Tensor) -> None:
        """Measure the gradient of a module's only output tensor, sample by sample too."""
        before = len(self.gradients)
        self.see_gradient(gradient)
        if len(self.gradients) > before:
            networks = self.trace.plan.networks
            shape = gradient.shape[networks > 1 :]
            sizes = scaled_norm(gradient, max(1, networks * (shape[0] if shape else 1)))
            self.samples.append((self.gradients[-1][0], sizes))


class _View:
    """An output that is a view of a tensor which others may use too.

    An operation in place on the view leaves its hook behind: what comes after the operation reaches only the
    base's hook. So the view's gradient is right only if the base's is the same, or if it is a part of the base.
    """

    def __init__(self, call: ModuleCall, see: Callable[[Tensor], None], tensor: Tensor) -> None:
        base = base_of(tensor)
        assert base is not None
        self.call = call
        self.see = see
        self.is_whole = base.numel() == tensor.numel()
        self.version = version_of(tensor)
        self.relatives = weakref.ref(tensor), weakref.ref(base)  # with the same version
        self.size: TensorSize | None = None

    def see_gradient(self, gradient: Tensor) -> None:
        before = len(self.call.gradients)
        self.see(gradient)
        if len(self.call.gradients) > before:
            self.size = self.call.gradients[-1][1]

    def see_base_gradient(self, gradient: Tensor) -> None:
        # The base's turn comes later in each backward pass.
        size, self.size = self.size, None
        if not self.call.trace.open or "output_grad" in self.call.missed:
            return
        versions = {version_of(tensor) for reference in self.relatives if (tensor := reference()) is not None}
        if versions == {self.version}:  # nobody has worked in place on it; without a gradient it is unused
            return
        if size is None:
            self.call.missed += ("output_grad",)
        elif self.is_whole and isinstance(size[0], float) and has_values(gradient):
            norm, exponent, *_ = _measured(gradient, 1)
            if not math.isclose(norm, size[0], rel_tol=1e-9) or exponent != size[1]:
                self.call.missed += ("output_grad",)


class Trace:
    """What the hooks see between two collects."""

    def __init__(self, plan: ProbeSpec) -> None:
        self.plan = plan
        self.open = True
        self.eager = False  # compiled code runs eagerly, so that hooks are called
        self.calls: list[ModuleCall] = []
        self.transformed: set[str] = set()  # modules that are compiled for good, or ran inside vmap and the like
        self._pass: ForwardPass | None = None
        self._inside: list[int] = []  # how deep in the stack each running call of the model's own forward is
        self._backwards: dict[int, BackwardPass] = {}
        self._task = -1  # autograd's number of the backward pass that is running
        self._to_be_rerun: dict[str, ModuleCall | None] = {}  # calls without a graph that a checkpoint may run again
        self._handles: list[Any] = []

    def close(self) -> None:
        """Stop looking: gradients that arrive later belong to no trace."""
        self.open = False
        self.calls = []  # which know the trace: a cycle
        for handle in self._handles:
            handle.remove()

    def begin_pass(self, graph: bool, *_: Any) -> None:
        """Begin a new pass (a hook before the model's forward)."""
        if not is_recomputing():
            depth = _stack_depth()
            # torch runs no hook after a call that Ctrl-C has ended; what begins no deeper is not inside of it.
            while self._inside and depth <= self._inside[-1]:
                self._inside.pop()
            if not self._inside:  # or it calls itself
                self._pass = ForwardPass(graph)
            self._inside.append(depth)

    def end_pass(self, *_: Any) -> None:
        """Note that the model's own forward is over (a hook after it, also after an exception)."""
        if not is_recomputing() and self._inside:
            self._inside.pop()

    def backward(self, gradient: Tensor) -> BackwardPass:
        """Return the backward pass that is running."""
        task = backward_number()
        if task != self._task:
            self._task = task
            if task not in self._backwards:
                self._backwards[task] = BackwardPass(is_transformed(gradient))
        return self._backwards[task]

    def see_output(self, graph: bool, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Measure what a module returned and hook the gradients of its tensors (a hook after its forward)."""
        call = self._call_of(name, graph)
        if call is None:
            return
        plan = self.plan
        tensors = (output,) if type(output) is Tensor else tensors_in(output)
        has_numbers = False
        is_empty = True
        taking_part = []
        for tensor in tensors:
            if not (tensor.is_floating_point() or tensor.is_complex()):
                continue
            has_numbers = True
            if not tensor.numel():
                continue
            is_empty = False
            if plan.outputs and not call.is_rerun:
                if has_values(tensor):
                    call.outputs.append(_measured(tensor, plan.networks))
                    if plan.stats:
                        call.stats += [(None, *named) for named in statistics("output", tensor, plan)]
                else:
                    call.missed += ("output",)
            if tensor.requires_grad:
                taking_part.append(tensor)
        call.is_empty = has_numbers and is_empty
        if not has_numbers:
            call.missed = ("output", "output_grad")
        if plan.gradients and taking_part:
            call.expected = True
            see = call.see_only_gradient if plan.per_sample and len(taking_part) == 1 else call.see_gradient
            for tensor in taking_part:
                if is_view(tensor):
                    self._hook_view(tensor, call, see, module, args)
                else:
                    self._hook(tensor, see)

    def count_backwards(self) -> int:
        """Return the number of backward passes."""
        return len(self._backwards)

    def hidden(self, names: Iterable[str]) -> list[str]:
        """Return the modules that ran where hooks see nothing, or that an unnoticed compilation hides."""
        if self.transformed or self.eager or self.calls or not is_dynamo_loaded():
            return [name for name in names if name in self.transformed]
        return list(names)

    def kept_calls(self) -> list[ModuleCall]:
        """Return the calls of passes that count: if a backward pass went through some, then only those."""
        return [call for call in self.calls if call.run.is_finished] or self.calls

    def add(self, pending: PendingStep, row_of: Callable[[str, int], int], names: Container[str]) -> None:
        """Add what the hooks saw of some modules to a pending step, in the order of first calls."""
        with_gradient: set[int] = set()
        silent: list[tuple[int, ModuleCall]] = []
        for call in self.kept_calls():
            if call.name not in names:
                continue
            row = row_of(call.name, call.index)
            if call.is_empty:
                continue
            for size in call.outputs:
                pending.add("output", row, size)
            gradients = [size for backward, size in call.gradients if backward.is_finished]
            for size in gradients:
                pending.add("output_grad", row, size)
            if gradients:
                with_gradient.add(row)
            elif call.gradients:  # of a backward pass that failed
                pending.mark("output_grad", row, "hook_missed")
            else:
                silent.append((row, call))
            for quantity in call.missed:
                pending.mark(quantity, row, "hook_missed")
            for backward, name, value in call.stats:
                if backward is None or backward.is_finished:
                    pending.add_statistic(name, row, value)
            for backward, sizes in call.samples:
                if backward.is_finished:
                    pending.add_samples(row, sizes)
        for row, call in silent:
            if call.uncertain:
                pending.mark("output_grad", row, "hook_missed")
            elif row not in with_gradient and "output_grad" not in call.missed:
                pending.mark("output_grad", row, "unused" if call.expected else "frozen")

    def _call_of(self, name: str, graph: bool) -> ModuleCall | None:
        """Return the call that a forward hook belongs to, or None for one that does not count."""
        if is_recomputing():
            return self._rerun_call(name)
        # Without a graph it is an evaluation, or a part of a training pass that is frozen or checkpointed.
        if not graph and not (self._inside and self._pass is not None and self._pass.with_graph):
            return None
        call = self._new_call(name)
        if not graph:
            waiting = self._to_be_rerun.get(name, call)
            if waiting is call or (waiting is not None and waiting.is_rerun):
                self._to_be_rerun[name] = call
            else:
                self._to_be_rerun[name] = None
        return call

    def _new_call(self, name: str) -> ModuleCall:
        if self._pass is None or (self._pass.backwards and not self._inside):
            self._pass = ForwardPass(with_graph=True)
        call = ModuleCall(self, name, self._pass)
        self.calls.append(call)
        return call

    def _rerun_call(self, name: str) -> ModuleCall | None:
        """Return the call that a checkpoint runs again, if its gradients are not hooked yet.

        A non-reentrant checkpoint keeps the hooks of the first run, so there is nothing to do. A reentrant one
        ran first without a graph. In what order it reruns several calls of one module cannot be known here.
        """
        if name in self._to_be_rerun:
            call = self._to_be_rerun[name]
            if call is not None:
                call.is_rerun = True
            else:
                self._distrust(name)
            return call
        if any(call.name == name for call in self.calls):
            return None
        self._to_be_rerun[name] = None  # ran outside of the model's own forward, unseen: trust one run at most
        return self._new_call(name)

    def _distrust(self, name: str) -> None:
        for call in self.calls:
            if call.name == name:
                call.missed += ("output_grad",)

    def _hook(self, tensor: Tensor, hook: Callable[[Tensor], None]) -> None:
        # The hook must not hold the tensor itself: that cycle is never freed.
        handle = tensor.register_hook(hook)
        if tensor.is_leaf:  # other tensors take their hooks with them
            self._handles.append(handle)

    def _hook_view(
        self, tensor: Tensor, call: ModuleCall, see: Callable[[Tensor], None], module: nn.Module, args: Any
    ) -> None:
        base = base_of(tensor)
        # Brings the graph of a view up to date whose base was changed in place: torch crashes on a hook without.
        _ = tensor.grad_fn
        if base is None or not base.requires_grad:
            call.uncertain = True
            self._hook(tensor, see)
        elif _is_own_view(module, base, args):
            self._hook(base, see)
        else:
            view = _View(call, see, tensor)
            self._hook(tensor, view.see_gradient)
            self._hook(base, view.see_base_gradient)


def _is_own_view(module: nn.Module, base: Tensor, args: Any) -> bool:
    """Return whether nobody else knows a view's base, which then has the view's gradient whatever is done to it.

    ``nn.Linear`` computes outputs of three and more dimensions as views of a matrix that it shows to nobody.
    """
    plain = type(module) is nn.Linear and "forward" not in module.__dict__
    hooks_are_ours = all(getattr(hook, "is_ours", False) for hook in forward_hooks_of(module))
    return plain and hooks_are_ours and not any(arg is base or base_of(arg) is base for arg in tensors_in(args))


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


def _measured(tensor: Tensor, networks: int) -> TensorSize:
    """Return the size of a tensor, hidden from modes that count or replace operations, such as tracers."""
    if not in_dispatch_mode():
        return tensor_size(tensor, networks)
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


def _stack_depth() -> int:
    """Return how many calls of Python functions are running in this thread."""
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth
