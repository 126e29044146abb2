"""By how much a learning rate is too large, from the share of the weights that a step changes."""

import math

import numpy as np

from gradexp.history.course import Course

# Rates at which steps change about a thirtieth of the weights still train, with some luck; above, few do.
_STILL_TRAINS = -1.5


def times_smaller(course: Course, begin: int = 0) -> int:
    """Return how many times smaller the learning rate should be: a power of 10, and 10 if nothing is known.

    The first step of all counts, since after it the weights are others already, and the one with which the trouble
    began, since rates may have grown in a warm-up.

    Args:
        course: The training.
        begin: Index of the step with which the trouble began.
    """
    shares = [largest_share(course, slice(first, None)) for first in (0, begin)]
    known = [share for share in shares if not math.isnan(share)]
    return int(10 ** max(1, round(max(known) - _STILL_TRAINS))) if known else 10


def largest_share(course: Course, steps: slice) -> float:
    """Return log10 of the largest share of a weight that the first of some steps changes, nan if it is not known."""
    if not course.has("update", "weight"):
        return math.nan
    shares = course.log10["update"][steps] - course.log10["weight"][steps]
    known = np.isfinite(shares).any(axis=(1, 2))
    if not known.any():
        return math.nan
    first = shares[int(np.argmax(known))]
    return float(first[np.isfinite(first)].max())
