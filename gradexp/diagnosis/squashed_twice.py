"""Probabilities given to a loss that takes logits, and makes probabilities of them again."""

import math
from collections.abc import Iterable

from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import nodes_of_loss
from gradexp.history.finding import Finding, Kind
from gradexp.numerics.torch_internals import saved_of

# The loss's own squashing -> its name, and what takes logits.
_OWN: dict[str, tuple[Kind, str, str]] = {
    "LogSoftmaxBackward": ("softmax twice", "softmax", "cross entropy"),
    "BinaryCrossEntropyWithLogitsBackward": ("sigmoid twice", "sigmoid", "binary cross entropy with logits"),
}
_BEFORE = {"SoftmaxBackward": "softmax", "SigmoidBackward": "sigmoid"}
_SHAPES = ("View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "Squeeze", "Unsqueeze", "Select", "ToCopy")


class SquashedTwice(Observer):
    """Finds a softmax or sigmoid before a loss that has one inside."""

    def see_loss(self, examination: Examination) -> None:
        """Look at what made the loss's input."""
        assert examination.loss is not None
        self._found = None
        for node in nodes_of_loss(examination.loss.grad_fn, set(_OWN)):
            below = without_shapes(node.next_functions[0][0])
            before = None if below is None else _BEFORE.get(kind_of(below))
            if before is not None:
                self._found = self._found or _finding(before, node)

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found before the backward pass."""
        return () if self._found is None else (self._found,)


def _finding(before: str, node: Node) -> Finding:
    kind, own, loss = _OWN[kind_of(node)]
    text = f"{loss} applies a {own}, and its input is already the result of a {before}: gradients shrink"
    result = saved_of(node, "result")
    if before == own == "softmax" and result is not None:
        # The best that probabilities can do is 1 for the right class and 0 for the others.
        dimension = saved_of(node, "dim")  # of a negative one autograd makes a very large one
        classes = result.shape[dimension if dimension < result.dim() else -1]
        text += f", and the loss cannot fall below {math.log(1 + (classes - 1) / math.e):.2f}"
    return Finding(kind, text, (), f"remove the {before} from the model: the loss takes logits", 2)


def without_shapes(node: Node | None) -> Node | None:
    """Return a node, or the nearest one below it that does more than to change the shape."""
    while node is not None and node.name().startswith(_SHAPES):
        node = node.next_functions[0][0]
    return node


def kind_of(node: Node) -> str:
    """Return the name of a node's operation, without the number at the end."""
    return node.name().rstrip("0123456789")
