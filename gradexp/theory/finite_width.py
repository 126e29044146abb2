"""Exact laws of finite networks: how the log of a squared norm is distributed after one layer, and after all.

Numbers in comments are those of the equations in docs/theory.md, section 4.

They hold for linear, relu and leaky_relu without biases, for Gaussian and for orthogonal weights, and for one sample.
Mean and typical size differ there: with He's variance E‖z‖² stays, while exp(E log ‖z‖²) shrinks by exp(-5 / 2n) per
relu layer (Hanin & Nica, 2018, arXiv:1812.05994; Hanin & Rolnick, 2018, arXiv:1803.01719).
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.special import digamma, zeta

from gradexp.numerics.square_sum import LogMoments, log_square_sum
from gradexp.theory.mean_field import check_variance


def _trigamma(x: torch.Tensor) -> torch.Tensor:
    """Return ψ'(x) = Σ 1 / (x + k)² as Hurwitz's zeta(2, x): torch's ``polygamma(1, x)`` is good to 9 digits only."""
    value: torch.Tensor = zeta(2, x)
    return value


@functools.cache
def log_chi_square(count: int) -> LogMoments:
    """Return the moments of log χ² with ``count`` degrees of freedom: digamma(n/2) + log 2, trigamma(n/2) (19)."""
    half = torch.tensor(count / 2, dtype=torch.float64)
    return LogMoments(float(digamma(half)) + math.log(2), float(_trigamma(half)))


def log_mean_square(count: int) -> float:
    """Return E log of the mean square of ``count`` standard Gaussians, about -1 / count (20)."""
    return log_chi_square(count).mean - math.log(count)


def layer_law(
    fan_in: int,
    fan_out: int,
    sigma_w2: float,
    slopes: tuple[float, float] = (1.0, 1.0),
    *,
    backward: bool = False,
    orthogonal: bool = False,
    keep: float = 1.0,
) -> LogMoments:
    """Return mean and variance of log ‖D W x‖² / ‖x‖², D the diagonal matrix of the slopes of what follows W.

    Gaussian weights: (sigma_w2 / fan_in) · S over the fan_out units. Backwards, ‖D Wᵀ δ‖² / ‖δ‖², S is over the
    fan_in units of the layer below. The forward pass does not bias it: flipping the signs of a unit's weights changes
    nothing but which units are on. Orthogonal weights scale a vector as a whole, and S is divided by the χ² of the
    larger side: linear square layers do not fluctuate.

    Args:
        fan_in: Columns of W.
        fan_out: Rows of W.
        sigma_w2: fan_in · Var(W); for orthogonal weights of gain g it is g² · fan_in / max(fan_in, fan_out).
        slopes: Slopes of the activation below and above 0; (1, 1) for none.
        backward: Whether to return the law of ‖D Wᵀ δ‖² / ‖δ‖² instead.
        orthogonal: Whether W is orthogonal (Haar), else Gaussian.
        keep: The probability with which dropout leaves a unit on, whose slope it divides by this.

    Returns:
        Mean and variance, given that not all units are off.

    Raises:
        ValueError: If a width is below 1, or ``sigma_w2`` is not above 0.
    """
    if min(fan_in, fan_out) < 1:
        raise ValueError(f"widths must be at least 1, got {fan_in} and {fan_out}")
    if not 0 < sigma_w2 < math.inf:
        raise ValueError(f"sigma_w2 must be above 0 and finite, got {sigma_w2}")
    units = fan_in if backward else fan_out
    if abs(slopes[0]) == abs(slopes[1]) > 0 and keep == 1:
        mean, variance = log_chi_square(units)
        mean += 2 * math.log(abs(slopes[0]))
    else:
        mean, variance = log_square_sum(units, slopes, keep)
    mean += math.log(sigma_w2 / fan_in)  # (18)
    if orthogonal:  # (22)
        larger = max(fan_in, fan_out)
        mean -= log_mean_square(larger)
        variance -= log_chi_square(larger).variance
    return LogMoments(mean, max(variance, 0.0))


def dead_probability(
    hidden_widths: Sequence[int], slopes: tuple[float, float] = (0.0, 1.0), keep: float = 1.0
) -> float:
    """Return the probability that an input dies in a network: that in some hidden layer every unit is off.

    A relu unit is off with probability 1/2, with a bias of mean 0 as without one: its row of weights and its bias
    together are as likely as their negatives, whatever the layers below do. So this is 1 - Π (1 - 2⁻ⁿ), exactly.

    Args:
        hidden_widths: n of each hidden layer.
        slopes: Slopes of the activation below and above 0; the probability is 0 unless one of them is, or there is
            dropout.
        keep: The probability with which dropout leaves a unit on.

    Raises:
        ValueError: If a width is below 1.

    Examples:
        >>> dead_probability([1, 2])
        0.625
    """
    if any(width < 1 for width in hidden_widths):
        raise ValueError(f"widths must be at least 1, got {list(hidden_widths)}")
    off = 1 - keep * sum(slope != 0 for slope in slopes) / 2
    return any_layer_dies(hidden_widths, [off] * len(hidden_widths))


def any_layer_dies(hidden_widths: Sequence[int], off: Sequence[float]) -> float:
    """Return the probability that in some hidden layer every unit is off, given each layer's odds of one unit."""
    alive = 0.0
    for width, odds in zip(hidden_widths, off, strict=True):
        if odds >= 1:
            return 1.0
        alive += math.log1p(-(odds**width))  # (23); expm1 and log1p keep the digits of a small probability
    return -math.expm1(alive) + 0.0  # never -0.0


def gaussian_lyapunov_exponents(width: int, sigma_w2: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the Lyapunov exponents of a deep linear network with Gaussian weights, and their variance per layer.

    The k-th largest singular value of a product of L square matrices grows as exp(L μ_k), with

        μ_k = [log(2 sigma_w2 / n) + digamma((n - k + 1) / 2)] / 2,   L · Var = trigamma((n - k + 1) / 2) / 4.

    Natural logarithms of amplitudes, per layer (Newman, 1986; Akemann, Burda & Kieburg, 2014, arXiv:1406.0803).

    Args:
        width: n.
        sigma_w2: n · Var(W).

    Returns:
        Exponents in falling order, and variances per layer, both of shape ``(width,)``.

    Raises:
        ValueError: If the width is below 1, or ``sigma_w2`` is not above 0.

    Examples:
        >>> exponents, _ = gaussian_lyapunov_exponents(2)
        >>> round(float(exponents[0] - exponents[1]) / math.log(2), 12)  # the condition number doubles per layer
        1.0
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    check_variance("sigma_w2", sigma_w2)
    if sigma_w2 == 0:
        raise ValueError("sigma_w2 must be above 0, got 0")
    freedom = (width - torch.arange(width, dtype=torch.float64)) / 2  # (24)
    exponents = 0.5 * (math.log(2 * sigma_w2 / width) + digamma(freedom))
    return exponents.numpy(), (_trigamma(freedom) / 4).numpy()
