"""How weights are updated: torch's optimizers by name, and anybody's.

The parameters of a function after the first are the options of its optimizer. ``clip_norm`` is an option of all of
them, and ``train`` applies it before the update.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradexp.choices import OPTIMIZER_OPTIONS
from gradexp.config import OptimizerConfig
from gradexp.own_parts import OwnPart
from gradexp.runs.one_by_one import OneByOne

Weights = list[nn.Parameter]


def build_optimizer(config: OptimizerConfig, weights: Weights) -> torch.optim.Optimizer:
    """Return the torch optimizer that the options describe; those that are None have their defaults.

    Raises:
        ConfigError: If an own part raises, or returns no optimizer of the weights.
    """
    if isinstance(config.name, OwnPart):
        return OneByOne(weights, _own(config.name, config.name.arguments(config)))
    options: dict[str, Any] = {key: getattr(config, key) for key in OPTIMIZER_OPTIONS[config.name]}
    return OPTIMIZERS[config.name](weights, **{key: value for key, value in options.items() if value is not None})


def _own(part: OwnPart, options: dict[str, Any]) -> Callable[[Weights], Any]:
    """Return a function that builds an own optimizer of the weights of one network, and names its mistakes."""

    def build(weights: Weights) -> Any:
        with part.named():
            optimizer = part.function(weights, **options)
        if not (hasattr(optimizer, "step") and hasattr(optimizer, "param_groups")):
            raise part.mistake(f"returns {type(optimizer).__name__}, not a torch.optim.Optimizer")
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        if missing := sum(id(weight) not in held for weight in weights):
            raise part.mistake(f"returns an optimizer without {missing} of the {len(weights)} parameters")
        return _Named(part, optimizer)

    return build


class _Named:
    """An own optimizer whose errors have its name."""

    def __init__(self, part: OwnPart, optimizer: Any) -> None:
        self._part, self._optimizer = part, optimizer

    def step(self) -> None:
        """Update the weights."""
        with self._part.named():
            self._optimizer.step()


def _sgd(
    weights: Weights,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=lr, weight_decay=weight_decay)


def _momentum(
    weights: Weights,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=lr, weight_decay=weight_decay, momentum=momentum)


def _adam(
    weights: Weights,
    lr: float = 0.001,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr=lr, weight_decay=weight_decay)


def _rmsprop(
    weights: Weights,
    lr: float = 0.001,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,  # noqa: ARG001
) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(weights, lr=lr, weight_decay=weight_decay)


# Options and defaults are read from here without importing the file: see gradexp/choices.py.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
    "rmsprop": _rmsprop,
}
