"""Gradients that are too small to change any weight, by the resolution of its number format."""

import math
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import loss_terms
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.numerics.torch_internals import parameters_of
from gradexp.probe.names import named_modules

# A loss that has come down this far from that of guessing is learned.
_LEARNED = 1e-3
# Adam divides the gradient by its size plus 1e-8: below this, with lr=1e-3, float32 rounds its step away too.
_BELOW_ADAM = 1e-13
_CLOSE_BY = 12  # nodes from the loss down


class Resolution(Observer):
    """Finds models of which plain SGD, even with a learning rate of 1, would change no weight by a bit."""

    def see_loss(self, examination: Examination) -> None:
        """See whether there is anything left to learn."""
        assert examination.loss is not None
        self._is_squashed = _is_squashed(examination.loss.grad_fn)
        terms = loss_terms(examination)
        self._is_learned = bool(terms) and all(term.value < _LEARNED * term.guessing for term in terms)

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Try a step on a copy of each weight."""
        if self._is_learned:
            return
        tried = {
            name: [trial for weight in parameters_of(module) if (trial := _trial(weight)) is not None]
            for name, module in named_modules(examination.model).items()
        }
        trials = [trial.cpu() for of_module in tried.values() for trial in of_module]
        if not trials:
            return
        results = iter(torch.stack(trials).tolist())
        unmoved, moved, greatest = [], 0, 0.0
        for name, of_module in tried.items():
            own = [(is_moved, largest) for is_moved, largest in (next(results) for _ in of_module) if largest > 0]
            if own and not any(is_moved for is_moved, _ in own):
                unmoved.append(name)
                greatest = max(greatest, *(largest for _, largest in own))
            elif own:
                moved += 1
        if not unmoved or len(unmoved) < moved:
            return
        adam = ", and neither would Adam, whose eps is 1e-8" if greatest < _BELOW_ADAM else "; Adam still would"
        text = (
            f"gradients are too small to change any weight of {listed(unmoved)}: the largest is {greatest:.1e}; "
            f"plain SGD with lr=1 would not change a single bit{adam}"
        )
        remedy = f"the loss times {1 / greatest:.0e}"
        if self._is_squashed:
            remedy = "a loss of logits, such as nn.BCEWithLogitsLoss(), in place of a sigmoid and a logarithm"
        yield Finding("tiny gradients", text, tuple(unmoved), remedy, 3 if not moved else 2)


def _is_squashed(end: Node | None) -> bool:
    """Return whether the loss is computed from a sigmoid or softmax close by."""
    waiting, seen = deque([end]), 0
    while waiting and seen < _CLOSE_BY:
        node = waiting.popleft()
        if node is not None:
            seen += 1
            if node.name().startswith(("Sigmoid", "Softmax")):
                return True
            waiting.extend(below for below, _ in node.next_functions)
    return False


def _trial(weight: nn.Parameter) -> Tensor | None:
    """Return whether a step of size 1 changes a number that is not 0, and the largest such gradient; None without."""
    gradient: Tensor | None = weight.grad
    if (
        type(gradient) is not Tensor
        or weight.dim() < 2
        or not gradient.numel()
        or gradient.layout is not torch.strided
    ):
        return None
    with torch.no_grad():
        now = weight.detach()
        gradient = gradient.where(now != 0, 0)
        is_moved = (now - gradient != now).any()
        return torch.stack([is_moved.double(), gradient.abs().max().double().nan_to_num(math.inf)])
