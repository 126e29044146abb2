"""States that are detached between the steps of a loop: no gradient flows back over time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.cut import exits_of
from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import nodes_below
from gradexp.diagnosis.repetition import Repetition
from gradexp.history.finding import Finding
from gradexp.numerics.norms import has_values
from gradexp.numerics.torch_internals import parameters_of
from gradexp.probe.calls import tensors_in

_FEWEST = 3  # steps that are a loop over time
_LONG = 8  # so many steps are one for modules of any class
_REMEDY = "detach the state once per chunk of steps, not in each step: if t % 50 == 0: h = h.detach()"


@dataclass
class _Loop:
    """The calls of one module.

    Args:
        module: The module.
        steps: How many calls there are.
        apart: How many of them got nothing with a graph.
        cut: Whether each got the state of the one before without its graph.
        states: What the last one returned.
        made: The nodes that the first and the last one end with.
    """

    module: nn.Module
    steps: int = 0
    apart: int = 0
    cut: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    made: tuple[list[Node], list[Node]] = field(default_factory=lambda: ([], []))


class CutState(Observer):
    """Finds loops in which a module gets, at each call, what came of the one before, detached."""

    def begin(self, examination: Examination) -> None:
        """Note where the random number generators stand, for another pass."""
        self._repetition = Repetition()
        self._loops: dict[str, _Loop] = {}
        self._of_inputs = {_place(tensor) for tensor in tensors_in(examination.inputs)}

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Compare what a module gets with what it returned before."""
        if not torch.is_grad_enabled() or next(module.parameters(), None) is None:
            return
        loop = self._loops.setdefault(name, _Loop(module))
        loop.steps += 1
        got = [tensor for tensor in tensors_in(args) if tensor.is_floating_point() and has_values(tensor)]
        pairs = [(tensor, state) for tensor in got for state in loop.states if tensor.shape == state.shape]
        is_linked = any(tensor.requires_grad and _place(tensor) == _place(state) for tensor, state in pairs)
        same = [(tensor == state).all() & state.any() for tensor, state in pairs if not tensor.requires_grad]
        if same and not is_linked:
            loop.cut.append(torch.stack(same).any())
        is_data = any(tensor.requires_grad or _place(tensor) in self._of_inputs for tensor in got)
        loop.apart += bool(got) and not is_data
        returned = [tensor for tensor in tensors_in(output) if tensor.grad_fn is not None and has_values(tensor)]
        loop.states = [tensor.detach() for tensor in returned]
        made = [tensor.grad_fn for tensor in returned if tensor.grad_fn is not None]
        loop.made = loop.made[0] or made, made

    def see_loss(self, examination: Examination) -> None:
        """Keep loops in which a state may be cut, and nothing of what modules returned."""
        loops = {name: loop for name, loop in self._loops.items() if loop.steps >= _FEWEST}
        for loop in loops.values():
            loop.states = []
        self._cut = {name: loop for name, loop in loops.items() if loop.cut}
        self._apart = {name: loop for name, loop in loops.items() if loop.apart >= loop.steps - 1}
        if self._apart and any(_is_chained(loop) for loop in loops.values()):
            self._apart = {}
        self._loops = {}
        for loop in loops.values():
            loop.made = [], []

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return one finding for each module."""
        found = [finding for name, loop in self._cut.items() for finding in _of(name, loop)]
        if not found and self._apart:
            found = list(self._of_exits(examination))
        names = {name for finding in found for name in finding.modules or ("",)}
        for finding in found:  # a cell rather than the parts of which it is made
            if not any(_is_inside(finding.modules, name) for name in names):
                yield finding

    def _of_exits(self, examination: Examination) -> Iterator[Finding]:
        """Return modules to which what comes of their own weights returns at each step without its graph."""
        exits, _ = exits_of(examination, self._repetition)
        for name, loop in self._apart.items():
            own = {id(parameter) for parameter in parameters_of(loop.module)}
            back = Counter(
                (each.operation, each.place) for each in exits if each.before == name and own & each.cut_off()
            )
            for (operation, place), count in back.items():
                if count < _FEWEST - 1:
                    continue
                where = f" ({place})" if place else ""
                text = (
                    f"what comes of {name} and goes into it again passes {operation}{where} at each of {count} "
                    "steps: no gradient flows back over time"
                )
                yield Finding("cut over time", text, (name,), _REMEDY, 2 if loop.steps >= _LONG else 1)


def _of(name: str, loop: _Loop) -> Iterator[Finding]:
    cut = int(torch.stack(loop.cut).sum())
    shown, modules = name or "the model", (name,) if name else ()
    passed = loop.steps - 1  # from one step to the next
    if not cut:
        return
    if cut < passed:
        text = f"the state of {shown} is detached at {cut} of {passed} steps: no gradient flows back past them"
        yield Finding("cut over time", text, modules, "", 0 if cut <= passed / 2 else 1)
        return
    text = (
        f"what {shown} returns is detached before it gets it again, at each of {passed} steps: no gradient flows "
        "back over time, so it cannot learn what to keep"
    )
    # A module that runs over many steps itself is cut between chunks, as truncated backpropagation means to.
    is_cell = isinstance(loop.module, nn.RNNCellBase) or "cell" in type(loop.module).__name__.lower()
    is_fault = not isinstance(loop.module, nn.RNNBase) and (is_cell or loop.steps >= _LONG)
    yield Finding("cut over time", text, modules, _REMEDY, 2 if is_fault else 1)


def _is_chained(loop: _Loop) -> bool:
    """Return whether a gradient comes from the last call of a module to the first."""
    first, last = loop.made
    return not set(first) & set(last) and not set(first).isdisjoint(nodes_below(last))


def _is_inside(modules: tuple[str, ...], outer: str) -> bool:
    return bool(modules) and (not outer or modules[0].startswith(f"{outer}."))


def _place(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # of tensors without a storage of their own, such as sparse ones
        return id(tensor)
