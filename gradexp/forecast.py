"""What theory says of a run before it is started, and what to change, as numbers and as text.

``forecast`` is what ``python -m gradexp.predict`` calls, and what a script calls that does without Hydra.
"""

import functools
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gradexp import data, theory
from gradexp.config import LYAPUNOV_ACTIVATIONS, Config, ConfigError, InitConfig
from gradexp.history import STATUSES, History
from gradexp.inits import zero_drift_sigma_w2
from gradexp.models import activation
from gradexp.theory import Prediction
from gradexp.verdict import ALIGNED, Verdict, gradient_verdict

# Inputs, outputs, and how many features vary in the training part: standardised, the others are 0.
SHAPES = {"digits": (64, 10, 61), "mnist5k": (784, 10, 653)}
# A critical sigma_w2 beyond this is no remedy: it is reached by saturating nearly every unit.
_ABSURD = 20.0
# Of more networks than this share an input dies.
_DEAD = 0.5


@dataclass(frozen=True)
class Change:
    """Options to type in place of the present ones, and what theory says of them.

    Args:
        options: As typed on a command line.
        reason: Why, in words.
        config: The run after the change.
        prediction: Of that run.
    """

    options: str
    reason: str
    config: Config
    prediction: Prediction

    @property
    def is_stable(self) -> bool:
        """Whether the gradient would neither vanish nor explode."""
        ratio = first_over_last(self.prediction)
        if self.prediction.dead_probability > _DEAD:
            return False
        return ratio is not None and abs(ratio) <= self.config.verdict.decades


@dataclass(frozen=True)
class Forecast:
    """All that is known of a run without running it; ``str`` of it is what the command prints.

    Args:
        config: The options.
        inputs: What is known of the inputs, in words.
        prediction: Of the profile at initialisation.
        verdict: Its ``gradient`` is stable, vanishing, exploding, dead or unknown.
        changes: What to try, the least change first.
    """

    config: Config
    inputs: str
    prediction: Prediction
    verdict: Verdict
    changes: tuple[Change, ...]

    @property
    def point(self) -> theory.MeanField | None:
        """The point of the phase diagram; None for cured networks and scaled identities, which have none."""
        return None if self.config.cures else self.prediction.point

    @functools.cached_property
    def cosine(self) -> float | None:
        """What two unrelated inputs' outputs have in common: the mean-field correlation at the last layer, from 0."""
        if self.point is None or self.config.depth == 1:
            return None
        return self.point.correlation_after(self.config.depth - 1)

    @property
    def depth_over_reach(self) -> float | None:
        """Depth over 6 xi_c, below which networks are roughly trainable (Schoenholz et al., 2017)."""
        if self.point is None:
            return None
        return self.config.depth / (6 * self.point.xi_c) if self.point.xi_c else math.inf

    def __str__(self) -> str:
        sections = [
            "\n".join([title] * bool(title) + [_row(*row) for row in rows(self)]) for title, rows in _SECTIONS.items()
        ]
        return "\n\n".join(sections)


def forecast(config: Config) -> Forecast:
    """Predict where the gradients of a run go, and what would keep them.

    Data are loaded only where their definition does not say enough.

    Args:
        config: The options of the run; those of its training are not used.

    Raises:
        ConfigError: If an option cannot work.

    Example:
        >>> found = forecast(Config(activation="sigmoid", init=InitConfig("xavier")))
        >>> found.verdict.gradient, found.changes[0].options
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
    if verdict.gradient != "stable" and not any(candidate.is_stable for candidate in changes):
        changes += [change(*candidate) for candidate in _branches(config)]
    return Forecast(config, inputs.words, prediction, verdict, tuple(changes))


def first_over_last(prediction: Prediction) -> float | None:
    """Return the predicted log10 of ‖δ¹‖ / ‖δᴸ‖, where no formula holds that of infinitely wide layers, or None."""
    if prediction.valid:
        return float(prediction.log10_output_grad[0] - prediction.log10_output_grad[-1])
    slope = prediction.log_chi_mean_field
    if slope is None or not math.isfinite(slope):
        return None
    return slope * (prediction.depth - 1) / (2 * math.log(10))


class _Inputs(NamedTuple):
    x: Tensor
    spread: float | None  # variance over samples, for batch norm; None: of x
    outputs: int
    words: str


def _inputs(config: Config) -> _Inputs:
    """Return what theory needs to know of the inputs."""
    name = config.data.name
    # A scaled identity carries every input unit through by itself, so that their values count.
    if name in SHAPES and config.data.standardize and config.init.name != "identity":
        features, outputs, varying = SHAPES[name]
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


def predict_run(
    config: Config, x: Tensor, outputs: int, *, batch: int | None = None, spread: float | None = None
) -> Prediction:
    """Return theory's prediction for the network that a run builds.

    Args:
        config: The options of the run.
        x: Inputs of the profile, shape ``(sample, n_0)``, float64.
        outputs: Width of the last layer.
        batch: As in ``theory.predict_layers``.
        spread: As in ``theory.predict_layers``.

    Raises:
        ConfigError: If an option cannot work.
    """
    widths = [x.shape[1], *config.hidden_widths, outputs]
    try:
        laws = theory.weight_laws(
            config.init.name,
            widths,
            sigma_b2=config.sigma_b2,
            bias=config.bias,
            activation=config.activation,
            negative_slope=config.negative_slope,
            **config.init.options,
        )
        phi = activation(config.activation, config.negative_slope)
        cures = {"normalization": config.normalization, "residual": config.residual}
        return theory.predict_layers(phi, laws, widths, x, batch=batch, spread=spread, **cures)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _predict(config: Config, inputs: _Inputs) -> Prediction:
    return predict_run(config, inputs.x, inputs.outputs, batch=config.batch_size, spread=inputs.spread)


def _judge(config: Config, prediction: Prediction) -> Verdict:
    """Judge the predicted profile as a measured one is judged."""
    ratio = first_over_last(prediction)
    if ratio is None:
        outcome = "dead" if prediction.sigma_w2 == 0 else "unknown"
        return Verdict(outcome, text=f"{outcome}: {prediction.reason}")
    if prediction.dead_probability > _DEAD:
        share = f"{prediction.dead_probability:.0%}"
        return Verdict("dead", text=f"dead: in {share} of such networks an input is exactly 0 in some layer")
    depth = prediction.depth
    profile = prediction.log10_output_grad if prediction.valid else np.linspace(ratio, 0, depth)
    ok = np.full((1, 1, depth), STATUSES.index("ok"), dtype=np.int8)
    names = [f"layers.{index}" for index in range(depth)]
    history = History("init", names, [0], [0], {"output_grad": profile[None, None]}, {"output_grad": ok})
    verdict = gradient_verdict(history, config.verdict.decades)
    return verdict if prediction.valid else replace(verdict, text=f"{verdict.text}, were the layers infinitely wide")


def _candidates(config: Config, prediction: Prediction) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the options of nearby settings that keep gradients, and why they do."""
    if config.depth == 1 or config.cures:
        return
    name, sigma_b2 = config.activation, prediction.sigma_b2
    if prediction.dead_probability > _DEAD:
        yield {"activation": "tanh", **_typed(config, {"init": "lecun"}, sigma_b2)}, "its units are never all off"
        return
    critical = _critical(config, sigma_b2)
    if critical is None:
        sigma_b2, critical = 0.0, _critical(config, 0.0)
    if critical is None or critical > _ABSURD:
        said = "is never critical" if critical is None else f"is critical at sigma_w2={critical:.4g} only"
        other = _typed(config, _critical_init(theory.critical_sigma_w2("tanh", sigma_b2)), sigma_b2)
        yield {"activation": "tanh", **other}, f"{name} {said}"
        return
    is_there = math.isclose(prediction.sigma_w2, critical, rel_tol=1e-3) and prediction.sigma_b2 == sigma_b2
    if not is_there or prediction.point is None:
        yield _typed(config, _critical_init(critical), sigma_b2), "critical: chi_1 = 1"
    if name in LYAPUNOV_ACTIVATIONS and config.init.name != "lyapunov":
        drift = zero_drift_sigma_w2(prediction.widths[config.depth // 2], name, config.negative_slope)
        gain = math.sqrt(drift / critical)
        reason = f"no drift at this width, a gain of {gain:.5g} on the critical scale: sigma_w2 = {drift:.5g}"
        yield _typed(config, {"init": "lyapunov"}, 0.0), reason


def _branches(config: Config) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield skip connections, which tame what no initialisation does."""
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
    """Add what has to be said beside them, as other options stay on the command line."""
    if config.init.gain != 1:
        options = {**options, "init.gain": 1}
    return {**options, "sigma_b2": f"{sigma_b2:.5g}"} if sigma_b2 or config.sigma_b2 else options


def _with(config: Config, options: dict[str, Any]) -> Config:
    """Return the config that these options would make of it on the command line."""
    new = {key: value for key, value in options.items() if not key.startswith("init")}
    if "init" in options:
        sigma_w2 = options.get("init.sigma_w2")
        new["init"] = InitConfig(options["init"], sigma_w2=None if sigma_w2 is None else float(sigma_w2))
    if "sigma_b2" in new:
        new["sigma_b2"] = float(new["sigma_b2"])
    return replace(config, **new)


# What is printed: rows of a name, a value and a remark.

Rows = Iterator[tuple[str, str, str]]


def _network(found: Forecast) -> Rows:
    config, widths = found.config, found.prediction.widths
    hidden = widths[1:-1]
    layers = f"{config.depth} {config.activation} layer{'s' if config.depth > 1 else ''}"
    ends = [f"{widths[0]} inputs", f"{widths[-1]} outputs"]
    options = ", ".join(f"{key}={value}" for key, value in config.init.options.items())
    yield "network", ", ".join([f"{layers} of {config.units} units" if hidden else layers, *config.cures, *ends]), ""
    yield "init", f"{config.init.name} ({options})", ""
    yield "inputs", found.inputs, ""


def _infinite_width(found: Forecast) -> Rows:
    prediction, point = found.prediction, found.point
    differ = len({(law.sigma_w2, law.sigma_b2) for law in prediction.laws}) > 1
    middle = f" of layer {len(prediction.laws) // 2 + 1}; layers differ" if differ else ""
    yield "sigma_w2", _number(prediction.sigma_w2), f"fan_in Var(W){middle}"
    yield "sigma_b2", _number(prediction.sigma_b2), f"Var(b){middle}"
    cures = found.config.cures
    missing = f"not defined with {' and '.join(cures)}" if cures else "a scaled identity is no random matrix"
    yield "q*", *(("none", missing) if point is None else (_number(point.q_star), _length(point)))
    chi_1 = prediction.chi_1
    if chi_1 is None:
        yield "chi_1", "none", "there is one layer only" if prediction.valid else "no formula holds"
    else:
        where = _phase(chi_1) if point is not None else "half-way down"
        yield "chi_1", _number(chi_1), f"squared gradient per layer, {where}"
    if point is None:
        yield "xi_q", "none", missing
        yield "xi_c", "none", missing
    else:
        settle = "settle" if point.q_star else "shrink by e"
        yield "xi_q", _number(point.xi_q), _pace(point.xi_q, "lengths", settle, "grow by e")
        yield "xi_c", _number(point.xi_c), _pace(point.xi_c, "correlations", f"settle at {point.c_star:.3g}")
    if chi_1:
        log_chi = math.log(chi_1)
        xi_grad = math.inf if abs(log_chi) < 1e-12 else -1 / log_chi
        yield "xi_grad", _number(xi_grad), _pace(xi_grad, "squared gradients", "shrink by e", "grow by e")
    share = found.depth_over_reach
    if share is not None:
        bound = "trainable below about 1, as Schoenholz et al. (2017) found in experiments"
        yield "L/6xi_c", _number(share), f"depth over 6 xi_c: {bound if share else 'no bound, as xi_c is infinite'}"
    cosine = found.cosine
    if cosine is not None:
        yield "cosine", f"{cosine:.4f}", "of what two unrelated inputs have become at the output"


def _finite_width(found: Forecast) -> Rows:
    config, prediction = found.config, found.prediction
    slope, sd = prediction.log_chi, prediction.log_chi_sd
    if slope is None or sd is None:
        yield "log_chi", "none", "no formula holds at this width" if config.depth > 1 else "there is one layer only"
    else:
        yield "log_chi", f"{slope:+.4g} ± {sd:.2g}", "log of the factor per layer ± sd of one network"
    wide = prediction.log_chi_mean_field
    if wide is not None and math.isfinite(wide):
        yield "infinite", f"{wide:+.4g}", "log_chi of infinitely wide layers, these inputs"
    ratio = first_over_last(prediction)
    if ratio is None:
        yield "ratio", "none", "of output gradients, first over last layer"
    else:
        wide_only = "" if prediction.valid else ", infinitely wide"
        yield "ratio", _power(prediction), f"output gradient, layer 1 over layer {config.depth}{wide_only}"
    spread = float(prediction.sd_output_grad[0])
    if ratio is not None and spread > 0:
        decades = config.verdict.decades
        vanish, explode = (math.erfc((decades + sign * ratio) / spread / math.sqrt(2)) / 2 for sign in (1, -1))
        yield (
            "odds",
            f"{vanish:.0%} of such networks vanish, {explode:.0%} explode (by {decades:g} powers of ten)",
            "",
        )
    aspect = sum(1 / n for n in prediction.widths[1:-1])
    yield "L/n", f"{aspect:.3g}", "sum of 1 / width; from about 1 on seeds differ much"
    if prediction.valid and prediction.dead_probability:
        yield "dead", f"{prediction.dead_probability:.3g}", "probability that an input is exactly 0 in some layer"
    for dtype in ("float32", "float16", "bfloat16") if prediction.valid else ():
        yield dtype, _range(prediction, dtype), ""
    yield "formula", prediction.reason if prediction.valid else f"none: {prediction.reason}", ""


def _outcome(found: Forecast) -> Rows:
    yield "verdict", found.verdict.text, ""
    share, chi_1 = found.depth_over_reach, found.prediction.chi_1
    if share is not None and share > 1 and chi_1:
        fate = "all inputs look alike" if chi_1 < 1 else "near inputs look unrelated"
        yield "", f"{share:.3g} times deeper than 6 xi_c: hard to train, as {fate} at the output", ""
    elif found.cosine is not None and found.cosine > ALIGNED:
        yield "", f"all inputs look alike at the output (cosine {found.cosine:.4f}): hard to train", ""
    name = "or" if found.verdict.gradient == "stable" else "change"
    for change in found.changes:
        yield name, f"{change.options}", ""
        yield "", f"{_power(change.prediction)}; {change.reason}", ""
        name = "or"


_SECTIONS = {"": _network, "In infinite width": _infinite_width, "At this width": _finite_width, "Outcome": _outcome}


def _row(name: str, value: str, remark: str) -> str:
    """Put name, value and remark into columns of 80, wrapping the last of them."""
    head, text = (f"{name:<10}{value:<17} ", remark) if remark else (f"{name:<10}", value)
    return textwrap.fill(text, 80, initial_indent=head, subsequent_indent=" " * (28 if remark else 10))


def _number(value: float) -> str:
    return f"{value:.6g}"


def _power(prediction: Prediction) -> str:
    """Show the ratio of first and last gradient with its standard deviation."""
    ratio, sd = first_over_last(prediction), float(prediction.sd_output_grad[0])
    if ratio is None:
        return "no number is known"
    shown = round(ratio, 1) + 0.0  # no -0.0
    return f"10^{shown:+.1f} ± {sd:.1f}" if prediction.valid else f"10^{shown:+.1f}"


def _length(point: theory.MeanField) -> str:
    if point.q_star == 0:
        return "lengths shrink to nothing"
    if point.q_star == math.inf:
        return "lengths grow for ever"
    return "every length is kept" if point.is_homogeneous else "mean square of a unit, deep inside"


def _phase(chi_1: float) -> str:
    if math.isclose(chi_1, 1, abs_tol=1e-9):
        return "1 is critical"
    return "above 1 is chaos" if chi_1 > 1 else "below 1 is order"


def _pace(xi: float, what: str, shrinks: str, grows: str = "") -> str:
    if xi == math.inf:
        return f"{what} stay, or change by no exponential"
    return f"layers for {what} to {grows if xi < 0 else shrinks}"


def _range(prediction: Prediction, dtype: str) -> str:
    for overflow, word in ((False, "underflow to 0"), (True, "overflow to inf")):
        layer = prediction.failing_layer(dtype, overflow)
        if layer is not None:
            return f"output gradients {word} from layer {layer} down"
    return "output gradients stay in range"
