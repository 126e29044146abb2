"""Roots of functions of one variable between two bounds, one or many at once."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float64]

_ABSOLUTE = 5e-16
# Halving alone would take as many for the last bit of a number whose bounds are far apart.
_MOST = 200


def bracketed_roots(f: Callable[[_Array], _Array], low: float | _Array, high: float | _Array) -> _Array:
    """Return a root of f between each pair of bounds, to 1e-15 or the last digits that float64 has there.

    Chandrupatla's method (1997, Advances in Engineering Software 28, 145): inverse quadratic interpolation where
    three points promise it, halving elsewhere. It needs as few calls as Brent's, and works on arrays.

    Args:
        f: Elementwise; called with arrays of the bounds' shape.
        low: Lower bounds.
        high: Upper bounds; f has different signs at both, or is 0 at one.

    Raises:
        ValueError: If f has the same sign at both bounds.

    Examples:
        >>> bracketed_roots(lambda x: x**2 - np.array([2.0, 9.0]), 0.0, np.array([2.0, 4.0])).round(12).tolist()
        [1.414213562373, 3.0]
    """
    b, a = np.broadcast_arrays(np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64))
    fa, fb = f(a), f(b)
    if (np.sign(fa) * np.sign(fb) > 0).any():
        raise ValueError("f must have different signs at both bounds")
    share = np.full(a.shape, 0.5)
    for _ in range(_MOST):
        x = a + share * (b - a)
        fx = f(x)
        # Of the old bounds the one with the other sign stays, and the third point is the one that was left.
        same = np.sign(fx) == np.sign(fa)
        c, fc = np.where(same, a, b), np.where(same, fa, fb)
        b, fb = np.where(same, b, a), np.where(same, fb, fa)
        a, fa = x, fx
        best, f_best = np.where(abs(fa) < abs(fb), a, b), np.where(abs(fa) < abs(fb), fa, fb)
        with np.errstate(divide="ignore", invalid="ignore"):
            # How exact a root is to be, as a share of the bounds' distance.
            least = (2 * np.finfo(np.float64).eps * abs(best) + _ABSOLUTE) / abs(b - a)
            if ((least > 0.5) | (f_best == 0)).all():
                break
            xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
            quadratic = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
            interpolated = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        share = np.where(quadratic & np.isfinite(interpolated), interpolated, 0.5)
        share = np.clip(share, np.minimum(least, 0.5), 1 - np.minimum(least, 0.5))
        share = np.where(f_best == 0, (best - a) / np.where(b == a, 1.0, b - a), share)  # stay where the root is
    return np.asarray(best)


def bracketed_root(f: Callable[[float], float], low: float, high: float) -> float:
    """Return a root of f between two bounds (``bracketed_roots``).

    Raises:
        ValueError: If f has the same sign at both bounds.

    Examples:
        >>> round(bracketed_root(lambda x: x * x - 2, 0, 2), 12)
        1.414213562373
    """
    return float(bracketed_roots(lambda x: np.asarray(f(float(x)), dtype=np.float64), low, high))
