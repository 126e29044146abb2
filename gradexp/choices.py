"""The names that library and command line share; imports no other file of the library.

A scheme, activation, data set, optimizer or loss is one function and one entry in one dict, beside the function. Its
options and their defaults are the parameters of the function. ``read_choices`` takes them from the source text of the
file, since importing it would load torch, for which ``--help`` and the first line of a run do not wait. So the
library needs its sources, which every wheel has.
"""

import ast
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """An option has a value that cannot work; the text says which, what was given and what is allowed."""


def require(condition: bool, key: str, value: Any, allowed: str, remedy: str = "") -> None:
    """Check a condition on an option.

    Raises:
        ConfigError: ``KEY must be ALLOWED, got VALUE``, and a remedy, if it does not hold.
    """
    if not condition:
        quoted = repr(value) if isinstance(value, str) else value
        raise ConfigError(f"{key} must be {allowed}, got {quoted}{remedy}")


def check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """Check that a value is one of the choices.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def asked_for(function: Callable[..., Any], **facts: Any) -> dict[str, Any]:
    """Return those facts of a run that a function has keyword-only parameters for."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C without a signature, such as torch.Tensor.zero_
        return {}
    names = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return {key: value for key, value in facts.items() if key in names}


def read_choices(source: str, registry: str) -> dict[str, dict[str, Any]]:
    r"""Return the names in a dict of choices, each with its options and their defaults, from the source text.

    The function of an entry is its value, or the first argument of its value. Options are the parameters that have
    a default and are not keyword-only: what stands behind the ``*`` is given by the run, such as ``generator``.

    Args:
        source: Text of a Python file.
        registry: Name of the dict in it.

    Raises:
        ConfigError: If there is no such dict, an entry names no function of the file, or a default is no literal.

    Examples:
        >>> read_choices("def half_(weight, gain=1.0, *, generator=None): ...\nINITS = {'half': half_}", "INITS")
        {'half': {'gain': 1.0}}
    """
    return {
        name: {} if arguments is None else _options(arguments, f"{registry}['{name}']")
        for name, arguments in _functions(source, registry).items()
    }


def _functions(source: str, registry: str) -> dict[str, ast.arguments | None]:
    """Return the names in a dict of choices, each with the parameters of its function, if that is in the file."""
    functions: dict[str, ast.arguments] = {}
    entries: list[tuple[str, ast.expr]] | None = None
    for statement in ast.parse(source).body:
        match statement:
            case ast.FunctionDef(name=name, args=arguments):
                functions[name] = arguments
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict(keys=keys, values=values))
            ) if name == registry:
                entries = [(ast.literal_eval(key), value) for key, value in zip(keys, values, strict=True) if key]
    if entries is None:
        raise ConfigError(f"there is no dict {registry} in the source")
    found: dict[str, ast.arguments | None] = {}
    for name, value in entries:
        match value:
            case ast.Name(id=function) | ast.Call(args=[ast.Name(id=function), *_]):
                if function not in functions:
                    raise ConfigError(f"{registry}['{name}'] names {function}, which is no function of its file")
                found[name] = functions[function]
            case _:  # a lambda, or a function of torch
                found[name] = None
    return found


def _options(arguments: ast.arguments, where: str) -> dict[str, Any]:
    positional = arguments.args[len(arguments.args) - len(arguments.defaults) :]
    try:
        return {
            entry.arg: ast.literal_eval(default)
            for entry, default in zip(positional, arguments.defaults, strict=True)
        }
    except ValueError as error:
        raise ConfigError(f"the defaults of {where} must be plain values: {error}") from error


def _text(file: str) -> str:
    return (Path(__file__).parent / file).read_text("utf-8")


def _of(file: str, registry: str) -> dict[str, dict[str, Any]]:
    return read_choices(_text(file), registry)


def _taken(file: str, registry: str) -> dict[str, dict[str, Any]]:
    """Return for each name in a dict of choices the options of a run that its function takes, with its defaults.

    They are the parameters behind the ``*``. What has no default there has None here.
    """
    taken: dict[str, dict[str, Any]] = {}
    for name, arguments in _functions(_text(file), registry).items():
        assert arguments is not None
        defaults = [None if value is None else ast.literal_eval(value) for value in arguments.kw_defaults]
        own = zip([entry.arg for entry in arguments.kwonlyargs], defaults, strict=True)
        taken[name] = {key: default for key, default in own if key not in ("features", "outputs", "networks")}
    return taken


MODEL_OPTIONS = _of("runs/models.py", "MODELS")
MODEL_TAKES = _taken("runs/models.py", "MODELS")
"""Family of networks -> options of a run that it takes, with its own defaults."""
INIT_OPTIONS = _of("networks/inits.py", "INITS")
INIT_OF_FAMILY = {"rnn": "orthogonal"}
"""Family -> the scheme that draws it if none is named, where that is not he."""
ACTIVATIONS = tuple(_of("networks/activations.py", "ACTIVATIONS"))
ACTIVATION_ALIASES = {"swish": "silu"}
"""Further names of activations; a run records the first one."""
DATA_OPTIONS = _of("runs/data.py", "LOADERS")
OF_EVERY_OPTIMIZER: dict[str, Any] = {"clip_norm": None, "warmup": 0, "schedule": "constant"}
"""Options of the training loop, which all optimizers have, also somebody's own."""
OPTIMIZER_OPTIONS = {
    name: options | OF_EVERY_OPTIMIZER for name, options in _of("runs/optimizers.py", "OPTIMIZERS").items()
}
LOSSES = ("auto", *_of("runs/losses.py", "LOSSES"))

_PACKAGE = Path(__file__).resolve().parent
# Installed from a wheel the YAML files lie inside the package, in a checkout beside it.
CONFIG_DIR = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def is_sweep(preset: str) -> bool:
    """Return whether a preset, ``experiment=NAME``, starts a sweep; one of somebody's own may.

    Examples:
        >>> is_sweep("residual"), is_sweep("lesson")
        (True, False)
    """
    file = CONFIG_DIR / "experiment" / f"{preset}.yaml"
    return not file.exists() or "mode: MULTIRUN" in file.read_text("utf-8")


# Groups of options of which a run chooses one by name.
GROUPS = {"model": MODEL_OPTIONS, "init": INIT_OPTIONS, "data": DATA_OPTIONS, "optimizer": OPTIMIZER_OPTIONS}

NORMALIZATIONS = ("none", "batch", "layer", "rms")
SCHEDULES = ("constant", "cosine")
RESIDUALS = ("none", "plain", "depth", "zero")
RESNET_RESIDUALS = (*RESIDUALS, "fixup")
PADDINGS = ("circular", "zeros")
NORMS = ("pre", "post", "none")
QUERIES = ("zero", "init")
CELLS = ("rnn", "gru", "lstm")
DTYPES = ("float32", "float64", "float16", "bfloat16")
PRECISIONS = ("full", "amp_float16", "amp_bfloat16")
LOGS = ("wandb", "mlflow", "csv")
MODES = ("fan_in", "fan_out")
DISTRIBUTIONS = ("normal", "uniform")
LYAPUNOV_ACTIVATIONS = ("linear", "relu", "leaky_relu")

INIT_LOWEST = {"std": 0, "sigma_w2": 0, "sparsity": 0, "tolerance": 0, "iterations": 1}
"""Options of a scheme -> the lowest number that it can work with."""

_NO_NUMBERS = {
    key for options in INIT_OPTIONS.values() for key, default in options.items() if isinstance(default, str | bool)
}


def check_init_options(options: Mapping[str, Any]) -> None:
    """Check that the options of a scheme are numbers that it can work with.

    Args:
        options: Option -> value; None leaves it to the scheme, and a text is checked by the scheme.

    Raises:
        ValueError: For the first that cannot work.
    """
    for key, value in options.items():
        if value is None or key in _NO_NUMBERS:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{key} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number, got {value}")
        if key != "sparsity" and value < INIT_LOWEST.get(key, -math.inf):  # which has an upper end too
            raise ValueError(f"{key} must be at least {INIT_LOWEST[key]}, got {value}")
