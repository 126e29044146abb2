"""A loss that falls without bound, as one with the wrong sign."""

import numpy as np

from gradexp.history.course import Course, largest
from gradexp.history.finding import Finding

_FEWEST = 4
_FALLEN = 10.0
# A loss that is bounded for given outputs, such as a log density, falls without outputs that grow.
_GROWN = 0.5


def unbounded(course: Course) -> tuple[Finding, ...]:
    """Return that the loss falls below 0 ever faster, by what was recorded before any inf or nan.

    A log density or a negative similarity falls below 0 too, but ever more slowly, and not to many times the size of
    what it was. So judged are losses that fall in each third of the steps by more than in the one before, to -10 and
    to ten times the largest size of the first third, while outputs grow.
    """
    if course.loss is None:
        return ()
    loss = course.loss.mean(axis=1)
    is_known = np.isfinite(loss)
    end = len(loss) if is_known.all() else int(np.argmin(is_known))
    third = (end - 1) // 3
    if end < _FEWEST or not loss[end - 1] < -_FALLEN:
        return ()
    at = loss[[0, third, 2 * third, end - 1]]
    first, second, last = -np.diff(at)
    if not last > second > abs(first) or not -at[-1] > _FALLEN * abs(loss[: third + 1]).max():
        return ()
    if course.has("output"):
        size = largest(course.log10["output"][:end])
        if not size[-1] - size[0] > _GROWN:
            return ()
    text = f"the loss is unbounded below: it falls ever faster, from {at[0]:.2g} at step {course.steps[0]} to "
    text += f"{at[-1]:.2g} at step {course.steps[end - 1]}: is its sign wrong?"
    remedy = "-loss in place of loss, or an optimizer without maximize=True"
    return (Finding("unbounded loss", text, (), remedy, 3),)
