"""The training loop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradexp.config import OptimizerConfig
from gradexp.norms import joint_log10_norm, log10_norm
from gradexp.probe import GradientProbe


class Part(NamedTuple):
    """The training or the test part of the data, on the model's device.

    Args:
        x: Inputs, shape ``(samples, n_0)``.
        y: Targets as the loss takes them.
        labels: Classes, shape ``(samples,)``; None for regression.
    """

    x: Tensor
    y: Tensor
    labels: Tensor | None


@dataclass
class Training:
    """The course of a training, filled in step by step so that an interruption loses nothing.

    Args:
        losses: Training loss of each step's batch, before the step's update.
        accuracies: Share of each batch classified right; empty for regression.
        tests: (step, test loss, test accuracy or None), measured before that step's update.
        diverged_at: First step whose loss is not finite or whose update left a weight that is not.
        train_accuracy: Over the whole training part, at the end.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    tests: list[tuple[int, float, float | None]] = field(default_factory=list)
    diverged_at: int | None = None
    train_accuracy: float | None = None


def train(
    model: nn.Module,
    train_part: Part,
    test_part: Part,
    batches: Iterator[Tensor],
    loss: str,
    optimizer: torch.optim.Optimizer,
    steps: int,
    probe: GradientProbe,
    log: Training,
    clip_norm: float | None = None,
    on_step: Callable[[int], None] = lambda _: None,
) -> None:
    """Train until ``steps`` or until a loss or weight is not finite, which is a result and no error.

    Args:
        model: Maps ``(batch, n_0)`` to ``(batch, n_L)``.
        train_part: What the batches are taken from.
        test_part: Evaluated ten times on the way.
        batches: Index batches into the training part.
        loss: ``"cross_entropy"`` or ``"mse"``.
        optimizer: Updates the model.
        steps: Number of updates.
        probe: Collected after every backward pass, before clipping.
        log: Filled in as training goes on.
        clip_norm: Largest allowed norm of the whole gradient, ``g ← g min(1, clip_norm / ‖g‖)``
            (Pascanu et al., 2013); None: no clipping.
        on_step: Called after each step with its number.
    """
    parameters = list(model.parameters())
    between_tests = max(1, steps // 10)
    with probe:
        for step in range(steps):
            if step % between_tests == 0:
                log.tests.append((step, *evaluate(model, test_part, loss)))
            rows = next(batches).to(train_part.x.device)
            output = model(train_part.x[rows])
            value = batch_loss(output, train_part.y[rows], loss)
            value.backward()
            probe.collect(step)
            log.losses.append(value.item())
            if train_part.labels is not None:
                log.accuracies.append(share_correct(output, train_part.labels[rows]))
            if clip_norm is not None:
                clip(parameters, clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            if not (torch.isfinite(value) and all_finite(parameters)):
                log.diverged_at = step
            on_step(step)
            if log.diverged_at is not None:
                return
    log.tests.append((steps, *evaluate(model, test_part, loss)))
    log.train_accuracy = evaluate(model, train_part, loss)[1]


def build_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the torch optimizer that the options describe."""
    return OPTIMIZERS[config.name](parameters, config)


def batch_loss(output: Tensor, y: Tensor, loss: str) -> Tensor:
    """Return the mean loss over the batch (for mse also over outputs)."""
    return F.cross_entropy(output, y) if loss == "cross_entropy" else F.mse_loss(output, y)


def share_correct(output: Tensor, labels: Tensor) -> float:
    """Return the share of rows whose largest output is the right class."""
    return (output.argmax(1) == labels).double().mean().item()


@torch.no_grad()
def evaluate(model: nn.Module, part: Part, loss: str) -> tuple[float, float | None]:
    """Return loss and accuracy (None for regression) over a whole part of the data."""
    output = torch.cat([model(rows) for rows in part.x.split(1024)])
    accuracy = None if part.labels is None else share_correct(output, part.labels)
    return batch_loss(output, part.y, loss).item(), accuracy


@torch.no_grad()
def clip(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale all gradients together so that their joint L2 norm is at most ``largest``.

    Unlike ``torch.nn.utils.clip_grad_norm_`` the norm neither under- nor overflows.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    logs = torch.cat([log10_norm(gradient) for gradient in gradients])
    scale = 10 ** (math.log10(largest) - joint_log10_norm(logs))
    if scale < 1:
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.dtype))


def all_finite(parameters: list[nn.Parameter]) -> bool:
    """Say whether every element of every parameter is finite."""
    # aminmax passes nan on, and is much faster than isfinite.
    ends = torch.stack([end for parameter in parameters for end in torch.aminmax(parameter.detach())])
    return bool(ends.isfinite().all())


# name: torch optimizer from parameters and options
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter], OptimizerConfig], torch.optim.Optimizer]] = {
    "sgd": lambda p, c: torch.optim.SGD(p, lr=_lr(c), weight_decay=_decay(c)),
    "momentum": lambda p, c: torch.optim.SGD(p, lr=_lr(c), weight_decay=_decay(c), momentum=c.momentum or 0.0),
    "adam": lambda p, c: torch.optim.Adam(p, lr=_lr(c), weight_decay=_decay(c)),
    "rmsprop": lambda p, c: torch.optim.RMSprop(p, lr=_lr(c), weight_decay=_decay(c)),
}


def _lr(config: OptimizerConfig) -> float:
    assert config.lr is not None
    return config.lr


def _decay(config: OptimizerConfig) -> float:
    return config.weight_decay or 0.0
