"""The profile of normalised and residual networks, with comments that number the equations of docs/theory.md.

With a normaliser N in front of φ the units that φ sees have variance 1 whatever the weights are, and the gradient is
divided by the standard deviation that N took out (section 6). With residual branches of factor a the stream's length
grows by a² V per layer and the gradient by 1 + a² chi (section 7).
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.numerics.square_sum import LogMoments
from gradexp.theory.batch_norm import BatchAverages, batch_averages
from gradexp.theory.finite_width import log_chi_square, log_mean_square
from gradexp.theory.gaussian import pair_average
from gradexp.theory.mean_field import Moments, is_piecewise_linear
from gradexp.theory.network import Network
from gradexp.theory.profile import Profile, in_range
from gradexp.theory.weight_laws import WeightLaw


def normalised_or_residual(network: Network, mean_square: Tensor, input_variance: float, batch: int) -> Profile:
    """Return the profile of a network with a normaliser, residual branches, or both.

    Per layer, with chi = sigma_w2 E φ'² / v, v the variance that N divides by (1 without N):

        plain: log chi,   residual: log(1 + a² chi)

    Layer norm: v is the length q of the sample. Batch norm: v is the variance over the batch,
    sigma_w2 (E φ² - (E φ)²) in a large batch, whose samples are uncorrelated once their mean is taken out. sigma_w2
    cancels, and relu explodes by π / (π - 1) per layer whatever the initialisation (Yang et al., 2019,
    arXiv:1902.08129), and by more over a finite batch (``batch_norm``). What is of order 1 / width is added, of
    batch norm only in part.

    Args:
        network: One that is not plain.
        mean_square: ‖x‖² / n_0 of each sample, shape ``(sample,)``.
        input_variance: Mean over features of the variance of the inputs over the batch, for batch norm.
        batch: Number of samples, for batch norm.
    """
    forward = _Forward(network, mean_square, input_variance, batch)
    gradient, variance, mean_field = _backward(network, forward.layers, mean_square)
    branch, log_branches = network.branch, torch.zeros(network.depth, dtype=torch.float64)
    if branch is not None:
        log_branches[1 : network.depth - 1] = 2 * math.log(branch) if branch else -math.inf
    return Profile(
        torch.stack(forward.output),
        torch.stack(forward.inputs),
        gradient,
        log_branches,
        variance,
        mean_field,
        torch.stack(forward.fluctuations),
        torch.stack(forward.dependences),
    )


@dataclass
class _NormalisedLayer:
    """A hidden layer and the branch above it, all per sample."""

    width: int
    is_skip: bool  # whether the layer above adds to the stream, or replaces it
    log_q: Tensor  # of the length of the stream
    gain: Tensor  # a² chi: E‖branch of the gradient‖² / ‖δ‖²
    first_order: Tensor  # what order 1 / width adds to the log of E of chi
    noise: Tensor  # relative variance of the branch of the gradient
    over_batch: BatchAverages | None  # with batch norm


class _Forward:
    """Lengths followed to the last layer.

    Attributes:
        layers: The hidden layers.
        output: E log of the mean square of each layer's outputs.
        inputs: E log of the squared length of each layer's inputs.
        fluctuations: Relative variances of lengths, as in ``Profile.fluctuation``.
        dependences: How much the gradient depends on lengths, as in ``Profile.dependence``.
    """

    def __init__(self, network: Network, mean_square: Tensor, input_variance: float, batch: int) -> None:
        laws, widths, normalization = network.laws, network.widths, network.normalization
        self.layers: list[_NormalisedLayer] = []
        self.output: list[Tensor] = []
        self.inputs = [(mean_square * widths[0]).log()]
        q = laws[0].sigma_w2 * mean_square + laws[0].sigma_b2  # length of the stream (8)
        over_batch = batch_averages(network.activation, batch) if normalization == "batch" else None
        v = q
        if over_batch is not None:  # of the B - 1 directions that the mean leaves
            v = torch.full_like(q, laws[0].sigma_w2 * input_variance * batch / (batch - 1))
        length_bias = length_variance = log_scale = torch.zeros_like(q)
        self.fluctuations, self.dependences = [torch.zeros_like(q)], [torch.zeros_like(q)]
        for index in range(network.depth):
            if normalization == "none":  # else every layer begins anew
                factor = in_range(q)
                q, log_scale = factor * q, log_scale - factor.log()
            n = widths[index + 1]
            scatter = log_mean_square(n)  # (20)
            if laws[index].orthogonal and network.branch is None:
                scatter = scatter - log_mean_square(max(n, widths[index]))  # (46)
            self.output.append(log_scale + q.log() + length_bias - length_variance / 2 + scatter)  # (31)
            if index + 1 == network.depth:
                break
            law, is_skip = laws[index + 1], network.branch is not None and index + 2 < network.depth
            a2 = network.branch**2 if is_skip and network.branch is not None else 1.0
            m = network.moments(q if normalization == "none" else torch.ones_like(q))
            w2 = law.sigma_w2
            square = m.square
            if over_batch is not None:
                square = torch.full_like(q, over_batch.square)
                through = over_batch.top if index + 2 == network.depth else over_batch.inside
                gain = a2 * w2 * through / v  # (49a)
                first_order, noise = torch.zeros_like(q), torch.full_like(q, over_batch.omega / n)
            elif normalization == "layer":
                gain = a2 * w2 * m.slope2 / v  # (47)
                mean, noise = _layer_norm_step(network, index, m)
                first_order = mean + noise / 2
            else:  # (41) without ω and r
                gain = a2 * w2 * m.slope2
                first_order = (m.slope2_he2 * length_bias / 2 + m.slope2_he4 * length_variance / 8) / m.slope2
                noise = _omega(m) / n
            self.inputs.append(log_scale + (n * square).log())
            log_q = log_scale + q.log()
            self.layers.append(_NormalisedLayer(n, is_skip, log_q, gain, first_order, noise, over_batch))
            stream = q if is_skip else torch.zeros_like(q)
            next_q = stream + a2 * (w2 * square + law.sigma_b2)  # (55)
            if normalization == "none":  # (56)
                added = m.u_value_slope * length_bias + m.square_he4 * length_variance / 8
                length_bias = (stream * length_bias + a2 * w2 * added) / next_q
                length_slope = (stream + a2 * w2 * m.u_value_slope) / next_q
                length_noise = (a2 * w2 / next_q).square() * ((m.fourth - m.square.square()) / n)
                length_variance = length_slope.square() * length_variance + length_noise
                self.fluctuations.append(length_variance)
                self.dependences.append(m.slope2_he2.abs() / m.slope2)
            q = next_q
            if normalization == "layer":
                v = q  # (48)
            elif over_batch is not None:
                v = (v if is_skip else torch.zeros_like(q)) + a2 * w2 * over_batch.centred  # (49)


def _backward(
    network: Network, layers: Sequence[_NormalisedLayer], mean_square: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up mean, variance and infinite-width value of log ‖δ‖² from the last layer down.

    In a residual network the units of all layers are those of one stream, which changes slowly: a unit that is on
    stays on, so that fluctuations of E φ'² add up instead of averaging out, and the gradient's stream lives where
    branches let it through. Both follow from the joint law of φ'² at two depths, whose correlation is √(q / q').
    """
    zero = torch.zeros_like(mean_square)
    gradient, variance, mean_field = [zero], [zero], [zero]
    joint = _JointSlopes(network, layers) if any(layer.is_skip for layer in layers) else None
    # Of the layers above: share w of the squared gradient that came through each, and its share in the fluctuations.
    gradient_shares = torch.zeros(len(layers), *mean_square.shape, dtype=torch.float64)
    noise_shares = torch.zeros_like(gradient_shares)
    order = own = lasting = common = zero
    sensitivity = 0.0
    for index in reversed(range(len(layers))):
        layer = layers[index]
        n, gain, above = layer.width, layer.gain, slice(index + 1, None)
        growth = 1 + gain if layer.is_skip else gain  # (55)
        share = gain / growth
        noise = share.square() * layer.noise
        if joint is not None:
            overlap, kept = (table[above].unsqueeze(1) for table in joint.over_product(index))  # (57)
            if layer.is_skip:
                mean_overlap = (gradient_shares[above] * overlap).sum(dim=0)
                noise = noise + 4 * gain * mean_overlap / (n * growth.square())  # (58)
            lasting = lasting + 2 * share * (noise_shares[above] * kept).sum(dim=0) / n  # (59)
            noise_shares[index] = share
            gradient_shares = gradient_shares / growth
            gradient_shares[index] = share
        order, own = order + share * layer.first_order, own + noise
        if (batch := layer.over_batch) is not None:
            all_samples = batch.log_mean(n)
            order, common = order + share.square() * all_samples.mean, common + share.square() * all_samples.variance
            mixed = (1 - share * (1 - batch.mixing)).square()
            own, lasting = mixed * (own - noise) + noise, mixed * lasting  # (49c)
            if joint is None and batch.lengths.slope < 1:
                c, slope, length_noise, covariance = batch.lengths
                lasting = lasting + (2 * covariance * sensitivity + length_noise * sensitivity**2) / n  # (44)
                sensitivity = c + slope * batch.mixing * sensitivity  # (42)
        mean_field.append(mean_field[-1] + growth.log())
        variance.append(own + lasting + common)
        gradient.append(mean_field[-1] + order - own / 2)  # (60)
    return torch.stack(gradient[::-1]), torch.stack(variance[::-1]), torch.stack(mean_field[::-1])


class _JointSlopes:
    """J = E φ'²(u_k) φ'²(u_j) / (E φ'²)² over the correlation of one unit at two depths of a stream, from a table."""

    def __init__(self, network: Network, layers: Sequence[_NormalisedLayer]) -> None:
        phi = network.activation
        self.log_lengths = torch.stack([layer.log_q.mean() for layer in layers])
        # φ' depends on the size of u but where it is constant on both sides of 0; a middle size stands for all.
        no_size = network.normalization != "none" or is_piecewise_linear(phi)
        q = 1.0 if no_size else math.exp(min(float(self.log_lengths.mean()), math.log(1e6)))
        self.values = _overlaps(phi, q)
        self.lasting = self.values - 1
        if network.normalization == "layer":  # (59a)
            m = Moments.at(phi, torch.tensor(q, dtype=torch.float64))
            cosine = np.cos(_ANGLES)
            self.lasting -= cosine * float(m.slope2_he1 / m.slope2) ** 2
            self.lasting += cosine**2 * (2 - float(m.slope2_he2 / m.slope2) ** 2 / 2)

    def over_product(self, index: int) -> tuple[Tensor, Tensor]:
        """Return J of one layer with every layer, and the covariance of their gains times n, shape ``(layer,)``."""
        log_correlation = -(self.log_lengths[index] - self.log_lengths).abs() / 2
        angle = log_correlation.exp().acos().numpy()
        overlap, lasting = (
            torch.from_numpy(np.interp(angle, _ANGLES, table)) for table in (self.values, self.lasting)
        )
        return overlap, lasting


# Dense near correlation 1, where relu's J has a square root.
_ANGLES = np.linspace(0, math.pi / 2, 25)


@functools.lru_cache(maxsize=64)
def _overlaps(phi: Activation, q: float) -> NDArray[np.float64]:
    """Return J at the angles of the table, for units of variance q at both depths."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        return (phi.value_and_slope(x)[1] * phi.value_and_slope(y)[1]).square()

    slope2 = float(Moments.at(phi, torch.tensor(q, dtype=torch.float64)).slope2)
    averages = [pair_average(product, q, q, 2 * math.sin(angle / 2) ** 2, phi.kinks) for angle in _ANGLES]
    return np.array(averages) / slope2**2


def _omega(m: Moments) -> Tensor:
    return 3 * m.slope4 / m.slope2.square() - 1  # (36)


def _layer_norm_step(network: Network, index: int, m: Moments) -> tuple[Tensor, Tensor]:
    """Return what order 1 / width adds to log chi at hidden layer ``index + 1`` under layer norm, and the noise."""
    is_top = index + 2 == network.depth
    divisor = _divisor(network, index, m)
    n, law = network.widths[index + 1], network.laws[index + 1]
    mean, variance, covariance = _through_layer_norm(m, n, law, network.length_share(index + 1, n), is_top)
    # The next layer divides by what this layer's units decide too.
    return mean - divisor.mean, variance + divisor.variance - 2 * covariance * (not is_top)


def _divisor(network: Network, index: int, m: Moments) -> LogMoments:
    """Return the law of log of the variance over units that layer norm divides by, less its infinite-width value."""
    law, fan_in, n = network.laws[index], network.widths[index], network.widths[index + 1]
    if n == 1:  # the mean is all there is, and nothing is left to divide by
        return LogMoments(-math.inf, 0.0)
    mean, variance = log_chi_square(n - 1).mean - math.log(n), 2 / n  # (50)
    if law.orthogonal:
        unfixed = (1 - network.length_share(index, n)) / n
        mean, variance = -1 / n - unfixed, 2 * unfixed
    if index > 0:  # the layer below is normalised too, and hands on E φ² over a sphere (51)
        weight_share = law.sigma_w2 * m.square / (law.sigma_w2 * m.square + law.sigma_b2)
        per_square = weight_share / m.square
        unit_variance = m.fourth - m.square.square() - m.square_he2.square() / 2 - m.square_he1.square()
        length_noise = float(per_square.square().max() * unit_variance.max()) / fan_in
        length_bias = float((per_square * m.square_he4).max()) / (4 * fan_in)
        mean, variance = mean - length_bias - length_noise / 2, variance + length_noise
    return LogMoments(mean, variance)


def _through_layer_norm(
    m: Moments, n: int, law: WeightLaw, length_share: float, is_top: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow ‖P D Wᵀδ‖² through one layer, P the projection of a normaliser's way back.

    Args:
        m: Averages at variance 1.
        n: The layer's width.
        law: The law of W.
        length_share: The share of a fixed length that W leaves to the n units on the way back.
        is_top: Whether W belongs to the last layer, which has no normaliser.

    Returns:
        What order 1 / n adds to the log, the variance of the log, and its covariance with that of the next divisor.
    """
    omega = _omega(m) - m.slope2_he2.square() / (2 * m.slope2.square()) - m.slope2_he1.square() / m.slope2.square()
    kappa = m.square_slope2 / (m.square * m.slope2)
    if length_share:
        omega, kappa = omega - 2 * length_share, kappa - length_share
    next_q = law.sigma_w2 * m.square + law.sigma_b2
    alignment = 1.0 if is_top else law.sigma_b2 / next_q  # r
    # (52)
    removed = m.u2_slope2 + m.slope2
    removed = removed - (1 - alignment) * (m.u_value_slope.square() + m.value_slope.square()) / m.square
    removed = removed / m.slope2
    sphere = m.slope2_he4 / (4 * m.slope2)
    mean = (kappa * (alignment - 1) - removed - sphere - omega / 2) / n  # (53)
    covariance = m.square_slope2 - m.square * m.slope2
    covariance = covariance - m.square_he2 * m.slope2_he2 / 2 - m.square_he1 * m.slope2_he1
    weight_share = law.sigma_w2 * m.square / next_q
    return mean, omega / n, weight_share * covariance / (m.square * m.slope2 * n)  # (54)
