"""The scale of a model's first predictions and targets, by what the loss makes of them."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.diagnosis.age import STARTED, changes
from gradexp.diagnosis.cures import schemes
from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import LossTerm, far_above, loss_terms
from gradexp.diagnosis.rows import Rows, has_weights
from gradexp.history.finding import Finding
from gradexp.history.sentences import number

# Predictions this many times as large as the targets, and targets this many times as large as the predictions.
_TOO_LARGE, _MUCH_TOO_LARGE, _TOO_SMALL = 10.0, 100.0, 30.0
# Targets up to this size are within reach of a few hundred steps of any optimizer.
_LARGE_TARGET = 100.0
_SLOWER = "a learning rate a tenth as large or less from the start"
_STANDARDISE = "y = (y - y.mean()) / y.std()"


class InitialScale(Observer):
    """Finds a loss far above that of a model that prefers nothing, and targets far from the predictions' scale."""

    def begin(self, examination: Examination) -> None:
        """Prepare to name the last layer."""
        self._rows = Rows(examination.model)
        self._last = ""
        self._rescale = f"gradexp.initialize(model, {schemes(examination.model)[0]!r})"

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Remember the last module with weights."""
        row, _ = self._rows.next_call(module)
        if has_weights(module):
            self._last = row

    def see_loss(self, examination: Examination) -> None:
        """Look at predictions and targets while the graph keeps them."""
        is_fresh = changes(examination.model) <= STARTED
        with torch.no_grad():
            self._found = [
                finding
                for term in loss_terms(examination)
                for finding in _of(term, is_fresh, self._last, self._rescale)
            ]

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found before the backward pass."""
        return self._found


def _of(term: LossTerm, is_fresh: bool, last: str, rescale: str) -> Iterator[Finding]:
    value = f"{term.kind} is {number(term.value)}"
    if term.kind in ("cross entropy", "binary cross entropy"):
        if term.value > far_above(term.indifferent):
            text = f"{value}, where guessing evenly costs {number(term.indifferent)}"
            remedy = rescale
            if term.prediction is not None:
                rms = _rms(_centred(term))
                text += f"; logits have rms {number(rms)}, where about 1 is usual at first"
                remedy = _rescaling(rescale, last, 1 / rms)
            yield Finding("initial scale", text, (last,), remedy if is_fresh else _SLOWER, 2)
        return
    if term.prediction is None:
        return
    prediction, target = _rms(term.prediction), _rms(term.target)
    if not target or not math.isfinite(prediction):
        return
    if prediction > _TOO_LARGE * target:
        text = f"{value}, since predictions have rms {number(prediction)}, targets {number(target)}"
        is_target = target < 1 / _TOO_LARGE and prediction < _TOO_LARGE
        severity = 2 if prediction > _MUCH_TOO_LARGE * target else 1
        remedy = (
            _STANDARDISE if is_target else _rescaling(rescale, last, target / prediction) if is_fresh else _SLOWER
        )
        yield Finding("initial scale", text, (last,), remedy, severity)
    elif target > _LARGE_TARGET and target > _TOO_SMALL * prediction:
        goal = term.target.double()
        mean, spread = goal.mean().item(), goal.std(correction=0).item()
        text = f"targets have mean {number(mean)} and standard deviation {number(spread)}, predictions have rms "
        text += f"{number(prediction)}, so that the {value}"
        yield Finding("target scale", text, (), _STANDARDISE, 2)


def _rescaling(rescale: str, last: str, factor: float) -> str:
    """Return the call that scales all layers, and for what it cannot know, such as many branches, the last one."""
    return f"{rescale}; if that is not enough, model.get_submodule({last!r}).weight.data *= {factor:.1g}"


def _centred(term: LossTerm) -> Tensor:
    """Return logits without what a softmax takes off: the mean over classes."""
    assert term.prediction is not None
    if term.kind == "binary cross entropy":
        return term.prediction
    return term.prediction - term.prediction.mean(-1, keepdim=True)


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
