"""Reading summary.json, whoever wrote it: checked in full, or refused in one line."""

import json
import math
import stat
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from gradexp._version import __version__
from gradexp.choices import ConfigError
from gradexp.runs.result import RunStatus
from gradexp.runs.summary import SCHEMA

STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
NAME = "summary.json"

# Bytes; ours have some thousands.
_LARGEST = 10 << 20
# Brackets within brackets; ours have three.
_DEEPEST = 20


class DamagedSummaryError(ConfigError):
    """A summary.json is not what a run of this version writes."""


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return what the summary.json of a run's folder holds, or None if there is none.

    Raises:
        DamagedSummaryError: If it is no file, cannot be read, or lacks what others rely on.
        ConfigError: If it was written by another version.
    """
    path = folder / NAME
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
            raise DamagedSummaryError(f"{path} is no file; delete it to run that job again")
        if status.st_size > _LARGEST:
            raise ValueError(f"{status.st_size} bytes")
        summary = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        text = " ".join(str(error).split())[:200]
        raise DamagedSummaryError(f"{path} is damaged ({text}); delete its folder to run that job again") from error
    except OSError as error:
        raise DamagedSummaryError(f"{path} cannot be read: {error.strerror}") from error
    versions = (summary.get("schema"), summary.get("gradexp")) if isinstance(summary, dict) else (None, None)
    if versions != (SCHEMA, __version__):
        version, schema = (_cut(value) for value in reversed(versions))
        raise ConfigError(
            f"{path} was written by gradexp {version} (schema {schema}), this is {__version__} (schema {SCHEMA}); "
            "choose another folder"
        )
    if wrong := _first_wrong(summary):
        raise DamagedSummaryError(f"{path} is damaged (no {wrong}); delete its folder to run that job again")
    return dict(summary)


def _cut(value: Any) -> str:
    return str(value)[:40]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _is_number(value: Any) -> bool:
    return value is None or (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 2**1000
        and math.isfinite(value)
        and (isinstance(value, float) or abs(value) < 2**63)
    )


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value is None or value in words


def _is_time(value: Any) -> bool:
    try:
        return bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(entry is not None and check(entry) for entry in value)


def _is_plain(value: Any, depth: int = 0) -> bool:
    """Return whether a value holds only what options can be: texts, numbers, and lists and mappings of them."""
    if depth > _DEEPEST:
        return False
    if isinstance(value, dict):
        return all(_is_plain(entry, depth + 1) for entry in value.values())
    if isinstance(value, list):
        return all(_is_plain(entry, depth + 1) for entry in value)
    return isinstance(value, bool | str) or _is_number(value)


# What others rely on: a check of the value, or for a mapping of its values.
_Checks = Mapping[str, "Callable[[Any], bool] | _Checks"]
_CHECKS: _Checks = {
    "config_hash": lambda value: isinstance(value, str),
    "status": lambda value: value in STATUSES,
    "python": lambda value: isinstance(value, str),
    "torch": _is_text,
    "hydra": _is_text,
    "device": _is_text,
    "device_name": _is_text,
    "error": _is_text,
    "started": _is_time,
    "seconds": _is_number,
    "seconds_training": _is_number,
    "config": lambda value: isinstance(value, dict) and _is_plain(value),
    "overrides": _all(_is_text),
    "seeds": _all(_is_number),
    "initial": {
        "log_chi": _is_number,
        "depth_scale": _is_number,
        "log10_first_over_last": {"output_grad": _is_number},
    },
    "theory": {"log_chi": _is_number, "z": _is_number},
    "training": dict.fromkeys(
        ("loss_first", "loss_last", "train_accuracy", "test_accuracy", "diverged_at"), _is_number
    ),
    "verdict": {
        "gradient": _one_of("stable", "vanishing", "exploding", "dead"),
        "training": _one_of("none", "trained", "stuck", "diverged"),
        "theory": _one_of("agrees", "deviates", "unavailable"),
        "text": _is_text,
    },
}


def _first_wrong(content: Any, checks: _Checks = _CHECKS, prefix: str = "") -> str | None:
    """Return the first key that is missing or has a value of another kind, or None."""
    if not isinstance(content, dict):
        return prefix.removesuffix(".")
    for key, check in checks.items():
        if key not in content:
            return prefix + key
        if isinstance(check, Mapping):
            if wrong := _first_wrong(content[key], check, f"{prefix}{key}."):
                return wrong
        elif not check(content[key]):
            return prefix + key
    return None
