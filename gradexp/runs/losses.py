"""Training losses by name, with the targets they take and the loss of guessing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gradexp.choices import ConfigError
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

    Args:
        output: Outputs, shape ``(networks, batch, n_L)``.
        y: Classes, shape ``(networks, batch)``, or values like ``output``.
        loss: A key of ``LOSSES``.
    """
    return LOSSES[loss].function(output, y)


def resolve_loss(loss: str, data: Dataset, name: str) -> str:
    """Return a key of ``LOSSES``; ``"auto"`` is cross entropy for classes, else mse.

    Raises:
        ConfigError: For a loss of classes with real-valued targets.
    """
    if loss == "auto":
        return "mse" if data.classes is None else "cross_entropy"
    if LOSSES[loss].takes_classes and data.classes is None:
        raise ConfigError(f"loss={loss} needs class labels, but data '{name}' has real-valued targets; use loss=mse")
    return loss


def targets(y: Tensor, loss: str, classes: int | None) -> Tensor:
    """Return ``y`` as the loss takes it: float64 one-hot rows for mse on classes, otherwise unchanged."""
    if classes is not None and not LOSSES[loss].takes_classes:
        return F.one_hot(y, classes).to(torch.float64)
    return y


def chance_loss(data: Dataset, loss: str) -> float:
    """Return the training loss of a network that ignores its input.

    It returns what no constant output can beat: the logarithms of how frequent the training classes are, which costs
    the entropy of the labels in cross entropy, ln(classes) where all are equally frequent; or the mean training
    target, in mse.
    """
    y = targets(data.y_train, loss, data.classes)
    if LOSSES[loss].takes_classes:
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


def _cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


def _mse(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, y, reduction="none").flatten(1).mean(1)


# The names are read from here without importing the file: see gradexp/choices.py.
LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(_cross_entropy, takes_classes=True),
    "mse": Loss(_mse),
}
