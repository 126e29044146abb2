"""The edge of chaos: where chi_1 is 1, so that gradients neither vanish nor explode in an infinitely wide network."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

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
    not count: gelu and silu reach chi_1 = 1 there for small sigma_b2, but no network stays there.

    Args:
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        sigma_b2: Var(b), at least 0.
        negative_slope: The slope of ``leaky_relu`` below 0.
        kinks: Every z at which a function or a derivative of it jumps.

    Raises:
        ValueError: If there is none, as for relu with biases, whose lengths then grow for ever at sigma_w2 = 2; or
            as in ``MeanField``.

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
    return _on_critical_line(
        phi, lambda _w2, b2: b2 - sigma_b2, f"{name} has no critical sigma_w2 for {sigma_b2=:g}"
    )[0]


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
    none = f"{name} has no critical sigma_b2 for {sigma_w2=:g}"
    at_zero = critical_sigma_w2(phi) if is_piecewise_linear(phi) else _critical_at_zero(phi)
    if at_zero is not None and abs(at_zero - sigma_w2) < 1e-9 * at_zero:
        return 0.0
    if is_piecewise_linear(phi):
        raise ValueError(f"{none}; it is critical at sigma_w2={at_zero:g}, sigma_b2=0 only")
    return _on_critical_line(phi, lambda w2, _b2: w2 - sigma_w2, none)[1]


def critical_line(phi: Activation, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return sigma_w2 and sigma_b2 of the critical points with fixed lengths q (15); sigma_b2 may be below 0."""
    m = Moments.at(phi, q)
    sigma_w2 = 1 / m.slope2
    return sigma_w2, m.q - sigma_w2 * m.square


def attracts(sigma_w2: float | Tensor, m: Moments) -> Any:
    """Return whether other lengths converge to these fixed ones: where V' is at most 1 (16)."""
    return sigma_w2 * m.u_value_slope / m.q <= 1


def _critical_at_zero(phi: Activation) -> float | None:
    """Return the critical sigma_w2 without biases if lengths then go to 0, as for tanh; else None."""
    slope2 = mean_squared_slope(phi.slopes_at_zero)
    if slope2 == 0 or float(phi(torch.zeros((), dtype=torch.float64))) != 0:
        return None
    sigma_w2 = 1 / slope2
    # gelu's lengths are kept only at 0 itself, and grow from anywhere else.
    return sigma_w2 if sigma_w2 * _at(phi, 0.1).square <= 0.1 else None


def _on_critical_line(phi: Activation, miss: Callable[[float, float], float], message: str) -> tuple[float, float]:
    """Return the critical point with the smallest q where ``miss(sigma_w2, sigma_b2)`` is 0.

    It must have no negative sigma_b2, and its length must be one that others converge to.
    """

    def at(log_q: float) -> tuple[float, float]:
        w2, b2 = critical_line(phi, torch.tensor(math.exp(log_q), dtype=torch.float64))
        return float(w2), float(b2)

    grid = [math.log(1e-10) + 0.2 * k for k in range(200)]
    points = [at(log_q) for log_q in grid]
    for (low, before), (high, after) in pairwise(zip(grid, points, strict=True)):
        if miss(*before) * miss(*after) <= 0 and all(map(math.isfinite, (*before, *after))):
            log_q = bracketed_root(lambda log_q: miss(*at(log_q)), low, high)
            w2, b2 = at(log_q)
            if b2 >= -1e-12 * w2 and attracts(w2, _at(phi, math.exp(log_q))):
                return w2, max(b2, 0.0)
    raise ValueError(message)


def _at(phi: Activation, q: float) -> Moments:
    return Moments.at(phi, torch.tensor(q, dtype=torch.float64))
