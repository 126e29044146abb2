"""Which calls of modules feed which, read from autograd's graph while the forward pass builds it.

A walk goes back from what a call returned to the nodes that made what earlier calls returned. Each node is visited
once in a step, and only its number is kept: a node would keep the tensors alive that it has saved.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor, nn

from gradexp.history.probe_steps import LOSS, Row
from gradexp.numerics.torch_internals import base_of, creation_number, current_node

# Beyond this a graph counts as unknown: a walk would take longer than a step.
_LONGEST_WALK = 100_000


class Source(Protocol):
    """What a gradient goes back to: a call of a module, or a checkpoint, whose inside the graph does not show."""

    fed_by: "frozenset[Source]"


class Checkpoint:
    """A reentrant checkpoint, which has a graph of its own inside once the backward pass has come to it.

    Attributes:
        fed_by: What its inputs come from.
        inside: The calls inside of it.
    """

    def __init__(self, fed_by: "frozenset[Source]" = frozenset()) -> None:
        self.fed_by = fed_by
        self.inside: list[Source] = []


_NOTHING: frozenset[Source] = frozenset()


class Graph:
    """The sources of the tensors of one trace.

    Attributes:
        is_known: Whether the walks came to their ends.
    """

    is_known: bool = True

    def __init__(self) -> None:
        # Each thread counts the nodes that it makes.
        self._by_thread: dict[int, dict[int, frozenset[Source]]] = {}
        self._checkpoints: dict[int, Checkpoint] = {}

    def add(self, call: Source, tensors: Iterable[Tensor]) -> None:
        """Note what a call returned, and what that comes from.

        Args:
            call: The call; its sources are set.
            tensors: The tensors that it returned and that take part in autograd.
        """
        nodes, bases = [], []
        for tensor in tensors:
            if (node := tensor.grad_fn) is not None:
                nodes.append(node)
            base = base_of(tensor)
            # After an operation in place on a view, which is then made anew, the way leads through its base.
            if base is not None and (node := base.grad_fn) is not None:
                bases.append(node)
        running = current_node()  # a checkpoint that runs the call again
        inside = None if running is None else self._checkpoint(creation_number(running))
        call.fed_by = self._sources(nodes, inside) - {call}
        known, found = self._known(), frozenset((call,))
        for node in bases:
            known.setdefault(creation_number(node), found)
        for node in nodes:
            known[creation_number(node)] = found
        if inside is not None and call not in inside.inside:
            inside.inside.append(call)

    def sources_of(self, loss: Tensor) -> frozenset[Source]:
        """Return what feeds a loss without passing another call."""
        return self._sources([loss.grad_fn]) if loss.grad_fn is not None else _NOTHING

    def close(self) -> None:
        """Forget everything."""
        self._by_thread.clear()
        for checkpoint in self._checkpoints.values():
            checkpoint.inside = []

    def _known(self) -> dict[int, frozenset[Source]]:
        return self._by_thread.setdefault(threading.get_ident(), {})

    def _checkpoint(self, number: int) -> Checkpoint:
        return self._checkpoints.setdefault(number, Checkpoint())

    def _sources(self, nodes: Sequence[Any], inside: Checkpoint | None = None) -> frozenset[Source]:
        """Return what some nodes come from, and remember it of each node in between."""
        known = self._known()
        numbers = [creation_number(node) for node in nodes]
        reads: dict[int, list[int]] = {}  # node -> nodes that it reads, all of them older
        waiting = [pair for pair in zip(numbers, nodes, strict=True) if pair[0] not in known]
        checkpoints: list[int] = []
        inputs: set[int] = set()
        while waiting:
            number, node = waiting.pop()
            if number in reads:
                continue
            reads[number] = read = []
            if type(node).__name__ == "CheckpointFunctionBackward":
                checkpoints.append(number)
            for source, _ in node.next_functions:
                if source is None:
                    continue
                of_source = creation_number(source)
                if inside is not None and not isinstance(getattr(source, "variable", _PARAMETER), nn.Parameter):
                    inputs.add(number)
                read.append(of_source)
                if of_source not in known and of_source not in reads:
                    waiting.append((of_source, source))
            if len(reads) > _LONGEST_WALK:
                self.is_known = False
                return _NOTHING
        for number in sorted(reads):
            found = {known[source] for source in reads[number] if source in known} - {_NOTHING}
            union = next(iter(found)) if len(found) == 1 else _NOTHING.union(*found)
            if number in inputs and inside is not None:
                union |= {inside}
            if number in checkpoints:
                checkpoint = self._checkpoint(number)
                checkpoint.fed_by = union
                union = frozenset((checkpoint,))
            known[number] = union
        return _NOTHING.union(*(known[number] for number in numbers))


_PARAMETER = nn.Parameter()


class Feeds:
    """Which rows feed which, and the loss, by what the calls of a trace are fed by.

    Args:
        calls: Those that count.
        rows_of: The rows of a call in the order of its inside, such as the layers of a recurrent module; those of one
            group stand side by side. A call without any is passed through.
    """

    def __init__(self, calls: Sequence[Any], rows_of: Callable[[Any], Sequence[Collection[Row]]]) -> None:
        self._calls = calls
        self._groups = {call: rows_of(call) for call in calls}
        self._consumed = {source for call in calls for source in call.fed_by}
        self._rows: dict[Any, frozenset[Row]] = {}

    def pairs(self, of_loss: Iterable[Source]) -> set[tuple[Row, Row]]:
        """Return pairs of rows, of which the first one feeds the second one.

        A row that no other one reads feeds the loss, as do those that the loss itself is known to read.
        """
        pairs: set[tuple[Row, Row]] = set()
        for call, groups in self._groups.items():
            for lower, upper in pairwise(groups):
                pairs.update((row, reader) for row in lower for reader in upper)
            for source in call.fed_by if groups else ():
                # Inside of a checkpoint its own mark stands for what it was given.
                is_inside = isinstance(source, Checkpoint) and call in source.inside
                given = source.fed_by if is_inside else (source,)
                pairs.update((row, reader) for row in self._last(given) for reader in groups[0])
        read = {row for row, _ in pairs}
        tops = {row for groups in self._groups.values() if groups for row in groups[-1]}
        return pairs | {(row, LOSS) for row in (tops - read) | self._last(of_loss)}

    def _last(self, sources: Iterable[Any]) -> frozenset[Row]:
        """Return the rows that a gradient of some sources comes to first."""
        found: set[Row] = set()
        for source in sources:
            if source not in self._rows:
                self._rows[source] = frozenset()  # against a circle
                self._rows[source] = self._last_of(source)
            found |= self._rows[source]
        return frozenset(found)

    def _last_of(self, source: Any) -> frozenset[Row]:
        if isinstance(source, Checkpoint):
            tops = [call for call in source.inside if call not in self._consumed]
            return self._last(tops or source.inside or source.fed_by)
        if source not in self._groups:
            return frozenset()
        groups = self._groups[source]
        return frozenset(groups[-1]) if groups else self._last(source.fed_by)
