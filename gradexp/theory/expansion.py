"""The profile of plain networks, to first order in 1 / width around the infinitely wide one.

Numbers in comments are those of the equations in docs/theory.md, section 5, which also lists the symbols that the
names here stand for. Lengths K deviate from the infinite network's length q by an amount of order 1 / width; the
deviations are followed from layer to layer, and so is what they do to the gradient. Nothing is assumed to have
reached a fixed point, and widths may differ.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gradexp.theory.finite_width import log_mean_square
from gradexp.theory.mean_field import Moments
from gradexp.theory.network import Network
from gradexp.theory.profile import Profile, in_range
from gradexp.theory.weight_laws import WeightLaw


@dataclass
class _PlainLayer:
    """A hidden layer l, and the weights W of layer l + 1 that its activations meet next.

    Tensors are per sample, and deviations of lengths are relative, so that no unit of length comes in.
    """

    width: int
    law_above: WeightLaw  # of layer l + 1; sigma_w2 is the effective one
    moments: Moments  # at length q
    q: Tensor  # variance of a unit of z, in the infinitely wide network
    next_q: Tensor  # the same of layer l + 1
    share_below: float  # n / m, the share of a fixed length that Wˡ leaves to the n units; 0 if it fixes none
    share_above: float  # the same of Wˡ⁺¹, on the way back
    weight_share: Tensor  # s, the share of q that comes from W and not from the biases
    length_bias: Tensor  # β, mean of K / q - 1
    length_variance: Tensor  # ν, variance of K / q
    length_slope: Tensor  # λ, d log V / d log q
    length_noise: Tensor  # τ², what the layer adds to the variance of the next length
    gram_charlier: Tensor  # h, the weight of He₄ in the distribution of a unit
    log_rescaling: Tensor  # log of what data-driven scaling (LSUV) adds to sigma_w2


def expand(network: Network, mean_square: Tensor) -> Profile:
    """Return the profile of a plain network.

    Args:
        network: One without normalisers and skip connections.
        mean_square: ‖x‖² / n_0 of each sample, shape ``(sample,)``.
    """
    layers, output, inputs = _forward(network, mean_square)
    zero = torch.zeros_like(mean_square)
    gradient, variance, mean_field = [zero], [zero], [zero]
    noise = sensitivity = zero
    alignment, second_order = Alignment.independent(mean_square), 0.0
    for layer in reversed(layers):
        m, n, w2 = layer.moments, layer.width, layer.law_above.sigma_w2
        chi_slope = m.slope2_he2 / (2 * m.slope2)  # (34)
        chi_curvature = m.slope2_he4 / (4 * m.slope2) - chi_slope.square()  # (35)
        omega = 3 * m.slope4 / m.slope2.square() - 1  # (36)
        covariance = m.square_slope2 / m.slope2 - m.square
        kappa = m.square_slope2 / (m.square * m.slope2)
        if layer.share_above:
            omega, kappa = omega - 2 * layer.share_above, kappa - layer.share_above
        if layer.share_below:  # (45)
            radial_slope = layer.weight_share * m.slope2_he2 / m.slope2
            omega = omega - layer.share_below * radial_slope.square() / 2
            covariance = covariance - layer.share_below * layer.weight_share * m.square_he2 * radial_slope / 2
        step = (w2 * m.slope2).log()  # (10)
        mean_field.append(mean_field[-1] + step)
        # (41), term by term
        step = step + layer.log_rescaling + chi_slope * layer.length_bias + chi_curvature * layer.length_variance / 2
        step = step + layer.gram_charlier * m.slope2_he4 / m.slope2
        scatter, second = alignment.scatter(kappa, omega / n, n)
        step = step + (kappa * (alignment.r - 1) - omega / 2) / n - scatter / 2
        second_order += float(second.mean()) / 2 / network.depth
        gradient.append(gradient[-1] + step)
        covariance = covariance * w2 / layer.next_q / n  # (43)
        noise = noise + omega / n + scatter + 2 * covariance * sensitivity + layer.length_noise * sensitivity.square()
        sensitivity = chi_slope + layer.length_slope * sensitivity  # (42)
        variance.append(noise + sensitivity.square() * layer.length_variance)  # (44)
        alignment = alignment.below(m, layer.weight_share, kappa, n)
    return Profile(
        torch.stack(output),
        torch.stack(inputs),
        torch.stack(gradient[::-1]),
        torch.zeros(network.depth, dtype=torch.float64),
        torch.stack(variance[::-1]),
        torch.stack(mean_field[::-1]),
        torch.stack([layer.length_variance for layer in layers]) if layers else None,
        torch.stack([layer.moments.slope2_he2.abs() / layer.moments.slope2 for layer in layers]) if layers else None,
        [network.laws[0].sigma_w2, *(layer.law_above.sigma_w2 for layer in layers)],
        # Scaling by data takes out fluctuations that all samples share, and how many they share is not followed.
        sum(float(layer.length_noise.mean()) / 2 for layer in layers if layer.law_above.scaled_to) / network.depth
        + second_order / 2,
    )


def _forward(network: Network, mean_square: Tensor) -> tuple[list[_PlainLayer], list[Tensor], list[Tensor]]:
    """Follow lengths to the last layer; also return E log of mean squares of outputs, and of squared inputs."""
    laws, widths = network.laws, network.widths
    inputs = [(mean_square * widths[0]).log()]
    output: list[Tensor] = []
    layers: list[_PlainLayer] = []
    law, _ = _scaled_by_data(laws[0], mean_square)
    q = law.sigma_w2 * mean_square + law.sigma_b2  # (8)
    length_bias = length_variance = log_scale = torch.zeros_like(q)
    kurtosis = torch.zeros_like(q)
    for index in range(network.depth):
        factor = in_range(q)
        q, log_scale = factor * q, log_scale - factor.log()
        n = widths[index + 1]
        weight_share = (q - law.sigma_b2) / q
        gram_charlier = kurtosis * weight_share.square() / (24 * widths[index])  # (33)
        scatter = torch.full_like(q, log_mean_square(n))  # (20)
        if law.orthogonal:  # (46)
            larger = max(n, widths[index])
            gram_charlier = gram_charlier - weight_share.square() / (4 * larger)
            scatter = scatter - weight_share.square() * log_mean_square(larger)
        output.append(log_scale + q.log() + length_bias - length_variance / 2 + scatter)  # (31)
        if index + 1 == network.depth:
            break
        if not layers or not torch.allclose(q, layers[-1].q, rtol=1e-14, atol=0):  # else lengths have settled
            m = network.moments(q)
        law_above, is_scaled = _scaled_by_data(laws[index + 1], m.square)
        w2 = law_above.sigma_w2
        next_q = w2 * m.square + law_above.sigma_b2  # (8)
        per_square = w2 / next_q
        unit_variance = m.fourth - m.square.square()  # of φ² (27)
        share_below, share_above = network.length_share(index, n), network.length_share(index + 1, n)
        if share_below:  # (45)
            unit_variance = unit_variance - share_below * (weight_share * m.square_he2).square() / 2
        length_noise = per_square.square() * unit_variance / n  # (30)
        length_slope = per_square * m.u_value_slope  # (28)
        next_bias = length_slope * length_bias + per_square * m.square_he4 * (
            length_variance / 8 + gram_charlier
        )  # (29)
        log_rescaling = torch.zeros_like(q)
        if is_scaled:  # the data's mean length is held where it is, and the weights take up its bias
            log_rescaling, next_bias = -next_bias, torch.zeros_like(q)
        layers.append(
            _PlainLayer(
                n,
                law_above,
                m,
                q,
                next_q,
                share_below,
                share_above,
                weight_share,
                length_bias,
                length_variance,
                length_slope,
                length_noise,
                gram_charlier,
                log_rescaling,
            )
        )
        length_bias, length_variance = next_bias, length_slope.square() * length_variance + length_noise  # (30)
        next_share = w2 * m.square / next_q
        log_length = log_scale + (n * m.square).log()
        inputs.append(log_length + length_bias / next_share - length_variance / (2 * next_share.square()))  # (32)
        kurtosis = law_above.kurtosis * m.fourth / m.square.square() - law_above.fixed  # (33)
        q, law = next_q, law_above
    return layers, output, inputs


def _scaled_by_data(law: WeightLaw, mean_square: Tensor) -> tuple[WeightLaw, bool]:
    """Return the law with the sigma_w2 that LSUV gives it, and whether that differs.

    Args:
        law: The law of a layer's weights.
        mean_square: Mean squares of the layer's inputs, shape ``(sample,)``.
    """
    if law.scaled_to is None:
        return law, False
    mean = float(mean_square.mean())
    output_variance = law.sigma_w2 * mean + law.sigma_b2
    if abs(output_variance / law.scaled_to - 1) < law.tolerance:
        return law, False
    return replace(law, sigma_w2=max(law.scaled_to - law.sigma_b2, 0.0) / mean), True


class Alignment(NamedTuple):
    """What ties the way back to the weights of the way forward."""

    r: Tensor  # 1 for an independent cotangent (38)
    memory: Tensor  # covariance with what was gained by it above (46a)

    @classmethod
    def independent(cls, like: Tensor) -> "Alignment":
        """Return that of the last layer."""
        return cls(torch.ones_like(like), torch.zeros_like(like))

    def scatter(self, kappa: Tensor, noise: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Return what an r above 1 adds to Var log ‖δ‖²: summed as a geometric series, and its first term alone.

        Args:
            kappa: κ.
            noise: The first order of that variance.
            width: Units n.
        """
        variance = kappa / width * (self._excess(kappa, width) + 2 * self.memory)  # (46b)
        return variance / (1 + variance / noise), variance

    def below(self, m: Moments, share: Tensor, kappa: Tensor, width: int) -> "Alignment":
        """Carry it from layer l + 1 down to layer l, of whose length weights hold this share (39)."""
        projection = share * m.u_value_slope / m.square
        y2_slope2 = share.square() * m.u2_slope2 + share * (1 - share) * m.q * m.slope2  # (40), y = W a
        y2 = m.slope2 * share * m.q
        kept = projection.square() * m.square / y2
        return Alignment(y2_slope2 / y2 + kept * (self.r - 1), kept * (self.memory + self._excess(kappa, width)))

    def _excess(self, kappa: Tensor, width: int) -> Tensor:
        return 2 * kappa / width * (self.r.square() - 1).clamp(min=0)  # (46a)
