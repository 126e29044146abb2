"""The profile of smooth, biased or cured networks, to first order in 1 / width around the infinitely wide one.

Every layer hands on its length, a mean square over units that is itself random. Deviations from the mean-field length
q are of order 1 / width; they are followed from layer to layer, and so is what they do to the gradient. Nothing is
assumed to have reached a fixed point, and widths may differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.theory.finite_width import log_mean_square
from gradexp.theory.mean_field import Moments
from gradexp.theory.profile import Profile, in_range
from gradexp.theory.weight_laws import WeightLaw


@dataclass
class _Layer:
    """A hidden layer l, and the weights W of layer l + 1 that its activations meet next.

    Tensors are per sample, and deviations of lengths are relative, so that no unit of length comes in.
    """

    width: int
    law: WeightLaw  # of layer l + 1; sigma_w2 is the effective one
    own: WeightLaw  # of layer l
    moments: Moments  # at length q
    q: Tensor  # variance of a unit of z, in the infinitely wide network
    from_weights: Tensor  # share of q that comes from W, not from the biases
    bias: Tensor  # mean of the random length over q, minus 1
    variance: Tensor  # variance of the random length over q²
    length_slope: Tensor  # d log(next length) / d log(length), V' q / V
    kick: Tensor  # variance added to the next layer's length, over the square of that
    next_q: Tensor
    he4: Tensor  # weight of He₄ in the distribution of a unit, which is not quite Gaussian
    rescaled: Tensor  # log of what data-driven scaling (LSUV) adds to sigma_w2


def expand(phi: Activation, widths: Sequence[int], laws: Sequence[WeightLaw], square: Tensor) -> Profile:
    """Return the profile of a plain network.

    Given the layer below, units are Gaussian with a variance K, so that K is a Markov chain with mean V(K) and
    noise Var(φ²) / n. The ratio ‖δˡ‖² / ‖δˡ⁺¹‖² has mean chi(K) and relative variance omega / n, with
    omega = 3 E φ'⁴ / (E φ'²)² - 1. The weights that the gradient meets on its way back are those that made the
    signal, and along the activations a they are known:

        Wᵀδ = a (W a · δ) / ‖a‖² + an independent part,   R = E (W a · δ)² / ‖δ‖²,

    which adds kappa (R / (sigma_w2 E φ²) - 1) / n to the log, kappa = E φ² φ'² / (E φ² E φ'²). Orthogonal weights
    keep the lengths of W a and Wᵀδ, so that all fluctuations along these drop out.

    Args:
        phi: The activation.
        widths: n_0, ..., n_L.
        laws: Of each layer's weights.
        square: ‖x‖² / n_0 of each sample, shape ``(sample,)``.
    """
    layers, output, inputs = _forward(phi, widths, laws, square)
    zero = torch.zeros_like(square)
    gradient, variance, mean_field = [zero], [zero], [zero]
    noise = response = zero
    seen = torch.ones_like(square)  # R / (sigma_w2 E φ²), 1 for an independent cotangent
    for layer in reversed(layers):
        m, n, w2 = layer.moments, layer.width, layer.law.sigma_w2
        slope = m.slope2_he2 / (2 * m.slope2)  # of log chi over log q
        bend = m.slope2_he4 / (4 * m.slope2) - slope.square()
        omega = 3 * m.slope4 / m.slope2.square() - 1
        together = m.square_slope2 / m.slope2 - m.square  # n times the covariance of log chi and the mean of φ²
        kappa = m.square_slope2 / (m.square * m.slope2)
        if layer.law.orthogonal:
            omega, kappa = omega - 2, kappa - 1
        if layer.own.orthogonal:
            along_z = layer.from_weights * m.slope2_he2 / m.slope2
            omega = omega - along_z.square() / 2
            together = together - layer.from_weights * m.square_he2 * along_z / 2
        step = (w2 * m.slope2).log()
        mean_field.append(mean_field[-1] + step)
        step = step + layer.rescaled + slope * layer.bias + bend * layer.variance / 2
        step = step + layer.he4 * m.slope2_he4 / m.slope2
        step = step + (kappa * (seen - 1) - omega / 2) / n
        gradient.append(gradient[-1] + step)
        together = together * w2 / layer.next_q / n
        noise = noise + omega / n + 2 * together * response + layer.kick * response.square()
        response = slope + layer.length_slope * response
        variance.append(noise + response.square() * layer.variance)
        seen = _seen_below(layer, seen)
    return Profile(
        torch.stack(output),
        torch.stack(inputs),
        torch.stack(gradient[::-1]),
        torch.zeros(len(laws), dtype=torch.float64),
        torch.stack(variance[::-1]),
        torch.stack(mean_field[::-1]),
        torch.stack([layer.variance for layer in layers]) if layers else None,
        torch.stack([layer.moments.slope2_he2.abs() / layer.moments.slope2 for layer in layers]) if layers else None,
        [laws[0].sigma_w2, *(layer.law.sigma_w2 for layer in layers)],
        # Scaling by data takes out fluctuations that all samples share, and how many they share is not followed.
        sum(float(layer.kick.mean()) / 2 for layer in layers if layer.law.scaled_to) / len(laws),
    )


def _forward(
    phi: Activation, widths: Sequence[int], laws: Sequence[WeightLaw], square: Tensor
) -> tuple[list[_Layer], list[Tensor], list[Tensor]]:
    """Follow lengths to the last layer; also return E log of mean squares of outputs, and of squared inputs."""
    inputs = [(square * widths[0]).log()]
    output: list[Tensor] = []
    layers: list[_Layer] = []
    effective, _ = _scaled_by_data(laws[0], square)
    q = effective.sigma_w2 * square + effective.sigma_b2
    bias = variance = scale = torch.zeros_like(q)
    kurtosis = torch.zeros_like(q)
    for index in range(len(laws)):
        factor = in_range(q)
        q, scale = factor * q, scale - factor.log()
        own, n = effective, widths[index + 1]
        from_weights = (q - own.sigma_b2) / q
        # A unit given the layer below: a sum of fan_in terms, or one coordinate of a vector of fixed length.
        he4 = kurtosis * from_weights.square() / (24 * widths[index])
        scatter = torch.full_like(q, log_mean_square(n))
        if own.orthogonal:
            larger = max(n, widths[index])
            he4 = he4 - from_weights.square() / (4 * larger)
            scatter = scatter - from_weights.square() * log_mean_square(larger)
        # log of the mean square: that of the length, and how n units scatter around it.
        output.append(scale + q.log() + bias - variance / 2 + scatter)
        if index + 1 == len(laws):
            break
        if not layers or not torch.allclose(q, layers[-1].q, rtol=1e-14, atol=0):  # else lengths have settled
            m = Moments.at(phi, q)
        following, scaled = _scaled_by_data(laws[index + 1], m.square)
        w2 = following.sigma_w2
        next_q = w2 * m.square + following.sigma_b2
        per_square = w2 / next_q
        kick = m.fourth - m.square.square()
        if own.orthogonal:
            kick = kick - (from_weights * m.square_he2).square() / 2
        kick = per_square.square() * kick / n
        length_slope = per_square * m.u_value_slope
        shift = length_slope * bias + per_square * m.square_he4 * (variance / 8 + he4)
        rescaled = torch.zeros_like(q)
        if scaled:  # the data's mean length is held where it is, and the weights take up the shift
            rescaled, shift = -shift, torch.zeros_like(q)
        layers.append(
            _Layer(n, following, own, m, q, from_weights, bias, variance, length_slope, kick, next_q, he4, rescaled)
        )
        bias, variance = shift, length_slope.square() * variance + kick
        # E log ‖a‖², of which the next length is a share w2 ‖a‖² / n.
        share = w2 * m.square / next_q
        inputs.append(scale + (n * m.square).log() + bias / share - variance / (2 * share.square()))
        kurtosis = following.kurtosis * m.fourth / m.square.square() - following.fixed
        q, effective = next_q, following
    return layers, output, inputs


def _scaled_by_data(law: WeightLaw, square: Tensor) -> tuple[WeightLaw, bool]:
    """Return the law with the sigma_w2 that LSUV finds, given the mean squares of inputs, and whether it scales."""
    if law.scaled_to is None:
        return law, False
    mean = float(square.mean())
    found = law.sigma_w2 * mean + law.sigma_b2
    if abs(found / law.scaled_to - 1) < law.tolerance:
        return law, False
    return replace(law, sigma_w2=max(law.scaled_to - law.sigma_b2, 0.0) / mean), True


def _seen_below(layer: _Layer, seen: Tensor) -> Tensor:
    """Carry R / (sigma_w2 E φ²), R = E (W a · δ)² / ‖δ‖², from layer l + 1 down to layer l."""
    m, share = layer.moments, layer.from_weights
    # Given z = W a + b, W a has mean share · z and variance share · sigma_b2.
    projected = share * m.u_value_slope / m.square
    spread = share.square() * m.u2_slope2 + share * (1 - share) * m.q * m.slope2
    return (spread + projected.square() * m.square * (seen - 1)) / (m.slope2 * share * m.q)
