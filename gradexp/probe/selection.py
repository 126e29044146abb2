"""The choice of the modules to record, and the modules inside wrappers."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn
from torch.nn.parameter import is_lazy

from gradexp.numerics.torch_internals import compiled_module, parameters_of, uncompiled_name
from gradexp.probe.weights import least_dimensions

Select = Callable[[str, nn.Module], bool] | Iterable[str] | str


def module_kind(value: Any) -> str:
    """Return a value's kind, for an error message."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def selected_modules(model: nn.Module, select: Select | None) -> dict[str, nn.Module]:
    """Return the modules to watch by their names; without a selection, those that own a weight.

    Raises:
        TypeError: If ``select`` is no name, pattern, class or function.
        ValueError: If it matches nothing.
    """
    # A compiled module wraps one of the same name; the inner one comes later and is the one that is called.
    modules = {uncompiled_name(name): module for name, module in model.named_modules()}
    if select is None:
        chosen = {name: module for name, module in modules.items() if _may_own_weight(module)}
    elif callable(select) and not isinstance(select, (nn.Module, type)):
        chosen = {name: module for name, module in modules.items() if select(name, module)}
    else:
        is_single = isinstance(select, (str, type)) or not isinstance(select, Iterable)
        patterns: list[Any] = [select] if is_single else list(cast("Iterable[Any]", select))
        no_names = [pattern for pattern in patterns if not isinstance(pattern, str)]
        if no_names:
            kind = module_kind(no_names[0])
            raise TypeError(f"select must be patterns of names or a function of name and module, got {kind}")
        chosen = {name: m for name, m in modules.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
        without_match = [p for p in patterns if not any(fnmatchcase(name, p) for name in modules)]
        if without_match and chosen:
            raise ValueError(f"select: '{without_match[0]}' matches none of the {len(modules)} modules")
    if not chosen:
        if select is None:
            raise ValueError("nothing to record: no module owns a parameter of two or more dimensions; use select=")
        names = ", ".join([*(f"'{name}'" for name in list(modules)[:6]), *(["..."] if len(modules) > 6 else [])])
        raise ValueError(f"nothing to record: select matches none of the {len(modules)} modules ({names})")
    return chosen


def _may_own_weight(module: nn.Module) -> bool:
    least = least_dimensions(module)
    return any(is_lazy(parameter) or parameter.dim() >= least for parameter in parameters_of(module))


def unwrap(model: Any) -> nn.Module:
    """Return the module inside DistributedDataParallel and compiled modules, so that names stay as they were.

    Raises:
        ValueError: If it is a DataParallel, whose copies on other devices the hooks would not tell apart.
    """
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise ValueError("DataParallel over several devices is not supported; use DistributedDataParallel")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrap(model.module)
    inner = compiled_module(model)
    unwrapped: nn.Module = unwrap(inner) if isinstance(inner, nn.Module) else model
    return unwrapped
