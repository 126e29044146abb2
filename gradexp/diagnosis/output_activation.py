"""An activation after the last layer that keeps the output from where the targets are."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.loss_terms import loss_terms, nodes_of_loss
from gradexp.diagnosis.origins import Origins
from gradexp.diagnosis.squashed_twice import kind_of, without_shapes
from gradexp.history.finding import Finding
from gradexp.history.sentences import named
from gradexp.numerics.torch_internals import saved_of

# Node -> the activation, and the range of its results.
_RANGES = {
    "ReluBackward": ("relu", 0.0, math.inf),
    "SoftplusBackward": ("softplus", 0.0, math.inf),
    "GeluBackward": ("gelu", -0.17, math.inf),
    "SiluBackward": ("silu", -0.279, math.inf),
    "MishBackward": ("mish", -0.309, math.inf),
    "EluBackward": ("elu", -1.0, math.inf),
    "SigmoidBackward": ("sigmoid", 0.0, 1.0),
    "SoftmaxBackward": ("softmax", 0.0, 1.0),
    "TanhBackward": ("tanh", -1.0, 1.0),
}
_LOGITS = {"LogSoftmaxBackward": "cross entropy", "BinaryCrossEntropyWithLogitsBackward": "binary cross entropy"}
_REGRESSION = {"MseLossBackward", "SmoothL1LossBackward", "HuberLossBackward"}
_TWICE = ("sigmoid", "softmax")  # before logits they are told as what they are: a squashing twice
_FEW = 0.02  # of targets may be noise beyond the range


class OutputActivation(Observer):
    """Finds a rectifier before a loss of logits, and an activation whose range leaves targets of a regression out."""

    def begin(self, examination: Examination) -> None:
        """Prepare to name modules."""
        self._origins = Origins()

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Remember which node ends the call."""
        self._origins.see_call(name, module, args, output)

    def see_loss(self, examination: Examination) -> None:
        """Look at what made the loss's input, and at the targets."""
        assert examination.loss is not None
        end = examination.loss.grad_fn
        found = [self._of_logits(node) for node in nodes_of_loss(end, _LOGITS)]
        ends = list(nodes_of_loss(end, _REGRESSION))
        found += [self._of_targets(node.next_functions[0][0], saved_of(node, "target")) for node in ends]
        if not ends and isinstance(examination.output, Tensor):
            terms = [term for term in loss_terms(examination) if term.kind in ("squared error", "absolute error")]
            found += [self._of_targets(examination.output.grad_fn, term.target) for term in terms]
        self._found = [finding for finding in found if finding is not None][:1]

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found before the backward pass."""
        return self._found

    def _of_logits(self, loss: Node) -> Finding | None:
        node = without_shapes(loss.next_functions[0][0])
        found = None if node is None else _range(node)
        if node is None or found is None:
            return None
        activation, low, high = found
        if activation in _TWICE or (activation == "clamp" and low < -1):  # which only keeps numbers finite
            return None
        bounds = f"cannot be below {low:g}" if high == math.inf else f"can only lie between {low:g} and {high:g}"
        why = f"logits of {_LOGITS[kind_of(loss)]} {bounds}"
        result = saved_of(node, "result")
        if activation == "relu" and isinstance(result, Tensor):
            why += f", and {100 * float((result == 0).double().mean()):.0f} % are 0 and pass no gradient on"
        return self._finding(node, activation, why)

    def _of_targets(self, above: Node | None, target: Any) -> Finding | None:
        node = without_shapes(above)
        found = None if node is None else _range(node)
        if node is None or found is None or type(target) is not Tensor or not target.numel():
            return None
        activation, low, high = found
        least, most, share = torch.stack(
            [*target.detach().double().aminmax(), ((target < low) | (target > high)).double().mean()]
        ).tolist()
        if not share > _FEW:
            return None
        bounds = f"from {low:g} up" if high == math.inf else f"between {low:g} and {high:g}"
        if low == -math.inf:
            bounds = f"up to {high:g}"
        why = f"{100 * share:.0f} % of the targets, {least:.3g} to {most:.3g}, lie outside of its range, {bounds}"
        return self._finding(node, activation, why)

    def _finding(self, node: Node, activation: str, why: str) -> Finding:
        names = self._origins.weighted_before(node)
        own = self._origins.ended_by(node)
        name = own.name if own is not None and not self._origins.has_weights(node) else ""
        before = named(names[0]) if names and names[0] else ""
        after = f" after {before}" if before else ""
        text = f"the last step before the loss is a {activation}{f' ({named(name)})' if name else ''}{after}: {why}"
        remedy = (
            f"model.set_submodule({name!r}, torch.nn.Identity())"
            if name and isinstance(own and own.module, _MODULES)
            else f"the output{f' of {before}' if before else ''} itself, without the {activation}"
        )
        return Finding("activation on the output", text, tuple(names[:1]), remedy, 2)


def _range(node: Node) -> tuple[str, float, float] | None:
    """Return the name of an activation, and the smallest and largest of its results; None for other operations."""
    kind = kind_of(node)
    if kind not in _BOUNDED:
        return _RANGES.get(kind)
    low, high = (saved_of(node, name) for name in _BOUNDED[kind])
    return "clamp", -math.inf if low is None else float(low), math.inf if high is None else float(high)


_BOUNDED = {"HardtanhBackward": ("min_val", "max_val"), "ClampBackward": ("min", "max")}
_MODULES = (
    nn.ReLU,
    nn.ReLU6,
    nn.Hardtanh,
    nn.ELU,
    nn.Softplus,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Softmax,
    nn.Tanh,
)
