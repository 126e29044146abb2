"""The profile of normalised and residual networks.

With a normaliser N in front of φ the units that φ sees have variance 1 whatever the weights are, and the gradient is
divided by the standard deviation that N took out. With residual branches of factor a the stream's length grows by
a² V per layer and the gradient by 1 + a² chi.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.numerics.square_sum import LogLaw
from gradexp.theory.finite_width import log_chi_square, log_mean_square
from gradexp.theory.gaussian import pair_average
from gradexp.theory.mean_field import Moments, is_piecewise_linear
from gradexp.theory.profile import Profile, in_range
from gradexp.theory.weight_laws import WeightLaw


def cured(
    phi: Activation,
    widths: Sequence[int],
    laws: Sequence[WeightLaw],
    square: Tensor,
    normalization: str,
    branch: float | None,
    spread: float,
) -> Profile:
    """Return the profile of a network with a normaliser, residual branches, or both.

    Per layer, with chi = sigma_w2 E φ'² / v, v the variance that N divides by (1 without N):

        plain: log chi,   residual: log(1 + a² chi)

    Layer norm: v is the length q of the sample. Batch norm: v is the variance over the batch,
    sigma_w2 (E φ² - (E φ)²) in a large batch, whose samples are uncorrelated once their mean is taken out. sigma_w2
    cancels, and relu explodes by π / (π - 1) per layer whatever the initialisation (Yang et al., 2019,
    arXiv:1902.08129). For layer norm and residual networks what is of order 1 / width is added; for batch norm it
    is not known here.

    Args:
        phi: The activation.
        widths: n_0, ..., n_L.
        laws: Of each layer's weights.
        square: ‖x‖² / n_0 of each sample, shape ``(sample,)``.
        normalization: ``none``, ``layer`` or ``batch``.
        branch: a, the factor of the residual branches; None for a network without skip connections.
        spread: Mean over features of the variance of the inputs over the batch.
    """
    depth = len(laws)
    inputs = [(square * widths[0]).log()]
    q = laws[0].sigma_w2 * square + laws[0].sigma_b2  # length of the stream
    v = q if normalization != "batch" else torch.full_like(q, laws[0].sigma_w2 * spread)
    bias = variance = scale = torch.zeros_like(q)
    one = torch.ones_like(q)
    fluctuations, dependences = [torch.zeros_like(q)], [torch.zeros_like(q)]
    output: list[Tensor] = []
    layers: list[_Layer] = []
    for index in range(depth):
        if normalization == "none":  # else every layer begins anew
            factor = in_range(q)
            q, scale = factor * q, scale - factor.log()
        n = widths[index + 1]
        scatter = log_mean_square(n)
        if laws[index].orthogonal and branch is None:
            scatter = scatter - log_mean_square(max(n, widths[index]))
        output.append(scale + q.log() + bias - variance / 2 + scatter)
        if index + 1 == depth:
            break
        law, is_skip = laws[index + 1], branch is not None and index + 2 < depth
        a2 = branch**2 if is_skip and branch is not None else 1.0
        m = Moments.at(phi, q if normalization == "none" else one)
        w2 = law.sigma_w2
        inputs.append(scale + (n * m.square).log())
        noise = (3 * m.slope4 / m.slope2.square() - 1) / n
        if normalization == "layer":
            divisor = _divisor(m, widths[index], n, laws[index], index > 0)
            finite, noise, shared = _through_layer_norm(m, n, law, index + 2 == depth)
            finite = finite - divisor.mean
            # The next layer divides by what this layer's units decide too.
            noise = noise + divisor.variance - 2 * shared * (index + 2 < depth)
        elif normalization == "batch":
            finite = torch.zeros_like(q)
        else:
            finite = (m.slope2_he2 * bias / 2 + m.slope2_he4 * variance / 8) / m.slope2
        gain = a2 * w2 * m.slope2 / (1.0 if normalization == "none" else v)
        layers.append(_Layer(n, is_skip, scale + q.log(), gain, finite, noise))
        following = w2 * m.square + law.sigma_b2
        stream = q if is_skip else torch.zeros_like(q)
        next_q = stream + a2 * following
        if normalization == "none":  # deviations of lengths, relative
            added = m.u_value_slope * bias + m.square_he4 * variance / 8
            kick = (m.fourth - m.square.square()) / n
            bias = (stream * bias + a2 * w2 * added) / next_q
            length_slope = (stream + a2 * w2 * m.u_value_slope) / next_q
            variance = length_slope.square() * variance + (a2 * w2 / next_q).square() * kick
            fluctuations.append(variance)
            dependences.append(m.slope2_he2.abs() / m.slope2)
        q = next_q
        if normalization == "layer":
            v = q
        elif normalization == "batch":
            v = (v if is_skip else 0) + a2 * w2 * (m.square - m.value.square())
    gradient, total_variance, mean_field = _backward(phi, layers, normalization, square)
    branches = torch.zeros(depth, dtype=torch.float64)
    if branch is not None:
        branches[1 : depth - 1] = 2 * math.log(branch) if branch else -math.inf
    return Profile(
        torch.stack(output),
        torch.stack(inputs),
        gradient,
        branches,
        total_variance,
        mean_field,
        torch.stack(fluctuations),
        torch.stack(dependences),
    )


@dataclass
class _Layer:
    """A hidden layer and the branch above it, all per sample."""

    width: int
    is_skip: bool  # whether the layer above adds to the stream, or replaces it
    log_q: Tensor  # of the length of the stream
    gain: Tensor  # a² chi: E‖branch of the gradient‖² / ‖δ‖²
    finite: Tensor  # what order 1 / width adds to log chi
    noise: Tensor  # relative variance of the branch of the gradient


def _backward(
    phi: Activation, layers: Sequence[_Layer], normalization: str, square: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up mean, variance and infinite-width value of log ‖δ‖² from the last layer down.

    In a residual network the units of all layers are those of one stream, which changes slowly: a unit that is on
    stays on, so that fluctuations of E φ'² add up instead of averaging out, and the gradient's stream lives where
    branches let it through. Both follow from the joint law of φ'² at two depths, whose correlation is √(q / q').
    """
    zero = torch.zeros_like(square)
    gradient, variance, mean_field = [zero], [zero], [zero]
    if not any(layer.is_skip for layer in layers):
        for layer in reversed(layers):
            mean_field.append(mean_field[-1] + layer.gain.log())
            correction = layer.finite - (layer.noise / 2 if normalization == "none" else 0)
            gradient.append(gradient[-1] + layer.gain.log() + correction)
            variance.append(variance[-1] + layer.noise)
        return torch.stack(gradient[::-1]), torch.stack(variance[::-1]), torch.stack(mean_field[::-1])
    joint = _JointSlopes(phi, layers, normalization)
    # Of the layers above: share of the squared gradient that came through each, and its share in the fluctuations.
    parts = torch.zeros(len(layers), *square.shape, dtype=torch.float64)
    shares = torch.zeros_like(parts)
    shift = zero
    for index in reversed(range(len(layers))):
        layer = layers[index]
        n, gain, above = layer.width, layer.gain, slice(index + 1, None)
        both = joint.over_product(index)[above].unsqueeze(1)  # E φ'² φ'² / (E φ'²)² with each layer above
        if layer.is_skip:
            growth = 1 + gain
            met = (parts[above] * both).sum(dim=0)  # E φ'² where the gradient is, over E φ'²
            noise = (4 * gain * met / n + gain.square() * layer.noise) / growth.square()
        else:
            growth, noise = gain, layer.noise
        share = gain / growth
        noise = noise + 2 * share * (shares[above] * (both - 1)).sum(dim=0) / n
        shares[index] = share
        parts = parts / growth
        parts[index] = share
        finite = layer.finite if normalization == "none" else layer.finite + layer.noise / 2
        shift = shift + share * finite
        mean_field.append(mean_field[-1] + growth.log())
        variance.append(variance[-1] + noise)
        gradient.append(mean_field[-1] + shift - variance[-1] / 2)
    return torch.stack(gradient[::-1]), torch.stack(variance[::-1]), torch.stack(mean_field[::-1])


class _JointSlopes:
    """E φ'²(u_k) φ'²(u_j) / (E φ'²)² over the correlation of one unit at two depths of a stream, from a table."""

    def __init__(self, phi: Activation, layers: Sequence[_Layer], normalization: str) -> None:
        self.log_lengths = torch.stack([layer.log_q.mean() for layer in layers])
        # φ' depends on the size of u but where it is constant on both sides of 0; a middle size stands for all.
        no_size = normalization != "none" or is_piecewise_linear(phi)
        q = 1.0 if no_size else math.exp(min(float(self.log_lengths.mean()), math.log(1e6)))
        m = Moments.at(phi, torch.tensor(q, dtype=torch.float64))

        def product(x: Tensor, y: Tensor) -> Tensor:
            return (phi.value_and_slope(x)[1] * phi.value_and_slope(y)[1]).square()

        # Dense near correlation 1, where relu's has a square root.
        self.angles = np.linspace(0, math.pi / 2, 25)
        values = [pair_average(product, q, q, 2 * math.sin(angle / 2) ** 2, phi.kinks) for angle in self.angles]
        self.values = np.array(values) / float(m.slope2) ** 2

    def over_product(self, index: int) -> Tensor:
        """Return the ratio of one layer with every layer, shape ``(layer,)``."""
        ratio = -(self.log_lengths[index] - self.log_lengths).abs() / 2
        angle = ratio.exp().acos().numpy()
        return torch.from_numpy(np.interp(angle, self.angles, self.values))


def _divisor(m: Moments, fan_in: int, n: int, own: WeightLaw, normalised_below: bool) -> LogLaw:
    """Return the law of log of the variance over units that layer norm divides by, less its infinite-width value."""
    if n == 1:  # the mean is all there is, and nothing is left to divide by
        return LogLaw(-math.inf, 0.0)
    mean, variance = (-1 / n, 0.0) if own.orthogonal else (log_chi_square(n - 1).mean - math.log(n), 2 / n)
    if normalised_below:
        # The layer below hands on E φ² over a sphere: no radius, no mean, and not quite Gaussian units.
        from_weights = own.sigma_w2 * m.square / (own.sigma_w2 * m.square + own.sigma_b2)
        relative = from_weights / m.square
        noise = m.fourth - m.square.square() - m.square_he2.square() / 2 - m.square_he1.square()
        kick = float(relative.square().max() * noise.max()) / fan_in
        shift = float((relative * m.square_he4).max()) / (4 * fan_in)
        mean, variance = mean - shift - kick / 2, variance + kick
    return LogLaw(mean, variance)


def _through_layer_norm(m: Moments, n: int, law: WeightLaw, is_top: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what order 1 / n adds to log ‖gradient's numerator‖², its variance, and the part shared with E φ²."""
    noise = 3 * m.slope4 / m.slope2.square() - 1
    noise = noise - m.slope2_he2.square() / (2 * m.slope2.square()) - m.slope2_he1.square() / m.slope2.square()
    kappa = m.square_slope2 / (m.square * m.slope2)
    if law.orthogonal:
        noise, kappa = noise - 2, kappa - 1
    # N takes the mean and the direction of z out of the gradient, so that below it W a · δ is left to the biases.
    seen = 1.0 if is_top else law.sigma_b2 / (law.sigma_w2 * m.square + law.sigma_b2)
    # What is left of both in it, once its part along the activations is gone.
    removed = m.u2_slope2 + m.slope2 - (1 - seen) * (m.u_value_slope.square() + m.value_slope.square()) / m.square
    removed = removed / m.slope2
    sphere = m.slope2_he4 / (4 * m.slope2)
    mean = (kappa * (seen - 1) - removed - sphere - noise / 2) / n
    shared = m.square_slope2 - m.square * m.slope2 - m.square_he2 * m.slope2_he2 / 2 - m.square_he1 * m.slope2_he1
    from_weights = law.sigma_w2 * m.square / (law.sigma_w2 * m.square + law.sigma_b2)
    return mean, noise / n, from_weights * shared / (m.square * m.slope2 * n)
