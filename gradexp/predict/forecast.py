"""What theory says of a run before it is started, and what to change.

``forecast`` is what ``python -m gradexp.predict`` calls, and what a script calls that does without Hydra.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradexp import theory
from gradexp.config import Config
from gradexp.history.step import STATUSES, Step
from gradexp.history.verdict import Verdict, gradient_verdict
from gradexp.own_parts import OwnPart
from gradexp.runs import data
from gradexp.runs.prediction import predict_run
from gradexp.runs.remedies import DEAD, Remedy, depth_over_reach, problem, remedies
from gradexp.theory import Prediction


@dataclass(frozen=True)
class Forecast:
    """All that is known of a run without running it; ``describe`` in ``gradexp.predict.text`` makes a text of it.

    A ``gradexp.theory.Prediction`` holds the numbers; a forecast adds a verdict and advice.

    Args:
        config: The options of the run.
        inputs: Description of the inputs, in words.
        prediction: Prediction of the profile at initialisation.
        verdict: Verdict whose ``gradient`` is stable, vanishing, exploding, dead or unknown.
        problem: What theory finds wanting, in a few words; empty if nothing is.
        remedies: What cures it, the least change first.
    """

    config: Config
    inputs: str
    prediction: Prediction
    verdict: Verdict
    problem: str
    remedies: tuple[Remedy, ...]

    @property
    def point(self) -> theory.MeanField | None:
        """Point of the phase diagram; None with normalisers, skip connections and scaled identities."""
        return None if self.config.additions else self.prediction.point

    @functools.cached_property
    def cosine(self) -> float | None:
        """Cosine of two unrelated inputs at the output: the mean-field correlation at the last layer, from 0."""
        if self.point is None or self.config.depth == 1:
            return None
        return self.point.correlation_after(self.config.depth - 1)

    @property
    def depth_over_reach(self) -> float | None:
        """Depth over 6 xi_c, below which networks are roughly trainable (Schoenholz et al., 2017)."""
        return depth_over_reach(self.config, self.prediction)


def forecast(config: Config) -> Forecast:
    """Predict where the gradients of a run go, and what would keep them.

    Data are loaded only where their definition does not say enough.

    Args:
        config: The options of the run; those of its training are not used.

    Raises:
        ConfigError: If an option cannot work.

    Example:
        >>> from gradexp.config import InitConfig
        >>> sigmoid = forecast(Config(activation="sigmoid", init=InitConfig("xavier")))
        >>> sigmoid.verdict.gradient, sigmoid.remedies[0].text
        ('vanishing', 'init=orthogonal activation=tanh')
    """
    inputs = _inputs(config)
    prediction = _predict(config, inputs)
    verdict = _judge(config, prediction)

    found = problem(config, prediction)
    wanting = found or verdict.gradient != "stable"
    cures = tuple(remedies(config, functools.partial(_predict, inputs=inputs))) if wanting else ()
    return Forecast(config, inputs.words, prediction, verdict, found, cures)


class _Inputs(NamedTuple):
    x: Tensor
    input_variance: float | None  # variance over samples, for batch norm; None: of x
    outputs: int
    words: str


def _inputs(config: Config) -> _Inputs:
    """Return what theory needs to know of the inputs."""
    name = config.data.name
    # A scaled identity carries every input unit through by itself, so that their values count.
    shape = None if isinstance(name, OwnPart) else data.LOADERS[name].shape
    if shape is not None and config.data.standardize and config.init.name != "identity":
        features, outputs, varying = shape
        square = varying / features
        words = (
            f"{name}, standardised: mean square {square:.3g}, as {varying} of {features} features vary; not loaded"
        )
        x = torch.full((1, features), math.sqrt(square), dtype=torch.float64)
        return _Inputs(x, square, outputs, words)
    loaded = data.load(config.data, config.width)
    x = loaded.x_train[: config.batch_size]
    words = f"the first {len(x)} of {name}, mean square {x.square().mean():.3g}"
    return _Inputs(x, None, loaded.output_width, words)


def _predict(config: Config, inputs: _Inputs) -> Prediction:
    return predict_run(
        config, inputs.x, inputs.outputs, batch=config.batch_size, input_variance=inputs.input_variance
    )


def _judge(config: Config, prediction: Prediction) -> Verdict:
    """Judge the predicted profile as a measured one is judged."""
    ratio = prediction.first_over_last
    if ratio is None:
        outcome = "dead" if prediction.sigma_w2 == 0 else "unknown"
        return Verdict(outcome, text=f"{outcome}: {prediction.reason}")
    if prediction.dead_probability > DEAD:
        share = f"{prediction.dead_probability:.0%}"
        return Verdict("dead", text=f"dead: in {share} of such networks an input is exactly 0 in some layer")
    depth = prediction.depth
    profile = prediction.log10_output_grad if prediction.valid else np.linspace(ratio, 0, depth)
    ok = np.full((1, depth), STATUSES.index("ok"), dtype=np.int8)
    names = [f"layers.{index}" for index in range(depth)]
    predicted = Step("init", names, {"output_grad": profile[None]}, {"output_grad": ok})
    verdict = gradient_verdict(predicted, config.verdict.decades)
    return verdict if prediction.valid else replace(verdict, text=f"{verdict.text}, were the layers infinitely wide")
