"""What theory says of a run before it is started, and what to change.

``forecast`` is what ``python -m gradexp.predict`` calls, and what a script calls that does without Hydra.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gradexp import theory
from gradexp.config import Config, as_dict
from gradexp.history.sentences import shortened
from gradexp.history.verdict import Verdict
from gradexp.own_parts import OwnPart
from gradexp.predict.page import forecast_page
from gradexp.runs import data
from gradexp.runs.prediction import predict_run
from gradexp.runs.remedies import Remedy, depth_over_reach, problem, remedies
from gradexp.runs.wording import run_title
from gradexp.theory import Prediction
from gradexp.theory.verdict import predicted_verdict


@dataclass(frozen=True, repr=False)
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

    def _repr_html_(self) -> str:
        """Return what a notebook shows: verdict, picture with that of each cure, and folded table."""
        from gradexp.page.cell import cell

        config = as_dict(self.config)
        return cell(forecast_page(config, self.inputs, self.prediction, self.verdict, self.problem, self.remedies))

    def __repr__(self) -> str:
        cures = [f"try {remedy.text}: {remedy.reason}" for remedy in self.remedies[:3]]
        problem = self.problem if self.verdict.gradient == "stable" else ""  # else the verdict says it
        lines = [f"Forecast({run_title(as_dict(self.config))})", self.verdict.text, problem, *cures]
        return "\n".join(shortened(line) for line in lines if line)


def forecast(config: Config) -> Forecast:
    """Predict where the gradients of a run go, and what would keep them.

    Data are loaded only where their definition does not say enough.

    Args:
        config: The options of the run; those of its training are not used.

    Raises:
        ConfigError: If an option cannot work.

    Examples:
        >>> from gradexp.config import InitConfig
        >>> sigmoid = forecast(Config(activation="sigmoid", init=InitConfig("xavier")))
        >>> sigmoid.verdict.gradient, sigmoid.remedies[0].text
        ('vanishing', 'init=orthogonal activation=tanh')
    """
    inputs = _inputs(config)
    prediction = _predict(config, inputs)
    verdict = predicted_verdict(prediction, config.verdict.decades)

    found = problem(config, prediction)
    wanting = found or verdict.gradient != "stable"
    cures = tuple(remedies(config, functools.partial(_predict, inputs=inputs))) if wanting else ()
    return Forecast(config, inputs.words, prediction, verdict, found, cures)


class _Inputs(NamedTuple):
    x: Tensor
    input_variance: float | None  # variance over the samples of a batch, for batch norm; None: of x
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
        vary = f"as {varying} of {features} features vary"
        words = f"{name}, standardised: mean square {square:.3g}, {vary}; taken from a table, the data are not loaded"
        x = torch.full((1, features), math.sqrt(square), dtype=torch.float64)
        return _Inputs(x, square * (1 - 1 / config.batch_size), outputs, words)
    loaded = data.load(config.data, config.width)
    x = loaded.x_train[: config.batch_size]
    words = f"the first {len(x)} of {name}, mean square {x.square().mean():.3g}"
    return _Inputs(x, None, loaded.output_width, words)


def _predict(config: Config, inputs: _Inputs) -> Prediction:
    return predict_run(
        config, inputs.x, inputs.outputs, batch=config.batch_size, input_variance=inputs.input_variance
    )
