"""The way of the gradient from the loss down to the inputs: which row gets it from which."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gradexp.history.sentences import named
from gradexp.history.step import STATUSES, Array, Step


@dataclass(frozen=True)
class Flow:
    """The rows of a step that have an output gradient, and which feed which.

    Rows without a gradient, such as those of another step or of a frozen part, are passed through.

    Args:
        step: The step.
        value: log10 of each row's output gradient, shape ``(layer,)``: -inf where it is exactly 0, nan where unknown.
        order: The rows that have a value, from the inputs to the loss.
        readers: Row -> the rows that it feeds.
        feeders: Row -> the rows that feed it.
        ends: Rows that feed the loss.
        above: Row -> all rows on its ways to the loss, as bits of a number.
        below: Row -> all rows on its ways to the inputs, likewise.
    """

    step: Step
    value: Array
    order: list[int]
    readers: dict[int, list[int]]
    feeders: dict[int, list[int]] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    above: dict[int, int] = field(default_factory=dict)
    below: dict[int, int] = field(default_factory=dict)

    def name(self, row: int) -> str:
        """Return a row's name, with the number of the call if the module is called more than once."""
        call = self.step.calls[row] if self.step.calls else 0
        return (self.step.names[row] or "(model)") + (f" #{call + 1}" if call else "")

    def shown(self, row: int) -> str:
        """Return that as a sentence shows it."""
        return named(self.name(row))

    def kind(self, row: int) -> str:
        """Return class and shape of the weights of a row's module; empty if not known."""
        return self.step.kinds[row] if self.step.kinds else ""

    @property
    def sources(self) -> list[int]:
        """The rows that no other row feeds."""
        return [row for row in self.order if not self.feeders[row]]

    def by_module(self) -> Array:
        """Return the largest value among all calls of each row's module, shape ``(layer,)``."""
        largest: dict[str, float] = {}
        for row in self.order:
            name = self.step.names[row]
            largest[name] = max(largest.get(name, -np.inf), float(self.value[row]))
        return np.array([largest.get(name, np.nan) for name in self.step.names])

    @cached_property
    def _largest_first(self) -> list[tuple[int, float]]:
        """Each row and its value."""
        values = self.value.tolist()
        return sorted(((row, values[row]) for row in self.order), key=lambda pair: -pair[1])

    def largest(self, rows: int) -> float:
        """Return the largest value of some rows, given as bits; -inf without any."""
        return next((value for row, value in self._largest_first if rows >> row & 1), -np.inf)

    def top(self, row: int) -> int:
        """Return the row of largest value that feeds the loss, among those on the ways from a row."""
        reached = [end for end in self.ends if end == row or self.above[row] >> end & 1]
        return max(reached, key=lambda end: self.value[end])

    def is_small_source(self, row: int) -> bool:
        """Return whether a row's gradient is large only since its outputs are small, as of embeddings before a norm.

        Dividing outputs by a factor and what reads them by the same multiplies their gradient by it, and changes
        nothing else.
        """
        if self.feeders[row] or not self.readers[row]:
            return False
        if self.kind(row).startswith("Embedding"):
            return True
        if "output" not in self.step.log10:
            return False
        scale_free = self.value + self.step.profile("output")
        return bool(scale_free[row] < max(scale_free[reader] for reader in self.readers[row]) + 1)


def flow_of(step: Step) -> Flow | None:
    """Return the way of the gradient, or None if autograd's graph is not known or no path through it."""
    if not step.feeds or "output_grad" not in step.log10:
        return None
    value = values_of(step)
    direct: dict[int, set[int]] = {row: set() for row in range(step.depth + 1)}
    for row, reader in step.feeds:
        direct[row].add(reader)
    order = _sorted(direct)
    if order is None:
        return None
    has_value = {row for row in range(step.depth) if not np.isnan(value[row])}
    reached: dict[int, set[int]] = {}  # the next ones that have a value, and the loss
    for row in reversed(order):
        nearest = [
            {reader} if reader in has_value or reader == step.depth else reached[reader] for reader in direct[row]
        ]
        reached[row] = set().union(*nearest)
    rows = [row for row in order if row in has_value]
    readers = {row: sorted(reached[row] - {step.depth}) for row in rows}
    feeders: dict[int, list[int]] = {row: [] for row in rows}
    for row in rows:
        for reader in readers[row]:
            feeders[reader].append(row)
    above, below = dict.fromkeys(rows, 0), dict.fromkeys(rows, 0)
    for row in reversed(rows):
        for reader in readers[row]:
            above[row] |= above[reader] | 1 << reader
    for row in rows:
        for feeder in feeders[row]:
            below[row] |= below[feeder] | 1 << feeder
    ends = [row for row in rows if step.depth in reached[row] or not readers[row]]
    return Flow(step, value, rows, readers, feeders, ends, above, below)


def values_of(step: Step) -> Array:
    """Return log10 of each row's output gradient: -inf where it is exactly 0, nan where there is none."""
    zero = (step.status["output_grad"] == STATUSES.index("zero")).all(axis=0)
    return np.asarray(np.where(zero, -np.inf, step.profile("output_grad")))


def chains(flow: Flow) -> list[list[int]]:
    """Return the longest rows in a row: each is read by the next one alone, which reads nothing else.

    Calls of one module are no layers of a chain, since they share their weights. Embeddings, whose scale is free,
    begin none.
    """
    following = {}
    for row in flow.order:
        if len(flow.readers[row]) == 1 and row not in flow.ends and not flow.kind(row).startswith("Embedding"):
            reader = flow.readers[row][0]
            if len(flow.feeders[reader]) == 1 and flow.step.names[reader] != flow.step.names[row]:
                following[row] = reader
    found = []
    for row in flow.order:
        if row in following and row not in following.values():
            chain = [row]
            while chain[-1] in following:
                chain.append(following[chain[-1]])
            found.append(chain)
    return found


def _sorted(readers: dict[int, set[int]]) -> list[int] | None:
    """Return rows in an order in which each comes before those that it feeds, or None if there is none."""
    missing = dict.fromkeys(readers, 0)
    for row in readers:
        for reader in readers[row]:
            missing[reader] += 1
    order = [row for row, count in missing.items() if not count]
    for row in order:
        for reader in sorted(readers[row]):
            missing[reader] -= 1
            if not missing[reader]:
                order.append(reader)
    return order if len(order) == len(readers) else None
