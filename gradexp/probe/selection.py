"""Which modules are recorded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from gradexp.numerics.torch_internals import compiled_module, parameters_of
from gradexp.patterns import is_match
from gradexp.probe.names import is_callable, named_modules
from gradexp.probe.parameters import RowParameters, least_dimensions
from gradexp.probe.parametrized import computed_weights, parts_of_layers
from gradexp.probe.recurrent import layer_names, row_name

Select = Callable[[str, nn.Module], bool] | Iterable[str] | str


@dataclass(frozen=True)
class Selection:
    """What is recorded of a model.

    Args:
        modules: What is hooked, by its name.
        rows: The parameters of each row, by its name.
        modules_of: Name of the row -> name of its module, where they differ.
    """

    modules: dict[str, nn.Module] = field(default_factory=dict)
    rows: dict[str, RowParameters] = field(default_factory=dict)
    modules_of: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, module: nn.Module, layer: str = "", inside: str = "none") -> None:
        """Add a module, or one layer and direction of a recurrent one."""
        self.modules[name] = module
        row = row_name(name, layer) if layer else name
        self.rows[row] = RowParameters(module, layer, inside)
        if layer:
            self.modules_of[row] = name


def module_kind(value: Any) -> str:
    """Return what a value is, in the words of an error message."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def select_rows(model: nn.Module, select: Select | None, with_vectors: bool = False) -> Selection:
    """Return the rows to record; without a selection, those that have a weight.

    Args:
        model: Its modules are chosen from.
        select: A function of name and module, or patterns of names.
        with_vectors: Whether a module that only has vectors gets a row without a selection.

    Raises:
        TypeError: If ``select`` is no name, pattern, class or function.
        ValueError: If it matches nothing.
    """
    modules = named_modules(model)
    if select is None:
        chosen = _with_weights(model, modules, 0 if with_vectors else None)
    elif callable(select) and not isinstance(select, (nn.Module, type)):
        chosen = Selection()
        for name, module in modules.items():
            if select(name, module):
                chosen.add(name, module, inside="in place of none")
    else:
        chosen = _matching(modules, select)
    if not chosen.rows:
        if select is None:
            raise ValueError("nothing to record: no module owns a parameter of two or more dimensions; use select=")
        hint = _hint(select, modules) if isinstance(select, str) else ""
        raise ValueError(
            f"nothing to record: select matches none of the {len(modules)} modules ({_some(modules)}){hint}"
        )
    return chosen


def _with_weights(model: nn.Module, modules: dict[str, nn.Module], least: int | None) -> Selection:
    """Return a row for each module that owns a weight, and for each layer of a recurrent one."""
    computing = parts_of_layers(model)
    chosen = Selection()
    for name, module in modules.items():
        if id(module) not in computing and _may_own_weight(module, least):
            for layer in layer_names(module) or ("",):
                chosen.add(name, module, layer)
    return chosen


def _matching(modules: dict[str, nn.Module], select: Any) -> Selection:
    """Return a row for each module, and each layer of a recurrent one, whose name a pattern matches."""
    is_one = isinstance(select, (str, type)) or not isinstance(select, Iterable)
    patterns: list[Any] = [select] if is_one else list(select)
    wrong = [pattern for pattern in patterns if not isinstance(pattern, str)]
    if wrong:
        got = module_kind(wrong[0])
        raise TypeError(f"select must be patterns of names or a function of name and module, got {got}")
    chosen = Selection()
    idle = set(patterns)
    for name, module in modules.items():
        for layer in ("", *layer_names(module)):
            row = row_name(name, layer) if layer else name
            matches = [pattern for pattern in patterns if is_match(row, pattern)]
            if matches and is_callable(module):
                chosen.add(name, module, layer, inside="none" if layer else "all")
                idle.difference_update(matches)
    if idle and chosen.rows:
        pattern = next(pattern for pattern in patterns if pattern in idle)
        raise ValueError(f"select: '{pattern}' matches none of the {len(modules)} modules{_hint(pattern, modules)}")
    return chosen


def _hint(pattern: str, modules: dict[str, nn.Module]) -> str:
    """Say which pattern may have been meant."""
    if pattern in modules:
        return f" that are called; '{pattern}' is a container, choose what is in it by '{pattern}.*'"
    if "*" in pattern and any(is_match(name, pattern.replace("*", "**")) for name in modules):
        return f"; '*' stays inside a part of a name, '{pattern.replace('*', '**')}' crosses dots"
    return ""


def _some(modules: dict[str, nn.Module]) -> str:
    return ", ".join([*(f"'{name}'" for name in list(modules)[:6]), *(["..."] if len(modules) > 6 else [])])


def _may_own_weight(module: nn.Module, least: int | None) -> bool:
    least = least_dimensions(module) if least is None else least
    parameters = parameters_of(module)
    return any(is_lazy(parameter) or parameter.dim() >= least for parameter in parameters) or bool(
        computed_weights(module)
    )


def unwrap(model: Any) -> nn.Module:
    """Return the module inside DistributedDataParallel and compiled modules, so that names stay as they were.

    Raises:
        ValueError: If it is a DataParallel, whose copies on other devices the hooks would not tell apart, or holds a
            FullyShardedDataParallel of the first kind, whose weights are parts of one flat parameter.
    """
    # By name: importing that part of torch takes long, and it need not be there.
    if isinstance(model, nn.Module) and any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError(
            "FullyShardedDataParallel is not supported, which has flat parameters in place of the layers' weights; "
            "use torch.distributed.fsdp.fully_shard, whose weights stay apart, or DistributedDataParallel"
        )
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise ValueError("DataParallel over several devices is not supported; use DistributedDataParallel")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return unwrap(model.module)
    inner = compiled_module(model)
    unwrapped: nn.Module = unwrap(inner) if isinstance(inner, nn.Module) else model
    return unwrapped
