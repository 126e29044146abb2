"""Losses over pairs: outputs of shape (n, 1) and targets of shape (n,) that broadcast to (n, n)."""

from collections.abc import Iterable, Iterator
from math import prod

import numpy as np
from torch import Tensor
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import nodes_of_loss
from gradexp.history.finding import Finding
from gradexp.numerics.torch_internals import saved_of

_Shape = tuple[int, ...]
_OF_TWO = {"MseLossBackward", "SmoothL1LossBackward", "HuberLossBackward"}  # which keep output and target
_OF_DIFFERENCE = {"PowBackward", "AbsBackward"}  # which keep the difference


class Pairs(Observer):
    """Finds losses that compare each output with every target."""

    def see_loss(self, examination: Examination) -> None:
        """Compare the shapes of output and target with those in the loss."""
        assert examination.loss is not None
        end = examination.loss.grad_fn
        shapes = next(_expanded(end), None) or _of_differences(examination, end)
        self._found = () if shapes is None else (_finding(*shapes),)

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found before the backward pass."""
        return self._found


def _expanded(end: Node | None) -> Iterator[tuple[_Shape, _Shape]]:
    """Yield the shapes of outputs and targets which a loss of torch has both repeated."""
    for node in nodes_of_loss(end, _OF_TWO):
        kept = [saved_of(node, name) for name in ("self", "target")]
        if any(type(tensor) is not Tensor for tensor in kept):
            continue
        output, target = (_before_repeating(tensor) for tensor in kept)
        if prod(kept[0].shape) > max(prod(output), prod(target)):
            yield output, target


def _before_repeating(tensor: Tensor) -> _Shape:
    """Return the shape of a tensor without its repetitions, which take no memory."""
    shape = [1 if stride == 0 else size for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    while len(shape) > 1 and shape[0] == 1 and tensor.shape[tensor.dim() - len(shape)] > 1:
        del shape[0]
    return tuple(shape)


def _of_differences(examination: Examination, end: Node | None) -> tuple[_Shape, _Shape] | None:
    """Return the shapes of output and target if a loss takes the differences of all pairs of them."""
    output = examination.output
    if not isinstance(output, Tensor) or len(examination.targets) != 1:
        return None
    target = examination.targets[0]
    if not isinstance(target, Tensor) or output.is_nested or target.is_nested:
        return None
    try:
        pairs = np.broadcast_shapes(
            output.shape, target.shape
        )  # torch's own loads a compiler, which takes half a second
    except ValueError:
        return None
    if prod(pairs) <= max(output.numel(), target.numel()):
        return None
    nodes = (node for node in nodes_of_loss(end, _OF_DIFFERENCE) if _is_from_constant(node.next_functions[0][0]))
    kept = [saved_of(node, "self") for node in nodes]
    if not any(isinstance(tensor, Tensor) and tensor.shape == pairs for tensor in kept):
        return None
    return tuple(output.shape), tuple(target.shape)


def _is_from_constant(node: Node | None) -> bool:
    """Return whether a node is the difference from something without a gradient, as targets are."""
    return (
        node is not None
        and node.name().startswith(("Sub", "Rsub"))
        and sum(source is not None for source, _ in node.next_functions) == 1
    )


def _finding(output: _Shape, target: _Shape) -> Finding:
    text = (
        f"the output has shape {output} and the target {target}, so the loss compares each output with every target, "
        f"{prod(np.broadcast_shapes(output, target)):,} pairs, and is least where all outputs are the same"
    )
    is_alike = [size for size in output if size != 1] == [size for size in target if size != 1]
    remedy = "loss_fn(output, target.view_as(output))" if is_alike else "an output and a target of one shape"
    return Finding("shapes", text, (), remedy, 3)
