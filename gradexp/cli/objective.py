"""The number that a run hands to an optimising sweeper, such as Optuna's."""

import math
from collections.abc import Mapping
from typing import Any

from gradexp.choices import ConfigError
from gradexp.config import Config
from gradexp.runs.result import Result
from gradexp.runs.summary import metrics, summary

_ABS = "abs_"


def check_objective(key: str) -> None:
    """Check that a summary has such a number.

    Raises:
        ConfigError: If it has not.
    """
    content = summary(Result(Config()))
    words = {*content["verdict"], "seconds"}
    name = key.removeprefix(_ABS)
    if name not in metrics(content) and _at(content, name) is _NONE:
        names = [one for one in metrics(content) if one not in words]
        raise ConfigError(
            f"objective must be a number of summary.json: {', '.join(names)}, or with dots such as "
            f"training.test_loss, each also as abs_KEY without its sign, got {key!r}"
        )


def objective(key: str, content: Mapping[str, Any], minimize: bool = True) -> float:
    """Return a number of a run; of one that has none, since it diverged or died, the worst there is.

    Args:
        key: A key of ``metrics``, or one of summary.json with dots; with ``abs_`` before it its size.
        content: Content of summary.json.
        minimize: Whether the smallest is the best.

    Raises:
        ConfigError: If it is no number.

    Examples:
        >>> from gradexp.config import Config
        >>> objective("abs_log_chi", summary(Result(Config())))
        inf
    """
    name = key.removeprefix(_ABS)
    numbers = metrics(content)
    value = numbers[name] if name in numbers else _at(content, name)
    if value is None:
        return math.inf if minimize else -math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"objective={key} must be a number of summary.json, got {value!r}")
    return abs(float(value)) if key.startswith(_ABS) else float(value)


def handed_over(key: str | None, content: Mapping[str, Any], sweeper: Mapping[str, Any]) -> float | None:
    """Return what a run hands to the sweeper of these settings, which tell which numbers are better."""
    if key is None:
        return None
    direction = sweeper.get("direction", "minimize")
    return objective(key, content, minimize=getattr(direction, "name", direction) != "maximize")


_NONE: Any = object()


def _at(content: Mapping[str, Any], name: str) -> Any:
    """Return what stands at a dotted key, or ``_NONE``."""
    value: Any = content
    for part in name.split("."):
        value = value.get(part, _NONE) if isinstance(value, Mapping) else _NONE
    return value
