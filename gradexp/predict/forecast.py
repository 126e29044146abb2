"""What theory says of a run before it is started, and what to change.

``forecast`` is what ``python -m gradexp.predict`` calls, and what a script calls that does without Hydra.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradexp import theory
from gradexp.choices import LYAPUNOV_ACTIVATIONS
from gradexp.config import Config, InitConfig
from gradexp.history.step import STATUSES, Step
from gradexp.history.verdict import Verdict, gradient_verdict
from gradexp.networks.inits import zero_drift_sigma_w2
from gradexp.runs import data
from gradexp.runs.prediction import predict_run
from gradexp.theory import Prediction

# A critical sigma_w2 beyond this is no remedy: it is reached by saturating nearly every unit.
_ABSURD = 20.0
# Above this probability that an input dies, call the network dead.
_DEAD = 0.5


@dataclass(frozen=True)
class Change:
    """Options to type in place of the present ones, and what theory says of them.

    Args:
        options: Options, as typed on a command line.
        reason: Reason for them, in words.
        config: The run after the change.
        prediction: Prediction of that run.
    """

    options: str
    reason: str
    config: Config
    prediction: Prediction

    @property
    def is_stable(self) -> bool:
        """Whether the gradient would neither vanish nor explode."""
        ratio = self.prediction.first_over_last
        if self.prediction.dead_probability > _DEAD:
            return False
        return ratio is not None and abs(ratio) <= self.config.verdict.decades


@dataclass(frozen=True)
class Forecast:
    """All that is known of a run without running it; ``describe`` in ``gradexp.predict.text`` makes a text of it.

    A ``gradexp.theory.Prediction`` holds the numbers; a forecast adds a verdict and advice.

    Args:
        config: The options of the run.
        inputs: Description of the inputs, in words.
        prediction: Prediction of the profile at initialisation.
        verdict: Verdict whose ``gradient`` is stable, vanishing, exploding, dead or unknown.
        changes: Changes to try, the least first.
    """

    config: Config
    inputs: str
    prediction: Prediction
    verdict: Verdict
    changes: tuple[Change, ...]

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
        if self.point is None:
            return None
        return self.config.depth / (6 * self.point.xi_c) if self.point.xi_c else math.inf


def forecast(config: Config) -> Forecast:
    """Predict where the gradients of a run go, and what would keep them.

    Data are loaded only where their definition does not say enough.

    Args:
        config: The options of the run; those of its training are not used.

    Raises:
        ConfigError: If an option cannot work.

    Example:
        >>> sigmoid = forecast(Config(activation="sigmoid", init=InitConfig("xavier")))
        >>> sigmoid.verdict.gradient, sigmoid.changes[0].options
        ('vanishing', 'activation=tanh init=lecun')
    """
    inputs = _inputs(config)
    prediction = _predict(config, inputs)
    verdict = _judge(config, prediction)

    def change(options: dict[str, Any], reason: str) -> Change:
        changed = _with(config, options)
        text = " ".join(f"{key}={value}" for key, value in options.items())
        return Change(text, reason, changed, _predict(changed, inputs))

    changes = [change(*candidate) for candidate in _candidates(config, prediction)]
    unstable = prediction.laws and verdict.gradient != "stable"
    if unstable and not any(candidate.is_stable for candidate in changes):
        changes += [change(*candidate) for candidate in _branches(config)]
    return Forecast(config, inputs.words, prediction, verdict, tuple(changes))


class _Inputs(NamedTuple):
    x: Tensor
    input_variance: float | None  # variance over samples, for batch norm; None: of x
    outputs: int
    words: str


def _inputs(config: Config) -> _Inputs:
    """Return what theory needs to know of the inputs."""
    name = config.data.name
    # A scaled identity carries every input unit through by itself, so that their values count.
    shape = data.LOADERS[name].shape
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
    if prediction.dead_probability > _DEAD:
        share = f"{prediction.dead_probability:.0%}"
        return Verdict("dead", text=f"dead: in {share} of such networks an input is exactly 0 in some layer")
    depth = prediction.depth
    profile = prediction.log10_output_grad if prediction.valid else np.linspace(ratio, 0, depth)
    ok = np.full((1, depth), STATUSES.index("ok"), dtype=np.int8)
    names = [f"layers.{index}" for index in range(depth)]
    predicted = Step("init", names, {"output_grad": profile[None]}, {"output_grad": ok})
    verdict = gradient_verdict(predicted, config.verdict.decades)
    return verdict if prediction.valid else replace(verdict, text=f"{verdict.text}, were the layers infinitely wide")


def _candidates(config: Config, prediction: Prediction) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the options of nearby settings that keep gradients, and why they do."""
    if config.depth == 1 or config.additions:
        return
    name, sigma_b2 = config.activation, prediction.sigma_b2
    if prediction.dead_probability > _DEAD:
        yield {"activation": "tanh", **_typed(config, {"init": "lecun"}, sigma_b2)}, "its units are never all off"
        return
    critical = _critical(config, sigma_b2)
    if critical is None:
        sigma_b2, critical = 0.0, _critical(config, 0.0)
    if critical is None or critical > _ABSURD:
        critical_at = "is never critical" if critical is None else f"is critical at sigma_w2={critical:.4g} only"
        other = _typed(config, _critical_init(theory.critical_sigma_w2("tanh", sigma_b2)), sigma_b2)
        yield {"activation": "tanh", **other}, f"{name} {critical_at}"
        return
    is_critical = math.isclose(prediction.sigma_w2, critical, rel_tol=1e-3) and prediction.sigma_b2 == sigma_b2
    if not is_critical or prediction.point is None:
        yield _typed(config, _critical_init(critical), sigma_b2), "critical: chi_1 = 1"
    if name in LYAPUNOV_ACTIVATIONS and config.init.name != "lyapunov":
        drift = zero_drift_sigma_w2(prediction.widths[config.depth // 2], name, config.negative_slope)
        gain = math.sqrt(drift / critical)
        reason = f"no drift at this width, a gain of {gain:.5g} on the critical scale: sigma_w2 = {drift:.5g}"
        yield _typed(config, {"init": "lyapunov"}, 0.0), reason


def _branches(config: Config) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield skip connections, which keep gradients where no initialisation does."""
    if config.depth > 3 and len(set(config.hidden_widths)) == 1:
        if config.residual == "none":
            yield {"residual": "plain"}, "each layer adds to the gradient instead of multiplying it"
        if config.residual != "depth":
            yield {"residual": "depth"}, "branches of factor 1 / sqrt(depth)"


def _critical(config: Config, sigma_b2: float) -> float | None:
    try:
        return theory.critical_sigma_w2(config.activation, sigma_b2, negative_slope=config.negative_slope)
    except ValueError:
        return None


def _critical_init(sigma_w2: float) -> dict[str, Any]:
    names = {2.0: "he", 1.0: "lecun"}
    if sigma_w2 in names:
        return {"init": names[sigma_w2]}
    return {"init": "mean_field", "init.sigma_w2": f"{sigma_w2:.5g}"}


def _typed(config: Config, options: dict[str, Any], sigma_b2: float) -> dict[str, Any]:
    """Add the options that must be typed with these, since others stay on the command line."""
    if config.init.gain != 1:
        options = {**options, "init.gain": 1}
    return {**options, "sigma_b2": f"{sigma_b2:.5g}"} if sigma_b2 or config.sigma_b2 else options


def _with(config: Config, options: dict[str, Any]) -> Config:
    """Return the config with these options typed on its command line."""
    new = {key: value for key, value in options.items() if not key.startswith("init")}
    if "init" in options:
        sigma_w2 = options.get("init.sigma_w2")
        new["init"] = InitConfig(options["init"], sigma_w2=None if sigma_w2 is None else float(sigma_w2))
    if "sigma_b2" in new:
        new["sigma_b2"] = float(new["sigma_b2"])
    return replace(config, **new)
