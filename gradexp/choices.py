"""The names that the library and the command line share; imports nothing."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

ACTIVATIONS = (
    "linear",
    "tanh",
    "relu",
    "sigmoid",
    "leaky_relu",
    "hard_tanh",
    "erf",
    "elu",
    "selu",
    "gelu",
    "silu",
    "softplus",
    "softsign",
)
NORMALIZATIONS = ("none", "batch", "layer")
RESIDUALS = ("none", "plain", "depth", "zero")
LOSSES = ("auto", "cross_entropy", "mse")
DTYPES = ("float32", "float64")
MODES = ("fan_in", "fan_out")
DISTRIBUTIONS = ("normal", "uniform")

INIT_OPTIONS: dict[str, dict[str, Any]] = {
    "he": {"gain": 1.0, "mode": "fan_in", "distribution": "normal"},
    "xavier": {"gain": 1.0, "distribution": "normal"},
    "lecun": {"gain": 1.0, "distribution": "normal"},
    "orthogonal": {"gain": 1.0},
    "identity": {"gain": 1.0},
    "normal": {"gain": 1.0, "std": 0.01},
    "uniform": {"gain": 1.0, "std": 0.01},
    "truncated_normal": {"gain": 1.0, "std": None, "corrected": True},
    "sparse": {"gain": 1.0, "std": None, "sparsity": 0.9},
    "torch_default": {"gain": 1.0},
    "mean_field": {"gain": 1.0, "sigma_w2": 1.0},
    "lyapunov": {"gain": 1.0},
    "lsuv": {"gain": 1.0, "tolerance": 0.1, "iterations": 10},
}
DATA_OPTIONS: dict[str, dict[str, Any]] = {
    "digits": {"standardize": True},
    "mnist5k": {"standardize": True},
    "file": {"standardize": True, "path": None},
    "gaussian": {"samples": 2000, "features": 64, "targets": 1, "normalize": False, "seed": 0},
    "ones": {"samples": 64},
}
OPTIMIZER_OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "weight_decay": 0.0, "clip_norm": None},
    "momentum": {"lr": 0.01, "weight_decay": 0.0, "clip_norm": None, "momentum": 0.9},
    "adam": {"lr": 0.001, "weight_decay": 0.0, "clip_norm": None},
    "rmsprop": {"lr": 0.001, "weight_decay": 0.0, "clip_norm": None},
}


class ConfigError(ValueError):
    """An option has a value that cannot work; the text says which, what was given and what is allowed."""


INIT_LOWEST = {"std": 0, "sigma_w2": 0, "sparsity": 0, "tolerance": 0, "iterations": 1}
"""Options of a scheme -> the lowest number that it can work with."""

LYAPUNOV_ACTIVATIONS = ("linear", "relu", "leaky_relu")


def check_choice(key: str, given: object, choices: Sequence[str]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ValueError: If it is none.
    """
    if given not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {given!r}")


def check_init_options(options: Mapping[str, Any]) -> None:
    """Check that the options of a scheme are numbers that it can work with.

    Args:
        options: Option -> value; None leaves it to the scheme, and a text is checked by the scheme.

    Raises:
        ValueError: For the first that cannot work.
    """
    for key, value in options.items():
        if value is None or key in ("mode", "distribution", "corrected"):
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{key} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number, got {value}")
        if key != "sparsity" and value < INIT_LOWEST.get(key, -math.inf):  # which has an upper end too
            raise ValueError(f"{key} must be at least {INIT_LOWEST[key]}, got {value}")
