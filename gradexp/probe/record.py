"""The record of a training in memory: the steps that a probe keeps, the order of their rows, and their History."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

from gradexp.history.finding import Finding, worst_first
from gradexp.history.history import History
from gradexp.history.probe_steps import Layout, ProbeStep, Row, Subject, history_fields, layout_of
from gradexp.history.step import STATUSES
from gradexp.probe.order import merged


class Record:
    """What was recorded, step by step.

    Args:
        subject: What it is of.

    Attributes:
        steps: Label of each step that is kept.
        readings: What was measured in it.
        findings: What was found in it beside the sizes, worst first.
        places: How many steps of the training came before it.
        feeds: Which rows feed which.
        kinds: Class and shapes of weights of a module, by name.
        numbers: The rows' numbers in the readings.
        order: The rows that were called, as in the forward pass.
        total: How many steps there are, kept or not.
        count: How many of them were added here, and not restored.
        version: How often a step was added or changed.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.steps: list[int] = []
        self.readings: list[ProbeStep] = []
        self.findings: list[tuple[Finding, ...]] = []
        self.places: list[int] = []
        self.feeds: set[tuple[Row, Row]] = set()
        self.kinds: dict[str, str] = {}
        self.numbers: dict[Row, int] = {}
        self.order: dict[Row, None] = {}
        self.total: int = 0
        self.count: int = 0
        self.version: int = 0
        self._restored: list[int] = []  # labels of all steps that were, kept or not
        self._layout: Layout | None = None
        self._seen: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    @property
    def names(self) -> list[str]:
        """The modules that may be recorded, in the model's order."""
        return self.subject.names

    def row_of(self, name: str, call: int = 0) -> int:
        """Return the number of a row, a new one for a new row."""
        return self.numbers.setdefault((name, call), len(self.numbers))

    def rows_of(self, names: Iterable[str]) -> dict[str, int]:
        """Return the number of each module's first row."""
        return {name: self.row_of(name) for name in names}

    def keep_order(self, calls: Sequence[Row]) -> None:
        """Put rows that are new where they belong among the others.

        Args:
            calls: The rows of one step in the order of their calls.
        """
        if not self.order.keys() >= set(calls):
            places = {name: place for place, name in enumerate(self.names)}
            rows = merged([*self.order], [*dict.fromkeys(calls)], lambda row: (places[row[0]], row[1]))
            self.order = dict.fromkeys(rows)

    def add(self, label: int, reading: ProbeStep) -> None:
        """Add a step. The first one of a training that goes on replaces what was restored from its label on."""
        if self._restored:
            place = next((index for index, own in enumerate(self._restored) if own >= label), self.total)
            self._cut(place)
            self._restored = []
        self._append(label, reading, ())
        self.count += 1
        self.version += 1

    def restore(self, place: int, label: int, reading: ProbeStep, findings: tuple[Finding, ...]) -> None:
        """Add a step of an earlier part of the training, in place of those from a place on."""
        self._cut(place)
        self._append(label, reading, findings)
        self._restored.append(label)

    def _cut(self, place: int) -> None:
        index = bisect_left(self.places, place)
        del self.steps[index:], self.readings[index:], self.findings[index:], self.places[index:]
        del self._restored[place:]
        self.total = place

    def _append(self, label: int, reading: ProbeStep, findings: tuple[Finding, ...]) -> None:
        self.steps.append(label)
        self.readings.append(reading)
        self.findings.append(findings)
        self.places.append(self.total)
        self.total += 1

    def thin_out(self, keep: int) -> None:
        """Forget every second of the steps before the last ``keep``, as long as they are more than ``keep``."""
        while (older := len(self.steps) - keep) > keep:
            for of_step in (self.steps, self.readings, self.findings, self.places):
                del of_step[1:older:2]

    def add_findings(self, findings: Iterable[Finding]) -> None:
        """Add to the last step what is known of it beside its sizes."""
        self.findings[-1] = worst_first([*self.findings[-1], *findings])
        self.version += 1

    def take_updates(self, reading: ProbeStep) -> bool:
        """Move updates in a later reading to the last step, to which they belong; return whether there were any."""
        if "update" in reading.log10:
            self.readings[-1].take_over("update", reading)
            self.version += 1
            return True
        return False

    def is_unmoved(self, names: Iterable[str]) -> bool:
        """Return whether the last step has left weights of some rows as they were, though they have a gradient."""
        status, rows = self.readings[-1].status, [self.row_of(name) for name in names]
        if not rows or not {"update", "weight_grad"} <= status.keys():
            return False
        if not (status["update"][:, rows] == STATUSES.index("zero")).all():
            return False
        gradient = status["weight_grad"][:, rows]
        return bool(np.isin(gradient, [STATUSES.index(word) for word in ("ok", "subnormal")]).any())

    def layout(self) -> Layout:
        """Return the rows in their order, which is made anew only when something new was seen."""
        seen = (bool(self.steps), len(self.order), len(self.numbers), len(self.feeds), len(self.kinds))
        if self._layout is None or self._seen != seen:
            self._seen = seen
            self._layout = layout_of(
                self.names, self.numbers, self.order, self.feeds, self.kinds, is_empty=not self.steps
            )
        return self._layout

    def history(self, chosen: slice | Sequence[int] = slice(None)) -> History:
        """Return some of the steps that are kept."""
        indices = range(*chosen.indices(len(self.steps))) if isinstance(chosen, slice) else chosen
        readings, steps = [self.readings[i] for i in indices], [self.steps[i] for i in indices]
        found = [self.findings[i] for i in indices]
        return History(**history_fields(self.subject, self.layout(), steps, readings, found))
