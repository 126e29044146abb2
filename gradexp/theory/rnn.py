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

import torch
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.networks.tokens import tokens
from gradexp.theory.finite_width import layer_law, log_mean_square
from gradexp.theory.mean_field import MeanField, Moments, is_piecewise_linear
from gradexp.theory.prediction import Prediction
from gradexp.theory.rows import prediction_of_rows
from gradexp.theory.weight_laws import UnknownLawError, WeightLaw

# From simulation of 128 and 512 units over 200 steps (tests/theory/test_rnn.py): what the same weights at every step
# do to log_chi where the state rests, times √width, and where it moves, times the width; and with orthogonal ones.
_RESTING, _MOVING, _MOVING_ORTHOGONAL = 1.5, 6.0, 0.5
# Steps over √width after which a resting state shows the eigenvalues in full.
_SETTLED = 10.0
_TOLERATED = 0.02
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
        UnknownLawError: If there is no law for this network; the text says why.
    """
    if cell != "rnn":
        raise UnknownLawError(f"no law is known for the gates of cell '{cell}'")
    if depth == 1:
        raise UnknownLawError("a readout alone has no time steps")
    if law.scaled_to is not None:
        raise UnknownLawError("there is no formula for LSUV of weights that are used at every step")
    if law.sigma_w2 == 0:
        raise UnknownLawError("sigma_w2 is 0: nothing gets through")
    x_t = tokens(x, min(context, depth - 1))
    x_t = x_t[(x_t[:, 0] != 0).any(dim=1)]
    if not len(x_t):
        raise UnknownLawError("the first token of every input is exactly 0")
    follow = _followed_by_unit if law.diagonal is not None else _followed
    return follow(phi, law, x_t, outputs, depth - 1, width)


def _followed(phi: Activation, law: WeightLaw, x_t: Tensor, outputs: int, moments: int, n: int) -> Prediction:
    """Follow the variance of a unit, and from it the gradient, in infinite width and with the noise of a finite one."""
    drive = _drive(x_t, moments)
    q, over_time = drive[0] + law.sigma_b2, []
    for t in range(moments):
        if not over_time or not torch.equal(q, over_time[-1].q):
            m = Moments.at(phi, q)
        over_time.append(m)
        if t + 1 < moments:
            q = law.sigma_w2 * m.square + drive[t + 1] + law.sigma_b2
    lengths = [m.q for m in over_time]
    steps = [(law.sigma_w2 * m.slope2).log() for m in over_time]
    fixed = 2.0 if law.orthogonal else 0.0
    noises = [(3 * m.slope4 / m.slope2.square() - 1 - fixed) / n for m in over_time]

    top = layer_law(n, outputs, 1.0, backward=True)
    zero = torch.zeros(len(x_t), dtype=torch.float64)
    mean_field, variance = [zero], [zero]
    for t in reversed(range(moments)):
        is_last = t + 1 == moments  # whose gradient comes through the readout's weights
        mean_field.append(mean_field[-1] + (over_time[t].slope2.log() if is_last else steps[t]))
        variance.append(variance[-1] + (top.variance + noises[t] + (fixed - 2) / n if is_last else noises[t]))
    tolerance = _tolerance(phi, law, over_time, moments - len(x_t[0]), n)
    if tolerance > _TOLERATED:
        raise UnknownLawError(
            f"width {n} is too small: the weights are the same at every step, and their own eigenvalues show"
        )
    return _prediction(
        x_t,
        outputs,
        n,
        [q.log() + log_mean_square(n) for q in lengths],
        [m.square for m in over_time],
        mean_field[::-1],
        variance[::-1],
        law,
        tolerance,
        "infinite width, the same weights at every step",
        float(steps[-1].mean()),
    )


def _tolerance(phi: Activation, law: WeightLaw, over_time: list[Moments], free: int, n: int) -> float:
    """Estimate what log_chi leaves out.

    Args:
        phi: The activation.
        law: The law of W.
        over_time: Averages at each step.
        free: Number of steps without input.
        n: Units.
    """
    last = over_time[-1]
    resting = 0.0
    if free > 0:
        point = MeanField(phi, law.sigma_w2, law.sigma_b2, start=float(last.q.mean()))
        alike = 0.0 if is_piecewise_linear(phi) and law.orthogonal and not law.sigma_b2 and _is_line(phi) else 1.0
        spread = torch.stack([m.slope4 / m.slope2.square() - law.orthogonal for m in over_time[-free:]]).mean()
        share = min(1.0, free / (_SETTLED * math.sqrt(n)))
        resting = _RESTING * alike * max(point.c_star, 0.0) * float(spread) * share / math.sqrt(n)
    depends = (10 * last.slope2_he2.abs() / last.slope2).clamp(max=1)
    slope = law.sigma_w2 * last.u_value_slope / (law.sigma_w2 * last.square + law.sigma_b2)
    moving = float((depends * slope / (1 - slope).clamp(min=1e-9)).where(depends > 1e-9, 0).max())
    return resting + (_MOVING_ORTHOGONAL if law.orthogonal else _MOVING) * moving / n
