"""How weights are updated: torch's optimizers by name, and anybody's.

The parameters of a function between the first and the ``*`` are the options of its optimizer. What all of them have,
such as ``clip_norm`` and ``schedule``, is in ``gradexp.choices``, and ``train`` sees to it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradexp.choices import OF_EVERY_OPTIMIZER, OPTIMIZER_OPTIONS, ConfigError, asked_for
from gradexp.config import OptimizerConfig
from gradexp.own_parts import OwnPart
from gradexp.runs.one_by_one import OneByOne

Weights = list[nn.Parameter]


def build_optimizer(config: OptimizerConfig, weights: Weights, is_stacked: bool = True) -> torch.optim.Optimizer:
    """Return the torch optimizer that the options describe; those that are None have their defaults.

    Args:
        config: The options.
        weights: The parameters.
        is_stacked: Whether they have a leading network dimension.

    Raises:
        ConfigError: If an own part raises, or returns no optimizer of the weights, or torch has none of this name.
    """
    if isinstance(config.name, OwnPart):
        return OneByOne(weights, _own(config.name, config.name.arguments(config)), is_stacked)
    own = OPTIMIZER_OPTIONS[config.name].keys() - OF_EVERY_OPTIMIZER.keys()
    options: dict[str, Any] = {key: getattr(config, key) for key in own}
    options = {key: value for key, value in options.items() if value is not None}
    optimizer = OPTIMIZERS[config.name]
    return optimizer(weights, **options, **asked_for(optimizer, is_stacked=is_stacked))


def is_elementwise(config: OptimizerConfig) -> bool:
    """Return whether each element of a weight is updated by itself, so that weights may lie in one buffer."""
    return not isinstance(config.name, OwnPart) and OPTIMIZERS[config.name] is not _muon


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

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def step(self) -> None:
        """Update the weights."""
        with self._part.named():
            self._optimizer.step()


def _uncompiled(kind: type[Any]) -> Callable[..., torch.optim.Optimizer]:
    """Return an optimizer that does the same without torch's compiler.

    torch's own methods load the compiler, which takes a second, only to tell it to leave them as they are. Nothing is
    compiled in a run.
    """
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    methods["step"] = torch.no_grad()(methods["step"])
    uncompiled: Callable[..., torch.optim.Optimizer] = type(kind.__name__, (kind,), methods)
    return uncompiled


_SGD, _Adam, _AdamW, _RMSprop = map(
    _uncompiled, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)
)


def _sgd(
    weights: Weights,
    lr: float = 0.01,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    return _SGD(weights, lr=lr, weight_decay=weight_decay)


def _momentum(
    weights: Weights,
    lr: float = 0.01,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    return _SGD(weights, lr=lr, weight_decay=weight_decay, momentum=momentum)


def _adam(
    weights: Weights,
    lr: float = 0.001,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    return _Adam(weights, lr=lr, weight_decay=weight_decay)


def _rmsprop(
    weights: Weights,
    lr: float = 0.001,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    return _RMSprop(weights, lr=lr, weight_decay=weight_decay)


def _adamw(weights: Weights, lr: float = 0.001, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    return _AdamW(weights, lr=lr, weight_decay=weight_decay)


def _muon(
    weights: Weights,
    lr: float = 0.001,
    weight_decay: float = 0.01,
    momentum: float = 0.95,
    *,
    is_stacked: bool = True,
) -> torch.optim.Optimizer:
    """Return torch's Muon for the matrices, scaled to steps of AdamW's size, and AdamW for all else.

    Its momentum is made orthogonal before the step (Jordan et al., 2024; Liu et al., 2025, arXiv:2502.16982).
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optimizer=muon needs torch 2.9 or newer, this is {torch.__version__}; use adamw")

    def build(alone: Weights) -> "_Several":
        matrices = [weight for weight in alone if weight.dim() == 2]
        vectors = [weight for weight in alone if weight.dim() != 2]
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        muon = torch.optim.Muon(matrices, momentum=momentum, adjust_lr_fn="match_rms_adamw", **options)
        return _Several([muon, *([torch.optim.AdamW(vectors, **options)] if vectors else [])])

    return OneByOne(weights, build, is_stacked)


class _Several:
    """Some optimizers as one."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Update the weights."""
        for optimizer in self._optimizers:
            optimizer.step()


# Options and defaults are read from here without importing the file: see gradexp/choices.py.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
    "rmsprop": _rmsprop,
    "adamw": _adamw,
    "muon": _muon,
}
