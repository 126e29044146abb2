"""Which backward passes count: those that add to ``.grad``, unless that is set to zero again before the collect."""

import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.parameter import is_lazy

from gradexp.numerics.norms import has_values, scaled_norms
from gradexp.numerics.torch_internals import (
    after_backward,
    backward_number,
    is_transformed,
    keeps_graph,
    parameter_of,
    parameters_at,
    parameters_by_name,
    version_of,
    versions_of,
    will_execute,
)
from gradexp.probe.names import is_callable
from gradexp.probe.piling import Piled, Piling, State

_ORDINARY = {Tensor}
_Place = tuple["weakref.ref[nn.Module]", str]


class ForwardPass:
    """One forward pass of the model.

    Args:
        with_graph: Whether autograd records it.
    """

    leaf: Node | None = None  # that adds to .grad of some leaf of its graph

    def __init__(self, with_graph: bool) -> None:
        self.with_graph = with_graph
        self.calls: dict[str, int] = {}  # of each module
        self.backwards: set[BackwardPass] = set()  # that came back through it and add to .grad

    @property
    def is_kept(self) -> bool:
        """Whether a backward pass through it ran to its end, and its gradients were not thrown away."""
        return any(backward.is_finished and not backward.is_thrown for backward in self.backwards)


class BackwardPass:
    """One backward pass. What it brought counts only if the pass runs to its end.

    Args:
        accumulates: Whether the pass adds to ``.grad``; None if that cannot be known.

    Attributes:
        keeps_graph: Whether another pass may come over the same graph.
        touched: Numbers of the parameters to whose ``.grad`` it added.
        thrown: Numbers of those whose ``.grad`` was set to zero or None later.
    """

    is_finished: bool = False

    def __init__(self, accumulates: bool | None) -> None:
        self.accumulates = accumulates
        self.keeps_graph: bool = keeps_graph()
        self.touched: set[int] = set()
        self.thrown: set[int] = set()

    @property
    def is_thrown(self) -> bool:
        """Whether no parameter holds any more what the pass added."""
        return bool(self.thrown) and self.thrown == self.touched


class Parameters:
    """The parameters of watched modules whose ``.grad`` tells what became of a backward pass.

    Args:
        model: The model that is watched. It is held weakly, as are the modules. Weak references to parameters
            themselves would keep torch from swapping them.
        modules: Its watched modules, by name.

    Attributes:
        numbers: The numbers of each module's own parameters, or else of those of the modules inside, by name.
        own: The numbers of each module's own parameters only.
        containers: Names of modules that nobody can call and that own no parameter themselves.
        watched: Number of the first parameter that no watched module has.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        self._model = weakref.ref(model)
        order: dict[_Place, int] = {}
        self.numbers: dict[str, list[int]] = {}
        self.own: dict[str, list[int]] = {}
        self.containers: set[str] = set()
        for name, module in modules.items():
            own = _telling(module)
            places = own or [place for inner in module.modules() for place in _telling(inner)]
            self.numbers[name] = [order.setdefault(place, len(order)) for place in places]
            self.own[name] = self.numbers[name] if own else []
            if not own and not is_callable(module):
                self.containers.add(name)
        self.watched: int = len(order)
        if not all(self.numbers.values()):  # a module without parameters goes with all others
            for place in (place for inner in model.modules() for place in _telling(inner)):
                order.setdefault(place, len(order))
        self._places = list(order)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self._places)

    def __getitem__(self, number: int) -> nn.Parameter | None:
        """Return a parameter as it is now, None if it is gone."""
        reference, name = self._places[number]
        module = reference()
        return None if module is None else parameter_of(module, name)

    def read(self) -> tuple[list[State], list[Tensor | None]]:
        """Return which tensor in which version ``.grad`` of each parameter holds, and those tensors."""
        parameters = parameters_at(self._places)
        gradients = [p.grad if type(p) is nn.Parameter or (p is not None and p.is_leaf) else None for p in parameters]
        own, others = map(id, parameters), map(id, gradients)
        if set(map(type, gradients)) == _ORDINARY:
            try:
                return list(zip(own, others, versions_of(gradients), strict=True)), gradients
            except RuntimeError:  # of a tensor that inference mode has made
                own, others = map(id, parameters), map(id, gradients)
        states = [
            (one, 0, 0) if gradient is None else (one, other, version(gradient))
            for one, other, gradient in zip(own, others, gradients, strict=True)
        ]
        return states, gradients

    def accumulator_of(self, name: str) -> Node | None:
        """Return the node that adds to ``.grad`` of one of a module's parameters, if any is trained."""
        for number in self.numbers.get(name, ()):
            parameter = self[number]
            if parameter is not None and parameter.requires_grad and parameter.is_leaf:
                return accumulator(parameter)
        return None

    def all_accumulators(self) -> list[Node]:
        """Return the nodes that add to ``.grad`` of all parameters of the model."""
        model = self._model()
        leaves = [p for p in model.parameters() if p.requires_grad and p.is_leaf] if model is not None else []
        return [accumulator(parameter) for parameter in leaves]


class Passes:
    """The backward passes between two collects, and what became of the gradients that they added to ``.grad``.

    Args:
        parameters: The parameters whose ``.grad`` is looked at.

    Attributes:
        finished: The passes that added to ``.grad`` and ran to their end.
        moved: Ids of parameters whose gradient a hook has taken away from ``.grad``.
        by_number: The passes by autograd's number, whether they count or not.
        counting: Number of a pass that counts as if it added to ``.grad``.
        piling: Gradients that were added to those of a step already made.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.is_open: bool = True
        self.finished: list[BackwardPass] = []
        self.moved: set[int] = set()
        self.counting: int = -1
        self.piling: Piling = Piling()
        self._parameters = parameters
        self.by_number: dict[int, BackwardPass] = {}
        self._nesting: list[BackwardPass] = []  # passes in which others may run
        self._states: list[State] | None = None  # after the last pass
        self._held: list[Tensor | None] = []  # gradients after the last pass, up to the next one or the collect
        self._replaced: set[int] = set()  # whose .grad somebody has put there by hand
        self._accumulators: list[Node] | None = None
        self._at_first: tuple[list[State], list[Tensor | None]] | None = None

    def __len__(self) -> int:
        """Return the number of passes, whether they count or not."""
        return len(self.by_number)

    def running(self, name: str, run: ForwardPass, gradient: Tensor | None = None) -> BackwardPass:
        """Return the pass that is running.

        Args:
            name: The module through which it comes.
            run: The forward pass in which that was called.
            gradient: The gradient that it brings, if it is at hand.
        """
        number = backward_number()
        backward = self.by_number.get(number)
        if backward is None:
            is_counting = number == self.counting or self._accumulates(name, run.leaf, gradient)
            backward = self.by_number[number] = self._begin(is_counting)
        return backward

    def nest(self, name: str, run: ForwardPass) -> None:
        """Expect other passes inside of the running one, as where a checkpoint runs a part again."""
        outer = self.running(name, run)
        if outer not in self._nesting:
            self._nesting.append(outer)

    def notice(self) -> list[Tensor | None]:
        """Note what was thrown away since the last pass; return what ``.grad`` holds.

        Whoever reads ``.grad`` while the list is there does so in a quarter of the time.
        """
        states, gradients = self._parameters.read()
        self._held = []
        if self._states is not None:
            self._compare(states)
        return gradients

    def see_step(self, held: set[int]) -> None:
        """Note a step of the optimizer that holds some parameters, by id."""
        self.piling.see_step(held, self._parameters.read()[0])

    def piled(self) -> dict[int, Piled]:
        """Return, by id, the parameters whose ``.grad`` holds something of an earlier step."""
        found = {}
        for number, is_left in self.piling.kept.items():
            parameter = self._parameters[number]
            if parameter is not None and parameter.grad is not None and self._states is not None:
                found[id(parameter)] = Piled.of(parameter.grad, self._states[number], is_left)
        return found

    def is_anything_left(self) -> bool:
        """Return whether ``.grad`` may hold something of a pass, or what somebody has put there by hand."""
        if not self.finished or not all(backward.is_thrown for backward in self.finished):
            return True
        thrown = set.union(*(backward.thrown for backward in self.finished))
        left = [number for number in thrown if self._states is not None and self._states[number][1]]
        return len(self._zero(left)) < len(left)

    def brought(self, name: str, others: Iterable[str]) -> bool:
        """Return whether a pass added to ``.grad`` of a module's parameters past some other modules.

        Not so for a mere container, nor where the others have the same parameters.
        """
        if name in self._parameters.containers:
            return False
        shared = {id(self._parameters[n]) for other in others for n in self._parameters.own.get(other, ())}
        numbers = {n for n in self._parameters.numbers.get(name, ()) if id(self._parameters[n]) not in shared}
        if not self.finished and self._at_first is not None:  # no pass was seen
            before, now = self._at_first[0], self._parameters.read()[0]
            return any(now[number][1] and before[number] != now[number] for number in numbers)
        return any(backward.touched & numbers for backward in self.finished)

    def watch(self) -> None:
        """Note what ``.grad`` holds now, for the case that no pass will be seen."""
        self._at_first = self._parameters.read()  # the tensors too: others could take their place

    def counted(self, name: str) -> list[BackwardPass] | None:
        """Return the passes of whose loss ``.grad`` of a module's parameters holds the gradient.

        A part that is frozen, or has no parameters, goes with the passes that come through it.

        Returns:
            The passes, or None if that cannot be known.
        """
        if len(self.finished) == 1 and not self.finished[0].thrown:
            return self.finished
        numbers = set(self._parameters.numbers.get(name, ())) or set(range(len(self._states or ())))
        kept, others = [], []
        is_partly_thrown = is_thrown = is_doubtful = False
        for backward in self.finished:
            touched = backward.touched & numbers
            thrown = backward.thrown & numbers
            if touched and touched == thrown:
                is_thrown = True
            elif touched:
                is_partly_thrown |= bool(thrown)
                kept.append(backward)
            elif not backward.is_thrown:
                is_doubtful |= bool(backward.thrown)
                others.append(backward)
        if is_partly_thrown or (kept and is_thrown and self._replaced & numbers):
            return None
        return kept or (None if is_doubtful else others)

    def close(self) -> None:
        """Look no longer, and forget what graphs would keep alive."""
        self.is_open = False
        self._accumulators = None
        self._at_first = None
        self._held = []

    def _accumulates(self, name: str, leaf: Node | None, gradient: Tensor | None) -> bool | None:
        """Return whether the pass that is running adds to ``.grad`` of anything; None if that cannot be known."""
        if gradient is not None and is_transformed(gradient):
            return False  # a batch of gradients through each tensor, as vectorised Jacobians have
        for node in (self._parameters.accumulator_of(name), leaf):
            if node is not None and (answer := will_execute(node)) is not False:
                return bool(answer)
        if self._accumulators is None:
            self._accumulators = self._parameters.all_accumulators()
        answers = {will_execute(node) for node in self._accumulators}
        # Without a single trained parameter the pass may reach a leaf that nobody here knows.
        return (True in answers) if answers else None

    def _begin(self, accumulates: bool | None) -> BackwardPass:
        backward = BackwardPass(accumulates)
        if accumulates:
            before, gradients = self._parameters.read()
            self.piling.see_pass(before, gradients)
            del gradients
            self._held = []
            if self._states is not None and all(outer.is_finished for outer in self._nesting):
                self._compare(before)
            # Twice, to come after those who write gradients at the end of the pass themselves, as FSDP does.
            after_backward(lambda: after_backward(lambda: self._end(backward, before)))
        return backward

    def _end(self, backward: BackwardPass, before: Sequence[State]) -> None:
        backward.is_finished = True
        if not self.is_open:
            return
        self.finished.append(backward)
        after, self._held = self._parameters.read()
        self._states = after
        self.piling.see_end(after)
        backward.touched.update(number for number, state in enumerate(after) if state != before[number])
        # The pass may have come to others before it came to a watched module.
        backward.touched.update(number for number in range(self._parameters.watched, len(after)) if after[number][1])
        if len(backward.touched) < len(before):
            backward.touched.update(filter(self._took, set(range(len(after))) - backward.touched))

    def _compare(self, states: list[State]) -> None:
        """Note what was thrown away, given what ``.grad`` holds now."""
        before, self._states = self._states, states
        if before is None or before == states:
            return
        changed = [n for n, (old, new) in enumerate(zip(before, states, strict=True)) if old[1] and old != new]
        # While FSDP or functional_call computes, modules have other parameters than in between.
        strangers = {number for number in changed if before[number][0] != states[number][0]}
        self._states = [before[number] if number in strangers else state for number, state in enumerate(states)]
        changed = [number for number in changed if number not in strangers]
        thrown = {number for number in changed if not states[number][1]}
        thrown.update(self._zero([number for number in changed if number not in thrown]))
        self.piling.drop(thrown)
        for backward in self.finished:
            backward.thrown |= backward.touched & thrown
            if backward.touched - strangers and backward.touched - strangers == backward.thrown:
                backward.thrown |= backward.touched
        self._replaced.update(n for n in changed if n not in thrown and before[n][1] != states[n][1])

    def _took(self, number: int) -> bool:
        """Return whether the pass that ends had a gradient for a parameter whose ``.grad`` shows none."""
        parameter = self._parameters[number]
        if parameter is None or not (parameter.requires_grad and parameter.is_leaf):
            return False
        if hasattr(parameter, "full_tensor"):  # a DTensor, which stands in no graph
            return True
        if parameter.grad is None and will_execute(accumulator(parameter)):
            self.moved.add(id(parameter))
            return True
        return False

    def _zero(self, numbers: Collection[int]) -> list[int]:
        """Return which parameters have gradients of nothing but zeros."""
        parameters = {number: self._parameters[number] for number in numbers}
        gradients = {
            number: gradient
            for number, parameter in parameters.items()
            if parameter is not None and (gradient := parameter.grad) is not None and has_values(gradient)
        }
        sizes = scaled_norms([*gradients.values()])
        return [number for number, (norm, _) in zip(gradients, sizes, strict=True) if not float(norm)]


def accumulator(parameter: Tensor) -> Node:
    """Return the node that adds to a leaf's ``.grad``."""
    return get_gradient_edge(parameter).node


def is_known_to_others(parameter: Tensor) -> bool:
    """Return whether somebody holds the node that adds to a leaf's ``.grad``, maybe with a hook on it."""
    mark = "gradexp"
    notes: Any = accumulator(parameter).metadata
    notes[mark] = True  # gone with the node, if nobody holds that
    del notes
    notes = accumulator(parameter).metadata
    return bool(notes.pop(mark, False))


def _telling(module: nn.Module) -> list[tuple[weakref.ref[nn.Module], str]]:
    """Return where a module's weights are, or else one of its other parameters."""
    parameters = {name: p for name, p in parameters_by_name(module).items() if p is not None}
    weights = [name for name, parameter in parameters.items() if is_lazy(parameter) or parameter.dim() > 1]
    return [(weakref.ref(module), name) for name in weights or [*parameters][:1]]


def version(gradient: Tensor) -> int:
    """Return the version of a gradient, which each change in place makes another one."""
    if type(gradient) is not Tensor and hasattr(gradient, "to_local"):
        gradient = gradient.to_local()  # of a DTensor, which FSDP adds to unseen by its own version
    try:
        return version_of(gradient)
    except RuntimeError:  # of a tensor that inference mode has made
        return 0
