"""The law of the logarithm of a sum of squares: how much a finite layer changes the length of a vector."""

import functools
import math
from typing import NamedTuple

import numpy as np


class LogMoments(NamedTuple):
    """Mean and variance of a natural logarithm."""

    mean: float
    variance: float


@functools.cache
def log_square_sum(count: int, slopes: tuple[float, float] = (1.0, 1.0), keep: float = 1.0) -> LogMoments:
    """Return mean and variance of log S, S the sum over ``count`` units of (slope · g)², with g from N(0, 1).

    Each unit has one of two slopes with even odds, as φ' of a piecewise linear activation. With a slope of 0 all may
    be off, and S = 0, with probability 2⁻ⁿ; the moments are those of the other cases.

    With dropout a unit is off with probability 1 - keep, whatever its slope, and else its slope is divided by keep.

    Let T be exponential with mean 1. Then P(T / S > t) = E e⁻ᵗˢ = pⁿ, p = [(1 + 2a²t)^-½ + (1 + 2b²t)^-½] / 2, so
    that T / S has a density in closed form, and log T is independent of log S, with mean -γ and variance π² / 6:
    equation 21 of docs/theory.md.

    Args:
        count: The number of units n, at least 1.
        slopes: The two slopes a and b.
        keep: The probability with which dropout leaves a unit on.

    Returns:
        For both slopes 1: digamma(n / 2) + log 2 and trigamma(n / 2), the moments of log χ²ₙ.

    Raises:
        ValueError: If ``count`` is below 1, both slopes are 0, or ``keep`` is not above 0 and at most 1.

    Examples:
        >>> moments = log_square_sum(100, (0.0, 1.0))
        >>> round(moments.mean - math.log(50), 4), round(moments.variance, 4)  # about -5 / 2n and 5 / n
        (-0.0254, 0.0519)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    largest = max(map(abs, slopes))
    if largest == 0 or not all(map(math.isfinite, slopes)):
        raise ValueError(f"slopes must be finite and not both 0, got {slopes}")
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {keep}")
    squares = np.array([*((slope / largest) ** 2 for slope in slopes), 0.0])
    odds = np.array([keep / 2, keep / 2, 1 - keep])
    # In x = log t the density is smooth and falls off exponentially on both sides, so that the trapezoidal rule
    # converges exponentially; with step 1/8 it is at rounding error.
    step = 0.125
    smallest = squares[squares > 0].min()
    x = np.arange(-45 - math.log(count), 110 - math.log(smallest), step)
    t = np.exp(x)[:, None] * squares
    p = np.exp(-0.5 * np.log1p(2 * t)) @ odds
    less_than_1 = np.expm1(-0.5 * np.log1p(2 * t)) @ odds  # keeps the digits of p near 1
    log_p = np.where(p < 0.5, np.log(p), np.log1p(np.maximum(less_than_1, -0.5)))
    density = count * np.exp((count - 1) * log_p) * ((t * np.exp(-1.5 * np.log1p(2 * t))) @ odds)
    density /= density.sum()  # also conditions on S > 0
    mean = float((density * x).sum())
    variance = float((density * (x - mean) ** 2).sum())
    return LogMoments(2 * math.log(largest / keep) - np.euler_gamma - mean, variance - math.pi**2 / 6)
