"""What theory says of a run before it is started, and what to change.

``forecast`` is what ``python -m gradexp.predict`` calls, and what a script calls that does without Hydra.
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradexp import theory
from gradexp.config import Config, as_dict
from gradexp.history.sentences import shortened
from gradexp.history.verdict import Verdict
from gradexp.own_parts import OwnPart
from gradexp.runs import data
from gradexp.runs.device import find_device
from gradexp.runs.losses import output_gradient, resolve_loss, targets
from gradexp.runs.number_format import NARROW, Failure, Range, flushes_subnormals
from gradexp.runs.prediction import predict_run
from gradexp.runs.remedies import Remedy, depth_over_reach, output_cosine, problem, remedies
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
        in_training: With dropout: the prediction for training mode, in which it takes part. None without.
        in_format: What the run's number format will do to the first batch, if it is one of 16 bits.
    """

    config: Config
    inputs: str
    prediction: Prediction
    verdict: Verdict
    problem: str
    remedies: tuple[Remedy, ...]
    in_training: Prediction | None = None
    in_format: "InFormat | None" = None

    @property
    def point(self) -> theory.MeanField | None:
        """Point of the phase diagram; None with normalisers, skip connections and scaled identities."""
        return None if self.config.additions else self.prediction.point

    @functools.cached_property
    def cosine(self) -> float | None:
        """Cosine of two unrelated inputs at the output: the mean-field correlation at the last layer, from 0."""
        return None if self.point is None else output_cosine(self.config, self.prediction)

    @property
    def depth_over_reach(self) -> float | None:
        """Depth over 6 xi_c, below which networks are roughly trainable (Schoenholz et al., 2017)."""
        return depth_over_reach(self.config, self.prediction)

    @property
    def training_text(self) -> str:
        """Which layer the run's number format gives out at, in words; empty for a format of more than 16 bits."""
        if self.in_format is None:
            return ""
        failure, layers = self.in_format
        spread = f", ± {layers:.2g} layers for one network" if layers else ""
        found = "outputs and gradients stay in range" if failure is None else f"{failure}{spread}"
        return f"in {self.config.number_format}, batches of {self.config.batch_size}: {found}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: verdict, picture with that of each cure, and folded table."""
        from gradexp.page.cell import cell  # slow to load, as is the next
        from gradexp.predict.page import forecast_page

        known = (self.inputs, self.prediction, self.verdict, self.problem, self.remedies, self.training_text)
        return cell(forecast_page(as_dict(self.config), *known))

    def __repr__(self) -> str:
        cures = [f"try {remedy.text}: {remedy.reason}" for remedy in self.remedies[:3]]
        problem = self.problem if self.verdict.gradient == "stable" else ""  # else the verdict says it
        title = f"Forecast({run_title(as_dict(self.config))})"
        lines = [title, self.verdict.text, self.training_text, problem, *cures]
        return "\n".join(shortened(line) for line in lines if line)


def forecast(config: Config) -> Forecast:
    """Predict where the gradients of a run go, and what would keep them.

    Data are loaded only where their definition does not say enough.

    Args:
        config: The options of the run; of those of its training the loss and the number format are used.

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
    in_training = _predict(config, inputs, config.dropout) if config.dropout else None
    is_narrow = config.number_format in NARROW and config.model.name == "mlp"
    in_format = _in_format(config, prediction) if is_narrow and prediction.valid else None
    return Forecast(config, inputs.words, prediction, verdict, found, cures, in_training, in_format)


class InFormat(NamedTuple):
    """Where a number format of 16 bits gives out.

    Args:
        failure: The layer, in the typical network; None: nowhere.
        layers: Standard deviation of the layer over networks.
    """

    failure: Failure | None
    layers: float


def _in_format(config: Config, prediction: Prediction) -> InFormat:
    """Return where the gradient of the real loss leaves the number format that layers compute in.

    Elements count as Gaussian, also those of the output, which decide how large the gradient of the loss is there.
    """
    loaded = data.load(config.data, config.width)
    if config.normalization == "none":  # the largest sample is the first to overflow, and the last to be 0
        x = loaded.x_train[: config.batch_size]
        largest_sample = x[x.square().sum(dim=1).argmax()].unsqueeze(0)
        prediction = predict_run(config, largest_sample, loaded.output_width)
    loss = resolve_loss(config.loss, loaded, config.data.name)
    y = targets(loaded.y_train[: config.batch_size], loss, loaded.classes)
    source = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, len(y), prediction.widths[-1], generator=source, dtype=torch.float64)
    outputs = 10.0 ** min(float(prediction.log10_output[-1]), _ENORMOUS) * drawn
    of_loss = output_gradient(outputs, y.unsqueeze(0), loss).norm(dim=2).max().log10().item()
    units = np.array(prediction.widths[1:], dtype=np.float64)
    largest = 0.5 * np.log10(np.maximum(2 * np.log(units), 1))  # of so many Gaussian numbers
    gradient = prediction.log10_output_grad + of_loss - 0.5 * np.log10(units) + largest
    if prediction.point is not None and prediction.point.c_star < _ALIKE:  # each sample fluctuates by itself
        gradient = gradient + NormalDist().inv_cdf(1 - 0.5 / len(y)) * prediction.sd_output_grad
    narrowest = min(config.hidden_widths, default=1)
    is_flushed = flushes_subnormals(config.number_format, find_device("auto"), config.batch_size, narrowest)
    held = Range(config.number_format, config.precision == "amp_float16", is_flushed)
    failure = held.first_failure(prediction.log10_output + largest, gradient)
    slope = abs(prediction.log_chi or 0.0) / (2 * math.log(10))
    is_gradient = failure is not None and failure.quantity == "output_grad" and slope > 0
    spread = float(prediction.sd_output_grad[failure.layer - 1]) / slope if failure and is_gradient else 0.0
    return InFormat(failure, spread)


_ALIKE = 0.99  # correlation of two samples from which on their gradients are as large
_ENORMOUS = 150.0  # powers of ten; the gradient of a loss has its largest size long before


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
        samples, features, outputs, varying = shape
        data.check_batch(config.batch_size, samples, name)
        square = varying / features
        vary = f"as {varying} of {features} features vary"
        words = f"{name}, standardised: mean square {square:.3g}, {vary}; taken from a table, the data are not loaded"
        x = torch.full((1, features), math.sqrt(square), dtype=torch.float64)
        return _Inputs(x, square * (1 - 1 / config.batch_size), outputs, words)
    loaded = data.load(config.data, config.width)
    data.check_batch(config.batch_size, len(loaded.x_train), name)
    x = loaded.x_train[: config.batch_size]
    words = f"the first {len(x)} of {name}, mean square {x.square().mean():.3g}"
    return _Inputs(x, None, loaded.output_width, words)


def _predict(config: Config, inputs: _Inputs, dropout: float = 0.0) -> Prediction:
    sizes: dict[str, Any] = {"batch": config.batch_size, "input_variance": inputs.input_variance}
    return predict_run(config, inputs.x, inputs.outputs, dropout=dropout, **sizes)
