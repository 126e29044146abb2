"""How far a prediction can be trusted: what it leaves out, and where there is no formula at all."""

import math

from torch import Tensor

from gradexp.theory.batch_norm import SMALLEST_BATCH, batch_averages
from gradexp.theory.mean_field import MeanField
from gradexp.theory.network import Network
from gradexp.theory.profile import Profile

# The thresholds are from simulation: benchmarks/theory_thresholds.py draws networks on both sides of each, and its
# table is benchmarks/results/theory_thresholds.txt. Numbers in brackets are equations of docs/theory.md, section 8.

# Largest relative variance of a layer's length that the expansion stands, and where deviations do not die out (65).
_FLUCTUATION, _FLUCTUATION_MARGINAL = 0.1, 0.03
# Largest tolerance of log_chi with which a prediction is still worth a line (64).
TOLERATED = 0.02
# Batch norm (63a): what order 1 / width adds to log_chi beyond what is known, times the width, and how much of it a
# prediction stands; the same where samples do not become alike, as with gelu; and what inputs add to log ‖δ¹‖² once
# that differ more in some directions than in others.
_BATCH_NORM, _TOLERATED_BATCH_NORM, _BATCH_NORM_UNSETTLED, _BATCH_NORM_INPUTS = 3.0, 0.1, 6.0, 0.4
# Mean excess kurtosis of weights times this over width² is the most it does to log_chi (63); and how much of that a
# prediction stands (64).
NOT_GAUSSIAN, _NOT_GAUSSIAN_TOLERATED = 10.0, 0.015


def why_no_formula(network: Network, mean_square: Tensor, batch: int) -> str:
    """Return why no formula covers a network; empty if one does.

    Args:
        network: The network.
        mean_square: ‖x‖² / n_0 of each sample that is neither 0 nor infinite, shape ``(sample,)``.
        batch: Number of samples, for batch norm.
    """
    laws = network.laws
    if not len(mean_square):
        return "every input is exactly 0 or not finite"
    if non_gaussian_error(network) > _NOT_GAUSSIAN_TOLERATED:
        kurtosis = max(laws, key=lambda law: abs(law.kurtosis)).kurtosis
        width = f"width {network.narrowest} is too small"
        return f"{width} for weights so far from Gaussian (excess kurtosis {kurtosis:.3g})"
    if any(law.sigma_w2 == 0 for law in laws):
        return "sigma_w2 is 0: nothing gets through"
    diagonal_layers = sum(law.diagonal is not None for law in laws)
    is_chain_of_identities = diagonal_layers == len(laws) and not any(law.sigma_b2 for law in laws)
    if diagonal_layers and not (network.is_plain and is_chain_of_identities):
        return "a scaled identity is no random matrix, and is followed only without biases, normalisers and branches"
    if not network.is_plain and any(law.scaled_to is not None for law in laws):
        return "there is no formula for LSUV with normalisers or residual branches"
    if network.dropout and (diagonal_layers or any(law.scaled_to is not None for law in laws)):
        return "there is no formula for dropout with a scaled identity or LSUV, whose data pass without it"
    if network.dropout and network.normalization == "batch":
        return "there is no formula for dropout with batch norm"
    if network.normalization == "rms":
        return "there is no formula for rms normalisation"
    if network.normalization == "batch" and batch < SMALLEST_BATCH:
        return f"batch norm over {batch} sample{'s' * (batch > 1)}: squared gradients have no finite mean"
    return ""


def lengths_differ(profile: Profile, point: MeanField | None) -> bool:
    """Return whether lengths differ too much between networks for an expansion (65).

    Args:
        profile: The expanded profile.
        point: Mean field of the network's middle layer; None for one that is not plain.
    """
    largest, effective = _fluctuations(profile)
    is_marginal = point is not None and point.is_marginal
    return effective > _FLUCTUATION or (is_marginal and largest > _FLUCTUATION_MARGINAL)


def why_not_trusted(profile: Profile, network: Network, point: MeanField | None, tolerance: float) -> str:
    """Return why a prediction in powers of 1 / width cannot be trusted; empty if it can.

    Args:
        profile: The predicted profile.
        network: The network.
        point: Mean field of the network's middle layer; None for one that is not plain.
        tolerance: What ``log_chi`` leaves out.
    """
    if not bool(profile.output_grad.isfinite().all() and profile.output.isfinite().all()):
        return "lengths leave the range of float64"
    narrowest = network.narrowest
    if lengths_differ(profile, point):
        largest, effective = _fluctuations(profile)
        if effective <= _FLUCTUATION or (point is not None and point.is_marginal):
            return (
                f"no isolated fixed point at {point}: lengths change like a power of the layer, and differ between "
                f"networks of width {narrowest} too much for an expansion in 1 / width"
            )
        return (
            f"width {narrowest} is too small for this depth: lengths differ between networks by "
            f"{100 * math.sqrt(largest):.0f} %, too much for an expansion in 1 / width"
        )
    if network.normalization == "batch":
        is_narrow = _BATCH_NORM / narrowest > _TOLERATED_BATCH_NORM
    else:
        is_narrow = tolerance > TOLERATED
    return f"width {narrowest} is too small for an expansion in 1 / width" if is_narrow else ""


def _fluctuations(profile: Profile) -> tuple[float, float]:
    """Return the largest relative variance of a length that matters to the gradient, and that by its effect (65)."""
    if profile.fluctuation is None or profile.dependence is None:
        return 0.0, 0.0
    matters = profile.fluctuation.where(profile.dependence > 1e-9, 0)
    effective = profile.fluctuation * (10 * profile.dependence).clamp(max=1)
    return float(matters.max()), float(effective.max())


def neglected_terms(profile: Profile, network: Network) -> float:
    """Estimate what log_chi leaves out: the second order in 1 / width, what is not Gaussian, what is unknown (62).

    The second order is the mean square of the first, and what lengths that differ between networks do to gradients.
    """
    steps = (profile.output_grad - profile.mean_field).diff(dim=0)
    if not len(steps):
        return 0.0
    lengths = 0.0
    if profile.fluctuation is not None and profile.dependence is not None:
        lengths = float((profile.dependence * profile.fluctuation.square()).mean())
    return float(steps.square().mean()) + lengths + non_gaussian_error(network) + profile.unknown


def batch_norm_error(network: Network, batch: int) -> float:
    """Estimate what log_chi leaves out with batch norm (63a)."""
    settles = batch_averages(network.activation, batch).settles
    inside = (_BATCH_NORM if settles else _BATCH_NORM_UNSETTLED) / network.narrowest
    return inside + _BATCH_NORM_INPUTS / max(network.depth - 1, 1)


def non_gaussian_error(network: Network) -> float:
    """Estimate what weights that are not Gaussian do to log_chi beyond the first order in 1 / width (63)."""
    hidden = list(zip(network.laws, network.widths, strict=False))[1:]  # the first layer's weights meet no gradient
    return sum(NOT_GAUSSIAN * abs(law.kurtosis) / n**2 for law, n in hidden) / max(len(hidden), 1)
