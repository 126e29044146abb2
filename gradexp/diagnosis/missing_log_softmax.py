"""A negative log-likelihood of what are no log-probabilities."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import nodes_of_loss
from gradexp.diagnosis.squashed_twice import kind_of, without_shapes
from gradexp.history.finding import Finding
from gradexp.history.sentences import number
from gradexp.numerics.torch_internals import saved_of

_NODES = {"NllLossBackward", "NllLoss2DBackward", "NllLossNdBackward"}
_MOST = 1.1  # probabilities of all classes together, up to rounding


class MissingLogSoftmax(Observer):
    """Finds ``nll_loss`` of logits, which can fall without end, or of probabilities, where it is too flat."""

    def see_loss(self, examination: Examination) -> None:
        """Look at what the loss gets."""
        assert examination.loss is not None
        found = (_of(node) for node in nodes_of_loss(examination.loss.grad_fn, _NODES))
        self._found = [finding for finding in found if finding is not None][:1]

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found before the backward pass."""
        return self._found


def _of(node: Node) -> Finding | None:
    got = saved_of(node, "self")
    if type(got) is not Tensor or got.dim() < 2 or not got.numel():
        return None
    with torch.no_grad():
        together = float(got.double().logsumexp(1).median().exp())
    if not together > _MOST:
        return None
    before = without_shapes(node.next_functions[0][0])
    is_softmax = before is not None and kind_of(before) == "SoftmaxBackward"
    what = "probabilities, the result of a softmax" if is_softmax else "logits, or other numbers"
    text = (
        f"nll_loss takes log-probabilities, whose exponentials sum to 1, and gets {what}: their exponentials sum to "
        f"{number(together)}"
    )
    if is_softmax:
        remedy = "torch.log_softmax in place of torch.softmax"
    else:
        remedy = "torch.nn.functional.cross_entropy, which takes logits, in place of nll_loss"
        text += ", and the loss falls without end as they grow"
    return Finding("missing log softmax", text, (), remedy, 3)
