"""Gradients that are too small to change any weight, by the resolution of its number format."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import loss_terms
from gradexp.diagnosis.sentences import listed
from gradexp.history.finding import Finding
from gradexp.numerics.torch_internals import parameters_of
from gradexp.probe.names import named_modules

# A loss that has come down this far from that of guessing is learned.
_LEARNED = 1e-3
# Adam divides the gradient by its own size plus 1e-8; below this share of that nothing is left of a step.
_BELOW_ADAM = 1e-12


class Resolution(Observer):
    """Finds models of which plain SGD, even with a learning rate of 1, would change no weight by a bit."""

    def see_loss(self, examination: Examination) -> None:
        """See whether there is anything left to learn."""
        terms = loss_terms(examination)
        self._is_learned = bool(terms) and all(term.value < _LEARNED * term.guessing for term in terms)

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Try a step on a copy of each weight."""
        if self._is_learned:
            return
        unmoved, moved, largest = [], 0, []
        for name, module in named_modules(examination.model).items():
            flags = [flag for weight in parameters_of(module) if (flag := _is_unmoved(weight)) is not None]
            if flags and all(flags):
                unmoved.append(name)
                largest += [weight.grad.abs().max() for weight in parameters_of(module) if weight.grad is not None]
            elif flags:
                moved += 1
        if not unmoved or len(unmoved) < moved:
            return
        greatest = float(torch.stack([x.double().cpu() for x in largest]).max())
        text = (
            f"gradients are too small to change any weight of {listed(unmoved)}: the largest is {greatest:.1e}, and "
            "even plain SGD with lr=1 would leave all bits as they are"
        )
        adam = (
            "Adam's steps vanish too, below its eps=1e-8" if greatest < _BELOW_ADAM else "Adam would still move them"
        )
        remedy = f"a loss of logits, such as nn.BCEWithLogitsLoss(), in place of a sigmoid and a logarithm ({adam})"
        yield Finding("vanishing", text, tuple(unmoved), remedy, 3 if not moved else 2)


def _is_unmoved(weight: nn.Parameter) -> bool | None:
    """Return whether a step of size 1 leaves each number as it is; None if there is none to judge by."""
    gradient: Tensor | None = weight.grad
    if gradient is None or weight.dim() < 2 or gradient.layout is not torch.strided or type(gradient) is not Tensor:
        return None
    with torch.no_grad():
        now = weight.detach()
        is_moved = ((now - gradient != now) & (now != 0)).any()
        has_step = ((gradient != 0) & (now != 0)).any() & gradient.isfinite().all()
        return None if not has_step else not is_moved
