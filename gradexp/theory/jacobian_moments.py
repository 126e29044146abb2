"""The first two moments of the squared singular values of the input-output Jacobian, in infinite width."""

import math
from typing import NamedTuple

from gradexp.theory.mean_field import MeanField


class JacobianMoments(NamedTuple):
    """log m_1 and m_2 / m_1², with m_k = tr (J Jᵀ)ᵏ / n."""

    log_m1: float
    ratio: float


def jacobian_moments(point: MeanField, depth: int, *, orthogonal: bool = False) -> JacobianMoments:
    """Return the moments of J = D W ⋯ D W with ``depth`` factors, at the fixed length of a phase-diagram point.

    m_1 = chi_1ᴸ and m_2 / m_1² = 1 + L (mu_2 / mu_1² - 1 - s_1), with mu_k = E φ'²ᵏ at q*, and s_1 = -1 for Gaussian
    and 0 for orthogonal weights. A ratio of 1 is dynamical isometry, all singular values alike; relu cannot reach it,
    whose mu_2 / mu_1² is 2 (Pennington et al., 2017, arXiv:1711.04735, and 2018, arXiv:1802.09979). For one sample
    of a network of finite width n the ratio is right while depth / n is small.

    Args:
        point: Activation and variances; orthogonal weights of gain g have sigma_w2 = g².
        depth: Number of factors L, at least 1.
        orthogonal: Whether the weights are orthogonal, else Gaussian.

    Raises:
        ValueError: If ``depth`` is below 1 or there is no finite fixed length.

    Examples:
        >>> jacobian_moments(MeanField("relu", 2.0), 10, orthogonal=True).ratio
        11.0
    """
    if not isinstance(point, MeanField):
        raise TypeError(f"point must be a MeanField, got a {type(point).__name__}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    if point.q_star == math.inf:
        raise ValueError(f"lengths grow for ever at {point}: there is no fixed length")
    m = point.moments(point.q_star)
    slope_ratio = float(m.slope4 / m.slope2.square())  # mu_2 / mu_1²
    log_m1 = depth * math.log(point.chi_1) if point.chi_1 > 0 else -math.inf
    return JacobianMoments(log_m1, 1 + depth * (slope_ratio - 1 + (0 if orthogonal else 1)))  # (67)
