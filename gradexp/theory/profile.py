"""The predicted profile: what every layer of one network does to one sample, on average over random weights.

Three ways lead to it, each with its own domain. Piecewise linear activations without biases have exact laws
(``finite_width``). A scaled identity is not random, and followed unit by unit. Everything else is expanded around
the infinitely wide network to first order in 1 / width, layer by layer and from the actual input on.

All sizes are natural logarithms of squared norms, float64, of shape ``(layer, sample)``, layer l at index l - 1.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradexp.theory.finite_width import layer_law, log_chi_square
from gradexp.theory.mean_field import mean_squared_slope
from gradexp.theory.network import Network


@dataclass
class Profile:
    """Predicted logs of squared norms.

    Args:
        output: E log of the mean square of zˡ.
        inputs: E log ‖aˡ⁻¹‖², the squared length of what goes into layer l.
        output_grad: E log ‖δˡ‖², from 0 at layer L.
        branch: log a² of the factor a of layer l's residual branch, shape ``(layer,)``; 0 without one.
        variance: Variance of log ‖δˡ‖² over networks.
        mean_field: log ‖δˡ‖² in the limit of infinite width.
        fluctuation: Relative variance of each hidden layer's length over networks; the expansion is in this. Shape
            ``(hidden layer, sample)``; None where nothing is expanded.
        dependence: How much the gradient depends on the length, ``|E φ'² He₂| / E φ'²``, of the same shape: 0 on
            straight lines, where lengths may differ as they like.
        sigma_w2: What data-driven scaling makes of each layer's sigma_w2; None without it.
        unknown: Size of the terms of first order in 1 / width that log_chi leaves out.
    """

    output: Tensor
    inputs: Tensor
    output_grad: Tensor
    branch: Tensor
    variance: Tensor
    mean_field: Tensor
    fluctuation: Tensor | None = None
    dependence: Tensor | None = None
    sigma_w2: list[float] | None = None
    unknown: float = 0.0


def exact(network: Network, mean_square: Tensor) -> Profile:
    """Add up the exact laws of piecewise linear layers without biases.

    Args:
        network: One that has exact laws.
        mean_square: ‖x‖² / n_0 of each sample, shape ``(sample,)``.
    """
    laws, widths, slopes = network.laws, network.widths, network.activation.slopes_at_zero
    slope2 = mean_squared_slope(slopes)
    inputs, output = [(mean_square * widths[0]).log()], []
    for layer, law in enumerate(laws):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        linear = layer_law(fan_in, fan_out, law.sigma_w2, orthogonal=law.orthogonal)
        output.append(inputs[-1] + linear.mean - math.log(fan_out))
        activated = layer_law(fan_in, fan_out, law.sigma_w2, slopes, orthogonal=law.orthogonal, keep=network.keep)
        inputs.append(inputs[-1] + activated.mean)
    zero = torch.zeros_like(mean_square)
    gradient, variance, mean_field = [zero], [zero], [zero]
    for layer in reversed(range(1, network.depth)):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        law = laws[layer]
        options: dict[str, Any] = {"orthogonal": law.orthogonal, "keep": network.keep}
        step = layer_law(fan_in, fan_out, law.sigma_w2, slopes, backward=True, **options)
        gradient.append(gradient[-1] + step.mean)
        variance.append(variance[-1] + step.variance)
        mean_field.append(mean_field[-1] + math.log(law.sigma_w2 * slope2 / network.keep))  # (17)
    return Profile(
        torch.stack(output),
        torch.stack(inputs[:-1]),
        torch.stack(gradient[::-1]),
        torch.zeros(network.depth, dtype=torch.float64),
        torch.stack(variance[::-1]),
        torch.stack(mean_field[::-1]),
    )


def diagonal(network: Network, x: Tensor) -> Profile:
    """Follow every unit of a scaled identity by itself: z = gain · φ(z), with nothing random but the cotangent.

    A cotangent drawn from N(0, I) and scaled to length 1 reaches layer l as its first units c_i, each multiplied by a
    known w_i: log ‖δˡ‖² = log Σ w_i² c_i² - log Σ c_i². Mean and variance of it are exact up to quadrature.

    Args:
        network: A plain one whose laws are all ``diagonal``, without biases.
        x: Inputs, shape ``(sample, n_0)``.
    """
    laws, widths, depth = network.laws, network.widths, network.depth
    a, outputs, inputs, logs, scale = x.double(), [], [], [], torch.zeros(len(x), dtype=torch.float64)
    for layer, law in enumerate(laws):
        inputs.append(_log_square(a) + scale)
        assert law.diagonal is not None
        z = torch.zeros(len(x), widths[layer + 1], dtype=torch.float64)
        shared = min(widths[layer], widths[layer + 1])
        z[:, :shared] = law.diagonal * a[:, :shared]
        outputs.append(_log_square(z) - math.log(widths[layer + 1]) + scale)
        factor = in_range(z.abs().amax(dim=1))
        z, scale = z * factor.unsqueeze(1), scale - 2 * factor.log()
        if layer + 1 < depth:
            a, slope = network.activation.value_and_slope(z)
            logs.append((slope.abs() * abs(laws[layer + 1].diagonal or 0.0)).log()[:, : widths[-1]])
    total = torch.zeros(len(x), widths[-1], dtype=torch.float64)
    means, variances = [torch.zeros(len(x), dtype=torch.float64)], [torch.zeros(len(x), dtype=torch.float64)]
    for log in reversed(logs):
        width = min(total.shape[1], log.shape[1])
        total = torch.nn.functional.pad(
            total[:, :width] + log[:, :width], (0, total.shape[1] - width), value=-math.inf
        )
        mean, variance = log_weighted_ratio(2 * total)  # (25)
        means.append(mean)
        variances.append(variance)
    gradient = torch.stack(means[::-1])
    return Profile(
        torch.stack(outputs),
        torch.stack(inputs),
        gradient,
        torch.zeros(depth, dtype=torch.float64),
        torch.stack(variances[::-1]),
        gradient,
    )


def in_range(q: Tensor) -> Tensor:
    """Return the factor that brings lengths back before they leave float64's range.

    φ is a line through 0 where its argument is tiny (else q would not be), and a line on either side where it is
    huge, so that all that follows is multiplied by the same factor.
    """
    exponent = q.log2().floor()  # a power of two costs no digits
    factor = torch.ones_like(q)
    factor = torch.where((q < 1e-80) & (q > 0), torch.exp2(-130 - exponent), factor)
    return torch.where((q > 1e80) & q.isfinite(), torch.exp2(130 - exponent), factor)


def log_weighted_ratio(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of log(Σ w_i c_i² / Σ c_i²), c from N(0, I), given log w_i along the last dimension.

    As in ``square_sum.log_square_sum``, T / Σ w_i c_i² has a density in closed form, T exponential with mean 1; the
    length of c is independent of its direction, so that log Σ c_i² is subtracted from the mean and its variance from
    the variance.
    """
    largest = log_weights.amax(dim=-1, keepdim=True)
    dead = largest.squeeze(-1) == -math.inf
    if dead.any():
        mean, variance = log_weighted_ratio(log_weights.where(~dead.unsqueeze(-1), 0.0))
        return mean.masked_fill(dead, -math.inf), variance
    if torch.equal(log_weights, largest.expand_as(log_weights)):  # a multiple of c, whatever c is
        return largest.squeeze(-1), torch.zeros_like(largest.squeeze(-1))
    w = (log_weights - largest).exp()
    count = w.shape[-1]
    x = torch.arange(-45 - math.log(count), 150, 0.125, dtype=torch.float64)
    t = x.exp().reshape(-1, *[1] * w.dim()) * w
    log_survival = -0.5 * torch.log1p(2 * t).sum(dim=-1)  # (26)
    density = log_survival.exp() * (t / (1 + 2 * t)).sum(dim=-1)
    density = density / density.sum(dim=0)
    column = x.reshape(-1, *[1] * (w.dim() - 1))
    mean = (density * column).sum(dim=0)
    variance = (density * (column - mean).square()).sum(dim=0) - math.pi**2 / 6
    length = log_chi_square(count)
    mean_log = largest.squeeze(-1) - np.euler_gamma - mean - length.mean
    return mean_log, (variance - length.variance).clamp(min=0)


def _log_square(v: Tensor) -> Tensor:
    return v.square().sum(dim=1).log()
