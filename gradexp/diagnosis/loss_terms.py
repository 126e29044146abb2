"""Which loss it is, what it is made of, and what guessing costs.

Autograd's graph shows the losses of torch as nodes that keep prediction and target, whoever called them: a loss
function, the model itself, a sum of several. Losses written out by hand are known by their value.
"""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import Node

from gradexp.diagnosis.examination import Examination
from gradexp.numerics.torch_internals import saved_of

_MOST_NODES = 100
# Operations that choose, add, scale and average: what they are made of are terms of a loss.
_LINEAR = {
    f"{name}Backward"
    for name in (
        *("Add", "Sub", "Mul", "Div", "Neg", "Mean", "Sum", "Stack", "Cat", "Index", "Gather", "Select", "Expand"),
        *("View", "UnsafeView", "ReshapeAlias", "Alias", "Squeeze", "Unsqueeze", "ToCopy", "Clone"),
    )
}


@dataclass(frozen=True)
class LossTerm:
    """One term of a loss, as its mean over targets.

    Args:
        kind: ``cross entropy``, ``binary cross entropy``, ``squared error`` or ``absolute error`` (for huber too).
        value: The mean over what is predicted, with weights of classes if there are any.
        guessing: The least that a prediction costs which is the same for all samples of the batch: the entropy of the
            labels' frequencies, or the variance of the targets.
        indifferent: What a fresh model costs that prefers nothing: ln(classes), ln 2, or the mean square of the
            targets.
        prediction: Log-probabilities or logits, classes in the last dimension; for ``binary cross entropy`` logits,
            None where it got probabilities.
        target: The targets, as numbers.
        samples: How many targets there are.
    """

    kind: str
    value: float
    guessing: float
    indifferent: float
    prediction: Tensor | None
    target: Tensor
    samples: int


def far_above(indifferent: float) -> float:
    """Return the cross entropy from which on it is far above that of a model that prefers nothing.

    Logits of standard deviation s cost about s² / 2 more than none, later s √(2 ln classes). With the ordinary
    standard deviation of 1 a loss is far below this; above it the softmax of a fresh model is saturated.
    """
    return 2 * indifferent + 2


def loss_terms(examination: Examination) -> Sequence[LossTerm]:
    """Return the terms of the loss that are known; call it before the backward pass.

    Args:
        examination: The pass, with its loss.
    """
    assert examination.loss is not None
    if examination.terms is not None:  # eight observers ask
        return examination.terms
    with torch.no_grad():
        terms = [
            term for node in nodes_of_loss(examination.loss.grad_fn, _NODES) if (term := _of_node(node)) is not None
        ]
        if not terms:
            term = _by_value(examination)
            terms = [] if term is None else [term]
    examination.terms = [term for term in terms if math.isfinite(term.value) and math.isfinite(term.guessing)]
    return examination.terms


def has_learned(terms: Sequence[LossTerm], share: float = 0.5) -> bool:
    """Return whether a loss has come down to a share of that of guessing."""
    return any(term.guessing > 0 and term.value < share * term.guessing for term in terms)


def nodes_of_loss(end: Node | None, kinds: Container[str]) -> Iterator[Node]:
    """Yield the nodes of some kinds that a loss is a sum of, from the loss down.

    Args:
        end: The loss's node.
        kinds: Names, without the number at the end.
    """
    waiting: list[Node | None] = [end]
    seen: set[Node] = set()
    while waiting and len(seen) < _MOST_NODES:
        node = waiting.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().rstrip("0123456789")
        if name in kinds:
            yield node
        elif name in _LINEAR or name in _NODES:
            waiting.extend(below for below, _ in node.next_functions)


def _of_node(node: Node) -> LossTerm | None:
    prediction, target = saved_of(node, "self"), saved_of(node, "target")
    if type(prediction) is not Tensor or not isinstance(target, Tensor) or not target.numel():
        return None
    name = node.name().rstrip("0123456789")
    if _NODES[name] == "cross entropy":
        weight, ignored = saved_of(node, "weight"), saved_of(node, "ignore_index")
        return _of_labels(prediction, target, weight, _signed(ignored))
    if _NODES[name] == "binary cross entropy":
        is_logits = "WithLogits" in name
        return _binary(prediction, target, is_logits, saved_of(node, "weight"), saved_of(node, "pos_weight"))
    return _regression(prediction, target, _NODES[name])


def _signed(index: Any) -> int:
    """Return an index that autograd keeps as a number without sign."""
    value = -100 if index is None else int(index)
    return value - 2**64 if value >= 2**63 else value


_NODES = {
    "NllLossBackward": "cross entropy",
    "NllLoss2DBackward": "cross entropy",
    "NllLossNdBackward": "cross entropy",
    "BinaryCrossEntropyWithLogitsBackward": "binary cross entropy",
    "BinaryCrossEntropyBackward": "binary cross entropy",
    "MseLossBackward": "squared error",
    "SmoothL1LossBackward": "absolute error",
    "HuberLossBackward": "absolute error",
}


def _by_value(examination: Examination) -> LossTerm | None:
    """Return the term of a loss whose value is that of a known one, up to rounding."""
    found = _prediction_and_target(examination)
    if found is None or not examination.loss.dtype.is_floating_point:  # type: ignore[union-attr]
        return None
    prediction, target = found
    candidates: list[LossTerm | None] = []
    if target.dtype == torch.int64 and prediction.dim() == target.dim() + 1:
        logits = _classes_last(prediction)
        if bool((target >= 0).all()) and int(target.max()) < logits.shape[-1]:
            candidates.append(_of_labels(logits.log_softmax(-1), target, None, -100))
    elif prediction.shape == target.shape and target.is_floating_point():
        candidates += [_regression(prediction, target, kind) for kind in ("squared error", "absolute error")]
        if prediction.dim() > 1 and _are_probabilities(target):
            candidates.append(_of_probabilities(prediction, target))
        if bool(((target >= 0) & (target <= 1)).all()):
            candidates += [_binary(prediction, target, is_logits, None, None) for is_logits in (True, False)]
    value = examination.loss.item()  # type: ignore[union-attr]
    tolerance = 1e-5 if prediction.dtype in (torch.float32, torch.float64) else 1e-2
    return next((term for term in candidates if term and math.isclose(term.value, value, rel_tol=tolerance)), None)


def _prediction_and_target(examination: Examination) -> tuple[Tensor, Tensor] | None:
    output = examination.output
    if not isinstance(output, Tensor) or len(examination.targets) != 1:
        return None
    target = examination.targets[0]
    return (output.detach(), target.detach()) if isinstance(target, Tensor) and target.numel() else None


def _are_probabilities(target: Tensor) -> bool:
    sums = _classes_last(target).double().sum(-1)
    return bool((target >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all())


def _classes_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1) if tensor.dim() > 1 else tensor


def _of_labels(log_probabilities: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> LossTerm | None:
    """Return the term of a cross entropy with one label for each target.

    With ``a_c`` the weight that the loss gives to class c over all targets, the best constant prediction has the
    probabilities ``p_c = a_c / Σ a``, and costs ``-Σ a_c ln p_c / Σ a``.
    """
    if log_probabilities.shape[:-1] != target.shape:  # a picture, with classes in the second dimension
        log_probabilities = log_probabilities.movedim(1, -1)
    labels = target.reshape(-1)
    counted = labels != ignored
    samples, classes = int(counted.sum()), log_probabilities.shape[-1]
    if not samples or classes < 2:
        return None
    labels = labels.where(counted, 0)
    chosen = log_probabilities.reshape(-1, classes).gather(1, labels[:, None])[:, 0].double()
    of_class = torch.ones(classes, dtype=torch.float64, device=labels.device) if weight is None else weight.double()
    of_target = of_class[labels] * counted
    total = of_target.sum()
    shares = torch.zeros_like(of_class).index_add_(0, labels, of_target) / total
    value, guessing = torch.stack([-(chosen * of_target).sum() / total, torch.special.entr(shares).sum()]).tolist()
    return LossTerm("cross entropy", value, guessing, math.log(classes), log_probabilities.detach(), target, samples)


def _of_probabilities(logits: Tensor, target: Tensor) -> LossTerm | None:
    """Return the term of a cross entropy with a probability for each class of each target."""
    logits, target = _classes_last(logits), _classes_last(target)
    classes = logits.shape[-1]
    if classes < 2:
        return None
    shares = target.double().reshape(-1, classes)
    each = -(shares * logits.double().reshape(-1, classes).log_softmax(-1)).sum(-1)
    value, guessing = torch.stack([each.mean(), torch.special.entr(shares.mean(0)).sum()]).tolist()
    return LossTerm("cross entropy", value, guessing, math.log(classes), logits.detach(), target, len(shares))


def _binary(
    prediction: Tensor, target: Tensor, is_logits: bool, weight: Tensor | None, positive: Tensor | None
) -> LossTerm:
    """Return the term of a binary cross entropy, guessing with one probability for each output."""
    of_cell = torch.ones_like(target, dtype=torch.float64) if weight is None else weight.double().expand(target.shape)
    ones = target.double() * of_cell * (1 if positive is None else positive.double())
    zeros = (1 - target.double()) * of_cell
    if is_logits:
        logits = prediction.double()
        cost = (ones * F.softplus(-logits) + zeros * F.softplus(logits)).mean()
    else:  # torch cuts logarithms at -100
        probability = prediction.double()
        cost = -(ones * probability.log().clamp(-100) + zeros * (1 - probability).log().clamp(-100)).mean()
    outputs = [dimension for dimension in range(target.dim()) if dimension != 1] if target.dim() > 1 else None
    a, b = (ones.mean(outputs), zeros.mean(outputs)) if outputs else (ones.mean(), zeros.mean())
    guess = -(torch.special.xlogy(a, a / (a + b)) + torch.special.xlogy(b, b / (a + b))).nan_to_num().mean()
    value, guessing, indifferent = torch.stack([cost, guess, (a + b).mean() * math.log(2)]).tolist()
    kept = prediction.detach() if is_logits else None
    samples = len(target) if target.dim() else 1
    return LossTerm("binary cross entropy", value, guessing, indifferent, kept, target, samples)


def _regression(prediction: Tensor, target: Tensor, kind: str) -> LossTerm | None:
    """Return the term of a regression, guessing with the mean or median target of each output."""
    if prediction.shape != target.shape:
        try:
            prediction, target = torch.broadcast_tensors(prediction, target)
        except RuntimeError:
            return None
    goal = target.double() if target.dim() else target.double()[None]
    error = prediction.double() - target.double()
    if kind == "squared error":
        sizes = error.square().mean(), goal.var(0, correction=0).mean(), goal.square().mean()
    else:
        sizes = error.abs().mean(), (goal - goal.median(0).values).abs().mean(), goal.abs().mean()
    value, guessing, indifferent = torch.stack(sizes).tolist()
    return LossTerm(kind, value, guessing, indifferent, prediction.detach(), target, len(goal))
