"""The hooks of a probe: on a model's modules while a step is recorded, and on nothing in between."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from gradexp.numerics.torch_internals import in_transform, is_dynamo_loaded, is_traced, set_grad_enabled
from gradexp.probe.calls import ProbeSpec
from gradexp.probe.graph import Graph
from gradexp.probe.passes import Parameters
from gradexp.probe.recurrent import layer_names
from gradexp.probe.recurrent_call import RecurrentCall
from gradexp.probe.trace import Trace


class _Alone(threading.local):
    """The recorder, if any, beside which no other sees what this thread runs."""

    recorder: "Hooks | None" = None


class Hooks:
    """Hooks on some modules of a model, and the trace they write to.

    Args:
        model: The model, each call of which begins a new pass. It is held weakly, as are the modules.
        modules: The modules to measure, by name.
        plan: The numbers to take of them.

    Attributes:
        trace: What the hooks saw since the last collect; None while nothing is recorded.
        alone: Its ``recorder``, if set, keeps all others from seeing anything in the same thread.
    """

    alone: _Alone = _Alone()

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], plan: ProbeSpec) -> None:
        self.trace: Trace | None = None
        self._model = weakref.ref(model)
        self._modules = {name: weakref.ref(module) for name, module in modules.items()}
        self._parameters = Parameters(model, modules)
        self._plan = plan
        self._handles: list[Any] = []
        self._eager = False
        self._has_seen_calls = False
        self._out_of_reach: set[str] = set()

    def kinds(self) -> dict[str, str]:
        """Return the class of each module, by name; none for one that is gone."""
        modules = ((name, reference()) for name, reference in self._modules.items())
        return {name: type(module).__name__ for name, module in modules if module is not None}

    def open(self, with_hooks: bool = True, with_graph: bool = False) -> None:
        """Begin a new trace, with hooks attached unless only weights are to be recorded.

        Args:
            with_hooks: Whether to look at calls.
            with_graph: Whether to look for what feeds them.
        """
        self.trace = Trace(self._plan, self._parameters, Graph() if with_graph else None)
        if not self._has_seen_calls and (self._plan.outputs or self._plan.gradients):
            self.trace.passes.watch()
        if with_hooks and not self._handles:
            self._attach()
        measuring = self._plan.outputs or self._plan.gradients
        if measuring and not self._eager and is_dynamo_loaded():
            self._eager = True
            _Eager.enter()
        self.trace.eager = self._eager
        self.trace.transformed |= self._out_of_reach

    def close(self) -> None:
        """End the trace: what arrives later belongs to none."""
        if self.trace is not None:
            self._has_seen_calls = bool(self.trace.calls)
            self.trace.close()
            self.trace = None

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._eager:
            self._eager = False
            _Eager.leave()

    def _attach(self) -> None:
        model = self._model()
        if model is None:
            raise RuntimeError("the model that the probe watches is gone")
        if not isinstance(model, torch.jit.ScriptModule):
            self._handles.append(model.register_forward_pre_hook(_Hook(self, Trace.begin_pass)))
        for name, reference in self._modules.items():
            module = reference()
            if isinstance(module, torch.jit.ScriptModule):  # whose hooks would have to be compiled too
                self._out_of_reach.add(name)
            elif isinstance(module, nn.RNNBase) and (self._plan.time or layer_names(module)):
                hook = _Hook(self, _see_recurrent, name)
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
            elif module is not None:
                self._handles.append(module.register_forward_hook(_Hook(self, Trace.see_output, name)))
        if not isinstance(model, torch.jit.ScriptModule):
            self._handles.append(model.register_forward_hook(_Hook(self, Trace.end_pass), always_call=True))


@contextmanager
def unwatched() -> Iterator[None]:
    """Keep every probe from seeing anything that this thread runs."""
    before, Hooks.alone.recorder = Hooks.alone.recorder, _NOBODY
    try:
        yield
    finally:
        Hooks.alone.recorder = before


_NOBODY: Any = object()


class _Hook:
    """A module hook that calls a method of the trace which its recorder is writing.

    A copied or pickled model gets a hook that does nothing in its place.
    """

    __torch_unserializable__ = True
    is_ours = True

    def __init__(self, recorder: Hooks, method: Callable[..., object], *args: str) -> None:
        self.recorder = recorder
        self.method = method
        self.args = args

    def __call__(self, *args: Any) -> None:
        # While dynamo, export or jit trace the model there is nothing to measure, nor inside vmap and the like.
        if is_traced():
            return
        trace = self.recorder.trace
        if trace is None or Hooks.alone.recorder not in (None, self.recorder):
            return
        if in_transform():
            trace.transformed.update(self.args)
            return
        graph = torch.is_grad_enabled()
        set_grad_enabled(False)  # as torch.no_grad(), which would take as long as a norm
        try:
            self.method(trace, graph, *self.args, *args)
        finally:
            set_grad_enabled(graph)

    def __reduce__(self) -> tuple[Any, ...]:
        # A callable of the standard library that ignores three arguments, so that loading needs no gradexp.
        return getattr, (nullcontext(), "__exit__")


def _see_recurrent(
    trace: Trace, graph: bool, name: str, module: nn.RNNBase, args: Any, kwargs: dict[str, Any], output: Any
) -> None:
    """Measure what a recurrent module returned, and keep what tells what its layers did."""
    call = trace.see_output(graph, name, module, args, output)
    if call is not None and not call.is_empty:
        if not isinstance(call.inside, RecurrentCall):
            call.inside = RecurrentCall(call, module, args, kwargs, output)
        if call.expected:
            call.inside.hook(output)


class _Eager:
    """Let compiled code run eagerly while any probe records: dynamo ignores hooks that come after compilation."""

    users = 0
    stance: Any = None
    lock = threading.RLock()  # a probe may be collected as garbage, and leave, while its thread enters

    @classmethod
    def enter(cls) -> None:
        with cls.lock:
            if cls.users == 0:
                cls.stance = torch.compiler.set_stance("force_eager")
            cls.users += 1

    @classmethod
    def leave(cls) -> None:
        with cls.lock:
            cls.users -= 1
            if cls.users == 0:
                cls.stance.__exit__(None, None, None)
                cls.stance = None
