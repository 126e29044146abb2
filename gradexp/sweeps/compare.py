"""The jobs of a sweep as rows that can be compared: what was swept, and what each job came to."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradexp.choices import GROUPS, ConfigError
from gradexp.runs.summary import UNHASHED, metrics
from gradexp.sweeps.folder import Job, is_at_work, read_jobs

_CHOICES = {f"{group}.name": group for group in GROUPS}  # both may be typed


@dataclass(frozen=True)
class Row:
    """One job.

    Args:
        job: The job's folder and summary.
        swept: Swept key -> value; None where it does not apply.
        numbers: The job's results (``gradexp.runs.summary.metrics``).
    """

    job: Job
    swept: dict[str, Any]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class SweepResults:
    """All jobs of a sweep.

    Args:
        folder: The sweep's folder.
        keys: Swept keys, as they first appear on a command line.
        rows: Jobs, sorted by the swept keys, numbers by size.
        damaged: A line about each damaged summary, whose job is left out.
    """

    folder: Path
    keys: list[str]
    rows: list[Row]
    damaged: list[str] = field(default_factory=list)

    @property
    def statuses(self) -> dict[str, int]:
        """The number of jobs of each status."""
        return dict(Counter(row.job.status for row in self.rows))


def compare(folder: Path) -> SweepResults:
    """Read the jobs of a sweep.

    Raises:
        ConfigError: If there are none, or they were written by another version.
    """
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} is the folder of a single run; give the one that holds the runs to compare")
    jobs, damaged = _read_jobs(folder)
    if not jobs:
        deeper = max(folder.glob("*/*/summary.json"), default=None)
        where = f"; {deeper.parent.parent} does" if deeper else ""
        why = damaged[0] if damaged else "sub-folders with a summary.json"
        raise ConfigError(f"{folder} holds no runs ({why}){where}")
    keys = swept_keys(jobs)
    rows = [Row(job, {key: value_of(job, key) for key in keys}, metrics(job.summary)) for job in jobs]
    rows.sort(key=lambda row: [_rank(row.swept[key]) for key in keys])
    return SweepResults(folder, keys, rows, damaged)


def _read_jobs(folder: Path, attempts: int = 5) -> tuple[list[Job], list[str]]:
    """Read the jobs, and what is wrong with those that are damaged.

    A job that begins again removes its old summary, which may be between its listing and its reading.

    Raises:
        FileNotFoundError: If that goes on.
    """
    for _ in range(attempts - 1):
        damaged: list[str] = []
        with suppress(FileNotFoundError):
            return [_as_it_is(job) for job in read_jobs(folder, damaged)], damaged
    damaged = []
    return [_as_it_is(job) for job in read_jobs(folder, damaged)], damaged


def _as_it_is(job: Job) -> Job:
    """Return a job; as interrupted if it says that it runs and does not."""
    if job.status != "running" or is_at_work(job.folder):
        return job
    return replace(job, summary={**job.summary, "status": "interrupted"})


_CONTENT = "data.content"  # of a data file, which may have changed from one job to the next

_DIGITS = 12


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the options that were given for some jobs and differ between them, in the order of the command line.

    Options that change no number, such as ``threads``, count only where nothing else differs.
    """
    typed_keys = [key for job in jobs for key in _overrides(job)] + [_CONTENT]
    differ = [key for key in dict.fromkeys(typed_keys) if len({json.dumps(value_of(job, key)) for job in jobs}) > 1]
    if {"data", "data.path"} & set(differ):  # which say as much
        differ = [key for key in differ if key != _CONTENT]
    return [key for key in differ if key.partition(".")[0] not in UNHASHED] or differ


def _overrides(job: Job) -> dict[str, str]:
    """Return a job's overrides as key -> text."""
    pairs = (text.lstrip("+~").partition("=") for text in job.summary["overrides"])
    return {_CHOICES.get(key, key): value for key, _, value in pairs}


def value_of(job: Job, key: str) -> Any:
    """Return an option of a job, None where it has none; of a preset, which is no option, what was typed."""
    if key == "experiment":
        return _overrides(job).get(key)
    value = job.summary["config"]
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if key == _CONTENT and isinstance(value, str):
        return value[:_DIGITS]
    return value.get("name") if key in GROUPS and isinstance(value, dict) else value


def _rank(value: Any) -> tuple[int, float, str, list[Any]]:
    """Sort numbers by size, then texts, then lists, then what is missing."""
    if value is None:
        return 3, 0.0, "", []
    if isinstance(value, int | float):
        return 0, float(value), "", []
    if isinstance(value, list):
        return 2, 0.0, "", [_rank(entry) for entry in value]
    return 1, 0.0, str(value), []


def seed_groups(comparison: SweepResults) -> list[tuple[dict[str, Any], list[Row]]]:
    """Return the jobs that differ in their seed only, with what they share, in the order of the rows."""
    groups: dict[str, tuple[dict[str, Any], list[Row]]] = {}
    for row in comparison.rows:
        shared = {key: value for key, value in row.swept.items() if key != "seed"}
        groups.setdefault(json.dumps(shared), (shared, []))[1].append(row)
    return list(groups.values())


def average(rows: Sequence[Row], key: str) -> float | None:
    """Return the mean of a number over the jobs that have it, or None."""
    numbers = [row.numbers[key] for row in rows if row.numbers[key] is not None]
    return float(np.mean(numbers)) if numbers and all(map(math.isfinite, numbers)) else None
