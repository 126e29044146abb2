"""Where values leave autograd's graph: which operation, in which line, and what they go into."""

import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradexp.diagnosis.graph import leaves, node_of, nodes_below
from gradexp.probe.calls import tensors_in
from gradexp.probe.names import named_modules

# What these return does not depend on the values that they get.
_NO_EXITS = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "new_")
# What these return is no tensor that could be followed.
_LEAVES_TORCH = ("item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__", "__complex__")
# Where code is that a user did not write.
_NOT_THEIRS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")


@dataclass(eq=False)
class Exit:
    """One operation that lets values through, and no gradient back.

    Args:
        operation: Its name, such as ``detach``.
        without_graph: Whether autograd was switched off.
        place: File and line of the model's own code, empty if none is known.
        inside: Name of the innermost module that was running.
        before: Name of the first module that got what came out of it, empty if none did.
        number: Which one it was in the pass.
        sources: The nodes of the graph that it cuts off.
    """

    operation: str
    without_graph: bool
    place: str
    inside: str
    before: str = ""
    number: int = 0
    sources: list[Any] = field(default_factory=list)

    def cut_off(self) -> set[int]:
        """Return the ids of the leaves whose values go through it."""
        return {id(leaf) for leaf in leaves(nodes_below(self.sources))}


class Provenance(TorchFunctionMode):
    """Follow values that have left the graph through each operation of a pass.

    Args:
        model: Whose modules tell where values go.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.out_of_torch: list[Exit] = []  # what became Python numbers or arrays
        self._names = named_modules(model)
        self._from: dict[int, tuple[Tensor, frozenset[Exit]]] = {}  # id of a tensor -> through which exits it came
        self._into: dict[int, tuple[Tensor, frozenset[Exit]]] = {}  # the same by memory, for changes in place
        self._count = 0
        self._running: list[str] = []
        self._handles = ExitStack()

    def __enter__(self) -> Self:
        for name, module in self._names.items():
            if isinstance(module, torch.jit.ScriptModule):  # whose hooks would have to be compiled too
                continue
            for hook in (
                module.register_forward_pre_hook(partial(self._begin_call, name), with_kwargs=True),
                module.register_forward_hook(self._end_call, with_kwargs=True, always_call=True),
            ):
                self._handles.callback(hook.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._handles.close()

    def exits_to(self, tensor: Tensor) -> list[Exit]:
        """Return the exits through which values came into a tensor, in the order of the pass."""
        return sorted(self._exits_of([tensor]), key=attrgetter("number"))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note where its values come from."""
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        inputs = list(tensors_in((args, kwargs)))
        if inputs and not any(like in name for like in _NO_EXITS):
            self._follow(name, inputs, output)
        return output

    def _follow(self, name: str, inputs: list[Tensor], output: Any) -> None:
        exits = self._exits_of(inputs)
        with_graph = [tensor for tensor in inputs if tensor.requires_grad]
        if name in _LEAVES_TORCH:
            self.out_of_torch += exits
            if with_graph:
                self.out_of_torch.append(self._exit(name, with_graph))
            return
        outputs = list(tensors_in(output))
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if in_place:
            outputs.append(inputs[0])
        # A view that is made without a graph says that it requires a gradient all the same.
        kept = {id(tensor) for tensor in (outputs if torch.is_grad_enabled() else inputs) if tensor.requires_grad}
        # What one of several tensors becomes does not depend on the others.
        is_apart = name in ("broadcast_tensors", "meshgrid") or name.startswith("atleast_")
        is_new = bool(with_graph) and not is_apart and any(id(tensor) not in kept for tensor in outputs)
        new = {self._exit(name, with_graph)} if is_new else set()
        for tensor in outputs:
            left = exits if id(tensor) in kept else exits | new
            if left:
                self._from[id(tensor)] = tensor, left | self._exits_of([tensor])
        if in_place and outputs[-1].layout is torch.strided and (exits or new):
            memory = outputs[-1].untyped_storage().data_ptr()
            self._into[memory] = self._from[id(outputs[-1])]

    def _exit(self, name: str, inputs: list[Tensor]) -> Exit:
        inside = self._running[-1] if self._running else ""
        sources = [node for tensor in inputs if (node := node_of(tensor)) is not None]
        self._count += 1
        return Exit(name, not torch.is_grad_enabled(), _place(), inside, number=self._count, sources=sources)

    def _exits_of(self, tensors: Iterable[Tensor]) -> frozenset[Exit]:
        tensors = list(tensors)
        known = [self._from[id(tensor)][1] for tensor in tensors if id(tensor) in self._from]
        if self._into:
            strided = [tensor for tensor in tensors if tensor.layout is torch.strided]
            memory = {tensor.untyped_storage().data_ptr() for tensor in strided}
            known += [exits for where, (_, exits) in self._into.items() if where in memory]
        return known[0].union(*known[1:]) if known else frozenset()

    def _begin_call(self, name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append(name)
        for way_out in self._exits_of(tensors_in((args, kwargs))):
            way_out.before = way_out.before or name

    def _end_call(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._running.pop()
        exits = self._exits_of(tensors_in((args, kwargs)))
        for tensor in tensors_in(output):
            if exits and id(tensor) not in self._from:  # through operations that nobody sees
                self._from[id(tensor)] = tensor, exits


def _place() -> str:
    """Return file and line of the innermost code that is neither torch's nor ours."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_NOT_THEIRS):
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
