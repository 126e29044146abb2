"""The training loop."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradexp.networks.mlp import evaluating
from gradexp.networks.one_node import OneNode, side_by_side
from gradexp.numerics.norms import joint_log10_norm, log10_norm
from gradexp.probe.one_node import OneNodeProbe
from gradexp.probe.probe import GradientProbe
from gradexp.runs.losses import batch_losses
from gradexp.runs.precision import Precision
from gradexp.runs.schedules import Schedule


class Split(NamedTuple):
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
    """The record of a training, filled in step by step so that an interruption loses nothing.

    Args:
        losses: Training loss of each step's batch, before the step's update.
        accuracies: Share of each batch classified right; empty for regression.
        tests: (step, test loss, test accuracy or None), measured before that step's update.
        diverged_at: First step whose loss is not finite or whose update left a weight that is not.
        train_accuracy: Accuracy on the whole training part at the end.
        skipped: Steps that a GradScaler left out, since a gradient of the scaled loss was not finite.
    """

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    tests: list[tuple[int, float, float | None]] = field(default_factory=list)
    diverged_at: int | None = None
    train_accuracy: float | None = None
    skipped: list[int] = field(default_factory=list)


def train(
    model: nn.Module | OneNode,
    train_part: Split,
    test_part: Split,
    batches: Sequence[Iterator[Tensor]],
    loss: str,
    optimizer: torch.optim.Optimizer,
    steps: int,
    probe: GradientProbe | OneNodeProbe,
    logs: Sequence[Training],
    clip_norm: float | None = None,
    schedule: Schedule | None = None,
    on_step: Callable[[int], None] = lambda _: None,
    precision: Precision | None = None,
) -> None:
    """Train independent networks until ``steps``; a loss or weight that is not finite is a result and no error.

    The networks share every operation and nothing else: the gradient of the sum of their losses is that of each loss
    for its own network. One that has diverged keeps the weights it then had, and the others go on.

    Args:
        model: A network, or a stack of them whose parameters have a leading network dimension.
        train_part: The data that batches are taken from.
        test_part: The data that is evaluated ten times on the way.
        batches: One iterator per network, over index batches into the training part.
        loss: A key of ``LOSSES``.
        optimizer: The optimizer of the model's parameters; it must update each element by itself.
        steps: Number of updates.
        probe: The probe on the model; it collects after every backward pass, before clipping.
        logs: One per network, filled in as training goes on.
        clip_norm: Largest allowed norm of the whole gradient of a network, ``g ← g min(1, clip_norm / ‖g‖)``
            (Pascanu et al., 2013); None: no clipping.
        schedule: Sets the learning rate ahead of each step; None: it stays.
        on_step: A function that is called after each step with its number.
        precision: The formats to compute in; None: that of the weights.
    """
    precision = precision or Precision()
    networks = len(logs)
    if isinstance(model, OneNode):
        parameters, buffer = model.values.all, model.values.buffer
    else:
        parameters = list(model.parameters())
        buffer, _ = side_by_side(parameters)
    between_tests = max(1, steps // 10)
    kept: list[tuple[int, list[Tensor]]] = []  # weights of networks that have diverged
    with probe:
        for step in range(steps):
            if step % between_tests == 0:
                _test(model, test_part, loss, step, logs, precision)
            rows = torch.stack([next(stream) for stream in batches]).to(train_part.x.device)
            with precision.casting():
                output = model(train_part.x[rows])
            losses = batch_losses(output, train_part.y[rows], loss)
            precision.scaler.scale(losses.sum()).backward()
            probe.collect(step, losses)
            shares = None if train_part.labels is None else shares_correct(output, train_part.labels[rows])
            if clip_norm is not None:
                precision.scaler.unscale_(optimizer)
                clip(_gradients(model), clip_norm, networks)
            if schedule is not None:
                schedule.before(step)
            if not precision.step(optimizer):
                logs[0].skipped.append(step)
            optimizer.zero_grad()
            finite = losses.isfinite() & all_finite(parameters, networks, buffer)
            _log(step, logs, losses, shares, finite)
            for network, log in enumerate(logs):
                if log.diverged_at == step and networks > 1:
                    kept.append((network, [parameter[network].detach().clone() for parameter in parameters]))
            on_step(step)
            if all(log.diverged_at is not None for log in logs):
                break
    with torch.no_grad():
        for network, weights in kept:
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter[network].copy_(weight)
    if any(log.diverged_at is None for log in logs):
        _test(model, test_part, loss, steps, logs, precision)
        _, accuracies = evaluate(model, train_part, loss, networks, precision)
        for log, accuracy in zip(logs, accuracies, strict=True):
            if log.diverged_at is None:
                log.train_accuracy = accuracy


def _test(
    model: nn.Module | OneNode, split: Split, loss: str, step: int, logs: Sequence[Training], precision: Precision
) -> None:
    """Add an evaluation to the log of each network that has not diverged."""
    for log, value, accuracy in zip(logs, *evaluate(model, split, loss, len(logs), precision), strict=True):
        if log.diverged_at is None:
            log.tests.append((step, value, accuracy))


def _log(step: int, logs: Sequence[Training], losses: Tensor, shares: Tensor | None, finite: Tensor) -> None:
    """Add a step to the log of each network that has not diverged before it."""
    values, fine = losses.tolist(), finite.tolist()
    accuracies = [None] * len(logs) if shares is None else shares.tolist()
    for log, value, accuracy, is_fine in zip(logs, values, accuracies, fine, strict=True):
        if log.diverged_at is None:
            log.losses.append(value)
            if accuracy is not None:
                log.accuracies.append(accuracy)
            if not is_fine:
                log.diverged_at = step


def shares_correct(output: Tensor, labels: Tensor) -> Tensor:
    """Return for each network the share of rows whose largest output is the right class, shape ``(networks,)``."""
    return (output.argmax(-1) == labels).sum(1).cpu().double() / labels.shape[-1]  # mps has no float64


@torch.no_grad()
def evaluate(
    model: nn.Module | OneNode, split: Split, loss: str, networks: int = 1, precision: Precision | None = None
) -> tuple[list[float], list[float] | list[None]]:
    """Return each network's loss and accuracy (None for regression) over all of a split, without dropout."""
    casting = nullcontext() if precision is None else precision.casting()
    with evaluating(model) if isinstance(model, nn.Module) else nullcontext(), casting:
        output = torch.cat([model(rows.expand(networks, *rows.shape)) for rows in split.x.split(_ROWS)], dim=1)
    losses: list[float] = batch_losses(output, split.y.expand(networks, *split.y.shape), loss).tolist()
    accuracies = [None] * networks if split.labels is None else shares_correct(output, split.labels).tolist()
    return losses, accuracies


@torch.no_grad()
def clip(gradients: Sequence[Tensor], largest: float, networks: int = 1) -> None:
    """Scale all gradients of a network together so that their joint L2 norm is at most ``largest``.

    Unlike ``torch.nn.utils.clip_grad_norm_`` the norm neither under- nor overflows, and each network of a stack is
    scaled by its own norm.
    """
    logs = torch.stack([log10_norm(gradient, networks) for gradient in gradients])
    scales = 10 ** (math.log10(largest) - joint_log10_norm(logs))
    scales = scales.where(scales < 1, 1)
    if (scales < 1).any():
        for gradient in gradients:
            # In float32 at least: a factor that float16 rounds to 0 may leave a gradient that it can hold.
            kind = torch.promote_types(gradient.dtype, torch.float32)
            gradient.mul_(scales.to(kind).view(networks, *[1] * (gradient.dim() - 1)))


def all_finite(parameters: Sequence[Tensor], networks: int = 1, buffer: Tensor | None = None) -> Tensor:
    """Return for each network whether every element of every parameter is finite, shape ``(networks,)``.

    Args:
        parameters: With a leading dimension for networks, if there are several.
        networks: Their number.
        buffer: What holds the values of all parameters, if anything does.
    """
    # A norm that is finite has no other elements, and is ten times as fast as a look at each; it may overflow.
    looked_at = parameters if buffer is None else [buffer]
    norms = [torch.linalg.vector_norm(part.detach()) for part in looked_at]
    if torch.stack(norms).isfinite().all():
        return parameters[0].new_ones(networks, dtype=torch.bool)
    rows = [parameter.detach().reshape(networks, -1) for parameter in parameters]
    # aminmax passes nan on, and is much faster than isfinite.
    return torch.stack([end for row in rows for end in torch.aminmax(row, dim=1)]).isfinite().all(0)


def _gradients(model: nn.Module | OneNode) -> list[Tensor]:
    """Return the gradient of each parameter of a model that has one."""
    if isinstance(model, OneNode):
        return model.gradients.all
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


# Samples evaluated at a time.
_ROWS = 1024
