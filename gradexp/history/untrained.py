"""Weights that take part in the forward pass, and that no loss reaches in any step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradexp.history.course import Course
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.step import SEEN, STATUSES

# Weights that something else than an optimizer changes, such as a moving average.
_MOVED = 1e-9
_REMEDY = (
    "take its call out of torch.no_grad(), and what it returns without .detach(); or, if this is meant, freeze it by "
    "requires_grad_(False)"
)


def untrained(course: Course) -> tuple[Finding, ...]:
    """Return which weights are trained by intent but get no gradient, since their calls are not in the graph.

    Meant are those whose output is seen, and has no graph, or begins the model and is cut off. Target networks, which
    no optimizer holds or which are changed by hand, and parts that are reached in another step do not count.
    """
    if len(course.steps) < 2 or not course.has("weight_grad", "output"):
        return ()
    if any(finding.kind == "cut" for finding in course.found):
        return ()
    idle = course.rows("weight_grad", "unused")
    if not idle.any() or idle.all():
        return ()
    trained = _ever(course, "weight_grad", *(STATUSES[code] for code in SEEN))
    unread = course.rows("output_grad", "unused") & _at_the_begin(~course.seen("weight_grad"))
    outside = course.rows("output_grad", "frozen") | unread
    rows = idle & ~trained & course.seen("output") & outside & ~_changed(course)
    # A step of an optimizer that holds a weight leaves it as it is; if no step was seen, nothing is known.
    held = _ever(course, "update", "zero")
    rows &= ~_ever(course, "update", "not_optimized", "frozen", "ok", "subnormal", "nonfinite")
    copies = _copies(course, rows)
    rows &= held | ~copies
    if not rows.any():
        return ()
    names = _outermost(course.modules(rows), course.modules(~rows))
    gets = "gets" if len(names) == 1 else "get"
    text = f"{listed(names)} {gets} no gradient in any recorded step, though called: the graph is cut between there "
    text += "and the loss"
    is_held = bool((held & rows).any())
    if is_held:
        text += "; the weights are in the optimizer and never change"
    # A target network that an optimizer holds by mistake learns as it should, by copies of the trained one.
    return (Finding("cut", text, names, _REMEDY, 3 if (held & rows & ~copies).any() else 1),)


def _ever(course: Course, quantity: str, *words: str) -> NDArray[np.bool_]:
    """Return which rows had one of some statuses in a step."""
    if quantity not in course.status:
        return np.zeros(len(course.names), dtype=bool)
    codes = [STATUSES.index(word) for word in words]
    return np.asarray(np.isin(course.status[quantity], codes).any(axis=(0, 1)))


def _at_the_begin(silent: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rows are called before any that gets a gradient: a head that is not used comes later."""
    return np.asarray(np.logical_and.accumulate(silent))


def _changed(course: Course) -> NDArray[np.bool_]:
    if not course.has("weight") or len(course.steps) < 2:
        return np.zeros(len(course.names), dtype=bool)
    weight = course.log10["weight"]
    return np.asarray((np.abs(weight[-1] - weight[0]) > _MOVED).any(axis=0))


def _copies(course: Course, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which rows are like ones that are trained, but for the part of the name that comes first."""
    if not course.kinds:
        return np.zeros(len(course.names), dtype=bool)
    places = [(name.partition(".")[2], kind) for name, kind in zip(course.names, course.kinds, strict=True)]
    known = {place for place, row in zip(places, rows, strict=True) if not row}
    return np.array([bool(row) and place in known for place, row in zip(places, rows, strict=True)])


def _outermost(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Return the outermost modules of some that hold none of the others."""

    def outermost(name: str) -> str:
        parts = name.split(".")
        for count in range(1, len(parts)):
            outer = ".".join(parts[:count])
            if not any(other == outer or other.startswith(outer + ".") for other in others):
                return outer
        return name

    return tuple(dict.fromkeys(outermost(name) for name in names))
