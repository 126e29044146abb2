"""Where nan or inf is born: the first place that turned finite numbers into others, forward before backward."""

import math
import re
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.numerics.extremes import Extremes, extremes, nonfinite, read
from gradexp.numerics.norms import has_values
from gradexp.numerics.torch_internals import (
    buffers_of,
    creation_number,
    in_transform,
    is_traced,
    parameters_by_name,
    version_of,
)
from gradexp.probe.birth import Birth
from gradexp.probe.calls import tensors_in
from gradexp.probe.names import is_callable
from gradexp.probe.suspects import name_of, sources, suspects

# Operations that move gradients and change none.
_MOVING = re.compile(
    r"(View|UnsafeView|ReshapeAlias|T|Transpose|Permute|Squeeze|Unsqueeze|Alias|Clone|Split|Unbind|Chunk|Cat|Stack)\d*Backward"
)
# Operations that send a gradient of 0 to what they did not take.
_CHOOSING = ("WhereBackward", "MaskedFillBackward", "IndexBackward", "MaskedSelectBackward", "NanToNumBackward")


@dataclass(frozen=True)
class _Call:
    """A call of a module: readings of what it got and returned, and the span of its own nodes in the graph."""

    name: str
    module: nn.Module
    args: list[int]
    has_first: bool  # whether the first reading is of the first tensor that it got
    outputs: list[int]
    dtype: torch.dtype
    sources: list[Node]  # that made what it got
    made: list[Node]  # that made what it returned
    begin: int  # numbers of the nodes before its first one, and of its last one
    end: int


@dataclass(frozen=True)
class _Operation:
    """An operation of the backward pass: readings of the gradients that came to it and that it passed on."""

    name: str
    number: int
    came: list[int]
    left: list[int]
    dtype: torch.dtype


_Hook = Callable[..., None]


class Births:
    """What one forward and backward pass shows of where nan or inf is born.

    Nothing is copied to the host before it is asked.

    Args:
        model: The model. What its parameters and buffers held before the pass is looked at when asked.
        inputs: What it gets.
    """

    def __init__(self, model: nn.Module, inputs: Any = None) -> None:
        self._model = model
        self._pairs: list[Tensor] = []
        self._values: list[Extremes] = []
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}  # readings by tensor and its version
        self._calls: list[_Call] = []
        self._operations: list[_Operation] = []
        self._handles: list[Any] = []
        self._target: list[int] = []
        self._loss: list[int] = []
        self._loss_made: list[Node] = []
        self._loss_dtype = torch.float32
        self._inputs = self._see(tensors_in(inputs))

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """See what a module got and returned, after the modules inside it."""
        if is_traced() or in_transform():
            return
        returned = [x for x in tensors_in(output) if has_values(x)]
        if not returned:
            return
        places = {_place(x) for x in returned}
        got = list(tensors_in(args))
        known = [x for x in got if has_values(x) and _place(x) not in places]  # not those that it overwrote
        sources = [x.grad_fn for x in got if x.grad_fn is not None]
        made = [x.grad_fn for x in returned if x.grad_fn is not None]
        end = max(map(creation_number, made), default=-1)
        begin = max((number for node in sources if (number := creation_number(node)) < end), default=-1)
        has_first = bool(known) and known[0] is got[0]
        readings = self._see(known), self._see(returned)
        call = _Call(name, module, readings[0], has_first, readings[1], returned[0].dtype, sources, made, begin, end)
        self._calls.append(call)

    def see_target(self, targets: Any) -> None:
        """See what the loss function gets beside the model's output."""
        self._target = self._see(tensors_in(targets))

    def see_loss(self, *losses: Tensor) -> None:
        """See the loss, or all that the backward pass begins with."""
        known = [x for x in losses if has_values(x)]
        self._loss = self._see(known)
        self._loss_made = [x.grad_fn for x in known if x.grad_fn is not None]
        self._loss_dtype = known[0].dtype if known else torch.float32

    def watch(self, ends: Iterable[Tensor], wrapped: Callable[[_Hook], _Hook] | None = None) -> None:
        """Hook the operations of a backward pass from some tensors.

        Args:
            ends: The tensors.
            wrapped: Makes another hook of each.
        """
        waiting = [x.grad_fn for x in ends if x.grad_fn is not None]
        visited = set(waiting)
        while waiting:
            node = waiting.pop()
            if not hasattr(node, "variable") and not _MOVING.fullmatch(name_of(node)):  # a leaf's only adds
                see = partial(self._see_operation, name_of(node), creation_number(node))
                self._handles.append(node.register_hook(see if wrapped is None else wrapped(see)))
            for source, _ in node.next_functions:
                if source is not None and source not in visited:
                    visited.add(source)
                    waiting.append(source)

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forward(self) -> Birth | None:
        """Return the first birth in the forward pass, or None if the loss is finite.

        Asked before the backward pass, which frees what operations have saved, it is more exact.
        """
        self._values = read(self._pairs)
        return self._forward() or self._of_loss() if self._word(self._loss) else None

    def backward(self) -> Birth | None:
        """Return the first birth in the backward pass, or None if all gradients are finite."""
        self._values = read(self._pairs)
        return self._backward()

    def unreached(self) -> Birth | None:
        """Return the first module that returns nan which nothing depends on."""
        self._values = read(self._pairs)
        for index, call in enumerate(self._calls):
            if self._word(call.outputs) == "nan":
                return replace(self._of_call(index), reaches=False)
        return None

    def _see(self, tensors: Iterable[Tensor]) -> list[int]:
        readings = []
        for tensor in tensors:
            version = -1 if tensor.is_inference() else version_of(tensor)
            known = self._known.get(id(tensor))
            if known is not None and known[0]() is tensor and known[1] == version >= 0:
                readings.append(known[2])  # what one module returned the next one gets
                continue
            pair = extremes(tensor)
            if pair is not None:
                self._known[id(tensor)] = weakref.ref(tensor), version, len(self._pairs)
                readings.append(len(self._pairs))
                self._pairs.append(pair)
        return readings

    def _see_operation(
        self, name: str, number: int, left: Sequence[Tensor | None], came: Sequence[Tensor | None]
    ) -> None:
        if in_transform():
            return
        gradients = [x for x in left if x is not None]
        dtype = gradients[0].dtype if gradients else torch.float32
        came_readings = self._see(x for x in came if x is not None)
        self._operations.append(_Operation(name, number, came_readings, self._see(gradients), dtype))

    def _word(self, readings: Iterable[int]) -> str:
        words = {nonfinite(self._values[reading]) for reading in readings}
        return next((word for word in ("nan", "inf", "-inf") if word in words), "")

    # Forward

    def _forward(self) -> Birth | None:
        masks = None
        for index, call in enumerate(self._calls):
            word = self._word(call.outputs)
            if (
                not word
                or (masks is not None and (word == "-inf" or self._bad_data(index)))
                or self._is_absorbed(index)
            ):
                continue
            if word != "-inf":
                return self._of_call(index)
            masks = index  # of -inf are ordinary: what comes after them may be to blame
        return None if masks is None else self._of_call(masks)

    def _is_absorbed(self, index: int) -> bool:
        """Return whether a module around this one returned finite numbers all the same."""
        name, seen = self._calls[index].name, set()
        for call in self._calls[index + 1 :]:
            if call.name not in seen and _is_inside(name, call.name):
                seen.add(call.name)
                if not self._word(call.outputs):
                    return True
        return False

    def _size(self, readings: Iterable[int]) -> float | None:
        """Return the largest magnitude of some finite tensors, None without any."""
        pairs = [self._values[reading] for reading in readings]
        return max((abs(end) for pair in pairs for end in pair if math.isfinite(end)), default=None)

    def _bad_data(self, index: int) -> str:
        """Return what is not finite in what a module got, but for masks: -inf in other places than the first."""
        call = self._calls[index]
        words = [self._word([reading]) for reading in call.args]
        is_masked = isinstance(call.module, (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.MultiheadAttention))
        for position, word in enumerate(words):
            if word and (word != "-inf" or (position == 0 and call.has_first and not is_masked)):
                return word
        return ""

    def _of_call(self, index: int) -> Birth:
        call = self._calls[index]
        value, dtype = self._word(call.outputs), call.dtype
        data = self._bad_data(index)
        inputs = self._inputs or [reading for c in self._calls if not c.name for reading in c.args]
        given = next((w for w in map(self._word, ([r] for r in inputs)) if w and w in ("nan", "inf", data)), "")
        if data and given:
            return Birth(given, "input")
        if not data:
            own = held(call.name, call.module)
            if own is not None:
                return replace(own, dtype=dtype)
            inside = [c for c in self._calls[:index] if _is_inside(c.name, call.name)]
            begin = max((c.end for c in inside), default=call.begin)
            return Birth(
                value, "module", call.name, type(call.module).__name__, bool(inside),
                (inside[-1].name if inside else "", ""),
                **self._operations_of(call.made, begin),
                dtype=dtype,
                size=self._size(inside[-1].outputs if inside else call.args),
            )  # fmt: skip
        name, module = self._around(call.name)
        own = held(name, module, recurse=False)
        if own is not None:
            return replace(own, dtype=dtype)
        before = [c for c in self._calls[:index] if _is_inside(c.name, name) and not _is_inside(c.name, call.name)]
        return Birth(
            data, "module", name, type(module).__name__, True,
            (before[-1].name if before else "", call.name),
            **self._operations_of(call.sources, max((c.end for c in before), default=-1)),
            dtype=dtype,
            size=self._size(before[-1].outputs if before else self._inputs),
        )  # fmt: skip

    def _around(self, name: str) -> tuple[str, nn.Module]:
        """Return the module that calls another: the nearest around it that can be called."""
        while name:
            name = name.rpartition(".")[0]
            module = self._model.get_submodule(name)
            if is_callable(module):
                return name, module
        return "", self._model

    def _of_loss(self) -> Birth:
        if word := self._word(self._target):
            return Birth(word, "target")
        begin = max((call.end for call in self._calls), default=-1)
        return Birth(
            self._word(self._loss), "loss",
            **self._operations_of(self._loss_made, begin),
            dtype=self._loss_dtype,
            size=self._size(self._calls[-1].outputs if self._calls else ()),
        )  # fmt: skip

    def _operations_of(self, ends: Iterable[Node], begin: int) -> dict[str, Any]:
        """Return what is known of the operations in a piece of the graph, and of what the guilty one took."""
        nodes = suspects(ends, begin)
        known: dict[str, Any] = {"operations": tuple(dict.fromkeys(map(name_of, nodes)))}
        if len(nodes) != 1:
            return known
        calls = {node: call for call in reversed(self._calls) for node in call.made}
        taken = sources(nodes[0], calls)
        if len(taken) != 1:
            return known
        call = calls.get(taken[0])
        if call is not None:
            pairs, name = [self._values[reading] for reading in call.outputs], call.name
        else:
            leaf = taken[0].variable  # type: ignore[attr-defined]
            name = next((name for name, parameter in self._model.named_parameters() if parameter is leaf), "")
            pair = extremes(leaf) if name else None
            pairs = [] if pair is None else read([pair])
        if not pairs or any(map(nonfinite, pairs)):
            return known
        taken_range = min(low for low, _ in pairs), max(high for _, high in pairs)
        return {**known, "taken": name, "is_parameter": call is None, "taken_range": taken_range}

    # Backward

    def _backward(self) -> Birth | None:
        born = (i for i, each in enumerate(self._operations) if self._word(each.left) or self._word(each.came))
        index = next(born, None)
        if index is None:
            return None
        operation = self._operations[index]
        came, left = self._word(operation.came), self._word(operation.left)
        name, kind, is_container, between = self._owner(operation.number)
        later = self._operations[index + 1 :]
        nan = (each.name for each in later if self._word(each.left) == "nan" and self._word(each.came) != "nan")
        chosen = any(each.name.startswith(_CHOOSING) for each in self._operations[:index])
        return Birth(
            came or left, "operation", name, kind, is_container, between,
            operations=(operation.name,),
            dtype=operation.dtype,
            size=self._size(operation.came),
            follows=next(nan, "") if left != "nan" else "",
            is_unused=left == "nan" and chosen,
            is_sum=bool(came),
        )  # fmt: skip

    def _owner(self, number: int) -> tuple[str | None, str, bool, tuple[str, str]]:
        """Return the module in which a node of the graph was made, and between which modules inside it."""
        around = [call for call in self._calls if call.begin < number <= call.end]
        if not around:
            return None, "", False, ("", "")
        call = min(around, key=lambda call: call.end)
        inside = [c for c in self._calls if c.end >= 0 and _is_inside(c.name, call.name)]
        before = [c for c in inside if c.end < number]
        after = [c for c in inside if number < c.end < call.end or (c.begin >= number and c.end >= 0)]
        between = (
            max(before, key=lambda c: c.end).name if before else "",
            min(after, key=lambda c: c.end).name if after else "",
        )
        return call.name, type(call.module).__name__, bool(inside), between


def held(name: str, module: nn.Module, recurse: bool = True, with_masks: bool = False) -> Birth | None:
    """Return the first parameter or buffer that held nan or inf.

    Args:
        name: Of the module.
        module: The module.
        recurse: Whether to look inside the modules that are in it too.
        with_masks: Whether buffers of inf count that are no running statistics, and may be masks.
    """
    for inner, part in module.named_modules(prefix=name) if recurse else [(name, module)]:
        tensors: dict[str, Mapping[str, Tensor | None]] = {
            "parameter": parameters_by_name(part),
            "buffer": buffers_of(part),
        }
        for place, by_name in tensors.items():
            for own, tensor in by_name.items():
                pair = None if tensor is None else extremes(tensor)
                word = "" if pair is None else nonfinite(read([pair])[0])
                is_mask = place == "buffer" and word != "nan" and not hasattr(part, "reset_running_stats")
                if word and (with_masks or not is_mask):
                    full = f"{inner}.{own}" if inner else own
                    return Birth(word, place, inner, type(part).__name__, tensor=full)
    return None


def _place(tensor: Tensor) -> Any:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # of tensors without a storage of their own, such as sparse ones
        return id(tensor)


def _is_inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))
