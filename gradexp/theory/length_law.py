"""The profile of plain networks whose lengths differ too much for an expansion: their whole law is followed.

Numbers in comments are those of the equations in docs/theory.md, section 5. Given a layer's length K its units are
independent from N(0, K), so that the next length depends on this one alone: lengths are a Markov chain. Its law is
kept on a grid of x = log K and carried from layer to layer; and so are, on the way back, mean and variance of what
the layers above do to the gradient, as functions of x. Only what happens inside one layer is expanded in 1 / width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import digamma

from gradexp.theory.expansion import Alignment
from gradexp.theory.finite_width import log_mean_square
from gradexp.theory.mean_field import Moments
from gradexp.theory.network import Network
from gradexp.theory.profile import Profile
from gradexp.theory.weight_laws import WeightLaw

# Points of the grid per standard deviation of one step, and how far the grid reaches, in those of all steps together.
_POINTS, _REACH = 1.6, 7.0
_MOST_POINTS = 1500


def follow_lengths(network: Network, mean_square: Tensor, expansion: Profile) -> Profile | None:
    """Return the profile of a plain network; None if its lengths are no such chain, or go too far for a grid.

    Args:
        network: One without normalisers and skip connections.
        mean_square: ‖x‖² / n_0 of each sample, shape ``(sample,)``.
        expansion: Its profile to first order, of which infinite width is taken over.
    """
    if any(law.orthogonal or law.diagonal is not None or law.scaled_to is not None for law in network.laws):
        return None
    x = _grid(network, mean_square, expansion)
    if x is None:
        return None
    m = network.moments(x.exp())
    chains: dict[tuple[WeightLaw, WeightLaw, int, int], _Chain] = {}
    steps = []
    for index in range(1, network.depth):
        key = (network.laws[index - 1], network.laws[index], network.widths[index - 1], network.widths[index])
        if key not in chains:
            chains[key] = _Chain(x, m, *key)
        steps.append(chains[key])

    # From the last layer down: of log ‖δ‖², given x, mean and variance; and what ties δ to the weights.
    zero = torch.zeros_like(x)
    mean, variance, alignment, second_order = [zero], [zero], Alignment.independent(x), []
    for chain in reversed(steps):
        above = chain.above(mean[-1], variance[-1], *alignment)
        met = Alignment(*above.alignment)
        scatter, second = met.scatter(chain.kappa, chain.noise, chain.width)
        second_order.append(second)
        order = chain.order + chain.kappa * (met.r - 1) / chain.width - scatter / 2  # (41)
        mean.append(chain.log_chi + order + above.mean)
        noise = chain.noise + scatter + 2 * chain.covariance * above.slope
        variance.append(noise + above.variance)  # (44)
        alignment = met.below(m, chain.share, chain.kappa, chain.width)
    mean.reverse()
    variance.reverse()
    second_order.reverse()

    unknown = 0.0
    law = _at(x, (network.laws[0].sigma_w2 * mean_square + network.laws[0].sigma_b2).log())
    output, inputs = [], [(mean_square * network.widths[0]).log()]
    gradient, total = [], []
    for index in range(network.depth):
        output.append(law @ x + log_mean_square(network.widths[index + 1]))
        gradient.append(law @ mean[index])
        total.append(law @ variance[index] + law @ mean[index].square() - gradient[-1].square())
        if index + 1 < network.depth:
            inputs.append(law @ steps[index].log_square)
            unknown += float((law @ second_order[index]).mean()) / 4 / network.depth
            law = law @ steps[index].kernel
    log_grad = torch.stack(gradient)
    # What a layer adds beyond infinite width comes twice: trust squares it once, and lengths differ much here.
    unknown += float((log_grad - expansion.mean_field).diff(dim=0).square().mean())
    return Profile(
        torch.stack(output),
        torch.stack(inputs),
        log_grad,
        expansion.branch,
        torch.stack(total),
        expansion.mean_field,
        unknown=unknown,
    )


def _grid(network: Network, mean_square: Tensor, expansion: Profile) -> Tensor | None:
    """Return evenly spaced x = log K around the lengths of infinite width, or None if there are too many."""
    q = network.laws[0].sigma_w2 * mean_square + network.laws[0].sigma_b2
    low, high = float(q.min().log()), float(q.max().log())
    finest, reach2 = math.inf, 0.0
    for law, n in zip(network.laws[1:], network.widths[1:], strict=False):
        m = network.moments(q)
        q = law.sigma_w2 * m.square + law.sigma_b2
        variance = (law.sigma_w2 * m.square / q).square() * (m.fourth / m.square.square() - 1) / n
        finest, reach2 = min(finest, float(variance.max().sqrt())), reach2 + float(variance.max())
        low, high = min(low, float(q.min().log())), max(high, float(q.max().log()))
    if expansion.fluctuation is not None:
        reach2 = min(reach2, float(expansion.fluctuation.max()) + finest**2)
    reach = _REACH * math.sqrt(reach2)
    count = (high - low + 2 * reach) * _POINTS / finest if finest else math.inf
    if not count <= _MOST_POINTS:  # nan too
        return None
    return torch.linspace(low - reach, high + reach, math.ceil(count) + 4, dtype=torch.float64)


class _Chain:
    """One hidden layer of n units and the weights above it, as functions of x = log K on the grid."""

    def __init__(self, x: Tensor, m: Moments, below: WeightLaw, law: WeightLaw, fan_in: int, width: int) -> None:
        n, spacing = width, float(x[1] - x[0])
        self.width = n
        kurtosis = below.kurtosis * m.fourth / m.square.square() - below.fixed
        below_share = ((m.q - below.sigma_b2) / m.q).clamp(min=1e-12)  # no length is below that
        gram_charlier = kurtosis * below_share.square() / (24 * fan_in)  # (33)
        square = m.square + gram_charlier * m.square_he4
        self.share = below_share
        self.log_chi = (law.sigma_w2 * m.slope2).log()  # (10)
        omega = 3 * m.slope4 / m.slope2.square() - 1  # (36)
        self.noise = omega / n
        self.order = gram_charlier * m.slope2_he4 / m.slope2 - omega / (2 * n)
        self.kappa = m.square_slope2 / (m.square * m.slope2)
        next_share = law.sigma_w2 * square / (law.sigma_w2 * square + law.sigma_b2)
        self.covariance = next_share * (self.kappa - 1) / n  # (43)
        # The mean of φ² over units as a gamma variable: exact for lines, right in mean and variance for all. A law
        # narrower than the grid is made as wide as that.
        shape = n / (m.fourth / m.square.square() - 1).clamp(min=n * (0.5 * spacing) ** 2)
        self.log_square = (n * square).log() + digamma(shape) - shape.log()
        log_ratio = ((x.exp() - law.sigma_b2).clamp(min=0) / law.sigma_w2).log() - square.log().unsqueeze(1)
        log_density = shape.unsqueeze(1) * (log_ratio - log_ratio.exp()) + (x - x.exp().sub(law.sigma_b2).log())
        log_density = log_density.nan_to_num(nan=-math.inf, posinf=-math.inf)
        self.x = x
        self.kernel: Tensor = log_density.softmax(dim=1)
        self.next_x = self.kernel @ x
        self.next_variance = (self.kernel @ x.square() - self.next_x.square()).clamp(min=1e-300)

    def above(self, mean: Tensor, variance: Tensor, *alignment: Tensor) -> "_Above":
        """Return what functions of the next x are on average, given this one."""
        functions = torch.stack([mean, mean.square(), self.x * mean, variance, *alignment], dim=1)
        mean, square, product, variance, *met = (self.kernel @ functions).unbind(dim=1)
        slope = (product - self.next_x * mean) / self.next_variance
        return _Above(mean, slope, variance + (square - mean.square()).clamp(min=0), met)


class _Above(NamedTuple):
    mean: Tensor  # of log ‖δ‖²
    slope: Tensor  # of that mean, by the next x
    variance: Tensor  # of log ‖δ‖², the next x not given
    alignment: Sequence[Tensor]


def _at(x: Tensor, points: Tensor) -> Tensor:
    """Return weights, shape ``(point, grid)``, with which values on the grid give those at points: a cubic."""
    spacing = x[1] - x[0]
    place = (points - x[0]) / spacing
    first = (place.floor().long() - 1).clamp(0, len(x) - 4)
    t = place - first
    cubic = torch.stack(
        [
            -(t - 1) * (t - 2) * (t - 3) / 6,
            t * (t - 2) * (t - 3) / 2,
            -t * (t - 1) * (t - 3) / 2,
            t * (t - 1) * (t - 2) / 6,
        ],
        dim=1,
    )
    return torch.zeros(len(points), len(x), dtype=x.dtype).scatter_(1, first.unsqueeze(1) + torch.arange(4), cubic)
