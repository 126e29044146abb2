"""A run as one line of TensorBoard's HParams tab: its options, its verdict and its numbers.

Functions import TensorBoard, which is slow to load, when they are called.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gradexp.config import Config
from gradexp.history.scalars import LARGEST_SCALAR
from gradexp.history.verdict import CODES
from gradexp.runs.result import Result
from gradexp.runs.summary import UNHASHED, metrics, summary

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.api_pb2 import HParamInfo, MetricInfo

METRICS = "summary/"
"""Under this prefix a run's numbers are scalars, since a metric of the HParams tab is the name of a scalar."""

_FIRST_METRICS = ("log_chi", "log10_first_over_last", "verdict_code", "loss_last", "test_accuracy")
# What a verdict is of -> its column. TensorBoard shows five columns and five metrics unless told otherwise: those
# that are said to differ first, by name, and capitals come before all options.
VERDICTS = {"gradient": "Gradient", "training": "Learned", "theory": "Theory"}


def hparams(result: Result, name: str = "") -> "list[Summary]":
    """Return the four summaries of a run's line in the HParams tab: its columns, its options, its numbers, its end.

    Every run has the same columns, whatever its scheme: an option that does not apply, or is null, is left empty.
    The verdicts are words and cannot be metrics, which are numbers; they stand beside the options, so that one can
    filter by them. The metric ``verdict_code``, one of ``CODES``, is there to colour lines by.

    Args:
        result: A run at its end.
        name: The run's name. The options in it are those that differ between the jobs of a sweep; without any it is
            those of the command line.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.api_pb2 import Experiment, Status
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

    numbers = metrics(summary(result))
    numbers["verdict_code"] = CODES.get(numbers["gradient"])
    words = {column: numbers.pop(key) for key, column in VERDICTS.items()}
    typed_keys = {_short(override.partition("=")[0].lstrip("+~")) for override in result.overrides}
    named_keys = {key for key in typed_keys if f"{key}=" in name}
    start = SessionStartInfo(start_time_secs=result.started.timestamp())
    for key, value in (options(result.config) | words).items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[key].number_value = value
        elif value is not None:
            start.hparams[key].string_value = str(value)
    status = "STATUS_SUCCESS" if result.status == "complete" else "STATUS_FAILURE"
    end_time = result.started.timestamp() + (result.seconds or 0)

    def plugin_value(tag: str, **content: Any) -> Summary.Value:
        plugin_metadata = metadata.create_summary_metadata(HParamsPluginData(**content))
        return Summary.Value(tag=tag, metadata=plugin_metadata, tensor=metadata.NULL_TENSOR)

    experiment = Experiment(
        hparam_infos=_columns(result.config, named_keys or typed_keys), metric_infos=_metrics(numbers)
    )
    end = SessionEndInfo(status=Status.Value(status), end_time_secs=end_time)
    scalars = {key: value for key, value in numbers.items() if value is not None and abs(value) < LARGEST_SCALAR}
    return [
        Summary(value=[plugin_value(metadata.EXPERIMENT_TAG, experiment=experiment)]),
        Summary(value=[plugin_value(metadata.SESSION_START_INFO_TAG, session_start_info=start)]),
        Summary(value=[Summary.Value(tag=METRICS + key, simple_value=value) for key, value in scalars.items()]),
        Summary(value=[plugin_value(metadata.SESSION_END_INFO_TAG, session_end_info=end)]),
    ]


def options(config: Config) -> dict[str, Any]:
    """Return every option that determines the numbers, as on a command line: the same keys in every run.

    Examples:
        >>> values = options(Config())
        >>> values["init"], values["init.gain"], values["init.std"]
        ('he', 1.0, None)
    """
    return {key: value for key, value, _ in _entries(config)}


def _entries(config: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List each option as (key, value, type); those of own parts too, where there are any."""
    entries: list[tuple[str, Any, Any]] = []
    types = _types(type(config))
    for entry in dataclasses.fields(config):
        value, key = getattr(config, entry.name), _short(prefix + entry.name)
        if dataclasses.is_dataclass(value):
            entries += _entries(value, f"{key}.") if key not in UNHASHED else []
        elif entry.name == "own":
            entries += [(prefix + name, option, type(option)) for name, option in value.items()]
        elif key not in UNHASHED:
            entries.append((key, value, types[entry.name]))
    return entries


# Which reads them as text each time.
_types: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _short(key: str) -> str:
    """Return a key as it is typed: a group's choice by the group's name alone, so ``init`` for ``init.name``."""
    return key.removesuffix(".name")


def _columns(config: Config, differing: set[str]) -> "list[HParamInfo]":
    """Describe the parameters, of which some options count as differing, and the verdicts."""
    from tensorboard.plugins.hparams.api_pb2 import DataType, HParamInfo

    types = {key: kind for key, _, kind in _entries(config)}
    types |= dict.fromkeys(VERDICTS.values(), str)
    infos = []
    for key, kind in types.items():
        plain = {*typing.get_args(kind), kind} & {bool, int, float}
        name = "BOOL" if bool in plain else "FLOAT64" if plain else "STRING"
        differs = key in VERDICTS.values() or key in differing
        infos.append(HParamInfo(name=key, type=DataType.Value(f"DATA_TYPE_{name}"), differs=differs))
    return infos


def _metrics(names: Iterable[str]) -> "list[MetricInfo]":
    from tensorboard.plugins.hparams.api_pb2 import MetricInfo, MetricName

    ordered = dict.fromkeys((*_FIRST_METRICS, *names))
    return [MetricInfo(name=MetricName(tag=METRICS + name), display_name=name) for name in ordered]
