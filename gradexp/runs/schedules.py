"""How the learning rate changes over a training: a warm-up, then constant or a half cosine down to 0."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from gradexp.runs.one_by_one import OneByOne


def rate_factor(step: int, steps: int, warmup: int = 0, schedule: str = "constant") -> float:
    """Return by which factor of the learning rate a step is made.

    In the warm-up it is (step + 1) / warmup (Goyal et al., 2017, arXiv:1706.02677). Then it is 1, or with ``cosine``
    (1 + cos(π t)) / 2, where t goes from 0 to 1 over the steps that are left (Loshchilov & Hutter, 2017,
    arXiv:1608.03983).

    Args:
        step: Number of the step, from 0.
        steps: Number of all steps.
        warmup: Number of steps of the warm-up.
        schedule: ``constant`` or ``cosine``.

    Examples:
        >>> [round(rate_factor(step, 6, warmup=2, schedule="cosine"), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


class Schedule:
    """Sets an optimizer's learning rates ahead of each step.

    Args:
        optimizer: The optimizer; its rates are those of factor 1.
        steps: Number of all steps.
        warmup: Number of steps of the warm-up.
        schedule: ``constant`` or ``cosine``.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, steps: int, warmup: int = 0, schedule: str = "constant"
    ) -> None:
        self._steps, self._warmup, self._schedule = steps, warmup, schedule
        self._is_constant = warmup == 0 and schedule == "constant"
        self._rates = [(group, group["lr"]) for group in _groups(optimizer) if "lr" in group]

    def before(self, step: int) -> None:
        """Set the rates of a step."""
        if self._is_constant:
            return
        factor = rate_factor(step, self._steps, self._warmup, self._schedule)
        for group, rate in self._rates:
            group["lr"] = rate * factor


def _groups(optimizer: torch.optim.Optimizer) -> Iterable[dict[str, Any]]:
    return optimizer.groups if isinstance(optimizer, OneByOne) else optimizer.param_groups
