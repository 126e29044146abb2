"""Every private name of torch that is used: what it is for, since when torch has it, and what to do without it.

All of them exist in torch 2.6, the oldest that is supported, and in 2.13 and 2.15. No other file uses a private name,
so that a torch release that renames one is this file's work alone.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

# The key of tensors inside autograd.grad(..., is_grads_batched=True) and vectorised Jacobians.
_BATCHED: Any = torch._C._parse_dispatch_key("Batched")
# The mode in which make_fx and export trace.
_PROXY = torch._C._TorchDispatchModeKey.PROXY
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_interpreter_stack = torch._C._functorch.peek_interpreter_stack

set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled
"""Switch autograd on or off (torch 0.4). Without: ``torch.no_grad()``, which takes as long as a norm."""

outside_dispatch_modes = _disable_current_modes
"""A context in which modes that count or replace operations see none (torch 2.0). Without: they count the probe's."""


backward_number: Callable[[], int] = torch._C._current_graph_task_id
"""Return autograd's number of the backward pass that is running, -1 outside of any (torch 2.0).

Without it several backward passes before one collect could not be told apart, nor, by ``is_recomputing``, a
checkpoint's second run of a module from a new forward pass.
"""


def is_recomputing() -> bool:
    """Return whether a backward pass is running, in which a checkpoint may run modules again (torch 2.0)."""
    return torch._C._current_graph_task_id() != -1


def after_backward(callback: Callable[[], None]) -> None:
    """Call a function when the backward pass that is running has come to its end (torch 0.4; DDP and FSDP need it).

    Without it a backward pass that failed halfway would be recorded as if it were complete.
    """
    Variable._execution_engine.queue_callback(callback)


keeps_graph: Callable[[], bool] = torch._C._autograd._get_current_graph_task_keep_graph
"""Return whether the backward pass that is running keeps its graph for another one (torch 2.5).

Without it the gradient of each output would have to be kept after each pass, in case that a second one comes.
"""


def will_execute(node: Node) -> bool | None:
    """Return whether the running backward pass executes a node; None for a leaf whose gradient it only returns.

    Known since torch 1.13. Without it passes of ``autograd.grad`` would count as if they added to ``.grad``.
    """
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that autograd.grad was asked for
        return None


def creation_number(node: Node) -> int:
    """Return a number that grows with each node that a thread adds to a graph (torch 2.1).

    Without it the search for outputs that depend on each other would walk through the whole graph.
    """
    return node._sequence_nr()


def current_node() -> Node | None:
    """Return the node that the running backward pass is at, such as a checkpoint that runs modules again (torch 2.1).

    Without it modules inside a reentrant checkpoint could not be brought in line with those outside.
    """
    return torch._C._current_autograd_node()


def saved_of(node: Node, name: str) -> Any:
    """Return what an operation keeps for its backward pass, such as ``result`` or ``self``; None if it is gone.

    Torch's tutorials show these attributes (torch 1.9). Gone are tensors that were changed in place since, or freed.
    Without it nobody could say which of several operations has made nan, and activations and losses that are
    functions, not modules, would not be seen.
    """
    try:
        saved = getattr(node, f"_saved_{name}", None)
    except RuntimeError:
        return None
    return saved.detach() if isinstance(saved, Tensor) else saved


def keeps_elsewhere() -> bool:
    """Return whether what operations keep is put away by hooks, as checkpoints do that compute it anew.

    Without it looking at what is kept could run parts of the model again. Torch has a private name for it since 2.7
    only; by a public one it refuses to forbid such hooks where there are some.
    """
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("asked by gradexp"):
            return False
    except RuntimeError:
        return True


def in_transform() -> bool:
    """Return whether a functional transform such as vmap or grad is active (torch 2.0).

    Without it tensors inside one, which hold no values of their own, would raise in the hooks.
    """
    return _interpreter_stack() is not None


def is_transformed(gradient: Tensor) -> bool:
    """Return whether a gradient is a batch of gradients, as vectorised Jacobians have (torch 1.13).

    Without it the norm of such a batch would pass for that of one gradient.
    """
    return torch._C._dispatch_keys(gradient).has(_BATCHED) or in_transform()


def in_dispatch_mode() -> bool:
    """Return whether a mode sees each operation, as flop counters and fake tensors do (torch 2.0).

    Without it: enter ``outside_dispatch_modes`` always, which takes longer than the norm of a small tensor.
    """
    return _dispatch_modes() > 0


class _SeeSoftmax(TorchDispatchMode):
    def __init__(self, see: Callable[[Tensor, int, Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._softmax.default, torch.ops.aten._safe_softmax.default):
            with _disable_current_modes():
                self._see(args[0], args[1], result)
        return result


def logits_of_softmax(see: Callable[[Tensor, int, Tensor], None]) -> AbstractContextManager[Any]:
    """Return a context in which a function is called with logits, dimension and result of each softmax (torch 2.0).

    Autograd keeps only the result. Without it masked logits could not be told from those that are far below others.
    """
    return _SeeSoftmax(see)


def is_traced() -> bool:
    """Return whether dynamo, export, make_fx or ``torch.jit.trace`` records operations (torch 2.1).

    ``torch.compiler.is_compiling`` is public and knows dynamo and export only. Without the others the probe's own
    operations would become part of the traced graph.
    """
    if torch.compiler.is_compiling() or _tracing_state() is not None:
        return True
    return _dispatch_modes() > 0 and torch._C._get_dispatch_mode(_PROXY) is not None


def is_dynamo_loaded() -> bool:
    """Return whether anything may be compiled: ``torch.compile`` loads dynamo when it is first called (torch 2.0).

    Without it: assume so, and load dynamo, which takes seconds.
    """
    return "torch._dynamo" in sys.modules


def compiled_module(model: Any) -> Any:
    """Return the module inside one that ``torch.compile`` made, or None for any other (torch 2.0).

    Without it names of modules would begin with ``_orig_mod``.
    """
    return getattr(model, "_orig_mod", None) if type(model).__name__ == "OptimizedModule" else None


def base_of(view: Tensor) -> Tensor | None:
    """Return the tensor that a view is a view of, None for any other tensor (torch 0.4).

    Without it gradients of views that are changed in place would be wrong and not marked as missed.
    """
    return view._base


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor, its base and other views of it were changed in place (torch 0.4).

    Without it no gradient of a view could be trusted, changed in place or not.
    """
    return tensor._version


def steps_in_backward(parameter: Tensor) -> bool:
    """Return whether something, such as an optimizer's step, runs once ``.grad`` is complete (torch 2.1).

    Without it the gradient that such a step uses up before the collect would count as unused.
    """
    return bool(parameter._post_accumulate_grad_hooks)


@contextmanager
def without_accumulate_hooks(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Keep hooks that run once ``.grad`` is complete from running (torch 2.1).

    Without it a model whose optimizer steps in the backward pass could not be measured and left as it was.
    """
    hooks = [(hooks, dict(hooks)) for parameter in parameters if (hooks := parameter._post_accumulate_grad_hooks)]
    try:
        for active, _ in hooks:
            active.clear()
        yield
    finally:
        for active, before in hooks:
            active.update(before)


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a module directly owns (torch 0.1).

    ``parameters(recurse=False)`` is public, but slower, and leaves out a parameter's second name.
    """
    return [parameter for parameter in module._parameters.values() if parameter is not None]


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the parameters that a module directly owns, by name (torch 0.1).

    Without: ``named_parameters``, which is slower.
    """
    return dict(module._parameters.items())


def parameter_of(module: nn.Module, name: str) -> nn.Parameter | None:
    """Return a parameter that a module directly owns, None if it has none of that name (torch 0.1).

    Without: ``getattr``, which runs whatever a module makes of it, such as a parametrization.
    """
    try:
        return module._parameters[name]
    except KeyError:
        return None


def parameters_at(places: Iterable[tuple[Callable[[], nn.Module | None], str]]) -> list[nn.Parameter | None]:
    """Return ``parameter_of`` of many modules, each given by a weak reference (torch 0.1)."""
    found: list[nn.Parameter | None] = []
    for reference, name in places:
        module = reference()
        try:
            found.append(None if module is None else module._parameters[name])
        except KeyError:
            found.append(None)
    return found


def versions_of(tensors: Iterable[Any]) -> list[int]:
    """Return ``version_of`` of many tensors (torch 0.4)."""
    return [tensor._version for tensor in tensors]


def all_parameters_of(model: nn.Module) -> list[nn.Parameter]:
    """Return each parameter of a model once (torch 0.1). ``parameters()`` is public, but ten times slower."""
    parameters: list[nn.Parameter | None] = []
    visited: set[int] = set()
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is None:
            continue
        if module._parameters:
            parameters += module._parameters.values()
        if module._modules and id(module) not in visited:
            visited.add(id(module))
            waiting += module._modules.values()
    return list({id(parameter): parameter for parameter in parameters if parameter is not None}.values())


def default_store() -> tuple[int, Any] | None:
    """Return this process's rank and the store in which processes leave each other messages (torch 1.0), or None.

    None if processes were not started together. Without it a probe that others lack could only hang.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.get_rank(), torch.distributed.distributed_c10d._get_default_store()


def is_parametrized(module: nn.Module) -> bool:
    """Return whether a module computes some of its parameters (torch 1.9).

    ``parametrize.is_parametrized`` is public, and takes longer than the norm of a small tensor where it is not so.
    """
    return "parametrizations" in module._modules


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers that a module directly owns, to be changed in place (torch 0.1).

    ``setattr`` is public, and runs whatever a module makes of it.
    """
    return module._buffers


def forward_hooks_of(module: nn.Module) -> Iterable[Any]:
    """Return a module's forward hooks (torch 0.1).

    Without: assume that there are others, so that ``nn.Linear``'s outputs of three dimensions take a second hook.
    """
    return module._forward_hooks.values()


def scaler_states(scaler: torch.amp.GradScaler) -> Mapping[int, Mapping[str, Any]]:
    """Return id of optimizer -> what a GradScaler did with its gradients since its last update (torch 1.6).

    Without it the user would have to tell whether gradients are unscaled already.
    """
    return scaler._per_optimizer_states


def foreach_norm(tensors: list[Tensor], wide: bool = True) -> list[Tensor]:
    """Return the norm of each tensor, with few kernels for all (torch 2.4). Without: one after the other.

    Args:
        tensors: Strided ones.
        wide: Whether to compute in float64.
    """
    return list(torch._foreach_norm(tensors, 2, dtype=torch.float64 if wide else None))


def foreach_subtract_(targets: Sequence[Tensor], others: list[Tensor]) -> None:
    """Subtract from each target another tensor in one call (torch 1.12). Without: one after the other."""
    if targets:  # torch refuses an empty list
        torch._foreach_sub_(list(targets), others)


def foreach_copy_(targets: Sequence[Tensor], sources: list[Tensor]) -> None:
    """Copy each source to its target in one call (torch 2.1). Without: one after the other."""
    torch._foreach_copy_(list(targets), sources)
