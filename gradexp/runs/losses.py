"""Training losses by name, with the targets they take and the loss of guessing."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gradexp.choices import ConfigError
from gradexp.own_parts import OwnPart
from gradexp.runs.data import Dataset


@dataclass(frozen=True)
class Loss:
    """A training loss.

    Args:
        function: Each network's mean loss, shape ``(networks,)``, from outputs of shape ``(networks, batch, n_L)``
            and targets.
        takes_classes: Whether targets are classes, int64 of shape ``(networks, batch)``; else they are numbers of
            the shape of the outputs, for classes one-hot rows.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    takes_classes: bool = False


def batch_losses(output: Tensor, y: Tensor, loss: str) -> Tensor:
    """Return each network's mean loss over its batch (for mse also over outputs), shape ``(networks,)``.

    It is computed in float32 from outputs of 16 bits, which could not tell losses of 2.30 and 2.31 apart.

    Args:
        output: Outputs, shape ``(networks, batch, n_L)``.
        y: Classes, shape ``(networks, batch)``, or values like ``output``.
        loss: A key of ``LOSSES``, or an own part.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    return _find(loss).function(output, y)


def output_gradient(output: Tensor, y: Tensor, loss: str) -> Tensor:
    """Return the gradient of each network's mean loss with respect to its outputs, a tensor like ``output``.

    Args:
        output: Outputs, shape ``(networks, batch, n_L)``.
        y: Targets as in ``batch_losses``.
        loss: A key of ``LOSSES``, or an own part.
    """
    output = output.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(batch_losses(output, y, loss).sum(), output)
    return gradient


def _find(loss: str) -> Loss:
    """Return a loss; an own one gets classes where the data have them."""
    if isinstance(loss, OwnPart):
        return Loss(partial(_own, loss), takes_classes=True)
    return LOSSES[loss]


def _own(part: OwnPart, output: Tensor, y: Tensor) -> Tensor:
    """Return an own loss of each network, which sees outputs ``(batch, n_L)`` and targets as if it were alone.

    Raises:
        ConfigError: If it raises, or returns no number that depends on the outputs.
    """
    values = []
    for alone, target in zip(output, y, strict=True):
        with part.named():
            value = part.function(alone, target)
        if not isinstance(value, Tensor):
            raise part.mistake(f"returns {type(value).__name__}, not a tensor with one number")
        if value.numel() != 1:
            raise part.mistake(f"returns shape {tuple(value.shape)}, not one number: take the mean")
        if output.requires_grad and not value.requires_grad:
            raise part.mistake("does not depend on the outputs in a way that autograd knows")
        values.append(value.reshape(()))
    return torch.stack(values)


def _check_own(part: OwnPart, data: Dataset) -> None:
    """Check an own loss on outputs as they can be, so that what is not finite later is the training's doing.

    Raises:
        ConfigError: If it fails, or is not finite there.
    """
    y = data.y_train[:16]
    shape = (1, len(y), data.output_width)
    output = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    value = _own(part, output, y[None])
    if not value.isfinite().all():
        raise part.mistake(f"is {value.item()} for outputs drawn from N(0, 1)")


def resolve_loss(loss: str, data: Dataset, name: str) -> str:
    """Return a key of ``LOSSES``, or an own part; ``"auto"`` is cross entropy for classes, else mse.

    Raises:
        ConfigError: For a loss of classes with real-valued targets, or an own part that is no loss.
    """
    if isinstance(loss, OwnPart):
        _check_own(loss, data)
        return loss
    if loss == "auto":
        return "mse" if data.classes is None else "cross_entropy"
    if LOSSES[loss].takes_classes and data.classes is None:
        raise ConfigError(f"loss={loss} needs class labels, but data '{name}' has real-valued targets; use loss=mse")
    return loss


def targets(y: Tensor, loss: str, classes: int | None) -> Tensor:
    """Return ``y`` as the loss takes it: float64 one-hot rows for mse on classes, otherwise unchanged."""
    if classes is not None and not _find(loss).takes_classes:
        return F.one_hot(y, classes).to(torch.float64)
    return y


def chance_loss(data: Dataset, loss: str) -> float | None:
    """Return the training loss of a network that ignores its input; None where an own loss has none.

    It returns what no constant output can beat: the logarithms of how frequent the training classes are, which costs
    the entropy of the labels in cross entropy, ln(classes) where all are equally frequent; or the mean training
    target, in mse. With an own loss it is the best constant that L-BFGS finds.
    """
    if isinstance(loss, OwnPart):
        return _best_constant(loss, data.y_train, data.output_width)
    y = targets(data.y_train, loss, data.classes)
    if _find(loss).takes_classes:
        counts = torch.bincount(y, minlength=data.output_width).double()
        constant = (counts / len(y)).clamp(min=torch.finfo(torch.float64).tiny).log().expand(len(y), -1)
    else:
        constant = y.mean(0).expand_as(y)
    return batch_losses(constant[None], y[None], loss).item()


def chance_accuracy(data: Dataset) -> float | None:
    """Return the training accuracy of a network that ignores its input: the share of the most frequent class.

    It is None where there are no classes.
    """
    if data.classes is None:
        return None
    return float(torch.bincount(data.y_train).max()) / len(data.y_train)


def _best_constant(part: OwnPart, y: Tensor, width: int) -> float | None:
    """Return the lowest loss of one output for all samples, from 0 downhill."""
    constant = torch.zeros(width, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], max_iter=100, line_search_fn="strong_wolfe")
    values: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = _own(part, constant.expand(1, len(y), -1), y[None]).sum()
        value.backward()
        values.append(value.item())
        return value

    try:
        optimizer.step(closure)
    except (ConfigError, RuntimeError):  # a correlation, say, has no value where nothing varies
        return None
    finite = [value for value in values if math.isfinite(value)]
    return min(finite) if finite else None


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


def _mse(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, y, reduction="none").flatten(1).mean(1)


# The names are read from here without importing the file: see gradexp/choices.py.
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(_cross_entropy, takes_classes=True),
    "mse": Loss(_mse),
}
