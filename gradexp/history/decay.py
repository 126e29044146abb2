"""Weights that shrink by the same factor at every step: weight decay."""

import numpy as np

from gradexp.history.course import Course, listed
from gradexp.history.finding import Finding

_WINDOW = 10
_HALVED, _GONE = -0.3, -1.0
_STRAIGHT = 0.9  # the share of an update that makes its weight shorter


def decay(course: Course) -> tuple[Finding, ...]:
    """Return that weight decay eats the weights up.

    An update that does nothing but shorten its weight is as long as the weight becomes shorter. One that learns is
    far longer, since it is almost at right angles to the weight. Judged are recorded steps that follow one another,
    of weights that are at most half of what they were in the first one.
    """
    if len(course.steps) < 3 or not course.has("weight", "update"):
        return ()
    weight = course.log10["weight"]
    window = slice(-_WINDOW, None)
    sizes, updates = weight[window].mean(axis=1), course.log10["update"][window].mean(axis=1)
    labels = np.asarray(course.steps[window])
    next_to = np.diff(labels) == 1
    if next_to.sum() < 2:
        return ()
    with np.errstate(invalid="ignore", over="ignore"):
        factor = 10 ** np.diff(sizes, axis=0)[next_to]
        straight = (1 - factor) / 10 ** (updates - sizes)[:-1][next_to]
        shrunk = sizes[-1] - weight[0].mean(axis=0)
        rows = (straight > _STRAIGHT).all(axis=0) & (shrunk < _HALVED)
    known = np.isfinite(shrunk)
    if not rows.any() or rows.sum() < known.sum() / 2:
        return ()
    names = course.modules(rows)
    text = f"weight decay outweighs the gradient: each step makes {listed(names)} "
    text += f"x{np.median(factor[:, rows]):.3g}, 10^{np.median(shrunk[rows]):.1f} since step {course.steps[0]}"
    severity = 3 if np.median(shrunk[rows]) < _GONE else 2
    return (Finding("weight decay", text, names, "weight_decay=1e-4 to 1e-2", severity),)
