"""How far a measured profile is from the predicted one, in standard errors."""

import math
from dataclasses import dataclass

import numpy as np

from gradexp.history.history import History
from gradexp.theory.prediction import Prediction

# From this many networks on, their scatter gives the standard error; with fewer, theory's does.
ENOUGH_NETWORKS = 8
# log_chi agrees within the first number of standard errors (66); a layer deviates if it and the next two, as many as
# the third number in all, are beyond the second.
_AGREES, _DEVIATES, _IN_A_ROW = 3.0, 4.0, 3
# Rounding of float32 weights, relative per layer: no measurement is better than this.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Agreement:
    """Measurement against theory.

    Args:
        verdict: ``agrees``, ``deviates`` or ``unavailable``.
        z: (measured - predicted) log_chi in standard errors; None if unavailable.
        deviates_from_layer: The first layer, on the gradient's way from layer L down, from which on the output
            gradient deviates; None if none does.
        text: One line.
    """

    verdict: str
    z: float | None
    deviates_from_layer: int | None
    text: str


def compare(prediction: Prediction, measured: History) -> Agreement:
    """Compare the profile at initialisation with its prediction.

    z = (measured - predicted) / √(standard error² + tolerance²), where the standard error is that of the mean over
    networks if there are at least 8. With fewer, the first sample of the first network is compared alone with its own
    predicted mean and standard deviation: samples of one network are not independent. ``tolerance`` is what theory
    admits to neglect, 0 for exact laws.

    ``agrees`` means that |z| <= 3 for log_chi and that there are no three layers in a row, from layer L down, whose
    output gradient has |z| > 4.

    Args:
        prediction: The prediction for this network and these inputs.
        measured: The profile that ``exact_profile`` measured.

    Raises:
        ValueError: If they do not have the same number of layers.
    """
    if not prediction.valid:
        return Agreement("unavailable", None, None, f"theory unavailable: {prediction.reason}")
    if prediction.depth != measured.depth:
        raise ValueError(f"prediction has {prediction.depth} layers, the measurement {measured.depth}")
    if measured.depth == 1:
        return Agreement("unavailable", None, None, "theory unavailable: one layer has no slope")
    networks = measured.at().without_dead("output_grad")
    networks = networks[np.isfinite(networks).all(axis=1)]
    if len(networks) >= ENOUGH_NETWORKS:
        compared, error_word = "mean", "standard error"
        profile = networks.mean(axis=0)
        predicted = prediction.log10_output_grad
        error = networks.std(axis=0, ddof=1) / math.sqrt(len(networks))
    else:
        assert measured.samples is not None
        compared, error_word = "first sample", "standard deviation"
        profile = measured.samples[0, 0, :, 0]
        predicted = prediction.first_output_grad
        error = prediction.first_sd
    difference = profile - predicted
    steps = np.arange(measured.depth - 1, -1, -1)  # layers between this one and the last
    neglected = steps * np.hypot(prediction.tolerance, _ROUNDING) / (2 * math.log(10))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = difference / np.hypot(error, neglected)
    if not math.isfinite(z[0]):
        return Agreement("unavailable", None, None, "theory unavailable: no sample has a gradient at every layer")
    from_layer = _first_of_three(np.abs(z) > _DEVIATES)
    if not error.any() and not prediction.tolerance:
        text = f"exact, and equal to {_rounded_up(float(np.abs(10**difference - 1).max())):.0e}"
    else:
        slope = 2 * math.log(10) * float(profile[0] - profile[-1]) / (measured.depth - 1)
        side = "below" if z[0] < 0 else "above"
        text = f"{compared} {slope:+.3f}, {abs(z[0]):.1f} {error_word}s {side} theory"
    if from_layer is not None:
        return Agreement("deviates", float(z[0]), from_layer, f"deviates from layer {from_layer} on: {text}")
    if abs(z[0]) > _AGREES:
        return Agreement("deviates", float(z[0]), None, f"deviates in log_chi: {text}")
    return Agreement("agrees", float(z[0]), None, f"agrees: {text}")


def _rounded_up(difference: float) -> float:
    """Return the power of ten that a relative difference does not exceed, at least 1e-12."""
    return float(10.0 ** math.ceil(math.log10(max(difference, 1e-12)) - 1e-9))


def _first_of_three(deviates: np.ndarray) -> int | None:
    """Return the uppermost layer that deviates together with the two below it."""
    for layer in range(len(deviates), _IN_A_ROW - 1, -1):
        if deviates[layer - _IN_A_ROW : layer].all():
            return layer
    return None
