"""Gradients that are exactly 0 for what float16 can hold."""

import numpy as np

from gradexp.history.course import Course
from gradexp.history.finding import Finding
from gradexp.history.sentences import named

# The smallest number of float16 is 6e-8. Some thousand of such elements have a norm of 1e-5.
_TINY = -3.5
# Unless a loss is small, some gradient at the last layer is above 6e-8: that of the mean over a million elements.
_SMALL_LOSS = 1e-3
_REMEDY = "torch.amp.GradScaler, which scales the loss up; or torch.bfloat16 in place of torch.float16"


def half_range(course: Course) -> tuple[Finding, ...]:
    """Return where float16 underflows: every gradient is 0 from there down, and what is above it is tiny or none.

    A dead layer has the same zeros, but gets a gradient of an ordinary size from above, or puts out 0.
    """
    if course.dtypes.get("output_grad") != "float16" or "output_grad" not in course.log10:
        return ()
    if any(finding.kind in ("number format", "nonfinite", "cut") for finding in course.found):
        return ()
    seen, zero = course.seen("output_grad"), course.rows("output_grad", "zero")
    if not seen.any() or not zero[np.argmax(seen)]:
        return ()
    above = np.where(zero, np.nan, course.log10["output_grad"][-1]).max(axis=0)
    above = above[seen & ~zero]
    loss = None if course.loss is None else course.loss[-1]
    has_loss = loss is not None and bool(((np.abs(loss) < _SMALL_LOSS) & (loss != 0)).all())
    if (above.size == 0 and not has_loss) or not np.all(above[: above.size // 2 + 1] < _TINY):
        return ()
    row = int(np.flatnonzero(zero & seen)[-1])
    if course.rows("output", "zero")[row]:
        return ()
    name = course.names[row]
    text = f"float16 underflows: from {named(name)} down every gradient is exactly 0, "
    if above.size:
        text += f"and above it 10^{np.nanmin(above):.1f}; numbers below 6e-8 are 0 in float16"
    else:
        assert loss is not None
        text += f"though the loss is {float(loss.max()):.2g}; numbers below 6e-8 are 0 in float16"
    return (Finding("number format", text, (name,), _REMEDY, 3),)
