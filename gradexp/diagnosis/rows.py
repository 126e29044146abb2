"""The rows of the History to which the calls of modules belong."""

from collections.abc import Mapping

import numpy as np
from torch import nn

from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.numerics.torch_internals import parameters_of
from gradexp.probe.names import named_modules
from gradexp.probe.parametrized import computed_weights

Row = tuple[str, int]
"""Name of a module, and which of its calls in the pass."""


class Rows:
    """Names and numbers the calls of a model's modules as the probe does.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in named_modules(model).items()}
        self._calls: dict[str, int] = {}

    def next_call(self, module: nn.Module) -> Row:
        """Return the row of a call that is made now."""
        name = self._names.get(id(module), "")
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        return name, call


def has_weights(module: nn.Module) -> bool:
    """Return whether a module directly owns, or computes, a parameter of two or more dimensions."""
    return any(parameter.dim() > 1 for parameter in parameters_of(module)) or bool(computed_weights(module))


def add_statistic(history: History, name: str, values: Mapping[Row, float]) -> None:
    """Add a number per row to the statistics of a History of one step; rows without a number get nan.

    So do outputs that are not finite: of their units nothing is known.

    Args:
        history: What the probe recorded.
        name: The statistic's, as ``quantity.name``.
        values: Row -> number; rows that the History does not have are left out.
    """
    column = np.array([values.get(row, np.nan) for row in zip(history.names, history.calls, strict=True)])
    if name.startswith("output.") and "output" in history.status:
        column[(history.status["output"] == STATUSES.index("nonfinite")).any((0, 1))] = np.nan
    if np.isfinite(column).any():
        history.stats[name] = np.tile(column, (len(history.steps), len(history.seeds), 1))
