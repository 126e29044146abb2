"""The recurrent network at initialisation: how far back in time the gradient reaches.

With z_t = W φ(z_(t-1)) + U x_t + b, σ² = fan_in · Var of weights, and in infinite width, every unit is Gaussian with

    q_t = σ_w² E φ(z_(t-1))² + ‖x_t‖² / m + σ_b²,   and   ‖δ_(t-1)‖² = σ_w² E φ'(z_(t-1))² ‖δ_t‖² = χ ‖δ_t‖²

as in a feedforward network, although W is the same at every step (Chen et al., 2018, arXiv:1806.05394; for chaos,
Molgedey et al., 1992). So the gradient reaches back about 1 / |log χ| steps (Pascanu et al., 2013,
arXiv:1211.5063). But where the state comes to rest the same matrix acts again and again, and after about √width
steps its largest eigenvalues decide, which differ between networks; there the law is withheld, but for matrices that
are orthogonal times a constant. A scaled identity mixes no units, and is followed unit by unit.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradexp.architecture import check_sizes
from gradexp.networks.activations import Activation
from gradexp.networks.tokens import tokens
from gradexp.theory.finite_width import log_mean_square
from gradexp.theory.mean_field import MeanField, Moments
from gradexp.theory.prediction import Prediction
from gradexp.theory.profile import in_range
from gradexp.theory.rows import prediction_of_rows
from gradexp.theory.trust import NOT_GAUSSIAN, TOLERATED
from gradexp.theory.weight_laws import UnknownLawError, WeightLaw

# From simulation of 128 and 512 units over 200 steps (tests/theory/test_rnn.py): what the same weights at every step
# do to log_chi where the state rests, times √width, and where it moves, times the width; and with orthogonal ones.
_RESTING, _MOVING, _MOVING_ORTHOGONAL = 1.5, 8.0, 0.7
# Steps over √width after which a resting state shows the eigenvalues in full.
_SETTLED = 10.0
# Units of which the averages over a scaled identity's are taken; their error in the log of a square.
_UNITS, _OF_UNITS = 2048, 2e-3


def predict_rnn(
    phi: Activation,
    law: WeightLaw,
    x: Tensor,
    outputs: int,
    *,
    depth: int,
    width: int,
    cell: str = "rnn",
    context: int = 8,
) -> Prediction:
    """Predict the profile at initialisation of an ``RNN``.

    Args:
        phi: The activation.
        law: The law of W.
        x: Inputs, shape ``(sample, features)``, float64.
        outputs: Number of outputs.
        depth: Number of rows L: L - 1 time steps and the readout.
        width: Units of the state.
        cell: ``rnn``; there is no law for gates.
        context: Number of tokens, L - 1 at most.

    Raises:
        ValueError: If the inputs are fewer than the tokens.
        UnknownLawError: If there is no law for this network; the text says why.
    """
    check_sizes("rnn", depth=depth, width=width, features=x.shape[1], context=context)
    if cell != "rnn":
        raise UnknownLawError(f"no law is known for the gates of cell '{cell}'")
    if law.scaled_to is not None:
        raise UnknownLawError("there is no formula for LSUV of weights that are used at every step")
    if law.sigma_w2 == 0:
        raise UnknownLawError("sigma_w2 is 0: nothing gets through")
    x_t = tokens(x, min(context, depth - 1))
    x_t = x_t[(x_t[:, 0] != 0).any(dim=1)]
    if not len(x_t):
        raise UnknownLawError("the first token of every input is exactly 0")
    follow = _followed_by_unit if law.diagonal is not None else _followed
    found = follow(phi, law, x_t, outputs, depth - 1, width)
    return replace(found, widths=(x.shape[1], *found.widths[1:]))


def _followed(phi: Activation, law: WeightLaw, x_t: Tensor, outputs: int, moments: int, n: int) -> Prediction:
    """Follow the variance of a unit and the gradient, in infinite width and with the noise of a finite one."""
    drive = _drive(x_t, moments)
    q, log_scale = drive[0] + law.sigma_b2, torch.zeros(len(x_t), dtype=torch.float64)
    over_time: list[Moments] = []
    lengths, squares = [], []
    for t in range(moments):
        factor = in_range(q)
        q, log_scale = factor * q, log_scale - factor.log()
        settled = over_time and torch.allclose(q, over_time[-1].q, rtol=1e-14, atol=0)
        m = over_time[-1] if settled else Moments.at(phi, q)
        over_time.append(m)
        lengths.append(q.log() + log_scale + log_mean_square(n))
        squares.append(m.square.log() + log_scale)
        if t + 1 < moments:
            q = law.sigma_w2 * m.square + law.sigma_b2 + drive[t + 1] * (-log_scale).exp()

    top = over_time[-1]
    # The readout's gradient is Gaussian, whatever W is.
    mean_field, variance = [top.slope2.log()], [_omega(top) / n]
    for m in reversed(over_time[:-1]):
        mean_field.append(mean_field[-1] + (law.sigma_w2 * m.slope2).log())
        variance.append(variance[-1] + (_omega(m) - 2.0 * law.orthogonal) / n)
    tolerance = _tolerance(phi, law, over_time, moments - x_t.shape[1], n) if moments > 1 else 0.0
    if tolerance > TOLERATED:
        raise UnknownLawError(
            f"width {n} is too small for a law, since the weights are the same at all of {moments} steps"
        )
    profile = _Profile(lengths, squares, mean_field[::-1], variance[::-1])
    is_exact = law.orthogonal and tolerance == 0
    reason = (
        "exact: an orthogonal matrix times a constant" if is_exact else "infinite width, equal weights at all steps"
    )
    chi = law.sigma_w2 * float(top.slope2.mean())
    return profile.prediction(x_t, outputs, n, law, tolerance, reason, chi)


def _omega(m: Moments) -> Tensor:
    """Return n times the relative variance of Σ (φ' δ)² over n units with Gaussian δ."""
    return 3 * m.slope4 / m.slope2.square() - 1


def _tolerance(phi: Activation, law: WeightLaw, over_time: list[Moments], free: int, n: int) -> float:
    """Estimate what log_chi leaves out, ``free`` being the number of steps without input."""
    last = over_time[-1]
    resting = 0.0
    if free > 0:
        # The correlation of the state with itself at a later step; 1 if it comes to rest.
        alike = max(MeanField(phi, law.sigma_w2, law.sigma_b2, start=float(last.q.mean())).c_star, 0.0)
        # Relative variance of the squared singular values of one step.
        spreads = [m.slope4 / m.slope2.square() - float(law.orthogonal) for m in over_time[-free:]]
        spread = max(float(torch.stack(spreads).mean()), 0.0)
        resting = _RESTING * alike * spread * min(1.0, free / (_SETTLED * math.sqrt(n))) / math.sqrt(n)
    depends = last.slope2_he2.abs() / last.slope2  # how much χ depends on the length
    slope = law.sigma_w2 * last.u_value_slope / (law.sigma_w2 * last.square + law.sigma_b2)
    moving = (depends * slope / (1 - slope).clamp(min=1e-9)).where(depends > 1e-9, 0)
    error = resting + (_MOVING_ORTHOGONAL if law.orthogonal else _MOVING) * float(moving.max()) / n
    error += NOT_GAUSSIAN * abs(law.kurtosis) / n**2
    return error if error > 1e-12 else 0.0


def _followed_by_unit(phi: Activation, law: WeightLaw, x_t: Tensor, outputs: int, moments: int, n: int) -> Prediction:
    """Follow many units of a scaled identity, of which each has random weights from the input and to the readout."""
    assert law.diagonal is not None
    size = x_t.shape[2]
    engine = torch.quasirandom.SobolEngine(size + 1, scramble=True, seed=0)
    uniform = engine.draw(_UNITS, dtype=torch.float64).clamp(1e-15, 1 - 1e-15)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    inputs, bias = normal[:, :size] / math.sqrt(size), math.sqrt(law.sigma_b2) * normal[:, size]
    parts = [_units(phi, law.diagonal, part, inputs, bias, moments, n) for part in x_t.split(8)]
    profile = _Profile(*(list(torch.cat(rows, dim=1)) for rows in zip(*parts, strict=True)))
    largest = max(float(variance.max()) for variance in profile.variance)
    is_exact = float(torch.stack(profile.variance).std(dim=0).max()) < 1e-12
    # The second order of the logarithm, and how well so many units stand for all.
    tolerance = 0.0 if is_exact else (largest**2 / 2 + _OF_UNITS) / moments
    if not tolerance <= TOLERATED or not torch.stack(profile.output).isfinite().all():
        raise UnknownLawError(
            f"so few units of a scaled identity let the gradient through that width {n} is too small for their mean"
        )
    reason = "exact: a scaled identity" if is_exact else "a scaled identity, followed unit by unit"
    chi = float((profile.mean_field[-3 if moments > 1 else -2] - profile.mean_field[-2]).exp().mean())
    return profile.prediction(x_t, outputs, n, law, tolerance, reason, chi)


def _units(
    phi: Activation, gain: float, x_t: Tensor, inputs: Tensor, bias: Tensor, moments: int, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what ``_Profile`` holds of some samples, each of shape ``(moment, sample)``."""
    output, square, slopes = [], [], []
    z = bias.expand(len(x_t), -1)
    for t in range(moments):
        z = z + x_t[:, t] @ inputs.T if t < x_t.shape[1] else z
        value, slope = phi.value_and_slope(z)
        q = z.square().mean(1)
        relative = z.square().square().mean(1) / q.square() - 1
        output.append(q.log() - relative / (2 * n))
        square.append(value.square().mean(1).log())
        slopes.append(slope)
        z = gain * value + bias
    weight, scale = slopes[-1], torch.zeros(len(x_t), dtype=torch.float64)
    gradient, variance = [], []
    for t in reversed(range(moments)):
        if t + 1 < moments:
            weight = weight * (gain * slopes[t])
        largest = weight.abs().amax(1)
        weight, scale = weight / largest.unsqueeze(1), scale + 2 * largest.log()
        second, fourth = weight.square().mean(1), weight.square().square().mean(1)
        gradient.append(second.log() + scale)
        variance.append((3 * fourth / second.square() - 1) / n)
    return torch.stack(output), torch.stack(square), torch.stack(gradient[::-1]), torch.stack(variance[::-1])


def _drive(x_t: Tensor, moments: int) -> list[Tensor]:
    """Return the variance that the input adds to a unit at each step."""
    read = list(x_t.square().mean(2).T)
    return read + [torch.zeros_like(read[0])] * (moments - len(read))


@dataclass
class _Profile:
    """Natural logs of squares over time, each of shape ``(sample,)``.

    Args:
        output: E log of the mean square of z_t.
        square: log E φ(z_t)².
        mean_field: log ‖δ_t‖² in infinite width, for a gradient of length 1 at the readout.
        variance: Variance of it over networks.
    """

    output: list[Tensor]
    square: list[Tensor]
    mean_field: list[Tensor]
    variance: list[Tensor]

    def prediction(
        self, x_t: Tensor, outputs: int, n: int, law: WeightLaw, tolerance: float, reason: str, chi: float
    ) -> Prediction:
        """Return the prediction for a network of n units, with the row of the readout."""
        zero = torch.zeros(len(x_t), dtype=torch.float64)
        mean_field, variance = torch.stack([*self.mean_field, zero]), torch.stack([*self.variance, zero])
        gradient = mean_field - variance / 2
        # A row's weights meet the state before it, and the token that is read.
        entering = [-math.inf + zero, *((log + math.log(n)) for log in self.square)]
        tokens_read = [x.square().sum(1).log() for x in x_t.transpose(0, 1)]
        tokens_read += [-math.inf + zero] * (len(entering) - len(tokens_read))
        met = torch.logaddexp(torch.stack(entering), torch.stack(tokens_read))
        readout = self.square[-1] + log_mean_square(outputs)
        return prediction_of_rows(
            [x_t[0, 0].numel(), *[n] * (len(self.output)), outputs],
            torch.stack([*self.output, readout]),
            gradient,
            gradient + met,
            variance,
            reason=reason,
            sigma_w2=law.sigma_w2,
            sigma_b2=law.sigma_b2,
            tolerance=tolerance,
            mean_field=mean_field,
            chi_1=chi,
        )
