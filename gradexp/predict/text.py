"""A forecast as text."""

import math
import textwrap
from collections.abc import Iterator, Sequence

from gradexp import theory
from gradexp.config import as_dict
from gradexp.predict.forecast import Forecast
from gradexp.runs.command_line import command_with
from gradexp.runs.remedies import ALIGNED
from gradexp.runs.wording import network_name
from gradexp.theory import Prediction
from gradexp.theory.verdict import predicted_verdict

Rows = Iterator[tuple[str, str, str]]


def _network(forecast: Forecast) -> Rows:
    config, widths = forecast.config, forecast.prediction.widths
    hidden = widths[1:-1]
    layers = network_name(as_dict(config))
    ends = [f"{widths[0]} inputs", f"{widths[-1]} outputs"]
    options = ", ".join(f"{key}={value}" for key, value in config.init.options.items())
    is_mlp = config.model.name == "mlp"
    what = [f"{layers} of {config.units} units" if hidden else layers] if is_mlp else [layers, *config.family_options]
    yield "network", ", ".join([*what, *config.additions, *ends]), ""
    yield "init", f"{config.init.name} ({options})" if options else config.init.name, ""
    yield "inputs", forecast.inputs, ""


def _infinite_width(forecast: Forecast) -> Rows:
    prediction, point = forecast.prediction, forecast.point
    differ = len({(law.sigma_w2, law.sigma_b2) for law in prediction.laws}) > 1
    middle = f" of layer {len(prediction.laws) // 2 + 1}; layers differ" if differ else ""
    yield "sigma_w2", _number(prediction.sigma_w2), f"fan_in Var(W){middle}"
    yield "sigma_b2", _number(prediction.sigma_b2), f"Var(b){middle}"
    additions = forecast.config.additions
    missing = f"not defined with {' and '.join(additions)}" if additions else "a scaled identity is no random matrix"
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
    wide = forecast.prediction.log_chi_mean_field
    if wide is not None and math.isfinite(wide):
        yield "log_chi", f"{wide + 0.0:+.3f}", "log of the factor per layer, for these inputs"
    share = forecast.depth_over_reach
    if share is not None:
        bound = "trainable below about 1, as Schoenholz et al. (2017) found in experiments"
        yield "L/6xi_c", _number(share), f"depth over 6 xi_c: {bound if share else 'no bound, as xi_c is infinite'}"
    cosine = forecast.cosine
    if cosine is not None:
        yield "cosine", f"{round(cosine, 4) + 0.0:.4f}", "between the outputs of two unrelated inputs"


def _finite_width(forecast: Forecast) -> Rows:
    config, prediction = forecast.config, forecast.prediction
    slope, sd = prediction.log_chi, prediction.log_chi_sd
    if slope is None or sd is None:
        yield (
            "log_chi",
            "none",
            "no formula holds at this width" if prediction.depth > 1 else "there is one layer only",
        )
    else:
        yield "log_chi", f"{slope:+.3f} ± {sd:.3f}", "log of the factor per layer ± sd of one network"
    ratio = prediction.first_over_last
    if ratio is None:
        yield "ratio", "none", "of gradients, first over last layer"
    else:
        wide_only = "" if prediction.valid else ", infinitely wide"
        yield "ratio", _power(prediction), f"gradient, layer 1 over layer {prediction.depth}{wide_only}"
    if (training := forecast.in_training) is not None:
        yield "training", *_in_training(training, config.dropout)
    spread = float(prediction.sd_output_grad[0])
    if ratio is not None and spread > 0:
        decades = config.verdict.decades
        vanish, explode = (math.erfc((decades + sign * ratio) / spread / math.sqrt(2)) / 2 for sign in (1, -1))
        yield (
            "odds",
            f"{vanish:.0%} of such networks vanish, {explode:.0%} explode (by {decades:g} powers of ten)",
            "",
        )
    if prediction.laws:
        aspect = sum(1 / n for n in prediction.widths[1:-1])
        yield "L/n", f"{aspect:.3g}", "sum of 1 / width; from about 1 on seeds differ much"
    if prediction.dead_probability:
        share = prediction.dead_probability
        yield (
            "dead",
            "<1e-9" if share < 1e-9 else f"{share:.3g}",
            "probability that every unit of some layer is off",
        )
    for dtype in ("float32", "float16", "bfloat16") if prediction.valid else ():
        yield dtype, _range(prediction, dtype), ""
    if forecast.in_format is not None:
        yield "training", forecast.training_text, ""
    yield "formula", prediction.reason if prediction.valid else f"none: {prediction.reason}", ""


def _outcome(forecast: Forecast, overrides: Sequence[str] = ()) -> Rows:
    yield "verdict", forecast.verdict.text, ""
    share, chi_1 = forecast.depth_over_reach, forecast.prediction.chi_1
    if share is not None and share > 1 and chi_1:
        fate = "all inputs look alike" if chi_1 < 1 else "near inputs look unrelated"
        yield "", f"{share:.3g} times deeper than 6 xi_c: hard to train, as {fate} at the output", ""
    elif forecast.cosine is not None and forecast.cosine > ALIGNED:
        yield "", f"all inputs look alike at the output (cosine {forecast.cosine:.4f}): hard to train", ""
    if forecast.in_training is not None:
        yield from _training_outcome(forecast, forecast.in_training)
    name = "try"
    for remedy in forecast.remedies:
        yield name, command_with(overrides, remedy.text), _COMMAND
        yield "", f"gradient at layer 1: {_power(remedy.prediction)}; {remedy.reason}", ""
        name = "or"
    gradient = forecast.verdict.gradient
    is_open = gradient == "unknown" or (gradient != "stable" and not forecast.remedies)
    if forecast.problem and not forecast.remedies:
        yield name, "nothing known helps at this depth and width: fewer or wider layers", ""
    elif is_open:
        yield name, command_with(overrides, ""), _COMMAND
        yield "", "measures what theory does not know, and tries what helps", ""


_SECTIONS = {"": _network, "In infinite width": _infinite_width, "At this width": _finite_width}
_COMMAND = "command"  # is not wrapped, since it is to be pasted


def describe(forecast: Forecast, overrides: Sequence[str] = (), width: int = 80) -> str:
    """Return a forecast as the command prints it: outcome, what to try, network, infinite width, this width.

    Args:
        forecast: The forecast.
        overrides: The options that were typed, for the commands that run the remedies.
        width: Characters of a line.
    """
    sections = ["\n".join(_row(*row, width) for row in _outcome(forecast, overrides))]
    sections += [
        "\n".join([title] * bool(title) + [_row(*row, width) for row in rows(forecast)])
        for title, rows in _SECTIONS.items()
        if forecast.prediction.laws or rows is _network or (rows is _finite_width and forecast.prediction.valid)
    ]
    return "\n\n".join(sections)


def _row(name: str, value: str, remark: str, width: int) -> str:
    """Put name, value and remark into columns, wrapping the last of them."""
    if remark == _COMMAND:
        return f"{name:<10}{value}"
    head, text = (f"{name:<10}{value:<17} ", remark) if remark else (f"{name:<10}", value)
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * (28 if remark else 10))


def _number(value: float) -> str:
    return f"{value:.4g}"


def _power(prediction: Prediction) -> str:
    """Return the ratio of first and last gradient with its standard deviation."""
    ratio, sd = prediction.first_over_last, float(prediction.sd_output_grad[0])
    if ratio is None:
        return "no number is known"
    rounded = round(ratio, 1) + 0.0  # no -0.0
    return f"10^{rounded:+.1f} ± {sd:.1f}" if prediction.valid else f"10^{rounded:+.1f}"


def _training_outcome(forecast: Forecast, prediction: Prediction) -> Rows:
    """Say where dropout leads the gradient, if that is not where it is led without."""
    config, verdict = forecast.config, predicted_verdict(prediction, forecast.config.verdict.decades)
    if verdict.gradient in (forecast.verdict.gradient, "unknown"):
        return
    cure = ""
    if config.init.gain is not None:
        cure = f"; init.gain={config.init.gain * math.sqrt(1 - config.dropout):.4g} takes back what dropout adds"
    yield "", f"in training mode, with dropout={config.dropout:g}, {verdict.text}{cure}", ""


def _in_training(prediction: Prediction, dropout: float) -> tuple[str, str]:
    """Return the ratio of gradients in training mode, and what it is."""
    if prediction.first_over_last is None:
        return "none", f"no formula holds with dropout={dropout:g}"
    wide_only = "" if prediction.valid else ", infinitely wide"
    return _power(prediction), f"the same in training mode, with dropout={dropout:g}{wide_only}"


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
        return f"{what}: constant, or slower than exponential"
    return f"layers for {what} to {grows if xi < 0 else shrinks}"


def _range(prediction: Prediction, dtype: str) -> str:
    for overflow, word in ((False, "underflow to 0"), (True, "overflow to inf")):
        layer = prediction.failing_layer(dtype, overflow)
        if layer is not None:
            return f"gradients {word} from layer {layer} down"
    return "gradients stay in range"
