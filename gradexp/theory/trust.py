"""How far a prediction can be trusted: what it leaves out, and where there is no formula at all."""

import math
from collections.abc import Sequence

from torch import Tensor

from gradexp.theory.mean_field import MeanField
from gradexp.theory.profile import Profile
from gradexp.theory.weight_laws import WeightLaw

# Largest relative variance of a layer's length that the expansion stands, and where deviations do not die out.
_FLUCTUATION, _FLUCTUATION_MARGINAL = 0.1, 0.03
# Largest tolerance of log_chi with which a prediction is still worth a line.
_TOLERATED = 0.02
# Mean excess kurtosis of weights times this over width² is what it does to log_chi, from simulation; and how much
# of that a prediction stands.
_NOT_GAUSSIAN, _NOT_GAUSSIAN_TOLERATED = 10.0, 0.015
# Batch norm: what finite batches and widths add to log_chi is not known better than this.
BATCH_NORM_TOLERANCE = 0.03


def outside(
    laws: Sequence[WeightLaw],
    widths: Sequence[int],
    square: Tensor,
    is_cured: bool,
    normalization: str,
    batch: int,
) -> str:
    """Say why there is no formula for a network, or nothing."""
    if not len(square):
        return "every input is exactly 0 or not finite"
    if not_gaussian(laws, widths) > _NOT_GAUSSIAN_TOLERATED:
        kurtosis = max(laws, key=lambda law: abs(law.kurtosis)).kurtosis
        narrowest = min(widths[1:-1])
        return f"width {narrowest} is too small for weights so far from Gaussian (excess kurtosis {kurtosis:.3g})"
    if any(law.sigma_w2 == 0 for law in laws):
        return "sigma_w2 is 0: nothing gets through"
    diagonal_layers = sum(law.diagonal is not None for law in laws)
    if diagonal_layers and (is_cured or diagonal_layers < len(laws) or any(law.sigma_b2 for law in laws)):
        return "a scaled identity is no random matrix, and is followed only without biases, normalisers and branches"
    if is_cured and any(law.scaled_to is not None for law in laws):
        return "there is no formula for LSUV with normalisers or residual branches"
    if normalization == "batch" and batch < 8:
        return f"batch norm over {batch} samples is far from the large batches that theory knows"
    return ""


def not_trusted(profile: Profile, widths: Sequence[int], point: MeanField | None, tolerance: float) -> str:
    """Say why the expansion in 1 / width cannot be trusted, or nothing."""
    if not bool(profile.output_grad.isfinite().all() and profile.output.isfinite().all()):
        return "lengths leave the range of float64"
    narrowest = min(widths[1:-1], default=widths[0])
    largest, effective = _fluctuations(profile)
    if point is not None and point.is_marginal and largest > _FLUCTUATION_MARGINAL:
        return (
            f"no isolated fixed point at {point}: lengths change like a power of the layer, and differ between "
            f"networks of width {narrowest} too much for an expansion in 1 / width"
        )
    if effective > _FLUCTUATION:
        return (
            f"width {narrowest} is too small for this depth: lengths differ between networks by "
            f"{100 * math.sqrt(largest):.0f} %, too much for an expansion in 1 / width"
        )
    if tolerance > _TOLERATED and tolerance != BATCH_NORM_TOLERANCE:
        return f"width {narrowest} is too small for an expansion in 1 / width"
    return ""


def _fluctuations(profile: Profile) -> tuple[float, float]:
    """Return the largest relative variance of a length that matters to the gradient, and the same by its effect."""
    if profile.fluctuation is None or profile.dependence is None:
        return 0.0, 0.0
    matters = profile.fluctuation.where(profile.dependence > 1e-9, 0)
    effective = profile.fluctuation * (10 * profile.dependence).clamp(max=1)
    return float(matters.max()), float(effective.max())


def neglected(profile: Profile, laws: Sequence[WeightLaw], widths: Sequence[int]) -> float:
    """Estimate what log_chi leaves out: the second order in 1 / width, what is not Gaussian, what is unknown.

    The second order is the mean square of the first, and what lengths that differ between networks do to gradients.
    """
    steps = (profile.output_grad - profile.mean_field).diff(dim=0)
    if not len(steps):
        return 0.0
    lengths = 0.0
    if profile.fluctuation is not None and profile.dependence is not None:
        lengths = float((profile.dependence * profile.fluctuation.square()).mean())
    return float(steps.square().mean()) + lengths + not_gaussian(laws, widths) + profile.unknown


def not_gaussian(laws: Sequence[WeightLaw], widths: Sequence[int]) -> float:
    """Estimate what weights that are not Gaussian do to log_chi beyond the first order in 1 / width."""
    hidden = list(zip(laws, widths, strict=False))[1:]  # the first layer's weights meet no gradient
    return sum(_NOT_GAUSSIAN * abs(law.kurtosis) / n**2 for law, n in hidden) / max(len(hidden), 1)
