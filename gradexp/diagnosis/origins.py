"""Where nodes of autograd's graph were made: in which call of a module, and after which weights."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.autograd.graph import Node

from gradexp.diagnosis.rows import has_weights
from gradexp.numerics.torch_internals import creation_number
from gradexp.probe.calls import tensors_in

_LONGEST_WALK = 200  # nodes between an operation and the modules before it


@dataclass(frozen=True)
class Call:
    """A call of a module: its nodes are numbered above ``begin``, up to those that made what it returned."""

    name: str
    module: nn.Module
    begin: int
    made: list[Node]


class Origins:
    """Remembers which nodes end the calls of modules."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._ended: dict[Node, Call] = {}

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """See what a module got and returned, after the modules inside it."""
        made = [tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None]
        if not made:
            return
        taken = [tensor.grad_fn for tensor in tensors_in(args) if tensor.grad_fn is not None]
        if set(made) <= set(taken):  # it did nothing, as dropout in evaluation
            return
        end = max(map(creation_number, made))
        got = map(creation_number, taken)
        call = Call(name, module, max((number for number in got if number < end), default=-1), made)
        self._calls.append(call)
        for node in made:  # a container ends with the node of the module inside, which was called before
            self._ended.setdefault(node, call)

    def ended_by(self, node: Node) -> Call | None:
        """Return the innermost call whose output a node made."""
        return self._ended.get(node)

    def has_weights(self, node: Node) -> bool:
        """Return whether a node ends the call of a module with weights."""
        call = self._ended.get(node)
        return call is not None and has_weights(call.module)

    def around(self, node: Node) -> str:
        """Return the name of the innermost module in whose call a node was made; empty for the model itself."""
        call = self._around(node)
        return "" if call is None else call.name

    def weighted_before(self, node: Node, inputs: int | None = None) -> list[str]:
        """Return the names of the nearest modules with weights on each way down from a node.

        Args:
            node: The node.
            inputs: How many of its inputs count; None for all.
        """
        names: dict[str, None] = {}
        around = self._around(node)
        waiting = deque(source for source, _ in node.next_functions[:inputs])
        seen: set[Node | None] = set()
        while waiting and len(seen) < _LONGEST_WALK:
            below = waiting.popleft()
            if below is None or below in seen:
                continue
            seen.add(below)
            if around is not None and has_weights(around.module) and creation_number(below) <= around.begin:
                names[around.name] = None  # which computes with weights of its own
            elif self.has_weights(below):
                names[self._ended[below].name] = None
            else:
                waiting.extend(source for source, _ in below.next_functions)
        return list(names)

    def _around(self, node: Node) -> Call | None:
        return next((call for call in self._calls if _holds(call, node)), None)  # inner calls are over first


def _holds(call: Call, node: Node) -> bool:
    """Return whether a node is on the way from what a call got to what it returned."""
    first = max(call.begin + 1, creation_number(node))
    waiting = [end for end in call.made if creation_number(end) >= first]
    seen = set(waiting)
    while waiting and creation_number(node) >= first:
        above = waiting.pop()
        if above is node:
            return True
        new = {
            source for source, _ in above.next_functions if source is not None and creation_number(source) >= first
        }
        waiting += new - seen
        seen |= new
    return False
