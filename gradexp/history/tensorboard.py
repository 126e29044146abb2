"""A history in TensorBoard: profiles over layers, and curves over training steps, each step once.

A history is made anew whenever it is asked for, so that the writer is what remembers which steps it has.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from gradexp.history.curves import curve, curves_of, quantities_of
from gradexp.history.scalars import Points, Values, points, profile_points
from gradexp.history.step import STATUSES, Array, Phase, Quantity, Step
from gradexp.kinds import texts

_BETWEEN_PROFILES = 10  # times as many steps as at the last one


class Recorded(Protocol):
    """What is read of a ``History``."""

    phase: Phase
    names: list[str]
    calls: list[int]
    steps: list[int]
    log10: dict[Quantity, Array]
    status: dict[Quantity, NDArray[np.int8]]
    stats: dict[str, Array]
    samples: Array | None
    total_grad: Array | None

    def at(self, step: int = -1) -> Step:
        """Return one recorded step."""
        ...

    def ratio_over_steps(self, quantity: Quantity, begin: int = 0) -> Array:
        """Return the first layer's size over the last one's at each step."""
        ...


@dataclass
class _Cursor:
    """Which steps have been written."""

    labels: set[int] = field(default_factory=set)
    count: int = 0
    last: int | None = None

    def take(self, steps: list[int]) -> list[int]:
        """Return the indices of steps that are new, and take them as written."""
        # A history that goes on is not looked through from its beginning each time.
        goes_on = 0 < self.count <= len(steps) and steps[self.count - 1] == self.last
        indices = []
        for index in range(self.count if goes_on else 0, len(steps)):
            if steps[index] not in self.labels:
                self.labels.add(steps[index])
                indices.append(index)
        self.count, self.last = len(steps), steps[-1] if steps else None
        return indices


@dataclass
class _Written:
    """What a writer has of one model."""

    cursors: dict[Any, _Cursor] = field(default_factory=dict)
    profiles: set[int] = field(default_factory=set)
    next_profile: int = 1
    first_label: int | None = None
    first: dict[tuple[str, int], float] = field(default_factory=dict)

    def check(self, history: Recorded) -> None:
        """Raise if the writer has the first step of another model."""
        quantity = next(iter(history.log10))
        sizes = history.log10[quantity][0].mean(axis=0).tolist()
        own = dict(zip(zip(history.names, history.calls, strict=True), sizes, strict=True))
        if self.first_label == history.steps[0]:
            common = [row for row in self.first if row in own]
            if not common or any(_differ(self.first[row], own[row]) for row in common):
                raise ValueError(
                    f"the writer has other numbers of step {self.first_label} already, of another model or another "
                    "training; give it a prefix, as in to_tensorboard(writer, prefix='generator')"
                )
        elif self.first_label is None:
            self.first_label, self.first = history.steps[0], own


def _differ(one: float, other: float) -> bool:
    return math.isfinite(one) and math.isfinite(other) and one != other


_WRITERS: "WeakKeyDictionary[Any, dict[str, _Written]]" = WeakKeyDictionary()
# Those that allow no weak reference live as long as the program.
_KEPT: list[tuple[Any, dict[str, _Written]]] = []


def _of_writer(writer: Any) -> dict[str, _Written]:
    """Return what is known of a writer, by prefix."""
    try:
        return _WRITERS.setdefault(writer, {})
    except TypeError:
        known = next((own for kept, own in _KEPT if kept is writer), None)
        if known is None:
            known = {}
            _KEPT.append((writer, known))
        return known


def write_history(history: Recorded, writer: Any, step: int, layers: str | Iterable[str] | None, prefix: str) -> None:
    """Write what a writer does not have yet; see ``History.to_tensorboard``."""
    layers = None if layers is None else tuple(texts("layers", layers, "patterns of names"))
    curves = curves_of(history.names, history.calls, layers) if history.phase != "init" else {}
    written = _of_writer(writer).setdefault(prefix, _Written())
    written.check(history)
    before = f"{prefix}/" if prefix else ""
    has_news = False
    for at, values in [
        *_profile(history, step, written),
        *_course(history, written),
        *_curves(history, curves, layers, written),
    ]:
        for tag, value in values.items():
            writer.add_scalar(f"{before}{tag}", value, at)
            has_news = True
    if has_news:
        writer.flush()


def note_curves(writer: Any, step: int) -> None:
    """Note that a writer has the curves of a step, as ``live`` hands them on; its profile can still be written."""
    written = _of_writer(writer).setdefault("", _Written())
    for curves in ("course", (None, False), (None, True)):
        written.cursors.setdefault(curves, _Cursor()).labels.add(step)


def _profile(history: Recorded, step: int, written: _Written) -> Points:
    """Yield a profile under a tag of its own: one that is asked for, or the last of ten times as many steps."""
    recorded = history.at(step)
    label, count = history.steps[step], len(history.steps)
    if label in written.profiles or (step == -1 and count < written.next_profile):
        return
    suffix = f"/step_{label:06}" if written.profiles else ""
    written.profiles.add(label)
    written.next_profile = _BETWEEN_PROFILES * count
    for layer, values in profile_points(recorded):
        yield layer, {f"{tag}{suffix}": value for tag, value in values.items()}


def _course(history: Recorded, written: _Written) -> Points:
    """Yield the scalars ``gradient/…`` of new steps."""
    new = written.cursors.setdefault("course", _Cursor()).take(history.steps)
    if not new:
        return
    begin = new[0]
    series = course_series(history, begin) | total_series(history, begin)
    chosen = {tag: np.asarray(values)[[index - begin for index in new]] for tag, values in series.items()}
    yield from points([history.steps[index] for index in new], chosen)


def course_series(history: Recorded, begin: int = 0) -> dict[str, Values]:
    """Return the scalars ``gradient/…`` from a step on by tag; none without output gradients."""
    if "output_grad" not in history.log10:
        return {}
    series: dict[str, Values] = {"gradient/log10_first_over_last": history.ratio_over_steps("output_grad", begin)}
    for name in ("nonfinite", "zero"):
        counts = (history.status["output_grad"][begin:] == STATUSES.index(name)).sum(axis=(1, 2))
        series[f"gradient/{name}_layers"] = counts.astype(float)
    return series


def total_series(history: Recorded, begin: int = 0) -> dict[str, Values]:
    """Return the norm of all gradients together from a step on by tag; none if it was not recorded."""
    total = history.total_grad
    return {} if total is None else {"gradient/log10_total": total[begin:].mean(axis=1)}


def _curves(history: Recorded, curves: dict[str, list[int]], layers: Any, written: _Written) -> Points:
    """Yield the new points of each curve."""
    for is_late in (False, True):
        steps = history.steps
        # The update of the newest step is known only at the next one.
        if is_late and "update" in history.log10 and not np.isfinite(history.log10["update"][-1]).any():
            steps = steps[:-1]
        new = written.cursors.setdefault((layers, is_late), _Cursor()).take(steps)
        quantities = _new_values(history, new) if new else {}
        series = {
            f"{quantity}/{name}": curve(values, rows)
            for quantity, values in quantities.items()
            if (quantity == "log10_update_ratio") == is_late
            for name, rows in curves.items()
        }
        yield from points([steps[index] for index in new], series)


def _new_values(history: Recorded, new: list[int]) -> dict[str, Array]:
    return quantities_of(
        {quantity: values[new] for quantity, values in history.log10.items()},
        {name: values[new] for name, values in history.stats.items()},
        None if history.samples is None else history.samples[new],
    )
