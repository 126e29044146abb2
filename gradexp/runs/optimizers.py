"""How weights are updated: torch's optimizers by name.

The parameters of a function after the first are the options of its optimizer. ``clip_norm`` is an option of all of
them, and ``train`` applies it before the update.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradexp.choices import OPTIMIZER_OPTIONS
from gradexp.config import OptimizerConfig

Weights = list[nn.Parameter]


def build_optimizer(config: OptimizerConfig, weights: Weights) -> torch.optim.Optimizer:
    """Return the torch optimizer that the options describe; those that are None have their defaults."""
    options: dict[str, Any] = {key: getattr(config, key) for key in OPTIMIZER_OPTIONS[config.name]}
    return OPTIMIZERS[config.name](weights, **{key: value for key, value in options.items() if value is not None})


def _uncompiled(kind: type[Any]) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer that does the same without torch's compiler.

    torch's own methods load the compiler, which takes a second, only to tell it to leave them as they are. Nothing is
    compiled in a run.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    methods["step"] = torch.no_grad()(methods["step"])
    uncompiled: Callable[..., torch.optim.Optimizer] = type(kind.__name__, (kind,), methods)
    return uncompiled


_SGD, _Adam, _RMSprop = map(_uncompiled, (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop))


def _sgd(
    weights: Weights,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
) -> torch.optim.Optimizer:
    return _SGD(weights, lr=lr, weight_decay=weight_decay)


def _momentum(
    weights: Weights,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    return _SGD(weights, lr=lr, weight_decay=weight_decay, momentum=momentum)


def _adam(
    weights: Weights,
    lr: float = 0.001,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
) -> torch.optim.Optimizer:
    return _Adam(weights, lr=lr, weight_decay=weight_decay)


def _rmsprop(
    weights: Weights,
    lr: float = 0.001,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
) -> torch.optim.Optimizer:
    return _RMSprop(weights, lr=lr, weight_decay=weight_decay)


# Options and defaults are read from here without importing the file: see gradexp/choices.py.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
    "rmsprop": _rmsprop,
}
