"""The edge of chaos: where chi_1 is 1, so that gradients neither vanish nor explode in an infinitely wide network."""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.numerics.roots import bracketed_root
from gradexp.theory.mean_field import (
    Moments,
    check_variance,
    is_piecewise_linear,
    mean_squared_slope,
    usable_activation,
)

# Lengths at which the critical line is looked at, as logarithms.
_LOG_LENGTHS = math.log(1e-10) + 0.2 * np.arange(200)
# So many of them show whether a variance rises for ever.
_LATELY = 20
# A slope of the length map above 1 by less is rounding, as is a bias variance below 0 by as little.
_ROUNDING = 1e-12
# A variance that is so near to that of a line's end is the end's: papers give them with 8 digits.
_DIGITS = 1e-7

_Point = tuple[float, float, float]
"""log q, sigma_w2 and sigma_b2."""
_Line = tuple[_Point, ...]


def critical_sigma_w2(
    activation: str | Activation | Callable[[Tensor], Tensor],
    sigma_b2: float = 0.0,
    *,
    negative_slope: float = 0.01,
    kinks: Sequence[float] = (),
) -> float:
    """Return the sigma_w2 at which chi_1 = 1 for a given variance of the biases: the edge of chaos.

    The critical line is run through by its length q: sigma_w2 = 1 / E[φ'²] and sigma_b2 = q - sigma_w2 E[φ²]. Of
    several points with this sigma_b2 the one with the smallest q is returned. Points whose length repels others do
    not count: gelu and silu reach chi_1 = 1 there for small sigma_b2, but no network stays there. Their lines begin
    at a half-stable point, whose length draws shorter ones only (Roberts, Yaida & Hanin, 2022, arXiv:2106.10165):
    ``critical_range`` tells where. With dropout, in training mode, the critical sigma_w2 is this times keep.

    Args:
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        sigma_b2: Var(b), at least 0.
        negative_slope: The slope of ``leaky_relu`` below 0.
        kinks: Every z at which a function or a derivative of it jumps.

    Raises:
        ValueError: If there is none, as for relu with biases, whose lengths then grow for ever at sigma_w2 = 2; the
            text names the sigma_b2 that have one. Or as in ``MeanField``.

    Examples:
        >>> critical_sigma_w2("relu"), round(critical_sigma_w2("tanh", 0.05), 4)
        (2.0, 1.761)
    """
    check_variance("sigma_b2", sigma_b2)
    phi = usable_activation(activation, negative_slope, kinks)
    name = activation if isinstance(activation, str) else "this activation"
    if is_piecewise_linear(phi):
        slope2 = mean_squared_slope(phi.slopes_at_zero)
        if sigma_b2 == 0 and slope2 > 0:
            return 1 / slope2
        where = "at sigma_b2=0 only" if slope2 > 0 else "nowhere: its slope is 0"
        raise ValueError(f"{name} is critical {where}, got sigma_b2={sigma_b2:g}")
    if sigma_b2 == 0 and (at_zero := _critical_at_zero(phi)) is not None:
        return at_zero
    if (point := _on_critical_line(phi, 2, sigma_b2)) is not None:
        return point[1]
    raise ValueError(f"{name} has no critical sigma_w2 for {sigma_b2=:.10g}; {_where(phi, 'sigma_b2')}")


def critical_sigma_b2(
    activation: str | Activation | Callable[[Tensor], Tensor],
    sigma_w2: float,
    *,
    negative_slope: float = 0.01,
    kinks: Sequence[float] = (),
) -> float:
    """Return the sigma_b2 at which chi_1 = 1 for a given sigma_w2; the reverse of ``critical_sigma_w2``.

    Args:
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        sigma_w2: fan_in · Var(W), at least 0.
        negative_slope: The slope of ``leaky_relu`` below 0.
        kinks: Every z at which a function or a derivative of it jumps.

    Raises:
        ValueError: If there is none; or as in ``MeanField``.

    Examples:
        >>> round(critical_sigma_b2("tanh", 1.76095), 4)
        0.05
    """
    check_variance("sigma_w2", sigma_w2)
    phi = usable_activation(activation, negative_slope, kinks)
    name = activation if isinstance(activation, str) else "this activation"
    none = f"{name} has no critical sigma_b2 for {sigma_w2=:.10g}"
    at_zero = critical_sigma_w2(phi) if is_piecewise_linear(phi) else _critical_at_zero(phi)
    if at_zero is not None and abs(at_zero - sigma_w2) < 1e-9 * at_zero:
        return 0.0
    if is_piecewise_linear(phi):
        raise ValueError(f"{none}; it is critical at sigma_w2={at_zero:g}, sigma_b2=0 only")
    if (point := _on_critical_line(phi, 1, sigma_w2)) is not None:
        return max(point[2], 0.0)
    raise ValueError(f"{none}; {_where(phi, 'sigma_w2')}")


def critical_range(
    activation: str | Activation | Callable[[Tensor], Tensor],
    of: str = "sigma_b2",
    *,
    negative_slope: float = 0.01,
    kinks: Sequence[float] = (),
) -> tuple[float, float] | None:
    """Return the smallest and the largest variance of the biases at which there is a critical sigma_w2.

    The line of gelu, silu, mish and others that bend below 0 begins at a half-stable point, with biases, and that of
    tanh at sigma_b2 = 0.

    Args:
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        of: ``sigma_b2``, or ``sigma_w2`` for the range of the weights' variance along the line.
        negative_slope: The slope of ``leaky_relu`` below 0.
        kinks: Every z at which a function or a derivative of it jumps.

    Returns:
        Lowest and highest, which may be inf; None if the activation is critical nowhere, as softplus.

    Raises:
        ValueError: If ``of`` is another word, or as in ``MeanField``.

    Examples:
        >>> round(critical_range("gelu")[0], 6), critical_range("tanh"), critical_range("softplus")
        (0.172922, (0.0, inf), None)
    """
    if of not in ("sigma_b2", "sigma_w2"):
        raise ValueError(f"of must be one of sigma_b2, sigma_w2, got {of!r}")
    phi = usable_activation(activation, negative_slope, kinks)
    at_zero = 1 / slope2 if (slope2 := mean_squared_slope(phi.slopes_at_zero)) > 0 else None
    if is_piecewise_linear(phi):
        return None if at_zero is None else (0.0, 0.0) if of == "sigma_b2" else (at_zero, at_zero)
    at_zero = _critical_at_zero(phi)
    place = 2 if of == "sigma_b2" else 1
    values = [] if at_zero is None else [0.0 if of == "sigma_b2" else at_zero]
    for line in _critical_lines(phi):
        values += [max(point[place], 0.0) for point in line]
        if line[-1][0] == _LOG_LENGTHS[-1]:
            values.append(_far_end(phi, line, place))
    return (max(min(values), 0.0), max(values)) if values else None


def critical_line(phi: Activation, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return sigma_w2 and sigma_b2 of the critical points with fixed lengths q (15); sigma_b2 may be below 0."""
    m = Moments.at(phi, q)
    sigma_w2 = 1 / m.slope2
    return sigma_w2, m.q - sigma_w2 * m.square


def attracts(sigma_w2: float | Tensor, m: Moments) -> Any:
    """Return whether other lengths converge to these fixed ones: where V' is at most 1 (16)."""
    return sigma_w2 * m.u_value_slope / m.q <= 1 + _ROUNDING


def _critical_at_zero(phi: Activation) -> float | None:
    """Return the critical sigma_w2 without biases if lengths then go to 0, as for tanh; else None."""
    slope2 = mean_squared_slope(phi.slopes_at_zero)
    if slope2 == 0 or float(phi(torch.zeros((), dtype=torch.float64))) != 0:
        return None
    sigma_w2 = 1 / slope2
    # gelu's lengths are kept only at 0 itself, and grow from anywhere else.
    return sigma_w2 if sigma_w2 * _at(phi, 0.1).square <= 0.1 else None


@functools.lru_cache(maxsize=64)
def _critical_lines(phi: Activation) -> tuple[_Line, ...]:
    """Return the parts of the critical line on which networks can stay, each with its ends."""
    parts: list[_Line] = []
    points: list[_Point] = []
    before = None
    for log_q in _LOG_LENGTHS.tolist():
        margin = _margin(phi, log_q)
        if before is not None and (margin >= 0) != (before[1] >= 0) and math.isfinite(margin + before[1]):
            points.append(_point(phi, bracketed_root(functools.partial(_margin, phi), before[0], log_q)))
        if margin >= 0:
            points.append(_point(phi, log_q))
        elif points:
            parts.append(_with_turns(phi, points))
            points = []
        before = log_q, margin
    return (*parts, _with_turns(phi, points)) if points else tuple(parts)


def _margin(phi: Activation, log_q: float) -> float:
    """Return by how much a critical point is one at which networks stay: 1 - V', but that there are such biases."""
    m = _at(phi, math.exp(log_q))
    w2 = float(1 / m.slope2)
    if not math.isfinite(w2):
        return -math.inf
    return min(1 - w2 * float(m.u_value_slope / m.q), 1 - w2 * float(m.square / m.q)) + _ROUNDING


def _point(phi: Activation, log_q: float) -> _Point:
    w2, b2 = critical_line(phi, torch.tensor(math.exp(log_q), dtype=torch.float64))
    return log_q, float(w2), float(b2)


def _on_critical_line(phi: Activation, place: int, variance: float) -> _Point | None:
    """Return the critical point with the smallest q whose sigma_w2 (place 1) or sigma_b2 (2) is given."""

    def miss(point: _Point) -> float:
        return point[place] - variance

    for line in _critical_lines(phi):
        ends = [point for point in (line[0], line[-1]) if abs(miss(point)) <= _DIGITS * abs(variance)]
        if ends:
            return ends[0]
        for low, high in pairwise(line):
            if miss(low) * miss(high) <= 0:
                root = bracketed_root(lambda log_q: miss(_point(phi, log_q)), low[0], high[0])
                return _point(phi, root)
    return None


def _with_turns(phi: Activation, points: Sequence[_Point]) -> _Line:
    """Add the points at which a variance turns on its way, since both sides of them have the same values."""
    turns = []
    for three in zip(points, points[1:], points[2:], strict=False):
        for place in (1, 2):
            before, middle, after = (point[place] for point in three)
            rounding = _ROUNDING * (middle if place == 1 else math.exp(three[1][0]))
            if (middle - before) * (middle - after) > rounding**2:
                turns.append(_turn(phi, place, middle > before, three[0][0], three[2][0]))
    return tuple(sorted([*points, *turns]))


def _turn(phi: Activation, place: int, is_top: bool, low: float, high: float) -> _Point:
    """Return the extreme between two lengths by ternary search."""
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        if (_point(phi, left)[place] < _point(phi, right)[place]) == is_top:
            low = left
        else:
            high = right
    return _point(phi, (low + high) / 2)


def _far_end(phi: Activation, line: _Line, place: int) -> float:
    """Return where a variance goes on a line that goes on for ever."""
    far2 = mean_squared_slope(phi.slopes_at_infinity)
    if place == 1 and far2 > 0:
        return 1 / far2
    rises = line[-1][place] > 2 * line[-_LATELY][place] if len(line) >= _LATELY else False
    return math.inf if rises else line[-1][place]


def _where(phi: Activation, of: str) -> str:
    """Say for which variances there is a critical point."""
    found = critical_range(phi, of)
    if found is None:
        return "it has none at all"
    low, high = found
    is_limit = of == "sigma_w2" and high * mean_squared_slope(phi.slopes_at_infinity) == 1
    end = "on" if high == math.inf else f"to {'just below ' * is_limit}{high:.8g}"
    return f"it has one from {of}={low:.8g} {end}"


def _at(phi: Activation, q: float) -> Moments:
    return Moments.at(phi, torch.tensor(q, dtype=torch.float64))
