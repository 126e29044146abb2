"""The scale of what the first layer gets."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import has_learned, loss_terms
from gradexp.diagnosis.rows import Rows, has_weights
from gradexp.history.finding import Finding
from gradexp.history.sentences import named, number
from gradexp.probe.calls import tensors_in

# Initialisations assume inputs of rms 1: beyond 10 a gain of 2 is nothing, raw pixels have more than 100.
_LARGE, _VERY_LARGE, _SMALL = 10.0, 30.0, 1e-3
# Standard deviations of two features this far apart: no learning rate suits the weights of both.
_APART = 1e3
_STANDARDISE = "x = (x - x.mean()) / x.std()"
_STANDARDISE_EACH = "x = (x - x.mean(0)) / (x.std(0) + 1e-8)"


class InputScale(Observer):
    """Finds inputs far from mean 0 and standard deviation 1, as the first module with weights gets them."""

    def begin(self, examination: Examination) -> None:
        """Prepare to name the module."""
        self._rows = Rows(examination.model)
        self._found: list[Finding] = []
        self._is_over = False

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Look at the first input that does not depend on parameters."""
        row, _ = self._rows.next_call(module)
        if self._is_over or not has_weights(module):
            return
        for tensor in tensors_in(args):
            is_input = type(tensor) is Tensor and tensor.is_floating_point() and tensor.grad_fn is None
            is_dense = tensor.layout is torch.strided and not tensor.is_nested
            if is_input and is_dense and tensor.numel() > 1 and tensor.dim() > 1:
                self._is_over = True
                with torch.no_grad():
                    self._found = _of(row, module, tensor.detach().double())
                return

    def see_loss(self, examination: Examination) -> None:
        """See whether the model gets along with it: it has halved the loss of guessing."""
        terms = loss_terms(examination) if self._found else []
        self._copes = has_learned(terms)

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found in the forward pass."""
        return () if self._copes else self._found


def _of(name: str, module: nn.Module, x: Tensor) -> list[Finding]:
    mean, spread = x.mean().item(), x.std(correction=0).item()
    rms = (mean**2 + spread**2) ** 0.5
    where = f"the inputs of {named(name)} have"
    text = f"{where} mean {number(mean)} and standard deviation {number(spread)} (0 and 1 are usual)"
    has_features = isinstance(module, nn.Linear) and x.dim() == 2 and len(x) > 1
    remedy = _STANDARDISE_EACH if has_features else _STANDARDISE
    if has_features:
        each = x.std(0, correction=0)
        each = each[each > 0]
        if len(each) > 1 and each.max() > _APART * each.min():
            low, high = each.min().item(), each.max().item()
            text = f"{where} features with standard deviations from {number(low)} to {number(high)}"
            return [Finding("input scale", text, (name,), remedy, 2)]
    if rms > _LARGE:
        return [Finding("input scale", text, (name,), remedy, 2 if rms > _VERY_LARGE else 1)]
    return [Finding("input scale", text, (name,), remedy, 1)] if 0 < rms < _SMALL else []
