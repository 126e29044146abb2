"""Gradients that were there in an earlier step and are exactly 0 since."""

import numpy as np
from numpy.typing import NDArray

from gradexp.history.course import Course
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.slower import largest_share, times_smaller

_AGAIN = "dead units do not come back: gradexp.initialize(model, 'he'), and start again"
_OPEN_END = "no ReLU, clamp or other flat function after the last layer"
_TOO_LARGE = -1.0


def died(course: Course) -> tuple[Finding, ...]:
    """Return that no weight gets a gradient any more, though all did in an earlier step, and since when.

    A loss of exactly 0 has no gradient either, and nothing has died.
    """
    if len(course.steps) < 2 or not course.has("output_grad", "weight_grad"):
        return ()
    zero = course.rows("output_grad", "zero") & course.rows("weight_grad", "zero")
    lowest = int(np.argmax(course.seen("weight_grad")))
    if not zero[lowest] or any(finding.kind in ("dead", "number format") for finding in course.found):
        return ()
    if course.loss is not None and not (np.abs(course.loss[-1]) > 0).any() and not np.isnan(course.loss[-1]).any():
        return ()
    alive = np.isfinite(course.log10["weight_grad"][:, :, zero]).any(axis=(1, 2))
    if not alive.any():
        return ()
    last_alive = int(np.flatnonzero(alive)[-1])
    names = course.modules(zero)
    gets = "gets" if len(names) == 1 else "get"
    since = course.steps[last_alive + 1]
    text = f"{listed(names)} {gets} a gradient of exactly 0 since step {since}, and had one in step "
    text += f"{course.steps[last_alive]}: what comes after is flat by now, such as a ReLU of negative inputs"
    before = slice(0, last_alive + 1)
    share = largest_share(course, before)
    is_fast = share > _TOO_LARGE
    if is_fast:
        text += f"; step {course.steps[0]} changed weights by up to 10^{share:.1f} of their size, "
        text += "where about 10^-3 is usual"
    remedy = f"{_AGAIN} with a learning rate {times_smaller(course)} times smaller"
    if _is_end(course, zero):
        remedy = f"{_OPEN_END}; {remedy if is_fast else _AGAIN}"
    return (Finding("dead", text, names[::-1], remedy, 3),)


def _is_end(course: Course, zero: NDArray[np.bool_]) -> bool:
    """Return whether even what feeds the loss gets 0."""
    ends = [row for row, reader in course.feeds if reader == len(course.names)]
    return bool(ends) and bool(zero[ends].all())
