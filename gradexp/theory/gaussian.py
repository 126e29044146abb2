"""Averages over Gaussian variables, E[f(u)] with u from N(0, q), by quadrature in float64.

The real line is cut into panels that grow geometrically away from 0, and is broken at every kink of the activation,
so that the integrand is analytic inside a panel; each panel has a Gauss-Legendre rule of its own. The innermost
panels resolve features of u of size 1 however large q is.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# Beyond 38 standard deviations the density is below float64's smallest number.
_EDGE = 38.0
# Gauss-Legendre points per panel: for one variable, for two, and for the error estimate.
_POINTS, _POINTS_OF_TWO, _FEWER_POINTS = 16, 12, 11
# Beyond 9 standard deviations lies 2e-19 of the probability, too little to matter in an average over two variables.
_EDGE_OF_TWO = 9.0
_ROWS = 64


def nodes(q: Tensor, kinks: Sequence[float] = (), fewer: bool = False) -> tuple[Tensor, Tensor]:
    """Return points z and weights w of a rule with E[f(√q z)] ≈ Σ w f(√q z) for z from N(0, 1).

    Args:
        q: Variances, above 0, shape ``(...)``.
        kinks: Every u at which f or one of its derivatives jumps.
        fewer: Take fewer points in other panels; the difference estimates the error.

    Returns:
        z and w, both of shape ``(..., points)``.
    """
    scale = q.rsqrt()
    finest = min(scale.min().item(), 1.0)
    if not any(kinks):  # but at 0, where every rule is broken: one rule serves all lengths within a factor of 4
        z, w = _rule(math.floor(math.log2(finest)), fewer)
        return z.expand(*q.shape, -1), w.expand(*q.shape, -1)
    # Other panels too, or a kink that nobody named could lie between the same two points of both rules.
    ladder = _ladder((0.77 if fewer else 1.0) * finest, _EDGE)
    breaks = torch.cat([ladder.expand(*q.shape, -1), _kinks_at(scale, kinks)], dim=-1)
    z, w = _panels(breaks, _EDGE, _FEWER_POINTS if fewer else _POINTS)
    return z, w * _density(z)


@functools.lru_cache(maxsize=64)
def _rule(octave: int, fewer: bool) -> tuple[Tensor, Tensor]:
    """Return points and weights, with the density, of a rule that resolves features of size 2^octave."""
    breaks = _ladder((0.77 if fewer else 1.0) * 2.0**octave, _EDGE)
    z, w = _panels(breaks, _EDGE, _FEWER_POINTS if fewer else _POINTS)
    return z, w * _density(z)


def average(f: Callable[[Tensor], Tensor], q: float, kinks: Sequence[float] = ()) -> tuple[float, float]:
    """Return E[f(u)] for u from N(0, q), and an estimate of its error.

    Args:
        f: Elementwise, in float64.
        q: Variance, above 0.
        kinks: Every u at which f or one of its derivatives jumps. Without them the error is estimated all the same,
            but nothing is promised.

    Returns:
        The average, and the size of its difference from a rule with fewer points.

    Raises:
        ValueError: If ``q`` is not a positive number.

    Examples:
        >>> value, error = average(torch.square, 2.0)
        >>> round(value, 12), error < 1e-12
        (2.0, True)
    """
    if not 0 < q < math.inf:
        raise ValueError(f"q must be above 0 and finite, got {q}")
    variance = torch.tensor(q, dtype=torch.float64)
    values = []
    for fewer in (False, True):
        z, w = nodes(variance, kinks, fewer)
        values.append((w * f(math.sqrt(q) * z)).sum().item())
    return values[0], abs(values[0] - values[1])


def pair_average(
    f: Callable[[Tensor, Tensor], Tensor], q_a: float, q_b: float, distance: float, kinks: Sequence[float] = ()
) -> float:
    """Return E[f(u_a, u_b)] for Gaussian u_a and u_b of variances q_a, q_b and correlation 1 - ``distance``.

    Args:
        f: A function of two tensors of one shape, elementwise.
        q_a: Variance of u_a, above 0.
        q_b: Variance of u_b, above 0.
        distance: 1 - correlation, from 0 to 2. Given like this it keeps its digits near 0.
        kinks: Every u at which f jumps or bends, in either argument.

    Returns:
        The average.
    """
    correlation, rest = 1 - distance, math.sqrt(distance * (2 - distance))
    root_a, root_b = math.sqrt(q_a), math.sqrt(q_b)
    if rest == 0:
        larger = max(root_a, root_b)
        breaks = [kink * larger / root for kink in kinks for root in (root_a, correlation * root_b)]
        z, w = nodes(torch.tensor(larger**2, dtype=torch.float64), breaks)
        return float((w * f(root_a * z, correlation * root_b * z)).sum())
    # u_b = √q_b (c x + s y): over y it has a feature of width 1 / (s √q_b) wherever u_b is near 0 or a kink, and its
    # average over y is a function of x that bends within about s of there.
    sign = math.copysign(1.0, correlation)
    centres = {0.0, *(kink / root_a for kink in kinks), *(sign * kink / root_b for kink in kinks)}
    ladder = _ladder(min(1 / root_a, rest), _EDGE_OF_TWO)
    outer = _panels(torch.cat([ladder + centre for centre in centres]), _EDGE_OF_TWO, _POINTS_OF_TWO)
    wide, narrow = _ladder(1.0, _EDGE_OF_TWO), _ladder(1 / (root_b * rest), _EDGE_OF_TWO)
    total = 0.0
    # A few rows at a time stay in the processor's cache.
    for x, w_x in zip(*(tensor.split(_ROWS) for tensor in outer), strict=True):
        middle = -correlation / rest * x
        breaks_of_y = [wide.expand(len(x), -1), middle.unsqueeze(1) + narrow]
        breaks_of_y += [(middle + kink / (root_b * rest)).unsqueeze(1) for kink in kinks]
        y, w_y = _panels(torch.cat(breaks_of_y, dim=1), _EDGE_OF_TWO, _POINTS_OF_TWO)
        u_b = root_b * (correlation * x.unsqueeze(1) + rest * y)
        inner = (w_y * _density(y) * f((root_a * x).unsqueeze(1).expand_as(u_b), u_b)).sum(dim=1)
        total += float((w_x * _density(x) * inner).sum())
    return total


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _ladder(scale: float, edge: float) -> Tensor:
    """Return breaks on both sides of 0 that grow geometrically, from an eighth of the scale to the edge."""
    fine = min(scale, 1.0) / 8
    below = [fine * 2**k for k in range(max(0, math.ceil(math.log2(1 / fine))))]
    above = [1.5**k for k in range(math.ceil(math.log(edge, 1.5)))] + [edge]
    side = torch.tensor([*below, *above], dtype=torch.float64)
    return torch.cat([-side.flip(0), side.new_zeros(1), side])


def _kinks_at(scale: Tensor, kinks: Sequence[float]) -> Tensor:
    return scale.unsqueeze(-1) * scale.new_tensor([kink for kink in kinks if kink != 0])


def _panels(breaks: Tensor, edge: float, points: int) -> tuple[Tensor, Tensor]:
    """Return nodes and weights of a composite Gauss-Legendre rule between sorted breaks, inside ±edge."""
    breaks = breaks.clamp(-edge, edge).sort(dim=-1).values
    low, high = breaks[..., :-1, None], breaks[..., 1:, None]
    at, weight = legendre(points)
    nodes = (low + high) / 2 + (high - low) / 2 * at
    weights = (high - low) / 2 * weight
    return nodes.flatten(-2), weights.flatten(-2)


@functools.cache
def legendre(points: int) -> tuple[Tensor, Tensor]:
    """Return nodes in [-1, 1] and weights of a Gauss-Legendre rule."""
    at, weight = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(at), torch.from_numpy(weight)
