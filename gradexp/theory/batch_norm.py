"""Averages over a batch of B samples whose units are batch-normalised, for any B, in infinitely wide networks.

Numbers in comments are those of the equations in docs/theory.md, section 6. Once the mean over samples is taken out,
samples are alike in every direction: t, what N makes of one unit, is uniform on the sphere of radius √B in the B - 1
dimensions of mean 0. Averages over one and over two samples are those over coordinates of such a vector.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.numerics.square_sum import LogMoments
from gradexp.theory.gaussian import legendre
from gradexp.theory.mean_field import Moments

SMALLEST_BATCH = 4
"""Over fewer samples E 1 / variance is infinite, and with it the mean squared gradient."""

_POINTS = 16  # Gauss-Legendre points per panel
_PANELS = 24
_EDGE = 9.0  # standard deviations; beyond lies 2e-19 of the probability


class SampleLengths(NamedTuple):
    """How a sample's length K, over the units of a wide layer, differs between networks, and what that does to δ.

    All as in section 5 of docs/theory.md, with φ less its mean over samples in place of φ, and times the width.
    """

    chi_slope: float  # c₁ (34)
    slope: float  # λ (28)
    noise: float  # τ² (30)
    covariance: float  # γ (43)


@dataclass(frozen=True)
class BatchAverages:
    """Averages over the samples of a batch.

    Args:
        batch: B.
        square: E φ².
        centred: E φ(t₁)² - E φ(t₁) φ(t₂), the variance over samples that φ leaves.
        inside: Factor of the squared gradient through φ and N on the way back, for v = sigma_w2.
        top: The same below the last layer, which has no N: cotangents there have a mean over samples.
        omega: Relative variance of one unit's share of one sample's squared gradient.
        mixing: Factor per layer of the differences between the samples' gradients, relative to their mean.
        lengths: What the length of one sample does in a large batch.
    """

    batch: int
    square: float
    centred: float
    inside: float
    top: float
    omega: float
    mixing: float
    lengths: SampleLengths

    @property
    def settles(self) -> bool:
        """Whether samples become alike: else few of them grow at the cost of the others, as with gelu."""
        return self.lengths.slope * self.mixing < 1

    def log_mean(self, units: int) -> LogMoments:
        """Return mean and variance of the log of the mean over units of the squared gradient, of mean 1."""
        return _log_mean_of_ratios(2 * (self.batch - 2) / self.omega, self.batch - 1, units)


@functools.lru_cache(maxsize=256)
def batch_averages(phi: Activation, batch: int) -> BatchAverages:
    """Return the averages of an activation over a batch.

    Args:
        phi: The activation.
        batch: B, at least ``SMALLEST_BATCH``.
    """
    b = batch
    radius = math.sqrt(b - 1)
    u, w = _coordinate(b - 1, torch.tensor([[kink / radius for kink in phi.kinks]], dtype=torch.float64))
    t, w = radius * u[0], w[0]
    value, slope = phi.value_and_slope(t)
    # Given t₁, the other coordinates are uniform on a sphere around their mean -t₁ / (B - 1).
    mean = -t / (b - 1)
    scale = (b * (1 - u[0].square()) * (b - 2) / (b - 1)).sqrt()
    kinks = torch.stack([(kink - mean) / scale for kink in phi.kinks], dim=1) if phi.kinks else t.new_empty(len(t), 0)
    u, w_other = _coordinate(b - 2, kinks)
    other_t = mean.unsqueeze(1) + scale.unsqueeze(1) * u
    other_value, other_slope = phi.value_and_slope(other_t)

    def one(f: Tensor) -> float:
        return float((w * f).sum())

    def two(f: Tensor, g: Tensor) -> float:
        return float((w * f * (w_other * g).sum(dim=1)).sum())

    slope2, t2_slope2 = one(slope.square()), one((t * slope).square())
    pair, t_pair = two(slope, other_slope), two(t * slope, other_t * other_slope)
    centred = one(value.square()) - two(value, other_value)
    # E tr(P D D), P = I - 11ᵀ / B - ttᵀ / B, and E 1ᵀ D P D 1 / B (49a).
    through = (b - 1) * slope2 - t2_slope2
    common = slope2 - (slope2 + (b - 1) * pair) / b - (t2_slope2 + (b - 1) * t_pair) / b
    inverse = b / (b - 3)  # B E 1 / χ²_(B-1)
    # How much of its own gradient a sample keeps, and how much it gets of that of each other one (49c).
    own = one(((1 - (1 + t.square()) / b) * slope).square())
    others = two(torch.ones_like(t), other_slope.square()) + 2 * two(t, other_t * other_slope.square())
    others = (others + two(t.square(), (other_t * other_slope).square())) / b**2
    return BatchAverages(
        batch,
        one(value.square()),
        centred,
        inverse * (through - common) / (b - 1),
        inverse * through / b,
        3 * one(slope.square().square()) / slope2**2 - 1,
        (own - others) / (own + (b - 1) * others),
        _sample_lengths(phi),
    )


def _sample_lengths(phi: Activation) -> SampleLengths:
    one = torch.ones((), dtype=torch.float64)
    mean = float(Moments.at(phi, one).value)
    m = Moments.at(replace(phi, function=lambda z: phi(z) - mean), one)
    return SampleLengths(
        float(m.slope2_he2 / (2 * m.slope2)),
        float(m.u_value_slope / m.square),
        float(m.fourth / m.square.square() - 1),
        float(m.square_slope2 / (m.slope2 * m.square) - 1),
    )


def _coordinate(dimensions: int, breaks: Tensor) -> tuple[Tensor, Tensor]:
    """Return points and weights of an average over a coordinate of a uniform unit vector, one rule per row of breaks.

    The coordinate is sin θ with density cos^(dimensions - 2) θ, smooth for any dimension.
    """
    edge = min(math.pi / 2, _EDGE / math.sqrt(max(dimensions - 2, 1)))
    even = torch.linspace(-edge, edge, _PANELS + 1, dtype=torch.float64).expand(len(breaks), -1)
    ends = torch.cat([even, breaks.clamp(-1, 1).asin().clamp(-edge, edge)], dim=1).sort(dim=1).values
    low, high = ends[:, :-1, None], ends[:, 1:, None]
    at, weight = legendre(_POINTS)
    theta = ((low + high) / 2 + (high - low) / 2 * at).flatten(1)
    w = ((high - low) / 2 * weight).flatten(1) * theta.cos().pow(dimensions - 2)
    return theta.sin(), w / w.sum(dim=1, keepdim=True)


@functools.lru_cache(maxsize=1024)
def _log_mean_of_ratios(above: float, below: int, count: int) -> LogMoments:
    """Return the law of log of the mean over ``count`` independent X = (χ²_above / above) / χ²_below, over its E X.

    For few samples X is heavy-tailed, and the log of the mean far from normal. As for ``log_square_sum``, T / Σ X has
    a distribution in closed form but for E e^(-tX) (49b), an average over χ²_below.
    """
    y = np.arange(-45, 12, 0.0625)  # log χ²
    density = 0.5 * below * y - 0.5 * np.exp(y)
    weight = np.exp(density - density.max())
    weight /= weight.sum()
    x = np.arange(-60 - math.log(count), 60, 0.125)  # log t
    exponent = -0.5 * above * np.log1p(2 / above * np.exp(x[:, None] - y))
    less_than_1 = np.expm1(exponent) @ weight
    log_survival = count * np.log1p(np.maximum(less_than_1, 1e-16 - 1))
    survival = np.exp(log_survival)
    mass = -np.diff(survival)
    middle = (x[1:] + x[:-1]) / 2
    mean = float(mass @ middle)
    variance = float(mass @ (middle - mean) ** 2) - 0.125**2 / 12 - math.pi**2 / 6
    return LogMoments(-np.euler_gamma - mean - math.log(count / (below - 2)), max(variance, 0.0))
