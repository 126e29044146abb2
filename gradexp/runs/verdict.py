"""The verdict on a run: gradient, training and theory in one line, with a remedy."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from gradexp.config import Config, as_dict
from gradexp.history.history import History
from gradexp.history.sentences import counted, loss_text
from gradexp.history.step import STATUSES, mean
from gradexp.history.verdict import TrainingWord, Verdict, gradient_verdict
from gradexp.runs.number_format import FormatCheck
from gradexp.runs.prediction import predict_run
from gradexp.runs.remedies import ALIGNED, Predict, problem, remedies, slower
from gradexp.runs.trials import Measure, are_outputs_large, working_options
from gradexp.runs.wording import network_name

if TYPE_CHECKING:
    from gradexp.theory import Agreement, Prediction


# Fewer steps than this tell nothing about what a network can learn.
_ENOUGH_STEPS = 100
# A step that changes the weights by less than this share of their size changes nothing that matters.
_IDLE = -5
# Stuck: the last losses are above this share of the loss of a network that ignores its input.
_STUCK = 0.9
_LAST = 10
# log10 of half the distance between 1 and the next number: a smaller step leaves most weights as they are.
_HALF_DIGIT = {"float16": math.log10(2**-11), "bfloat16": math.log10(2**-8)}
# A GradScaler begins too high on purpose: of exploding gradients it leaves out more.
_USUAL_SKIPS = 10


def training_verdict(losses: Sequence[float], diverged_at: int | None, chance: float | None) -> TrainingWord:
    """Return ``none``, ``trained``, ``stuck`` or ``diverged``.

    Stuck means that the mean of the last 10 losses is not below 0.9 of the loss of a network that ignores its
    input, ``chance``; where that is 0 (all targets alike) or unknown, not below 0.9 of the first loss. Of a loss
    below 0, which an own one may be, it is a ninth more in size.
    """
    if diverged_at is not None:
        return "diverged"
    if not losses:
        return "none"
    recent = losses[-_LAST:]
    limit = chance or losses[0]
    limit = _STUCK * limit if limit >= 0 else limit / _STUCK
    return "stuck" if sum(recent) / len(recent) >= limit else "trained"


def run_verdict(
    config: Config,
    initial: History,
    losses: Sequence[float] = (),
    diverged_at: int | None = None,
    chance: float | None = 0.0,
    gradients: History | None = None,
    theory: "Agreement | None" = None,
    predict: Predict | None = None,
    measure: Measure | None = None,
    format_check: FormatCheck | None = None,
    skipped: int = 0,
) -> Verdict:
    """Judge a whole run: the gradient at initialisation, theory, the training, and what to do about it.

    Args:
        config: The run's options.
        initial: The profile at initialisation.
        losses: Training loss of each step.
        diverged_at: First step whose loss or weight is not finite.
        chance: Loss of a network that ignores its input; None if it is not known.
        gradients: What the probe recorded in training.
        theory: How far the profile at initialisation is from its prediction.
        predict: The function that predicts a run on the same data; None: on inputs of mean square 1.
        measure: The function that measures the profile of a run on the same data, for networks that are no MLPs.
        format_check: What a number format of 16 bits does to the network.
        skipped: Number of steps that a GradScaler left out.
    """
    gradient = gradient_verdict(initial.at(), config.verdict.decades)
    training = training_verdict(losses, diverged_at, chance)
    text, options = gradient.text, ""
    if theory is not None and theory.verdict == "deviates":
        text += f"; theory {theory.text}"
    if format_check is not None and format_check.text:
        text += f"; {format_check.text}"
    if skipped > min(_USUAL_SKIPS, len(losses) // 2):
        text += f"; {skipped} of {len(losses)} steps are left out, as gradients of the scaled loss overflow"
    if training == "diverged":
        text += f"; the loss or a weight is not finite from step {diverged_at} on"
    elif training == "stuck":
        but = "but" if gradient.gradient == "stable" else "and"
        text += f", {but} {_why_stuck(config, initial, gradient.gradient, losses, chance, gradients)}"
    elif training == "trained":
        text += f"; the loss falls from {loss_text(losses[0])} to {loss_text(losses[-1])}{_of_guessing(chance)}"
    is_failing = format_check is not None and format_check.is_failing
    if training in ("stuck", "diverged") or (training == "none" and (gradient.gradient != "stable" or is_failing)):
        if config.model.name == "mlp":
            predict = predict or _predict
            remedy = _of_format(config, initial, gradient.gradient, losses, gradients, format_check, predict)
            remedy = remedy or _remedy(config, initial, gradient.gradient, losses, diverged_at, predict)
        else:
            remedy = _tried(config, initial, gradient.gradient, losses, gradients, diverged_at, measure, predict)
        text += f"; {remedy.text}"
        options = remedy.options
    return Verdict(gradient.gradient, training, theory.verdict if theory else "unavailable", text, remedy=options)


def _why_stuck(
    config: Config,
    initial: History,
    gradient: str,
    losses: Sequence[float],
    chance: float | None,
    gradients: History | None,
) -> str:
    if gradient == "dead":
        return "nothing can be learned through it"
    share = _share_changed(gradients)
    if share == -math.inf:
        return "a step leaves the weights of most layers exactly as they were"
    if share is not None and share < _IDLE:
        return f"a step changes the weights by only 10^{share:.0f} of their size"
    if _is_blind(initial, losses):
        network = network_name(as_dict(config))
        return f"after {network} all inputs point the same way (mean cosine of two outputs {_cosine(initial):.3f})"
    if _is_rounded_away(config, share):
        return f"steps of 10^{share:.1f} of the weights' size are mostly rounded away in {config.dtype}"
    return f"after {counted(len(losses), 'step')} the loss is {loss_text(losses[-1])}{_of_guessing(chance)}"


def _of_guessing(chance: float | None) -> str:
    return "" if chance is None else f" (guessing: {loss_text(chance)})"


def _share_changed(gradients: History | None) -> float | None:
    """Return log10 of ‖update‖ / ‖weight‖ in the last recorded step, -inf for no change, None if unknown."""
    if gradients is None or "update" not in gradients.log10:
        return None
    share = gradients.log10["update"] - gradients.log10["weight"]
    unchanged = gradients.status["update"] == STATUSES.index("zero")
    last = np.where(unchanged, -np.inf, share)[-1:]
    last = last[~np.isnan(last)]
    return float(np.median(last)) if last.size else None


def _is_rounded_away(config: Config, share: float | None) -> bool:
    """Return whether steps are smaller than half of the last digit of a typical weight of 16 bits."""
    return share is not None and config.dtype in _HALF_DIGIT and share < _HALF_DIGIT[config.dtype]


def _of_format(
    config: Config,
    initial: History,
    gradient: str,
    losses: Sequence[float],
    gradients: History | None,
    format_check: FormatCheck | None,
    predict: Predict,
) -> "_Advice | None":
    """Name another number format, if that alone is what is missing."""
    is_fine = gradient == "stable" and not (losses and _cosine(initial) > ALIGNED)
    if format_check is None or not is_fine or problem(config, predict(config)):
        return None
    options: dict[str, str] | None = None
    if format_check.is_failing:
        options = next(iter(format_check.cures), None)
    elif losses and _is_rounded_away(config, _share_changed(gradients)):
        options = {"dtype": "float32", "precision": f"amp_{config.dtype}"}
    if options is None:
        return None
    typed = " ".join(f"{key}={value}" for key, value in options.items())
    return _Advice(f"try {typed}", typed)


def _is_blind(initial: History, losses: Sequence[float]) -> bool:
    """Return whether a network had its chance to learn, and cannot tell its inputs apart."""
    return len(losses) >= _ENOUGH_STEPS and _cosine(initial) > ALIGNED


def _cosine(initial: History) -> float:
    """Return the mean cosine between the outputs of two samples; 0 if there is none."""
    return 0.0 if initial.output_cosine is None else mean(initial.output_cosine) or 0.0


class _Advice(NamedTuple):
    text: str
    options: str = ""  # as typed; empty if it is no change of options that is sure to help


def _remedy(
    config: Config,
    initial: History,
    gradient: str,
    losses: Sequence[float],
    diverged_at: int | None,
    predict: Predict,
) -> _Advice:
    """Name the first remedy that theory has tried, or what else there is to change."""
    lr = config.optimizer.lr or 0.0
    prediction = predict(config)
    diverged = diverged_at is not None
    if gradient == "stable" and not (losses and _cosine(initial) > ALIGNED):
        if diverged and not math.isfinite(losses[0]):  # no update was made yet
            return _Advice("try smaller inputs or dtype=float64")
        if not problem(config, prediction, is_strict=diverged):
            if diverged:
                options = f"optimizer.lr={slower(config, prediction):g}"
                return _Advice(f"try {options}", options)
            return _Advice(f"try more steps, or another optimizer.lr than {lr:g}")

    def foretold() -> str | None:
        cure = next(remedies(config, predict), None)
        return None if cure is None else cure.text

    # Theory knows no seed: the jobs of a sweep that share their data share what was tried.
    text = _once(predict, {**vars(config), "seed": 0}, foretold)
    if text is None:
        return _Advice("nothing known helps at this depth and width: fewer or wider layers")
    return _Advice(f"try {text}", text)


def _once(judge: Predict | Measure, options: Mapping[str, Any], find: Callable[[], str | None]) -> str | None:
    """Return the remedy of a run, which is looked for once: it takes seconds, and a run is judged twice."""
    known = _cures.setdefault(judge, {})
    parts = options["model"].name, options["init"].name, options["activation"]  # own ones of one name differ
    key = (*parts, repr(options))
    if key not in known:
        if len(known) >= _MOST:
            known.clear()
        known[key] = find()
    return known[key]


_MOST = 200
_cures: "WeakKeyDictionary[Predict | Measure, dict[tuple[str, ...], str | None]]" = WeakKeyDictionary()


def _tried(
    config: Config,
    initial: History,
    gradient: str,
    losses: Sequence[float],
    gradients: History | None,
    diverged_at: int | None,
    measure: Measure | None,
    predict: Predict | None,
) -> _Advice:
    """Name the first remedy that a measurement has confirmed, or what else there is to change."""
    lr = config.optimizer.lr or 0.0
    broken = np.flatnonzero(initial.status["output"][0, 0] == STATUSES.index("nonfinite"))
    if broken.size:
        return _Advice(f"layer {broken[0] + 1} outputs inf or nan before any step: look at its weights and inputs")
    if gradient == "stable" and _cosine(initial) <= ALIGNED and not are_outputs_large(initial):
        if diverged_at is not None and not math.isfinite(losses[0]):  # no update was made yet
            return _Advice("try smaller inputs or dtype=float64")
        if losses and _is_rounded_away(config, _share_changed(gradients)):
            options = f"dtype=float32 precision=amp_{config.dtype}"
            return _Advice(f"try {options}", options)
        if diverged_at is None:
            return _Advice(f"try more steps, or another optimizer.lr than {lr:g}")
        options = f"optimizer.lr={lr / 10:g}"
        return _Advice(f"try {options}", options)
    found = None
    if measure is not None:
        foretold = () if predict is None else ((cure.options, cure.config) for cure in remedies(config, predict))
        found = _once(measure, vars(config), lambda: working_options(config, measure, ALIGNED, foretold))
    if found is None:
        return _Advice("no other init, normalization or skip connection was found to help: fewer layers")
    return _Advice(f"try {found}", found)


def _predict(config: Config) -> "Prediction":
    """Predict a run on inputs of mean square 1."""
    widths = config.hidden_widths or [1]
    x = torch.ones(1, widths[0], dtype=torch.float64)
    return predict_run(config, x, widths[-1], batch=config.batch_size, input_variance=1.0)
