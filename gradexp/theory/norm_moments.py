"""Moments of the squared norm itself, exactly: means that few large networks dominate, where logs tell the typical.

Numbers in comments are those of the equations in docs/theory.md, section 4.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.theory.mean_field import check_dropout, is_piecewise_linear, usable_activation
from gradexp.theory.weight_laws import WeightLaw, weight_laws


def log_norm_moment(
    phi: str | Activation | Callable[[Tensor], Tensor],
    laws: str | Sequence[WeightLaw],
    widths: Sequence[int],
    order: int = 1,
    *,
    backward: bool = True,
    dropout: float = 0.0,
) -> float:
    """Return log E[(‖δ¹‖² / ‖δᴸ‖²)ᵏ] over random networks, at any width and depth, dead ones included.

    Layers multiply by independent factors (sigma_w2 / fan_in) S_n, S_n a sum of n squares (18), so that moments
    multiply. For relu with He's variance the mean is 1 and the second moment Π (1 + 5 / n_l): as depth / width grows
    few networks hold the mean, and the typical one shrinks (Hanin & Nica, 2018, arXiv:1812.05994).

    Args:
        phi: ``linear``, ``relu``, ``leaky_relu``, or a function that is a line on either side of 0.
        laws: The law of each layer's weights, or the name of a scheme; Gaussian or orthogonal, without biases.
        widths: n_0, ..., n_L.
        order: The order k, at least 1.
        backward: Whether of ‖δ¹‖² / ‖δᴸ‖², else of ‖zᴸ‖² / ‖x‖².
        dropout: The probability with which φ(z) is 0, in training mode.

    Raises:
        ValueError: If the activation is another, weights have biases or a law of another kind, or ``order`` is
            below 1.

    Examples:
        >>> second = log_norm_moment("relu", "he", [50] * 12, order=2)
        >>> round(math.exp(second), 4), round((1 + 5 / 50) ** 10, 4)
        (2.5937, 2.5937)
    """
    if isinstance(laws, str):
        laws = weight_laws(laws, widths, activation=phi if isinstance(phi, str) else None)
    if len(laws) != len(widths) - 1:
        raise ValueError(f"laws must be {len(widths) - 1}, one for each layer of these widths, got {len(laws)}")
    activation = usable_activation(phi, 0.01, ())
    check_dropout(dropout)
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be a whole number of at least 1, got {order!r}")
    if not is_piecewise_linear(activation):
        raise ValueError("moments are known for linear, relu and leaky_relu only")
    for law in laws:
        if law.sigma_b2 or law.diagonal is not None or law.scaled_to is not None or (law.kurtosis and order > 1):
            raise ValueError("moments are known for Gaussian or orthogonal weights without biases only")
    keep = 1 - dropout
    slopes = [slope / keep for slope in activation.slopes_at_zero]
    odds = keep / 2
    total = 0.0
    for index, law in enumerate(laws):
        fan_in, fan_out = widths[index], widths[index + 1]
        if backward and index == 0:
            continue  # the first layer's weights meet no gradient
        is_bare = not backward and index + 1 == len(laws)  # no activation follows the last layer
        squares = [(1.0, 1.0)] if is_bare else [(odds, slope**2) for slope in slopes]
        units = fan_in if backward else fan_out
        if not law.sigma_w2 or not any(square for _, square in squares):
            return -math.inf
        total += order * math.log(law.sigma_w2 / fan_in) + _log_moment(units, squares, order)
        if law.orthogonal:  # (22)
            larger = max(fan_in, fan_out)
            total -= sum(math.log1p(2 * j / larger) for j in range(order))
    return total


def _log_moment(count: int, squares: Sequence[tuple[float, float]], order: int) -> float:
    """Return log E Sᵏ, S a sum of ``count`` independent s² g² with g from N(0, 1).

    E Sᵏ / k! is the k-th coefficient of (Σ_j E[s²ʲ] E[g²ʲ] tʲ / j!)ⁿ, by the recurrence for powers of a series.

    Args:
        count: n.
        squares: Pairs of the probability and the value of s²; what is left of the probability belongs to 0.
        order: k.
    """
    scale = count * sum(share * square for share, square in squares)  # E S, so that coefficients are about 1
    one = [1.0]
    for j in range(1, order + 1):
        # E g²ʲ / j! = (2j)! / (2ʲ j!²)
        gaussian = math.factorial(2 * j) / (2**j * math.factorial(j) ** 2)
        one.append(gaussian * sum(share * (square / scale) ** j for share, square in squares))
    power = [1.0]
    for k in range(1, order + 1):
        power.append(sum((j * (count + 1) - k) * one[j] * power[k - j] for j in range(1, k + 1)) / k)
    return math.log(power[order] * math.factorial(order)) + order * math.log(scale)
