"""What to change in a run that theory or its training finds wanting: remedies that theory has tried.

A remedy is a few options to type. It is named only if theory expects of the run with them that the gradient neither
vanishes nor explodes, that different inputs still differ at the output, and that weights get gradients of a size
that ordinary learning rates are made for. ``run`` prints the first one, ``predict`` all of them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradexp import theory
from gradexp.config import Config, InitConfig
from gradexp.networks.activations import activation
from gradexp.runs.trials import candidates
from gradexp.theory import Prediction
from gradexp.theory.verdict import DEAD, predicted_verdict

ALIGNED = 0.98
"""Mean cosine between the outputs of two samples from which on a network counts as blind to its input."""

# A remedy must stay further away from that.
_ALIKE = 0.95
# A critical sigma_w2 beyond this is no remedy: it is reached by saturating nearly every unit.
_ABSURD = 20.0
# Bounds on the sum over layers of the squared weight gradient for an output gradient of length 1, times the share in
# which two inputs differ. Below, 100 steps of sgd at 0.01 leave the loss where it was; above, a step overshoots.
# Measured for 13 activations and 150 layers: tests/runs/test_remedies.py follows every remedy.
_FAINT, _VIOLENT = 15.0, 2e4
# A learning rate that is safe, times the same sum.
_STEP = 20.0
# With branches of 1 / sqrt(L) inputs have this many layers' worth of change, however many there are.
_LIKE_INFINITE = 100

Predict = Callable[[Config], Prediction]


@dataclass(frozen=True)
class Remedy:
    """Options to type in place of the present ones, and why they help.

    Args:
        options: Key -> value, as typed on a command line after the present ones.
        reason: Reason for them, in words.
        config: The run after the change.
        prediction: Prediction of that run.
    """

    options: dict[str, str]
    reason: str
    config: Config
    prediction: Prediction

    @property
    def text(self) -> str:
        """The options as typed."""
        return " ".join(f"{key}={value}" for key, value in self.options.items())


def remedies(config: Config, predict: Predict) -> Iterator[Remedy]:
    """Yield what cures a run that is wanting at initialisation, the least change first.

    Args:
        config: The options of the run.
        predict: The function that predicts a run with the same data.
    """
    if config.model.name != "mlp":
        yield from _of_other_networks(config, predict)
        return
    tried = []
    for options, reason in _candidates(config):
        changed = with_options(config, options)
        if changed == config or changed in tried:
            continue
        tried.append(changed)
        try:
            prediction = predict(changed)
        except ValueError:  # theory has no number for it
            continue
        if not problem(changed, prediction, is_strict=True):
            yield Remedy(options, reason, changed, prediction)


def _of_other_networks(config: Config, predict: Predict) -> Iterator[Remedy]:
    for options, changed in candidates(config):
        try:
            prediction = predict(changed)
        except ValueError:
            continue
        if prediction.valid and predicted_verdict(prediction, config.verdict.decades).gradient == "stable":
            yield Remedy(options, "keeps the size of gradients", changed, prediction)


def problem(config: Config, prediction: Prediction, is_strict: bool = False) -> str:
    """Return what theory finds wanting in a run, in a few words; empty if nothing is.

    Args:
        config: The options of the run.
        prediction: Its prediction.
        is_strict: Whether to keep a distance from the limits, as a remedy must.

    Examples:
        >>> relu, x = Config(), torch.ones(1, 64, dtype=torch.float64)
        >>> from gradexp.runs.prediction import predict_run
        >>> problem(relu, predict_run(relu, x, outputs=10))
        'all inputs look alike at the output'
    """
    if not prediction.laws:  # nothing is known, or it is no MLP
        return "no law is known" if is_strict else ""
    ratio = prediction.first_over_last
    if prediction.dead_probability > DEAD or (ratio is None and prediction.sigma_w2 == 0):
        return "the signal dies"
    if ratio is None or (is_strict and not prediction.valid):
        return "no formula holds"
    # One network differs from the mean; half its spread still has the better part of them within.
    spread = float(prediction.sd_output_grad[0]) / 2 if prediction.valid else 0.0
    if abs(ratio) + (spread if is_strict else 0.0) > config.verdict.decades:
        return "the gradient vanishes" if ratio < 0 else "the gradient explodes"
    cosine = output_cosine(config, prediction)
    if cosine is not None and cosine > (_ALIKE if is_strict else ALIGNED):
        return "all inputs look alike at the output"
    reach = depth_over_reach(config, prediction)
    if reach is not None and reach > 1:
        return "the depth is beyond reach"
    if prediction.valid and config.depth > 1:
        strength = _weight_grad2(prediction) * (1 - max(cosine or 0.0, 0.0))
        if not strength >= _FAINT:
            return "weights get gradients too small to learn from"
        # Some networks learn beyond that all the same.
        if is_strict and not strength <= _VIOLENT:
            return "weights get gradients too large to learn from"
    return ""


def slower(config: Config, prediction: Prediction) -> float:
    """Return a learning rate at which a run that diverged can learn, one digit long.

    It is a tenth of the present one, or less where plain steps of gradient descent would still be too long.
    """
    lr = (config.optimizer.lr or 0.0) / 10
    if prediction.valid and config.optimizer.name in ("sgd", "momentum"):
        lr = min(lr, _STEP * (1 - (config.optimizer.momentum or 0.0)) / _weight_grad2(prediction))
    if not lr > 0:
        return lr
    digit = 10.0 ** math.floor(math.log10(lr))
    return math.floor(lr / digit + 1e-9) * digit


def _weight_grad2(prediction: Prediction) -> float:
    """Return the sum over layers of the squared weight gradient, for an output gradient of length 1."""
    return float(np.sum(10 ** (2 * prediction.log10_weight_grad)))


def output_cosine(config: Config, prediction: Prediction) -> float | None:
    """Return the cosine of two unrelated inputs at the output, in infinite width; None if it is not known.

    It follows the covariance of two inputs from layer to layer. Batch norm takes the mean over samples away, so that
    they cannot all be alike.
    """
    if config.depth == 1 or not prediction.laws or config.init.name == "identity":
        return None
    if config.normalization == "batch" or config.residual == "zero":
        return 0.0
    phi = activation(config.activation, config.negative_slope)
    layers = min(config.depth, _LIKE_INFINITE) if config.residual == "depth" else config.depth
    branch2 = 1 / layers if config.residual == "depth" else 1.0
    sigma_w2, sigma_b2 = prediction.sigma_w2, prediction.sigma_b2
    q, cosine = sigma_w2 + sigma_b2, 0.0
    for layer in range(1, layers):
        seen = q if config.normalization == "none" else 1.0  # layer and rms alike, in infinite width
        if not 1e-100 < seen < 1e100:
            return None
        a, b = (math.sqrt(seen) * u for u in (_U, cosine * _U + math.sqrt(1 - cosine * cosine) * _V))
        one, other = phi(a), phi(b)
        square = sigma_w2 * float(_SHARE @ one.square()) + sigma_b2
        product = sigma_w2 * float(_SHARE @ (one * other)) + sigma_b2
        if config.residual != "none" and layer < layers - 1:
            square, product = q + branch2 * square, q * cosine + branch2 * product
        if square == 0:
            return None
        q, cosine = square, min(max(product / square, -1.0), 1.0)
    return cosine


def _gauss_hermite(points: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs of independent standard normal numbers and their weights."""
    at, weight = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(points))
    share = torch.outer(weight, weight).flatten()
    return at.repeat_interleave(points), at.repeat(points), share / share.sum()


_U, _V, _SHARE = _gauss_hermite()


def depth_over_reach(config: Config, prediction: Prediction) -> float | None:
    """Return depth over 6 xi_c, below which plain networks are roughly trainable (Schoenholz et al., 2017)."""
    point = None if config.additions else prediction.point
    if point is None:
        return None
    return config.depth / (6 * point.xi_c) if point.xi_c else math.inf


def _candidates(config: Config) -> Iterator[tuple[dict[str, str], str]]:
    """Yield options that may help, and why, the least change first."""
    if config.depth == 1:
        return
    equal = len(set(config.hidden_widths)) == 1 and config.depth > 3
    if not config.additions:
        yield from _other_weights(config)
        yield _typed(config, {"init": "orthogonal", "activation": "tanh"}), "keeps lengths and angles"
    if equal and config.residual != "depth":
        short = {"residual": "depth"}
        branches = "each layer adds to the gradient instead of multiplying it, in branches of 1 / sqrt(depth)"
        yield short, branches
        yield _typed(config, {**short, "init": "he"}), branches
    elif config.residual == "depth":
        yield _typed(config, {"init": "he"}), "keeps the size of what branches add"
    if config.additions:
        plain = {key: "none" for key in ("normalization", "residual") if getattr(config, key) != "none"}
        options = {**plain, "init": "orthogonal", "activation": "tanh"}
        yield _typed(config, options), "keeps lengths and angles without normaliser or skip connection"


def _other_weights(config: Config) -> Iterator[tuple[dict[str, str], str]]:
    """Yield weights at which this activation keeps gradients."""
    for sigma_b2 in dict.fromkeys((config.sigma_b2 or 0.0, 0.0)):
        try:
            critical = theory.critical_sigma_w2(config.activation, sigma_b2, negative_slope=config.negative_slope)
        except ValueError:
            continue
        if critical > _ABSURD:
            continue
        if math.isclose(critical, 2.0, rel_tol=1e-3):
            yield _typed(config, {"init": "he"}, sigma_b2), "critical: chi_1 = 1"
            continue  # angles close just as fast with orthogonal weights
        gain = math.sqrt(critical)
        # Gaussian matrices in a row stretch some directions and lose others; orthogonal ones do not.
        options = {"init": "orthogonal"} | ({} if math.isclose(gain, 1) else {"init.gain": f"{gain:.5g}"})
        yield _typed(config, options, sigma_b2), "critical: chi_1 = 1, and every direction is kept"


def _typed(config: Config, options: dict[str, str], sigma_b2: float = 0.0) -> dict[str, str]:
    """Add the options that must be typed with these, since others stay on the command line."""
    if "init" in options and "init.gain" not in options and config.init.gain != 1:
        options = {**options, "init.gain": "1"}
    return {**options, "sigma_b2": f"{sigma_b2:.5g}"} if sigma_b2 or config.sigma_b2 else options


def with_options(config: Config, options: dict[str, str]) -> Config:
    """Return the config with these options typed on its command line."""
    new: dict[str, Any] = {key: value for key, value in options.items() if not key.startswith("init")}
    if "init" in options:
        gain = options.get("init.gain")
        new["init"] = InitConfig(options["init"], gain=None if gain is None else float(gain))
    if "sigma_b2" in new:
        new["sigma_b2"] = float(new["sigma_b2"])
    return replace(config, **new)
