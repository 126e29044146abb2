"""How a training came to inf or nan: step by step, or by one step of the optimizer."""

import numpy as np

from gradexp.history.course import Course, largest
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.history.slower import largest_share, times_smaller
from gradexp.history.step import STATUSES, Array

# A training that diverges grows by decades within a few steps. One that is healthy also grows at first, but hardly
# tenfold, and its steps are about a thousandth of the weights.
_WINDOW = 10
_GROWN, _GROWN_FAR = 1.0, 3.0
_LARGE_SHARE = -1.0
_RISEN, _RISEN_FAR = 10.0, 100.0
_BEFORE_STEP = ("output", "output_grad", "weight_grad", "weight")
_WORDS = {"output": "outputs", "weight": "weights", "update": "updates", "weight_grad": "weight gradients"}
# Of a loss that rises nearly always from the first step on, which is small enough to train, the sign is wrong.
_USUAL_SHARE, _ENOUGH_LOSSES, _NEARLY_ALWAYS = -1.5, 10, 0.8
_SIGN = "-loss in place of loss, or an optimizer without maximize=True"
# Adam divides clipping out again.
_CLIP = "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) before optimizer.step()"


def divergence(course: Course) -> tuple[Finding, ...]:
    """Return what led to the inf or nan of the last step, or to a loss that rises or had risen.

    Sizes that grew by decades before, with steps as large as the weights, come of a learning rate that is too large.
    Finite gradients, and weights that are inf or nan after the step, put the blame on the optimizer's step.
    """
    if not course.has_nonfinite(*_BEFORE_STEP, "update"):
        return _rising_loss(course)
    begin = _begin(course)  # index of the first step with inf or nan; one beyond the last if its update is to blame
    if not begin or (begin == len(course.steps) and not course.has_nonfinite("update")):
        return ()
    return _growth(course, begin) or _step_to_blame(course, begin)


def _rising_loss(course: Course) -> tuple[Finding, ...]:
    """Return that the loss has become many times what it was, while steps changed weights by large shares."""
    if len(course.steps) < 2 or course.loss is None or not course.has("update", "weight"):
        return ()
    loss = course.loss.mean(axis=1)
    low = int(np.argmin(np.where(np.isfinite(loss), loss, np.inf)[:-1]))
    if not 0 < _RISEN * loss[low] < loss[-1]:
        return _risen_before(course, loss)
    window = slice(low, None)
    share = largest_share(course, window)
    if not share >= _LARGE_SHARE:
        return ()
    text = f"the loss rose from {loss[low]:.2g} at step {course.steps[low]} to {loss[-1]:.2g}, where a step changed "
    text += (
        f"weights by up to 10^{share:.1f} of their size, where about 10^-3 is usual: the learning rate is too large"
    )
    remedy = f"a learning rate {times_smaller(course, low)} times smaller"
    return (Finding("diverging", text, (), remedy, 2),)


def _risen_before(course: Course, loss: Array) -> tuple[Finding, ...]:
    """Return that the loss was many times what it had been, and has come down again."""
    peak = int(np.argmax(np.where(np.isfinite(loss), loss, -np.inf)))
    if not 0 < peak < len(loss) - 1:
        return ()
    low = int(np.argmin(np.where(np.isfinite(loss), loss, np.inf)[:peak]))
    share = largest_share(course, slice(low, None))
    if not 0 < _RISEN_FAR * loss[low] < loss[peak] or not share >= _LARGE_SHARE:
        return ()
    text = f"the loss had risen from {loss[low]:.2g} at step {course.steps[low]} to {loss[peak]:.2g} at step "
    text += f"{course.steps[peak]}, where a step changed weights by up to 10^{share:.1f} of their size; now it is "
    text += f"{loss[-1]:.2g}"
    remedy = f"a learning rate {times_smaller(course, low)} times smaller, or a warm-up from there"
    return (Finding("diverging", text, (), remedy, 1),)


def _begin(course: Course) -> int:
    """Return the index at which the steps with inf or nan begin that last up to now."""
    begin = len(course.steps)
    while begin and course.has_nonfinite(*_BEFORE_STEP, step=begin - 1):
        begin -= 1
    return begin


def _growth(course: Course, begin: int) -> tuple[Finding, ...]:
    window = slice(max(0, begin - _WINDOW), begin)
    sizes = {name: largest(course.log10[name][window]) for name in _WORDS if course.has(name)}
    grown = {name: pair for name, values in sizes.items() if (pair := _rise(values)) is not None}
    if not {"output", "weight"} & grown.keys():
        return ()
    is_far = any(last - first >= _GROWN_FAR for first, last in grown.values())
    share = np.nan
    if course.has("update", "weight"):
        share = largest(course.log10["update"][window] - course.log10["weight"][window])[-1]
    if not is_far and not share >= _LARGE_SHARE:
        return ()
    told = [f"{_WORDS[name]} from 10^{first:.1f} to 10^{last:.1f}" for name, (first, last) in grown.items()]
    first, last = course.steps[window][0], course.steps[window][-1]
    place = f"at step {course.steps[begin]}" if begin < len(course.steps) else f"by the update of step {last}"
    text = f"diverged {place}: sizes grew from step {first} to {last} ({', '.join(told[:3])}); "
    row = course.rows("output", "nonfinite", step=begin) if begin < len(course.steps) else np.zeros(0, dtype=bool)
    if _has_climbed(course, begin):
        text, remedy = f"{text}the loss rose from the first steps on: is its sign wrong?", _SIGN
    else:
        text += "the learning rate is too large"
        remedy = f"a learning rate {times_smaller(course, window.start)} times smaller; or, with SGD, {_CLIP}"
    return (Finding("nonfinite", text, course.modules(row)[:1], remedy, 3),)


def _has_climbed(course: Course, end: int) -> bool:
    """Return whether the loss rose from the first steps on, though they were small enough to train."""
    if course.loss is None:
        return False
    loss = course.loss[:end].mean(axis=1)
    rises = np.diff(loss[np.isfinite(loss)]) > 0
    if len(rises) < _ENOUGH_LOSSES - 1:
        return False
    return bool(rises.mean() > _NEARLY_ALWAYS) and largest_share(course, slice(0, None)) < _USUAL_SHARE


def _rise(values: Array) -> tuple[float, float] | None:
    """Return the smallest size and the last one, if that is the largest and decades above."""
    if len(values) < 2 or not np.isfinite(values[-1]):
        return None
    first, last = float(np.nanmin(values)), float(values[-1])
    is_largest = last >= np.nanmax(values) - _GROWN / 2
    return (first, last) if is_largest and last - first >= _GROWN else None


def _step_to_blame(course: Course, begin: int) -> tuple[Finding, ...]:
    before = begin - 1
    if not course.has("weight_grad") or course.has_nonfinite(*_BEFORE_STEP, step=before):
        return ()
    bad = STATUSES.index("nonfinite")
    if course.has("update"):
        broken = (course.status["update"][before] == bad).any(axis=0)
    elif course.has("weight") and begin < len(course.steps) and course.steps[begin] - course.steps[before] == 1:
        broken = (course.status["weight"][begin] == bad).any(axis=0)
    else:
        return ()
    if not broken.any():
        return ()
    names = course.modules(broken)
    text = f"in step {course.steps[before]} all gradients are finite, but the optimizer's step makes the weights of "
    text += f"{listed(names)} inf or nan"
    remedy = "check the optimizer's options: a finite lr, and for Adam eps=1e-8 rather than 0"
    if course.dtypes.get("weight") == "float16":
        text += (
            ": in float16 Adam's eps=1e-8 is 0, and so is its mean square of gradients below 0.005; it divides by 0"
        )
        remedy = "weights in float32, and float16 by torch.autocast only; or eps=1e-4"
    return (Finding("nonfinite", text, names, remedy, 3),)
