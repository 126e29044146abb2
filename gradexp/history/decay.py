"""Weights that shrink by the same factor at every step: weight decay."""

import numpy as np

from gradexp.history.course import Course
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.step import STATUSES

_HALVED, _GONE = -0.3, -1.0
_NOTHING = -50.0  # below every float32
_STRAIGHT, _MORE = 0.8, 1.25  # how much shorter weights are for the length of an update; more is not the optimizer's


def decay(course: Course) -> tuple[Finding, ...]:
    """Return that weight decay has eaten the weights up.

    An update that does nothing but shorten its weight is as long as the weight becomes shorter. One that learns is
    far longer, since it is almost at right angles to the weight. Between recorded steps the factor per step counts.
    Judged are weights that such updates have at least halved since the first step, if they are half of all weights.
    """
    if len(course.steps) < 3 or not course.has("weight", "update"):
        return ()
    is_zero = course.status["weight"] == STATUSES.index("zero")
    weight = np.where(is_zero, _NOTHING, course.log10["weight"])
    shrunk = (weight[-1] - weight[0]).mean(axis=0)
    known = np.isfinite(shrunk)
    rows = known & (shrunk < _HALVED)
    if not rows.any() or rows.sum() < known.sum() / 2:
        return ()
    sizes, updates = weight[:, :, rows].mean(axis=1), course.log10["update"][:-1, :, rows].mean(axis=1)
    steps = np.maximum(np.diff(course.steps), 1)[:, None]
    with np.errstate(all="ignore"):
        change = np.diff(sizes, axis=0)
        factor = 10 ** (change / steps)
        shorter = (1 - factor) / 10 ** (updates - sizes[:-1])
        is_straight = (shorter > _STRAIGHT) & (shorter < _MORE)
    rows[rows] = np.where(is_straight, change, 0).sum(axis=0) < _HALVED
    if not rows.any() or rows.sum() < known.sum() / 2:
        return ()
    names, left = course.modules(rows), float(np.median(shrunk[rows]))
    taken = 1 - np.median(factor[is_straight])
    remains = "nothing" if is_zero[-1, :, rows].all() else f"10^{left:.1f}"
    text = f"weight decay outweighs the gradient: a step takes {taken:.2g} of the weights of {listed(names)}, and "
    text += f"{remains} of them is left since step {course.steps[0]}"
    return (Finding("weight decay", text, names, "weight_decay=1e-4 to 1e-2", 3 if left < _GONE else 2),)
