"""Gradients that are exactly 0 because of an operation that happens to have no slope, as softmax over one element."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import has_nonzero, leaves, node_of, nodes_below
from gradexp.diagnosis.origins import Origins
from gradexp.diagnosis.repetition import Repetition
from gradexp.diagnosis.squashed_twice import without_shapes
from gradexp.diagnosis.wording import outermost, owners, verb
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed, named
from gradexp.numerics.torch_internals import saved_of

_ONE_OUTPUT = (
    "torch.sigmoid in place of softmax for one output (with logits: F.binary_cross_entropy_with_logits), or two "
    "outputs, one for each class"
)
_SATURATED = "smaller inputs of the softmax: a smaller scale of the weights before it"
_SATURATED_TEXT = "softmax, which is saturated"
_SOFTMAX = ("Softmax", "SafeSoftmax", "LogSoftmax")
# Beginning of a node's name -> what stops there, and what helps.
_STOPS = {
    **dict.fromkeys(_SOFTMAX, ("softmax", "")),
    "ScaledDotProduct": ("attention over a single key", ""),
    "Clamp": (
        "a clamp whose input is beyond its bounds everywhere",
        "clamp outside of the loss, or use a smooth bound: tanh",
    ),
    "Mul": ("a product with 0", "look at what it is multiplied with: a mask, or a weight in the loss, that is 0"),
}


class Stops(Observer):
    """Operations that get a gradient and pass exactly 0 on, to weights whose gradient is 0 for no other reason."""

    def begin(self, examination: Examination) -> None:
        """Note where the random number generators stand, for another pass."""
        self._repetition = Repetition()
        self._origins = Origins()

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Remember which node ends the call."""
        self._origins.see_call(name, module, args, output)

    def see_loss(self, examination: Examination) -> None:
        """Note which modules' outputs go into a softmax."""
        nodes = nodes_below([node_of(examination.loss)]) if examination.loss is not None else {}
        self._inputs = [self._input(node) for node in nodes if _is_softmax(node)]

    def _input(self, softmax: Node) -> str:
        """Return the module whose output goes into a softmax; empty if something is computed of it before."""
        node = softmax.next_functions[0][0]
        while node is not None:
            call = self._origins.ended_by(node)
            if call is not None and self._origins.has_weights(node):
                return call.name
            if without_shapes(node) is node:
                break
            node = node.next_functions[0][0]
        return ""

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for each kind of operation."""
        parameters = {id(p): p for p in examination.model.parameters() if p.requires_grad and p.grad is not None}
        weights = {key for key, p in parameters.items() if p.dim() > 1}
        without = {key for key in weights if not has_nonzero(parameters[key].grad)}
        if not without:
            return
        try:
            root, stops = self._stops(examination, list(parameters.values()))
        except Exception:  # what a model does in a second pass is beyond us
            return
        is_open = {id(leaf) for leaf in leaves(nodes_below([root], closed=stops))}
        behind: dict[tuple[str, str], set[int]] = {}
        for (node, place), stop in stops.items():
            below = {id(leaf) for leaf in leaves(nodes_below([node.next_functions[place][0]]))}
            behind.setdefault(stop, set()).update(below & without - is_open)
        owner = owners(examination.model)
        for (what, cure), keys in behind.items():
            if not keys:
                continue
            names = outermost(
                [name for key, name in owner.items() if key in keys], {owner[k] for k in weights - keys}
            )
            text = f"{listed(names)} {verb(names, 'gets', 'get')} a gradient of exactly 0: it is stopped by {what}"
            yield Finding("cut", text, tuple(names), cure, 3 if keys == weights else 1)

    def _stops(self, examination: Examination, leaf_list: list[Tensor]) -> tuple[Any, dict[Any, tuple[str, str]]]:
        """Return the root of another pass's graph, and the edges at which its gradient ends."""
        loss = self._repetition.run(examination)
        root = node_of(loss)
        hooked: list[Any] = []  # nodes; a hook knows only which, or each would keep its whole graph alive
        found: dict[tuple[int, int], tuple[str, str]] = {}
        softmaxes: dict[int, tuple[Any, str]] = {}  # number of a node -> its dimension, and what goes in

        def see(which: int, stop: tuple[str, str], passed_on: Sequence[Any], arrived: Sequence[Any]) -> None:
            gradients = [gradient for gradient in arrived if gradient is not None]
            if not any(_is_ordinary(gradient) for gradient in gradients):
                return
            if which in softmaxes:
                stop = _of_softmax(gradients[0].shape, *softmaxes[which])
            for place, gradient in enumerate(passed_on):
                if gradient is not None and not has_nonzero(gradient):
                    found[which, place] = stop

        nodes = nodes_below([root])
        # Both passes have the same graph, unless the model goes another way each time.
        names = iter(self._inputs if sum(map(_is_softmax, nodes)) == len(self._inputs) else [])
        for node in nodes:
            softmax = (saved_of(node, "dim"), next(names, "")) if _is_softmax(node) else None
            known = [stop for start, stop in _STOPS.items() if node.name().startswith(start)]
            if known and not _has_weight_of_zero(node):
                node.register_hook(partial(see, len(hooked), known[0]))
                if softmax is not None:
                    softmaxes[len(hooked)] = softmax
                hooked.append(node)
        torch.autograd.grad(loss, leaf_list, allow_unused=True)
        return root, {(hooked[which], place): stop for (which, place), stop in found.items()}


def _is_softmax(node: Any) -> bool:
    return str(node.name()).startswith(_SOFTMAX)


def _of_softmax(shape: Sequence[int], dimension: int | None, name: str) -> tuple[str, str]:
    """Return what stops at a softmax, and what helps.

    Args:
        shape: The shape of what it returns.
        dimension: Over which it goes, None if that is not shown.
        name: The module whose output goes into it, if nothing is computed of that before.
    """
    if dimension is None:
        is_one, is_attention = 1 in shape[1:], len(shape) > 2
    else:
        dimension = (dimension + 2**63) % 2**64 - 2**63  # torch shows it without a sign
        is_one, is_attention = shape[dimension] == 1, len(shape) > 2 and dimension % len(shape) == len(shape) - 1
    if not is_one:
        return _SATURATED_TEXT, _SATURATED
    cure = "" if is_attention and not name else _ONE_OUTPUT
    return f"softmax over one element{f', the output of {named(name)}' if name else ''}, which is always 1", cure


def _is_ordinary(gradient: Tensor) -> bool:
    """Return whether a gradient is large enough for 0 not to be what underflow makes of it."""
    return gradient.is_floating_point() and bool((gradient.abs() > torch.finfo(gradient.dtype).tiny ** 0.5).any())


def _has_weight_of_zero(node: Any) -> bool:
    """Return whether a node computes with a single leaf that is 0, as a closed branch does."""
    for source, _ in node.next_functions:
        below = list(leaves(nodes_below([source])))
        if len(below) == 1 and not has_nonzero(below[0]):
            return True
    return False
