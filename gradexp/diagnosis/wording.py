"""How findings name modules: as few names as say it."""

from collections.abc import Collection, Sequence

from torch import nn

from gradexp.probe.names import named_modules


def verb(names: Sequence[str], one: str, several: str) -> str:
    """Return the form of a verb that goes with some names."""
    return one if len(names) == 1 else several


def outermost(concerned: Collection[str], others: Collection[str]) -> list[str]:
    """Return the largest modules that hold some modules and none of the others.

    Args:
        concerned: Names of modules.
        others: Names of modules that are not meant.

    Examples:
        >>> outermost(["encoder.0", "encoder.1", "head.0"], ["head.1"])
        ['encoder', 'head.0']
    """
    taken = {prefix for name in others for prefix in _prefixes(name)}
    names: dict[str, None] = {}
    for name in concerned:
        free = [prefix for prefix in _prefixes(name) if prefix and prefix not in taken]
        names[free[0] if free else name or "the model itself"] = None
    return list(names)


def owners(model: nn.Module) -> dict[int, str]:
    """Return id of each parameter -> name of the first module that owns it, without names of wrappers."""
    found: dict[int, str] = {}
    for name, module in named_modules(model).items():
        for parameter in module.parameters(recurse=False):
            found.setdefault(id(parameter), name)
    return found


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Return id of each parameter -> its name in the first module that owns it, without names of wrappers."""
    found: dict[int, str] = {}
    for prefix, module in named_modules(model).items():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            found.setdefault(id(parameter), name)
    return found


def _prefixes(name: str) -> list[str]:
    """Return the names of the modules around one, the model first, and its own."""
    parts = name.split(".") if name else []
    return ["", *(".".join(parts[: end + 1]) for end in range(len(parts)))]
