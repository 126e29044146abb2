"""The verdict on a gradient that is only predicted, by the same thresholds as on one that was measured."""

from dataclasses import replace
from typing import Protocol

import numpy as np

from gradexp.history.finding import GradientWord
from gradexp.history.step import STATUSES, Array, Step
from gradexp.history.verdict import Verdict, gradient_verdict

DEAD = 0.5
"""Above this probability that an input lets no gradient through, a network is called dead."""


class Predicted(Protocol):
    """What theory says of a network; ``gradexp.theory.prediction.Prediction`` holds it."""

    @property
    def widths(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def depth(self) -> int: ...  # noqa: D102
    @property
    def valid(self) -> bool: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def sigma_w2(self) -> float: ...  # noqa: D102
    @property
    def log_chi(self) -> float | None: ...  # noqa: D102
    @property
    def log_chi_sd(self) -> float | None: ...  # noqa: D102
    @property
    def log10_output(self) -> Array: ...  # noqa: D102
    @property
    def log10_output_grad(self) -> Array: ...  # noqa: D102
    @property
    def mean_field_output_grad(self) -> Array: ...  # noqa: D102
    @property
    def log10_weight_grad(self) -> Array: ...  # noqa: D102
    @property
    def sd_output_grad(self) -> Array: ...  # noqa: D102
    @property
    def dead_probability(self) -> float: ...  # noqa: D102
    @property
    def first_over_last(self) -> float | None: ...  # noqa: D102


def predicted_profile(prediction: Predicted) -> Array | None:
    """Return log10 of the output gradient per layer: where no formula holds that of infinite width, or None."""
    ratio = prediction.first_over_last
    if ratio is None:
        return None
    return prediction.log10_output_grad if prediction.valid else prediction.mean_field_output_grad


def predicted_verdict(prediction: Predicted, decades: float = 3.0) -> Verdict:
    """Judge whether the predicted gradient is stable, vanishing, exploding, dead or unknown.

    Args:
        prediction: The prediction.
        decades: The threshold, as in ``gradient_verdict``.
    """
    if prediction.dead_probability > DEAD:
        share = f"{prediction.dead_probability:.0%}"
        return Verdict("dead", text=f"dead: in {share} of such networks every unit of some layer is off for an input")
    profile = predicted_profile(prediction)
    if profile is None:
        outcome: GradientWord = "dead" if prediction.sigma_w2 == 0 else "unknown"
        return Verdict(outcome, text=f"{outcome}: {prediction.reason}")
    ok = np.full((1, prediction.depth), STATUSES.index("ok"), dtype=np.int8)
    names = [f"layers.{index}" for index in range(prediction.depth)]
    step = Step("init", names, {"output_grad": profile[None]}, {"output_grad": ok})
    verdict = gradient_verdict(step, decades)
    if prediction.valid:
        return verdict
    return replace(verdict, text=f"{verdict.text}, if the layers were infinitely wide")
