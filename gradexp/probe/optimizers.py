"""The optimizers of a training: one, several, or in the wrappers of other libraries."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from gradexp.probe.selection import module_kind

Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer]

# Where accelerate, apex, Lightning and opacus keep the optimizer that they wrap, and Megatron those that it joins.
_INSIDE = ("optimizer", "original_optimizer", "_optimizer", "optimizers", "chained_optimizers")


def unwrapped(optimizers: Optimizers | None) -> list[torch.optim.Optimizer]:
    """Return the optimizers whose steps call hooks: those that are given, or that are inside what is given.

    Args:
        optimizers: One, several, or wrappers of some; None is none.

    Raises:
        TypeError: If one is neither an optimizer nor a wrapper of one.
    """
    if optimizers is None:
        return []
    unique = {id(optimizer): optimizer for optimizer in _unwrapped(optimizers, optimizers)}
    return list(unique.values())


def held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    """Return the ids of the parameters that an optimizer steps."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _unwrapped(value: Any, outermost: Any) -> Iterator[torch.optim.Optimizer]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _unwrapped(item, item)
        return
    if not isinstance(value, type):
        if "param_groups" in getattr(value, "__dict__", ()) and _calls_hooks(value):
            yield value
            return
        for name in _INSIDE:
            inner = getattr(value, name, None)
            if inner is not None and inner is not value:
                yield from _unwrapped(inner, outermost)
                return
        if isinstance(value, Iterable) and not isinstance(value, (str, dict, torch.Tensor)):
            yield from _unwrapped(list(value), outermost)
            return
    raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {module_kind(outermost)}")


def _calls_hooks(optimizer: Any) -> bool:
    """Return whether an optimizer's own steps call hooks, which those of a wrapper that imitates its class do not.

    An optimizer sets its hooks up when it is made, and a wrapper never is made as one.
    """
    try:
        optimizer.register_step_pre_hook(_nothing).remove()
    except AttributeError:
        return False
    return True


def _nothing(*_: Any) -> None:
    return None
