"""Whether the loss falls over the recorded steps."""

import math

import numpy as np

from gradexp.history.course import Course
from gradexp.history.finding import Finding
from gradexp.history.step import Array

_FEWEST = 30
_BEGIN = 3


def no_progress(course: Course) -> tuple[Finding, ...]:
    """Return that the loss has not fallen: its mean over the last third of steps is not below that of the first.

    Fewer than 30 recorded losses say too little, and a loss that fell at the very start has converged. Updates
    that still become larger are those of a warm-up.
    """
    if course.loss is None or len(course.steps) < _FEWEST:
        return ()
    loss = course.loss.mean(axis=1)
    if not np.isfinite(loss).all():
        return ()
    third = len(loss) // 3
    first, last = float(loss[:third].mean()), float(loss[-third:].mean())
    if last < first or not np.any(loss) or _has_fallen(loss, third) or _is_warming_up(course, third):
        return ()
    text = f"the loss does not fall: on average {first:.3g} in the first third of {len(loss)} recorded steps and "
    text += f"{last:.3g} in the last; in adversarial or reinforcement learning, or after convergence, that is normal"
    remedy = "fit one batch first: if that works, look at the data; else at the learning rate and the loss's sign"
    return (Finding("no progress", text, (), remedy, 2),)


def _has_fallen(loss: Array, third: int) -> bool:
    """Return whether the very first losses are above the last ones by more than chance: it has converged since."""
    noise = float(loss[-third:].std()) / math.sqrt(_BEGIN)
    return bool(loss[:_BEGIN].mean() - loss[-third:].mean() > 2 * noise)


def _is_warming_up(course: Course, third: int) -> bool:
    if not course.has("update"):
        return False
    update = course.log10["update"]
    sizes = np.where(np.isfinite(update), update, np.nan)
    known = np.isfinite(sizes[:third]).any(axis=0) & np.isfinite(sizes[-third:]).any(axis=0)
    if not known.any():
        return False
    growth = np.nanmean(sizes[-third:, known], axis=0) - np.nanmean(sizes[:third, known], axis=0)
    return bool(np.median(growth) > np.log10(2))
