"""Many runs, one comparison: a table in the console, sweep.csv, figures and one page that holds them all."""

import csv
import json
import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from gradexp.config import ConfigError
from gradexp.replacing import replacing
from gradexp.result import UNHASHED, outcome
from gradexp.sweep import Job, read_jobs

GROUPS = ("init", "data", "optimizer")
"""Options whose value is a choice with options of its own; the choice is called ``name`` in a run's config."""

_CHOICES = {f"{group}.name": group for group in GROUPS}  # both may be typed
_LINES = 40  # of the table in the console
_ERRORS = 10  # named below it


@dataclass(frozen=True)
class Row:
    """One job.

    Args:
        job: Its folder and summary.
        swept: Swept key -> value; None where it does not apply.
        numbers: What it came to (``gradexp.result.outcome``).
    """

    job: Job
    swept: dict[str, Any]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """All jobs of a sweep.

    Args:
        folder: Of the sweep.
        keys: Swept keys, as they first appear on a command line.
        rows: Sorted by the swept keys, numbers by size.
    """

    folder: Path
    keys: list[str]
    rows: list[Row]

    @property
    def statuses(self) -> dict[str, int]:
        """How many jobs there are of each status."""
        return dict(Counter(row.job.status for row in self.rows))


def compare(folder: Path) -> Comparison:
    """Read the jobs of a sweep.

    Raises:
        ConfigError: If there are none, or they were written by another version.
    """
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} is the folder of a single run; give the one that holds the runs to compare")
    jobs = _read_jobs(folder)
    if not jobs:
        raise ConfigError(f"{folder} holds no runs (sub-folders with a summary.json)")
    keys = swept_keys(jobs)
    rows = [Row(job, {key: value_of(job, key) for key in keys}, outcome(job.summary)) for job in jobs]
    rows.sort(key=lambda row: [_rank(row.swept[key]) for key in keys])
    return Comparison(folder, keys, rows)


def _read_jobs(folder: Path, attempts: int = 5) -> list[Job]:
    """Read the jobs; one that begins again removes its old summary, which may be between its listing and its reading.

    Raises:
        FileNotFoundError: If that goes on.
    """
    for _ in range(attempts - 1):
        with suppress(FileNotFoundError):
            return read_jobs(folder)
    return read_jobs(folder)


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Return the options that were given for some jobs and differ between them, in the order of the command line.

    Options that change no number, such as ``threads``, count only where nothing else differs.
    """
    given = [key for job in jobs for key in _given(job)]
    differ = [key for key in dict.fromkeys(given) if len({json.dumps(value_of(job, key)) for job in jobs}) > 1]
    return [key for key in differ if key.partition(".")[0] not in UNHASHED] or differ


def _given(job: Job) -> dict[str, str]:
    """Return a job's overrides as key -> text."""
    pairs = (text.lstrip("+~").partition("=") for text in job.summary["overrides"])
    return {_CHOICES.get(key, key): value for key, _, value in pairs}


def value_of(job: Job, key: str) -> Any:
    """Return an option of a job, None where it has none; of a preset, which is no option, what was typed."""
    if key == "experiment":
        return _given(job).get(key)
    value = job.summary["config"]
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
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


def seed_groups(comparison: Comparison) -> list[tuple[dict[str, Any], list[Row]]]:
    """Return the jobs that differ in their seed only, with what they share, in the order of the rows."""
    groups: dict[str, tuple[dict[str, Any], list[Row]]] = {}
    for row in comparison.rows:
        shared = {key: value for key, value in row.swept.items() if key != "seed"}
        groups.setdefault(json.dumps(shared), (shared, []))[1].append(row)
    return list(groups.values())


def report(folder: Path, console: Console | None = None) -> None:
    """Compare the runs of a sweep: print a table, and write sweep.csv, figures and report.html into its folder.

    It may be called while the sweep runs.

    Raises:
        ConfigError: If there are no runs of this version.
        OSError: If the folder cannot be written to.
    """
    from gradexp.report_page import write_page
    from gradexp.sweep_figures import write_figures

    console = console or Console(highlight=False, emoji=False)
    comparison = compare(folder)
    print_table(comparison, console)
    write_csv(comparison)
    page = write_page(comparison, write_figures(comparison))
    for label, text in (
        ("table", str(folder / "sweep.csv")),
        ("report", str(page)),
        ("look", f"python -m gradexp.board {shlex.quote(str(folder))}"),
    ):
        console.print(f"{label:<9} {text}", markup=False, soft_wrap=True)


def write_csv(comparison: Comparison) -> None:
    """Write sweep.csv: a line per job, numbers with all their digits, an empty field for none."""
    with replacing(comparison.folder / "sweep.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", "folder", "config_hash", "status", *comparison.keys, *comparison.rows[0].numbers])
        for row in comparison.rows:
            job = row.job
            own = [job.number, job.name, job.config_hash, job.status]
            writer.writerow([*own, *row.swept.values(), *row.numbers.values()])


def print_table(comparison: Comparison, console: Console) -> None:
    """Print a line for complete jobs that differ in their seed only, what all lines share, and what went wrong.

    The loss of a job that is not complete is that of an earlier step, and would spoil a mean.
    """
    groups = []
    for shared, rows in seed_groups(comparison):
        if complete := [row for row in rows if row.job.status == "complete"]:
            groups.append((shared, complete))
    if groups:
        _print_groups(groups, console)
    others = {status: number for status, number in comparison.statuses.items() if status != "complete"}
    if others:
        said = ", ".join(f"{number} {status}" for status, number in others.items())
        console.print(f"not complete: {said}", markup=False)
    failed = [row.job for row in comparison.rows if row.job.status == "failed"]
    for job in failed[:_ERRORS]:
        console.print(f"  {job.name}: {job.summary['error']}", markup=False, soft_wrap=True)
    if len(failed) > _ERRORS:
        console.print(f"  ... and {len(failed) - _ERRORS} more in report.html", markup=False)


def _print_groups(groups: Sequence[tuple[dict[str, Any], list[Row]]], console: Console) -> None:
    columns: dict[str, list[str]] = {key: [_text(shared[key]) for shared, _ in groups] for key in groups[0][0]}
    columns |= {name: [column(rows) for _, rows in groups] for name, column in _COLUMNS.items()}
    if all(len(rows) == 1 for _, rows in groups):
        del columns["seeds"], columns["± sd"]
    same = {name: texts[0] for name, texts in columns.items() if len(set(texts)) == 1 and len(groups) > 1}
    # A mean and its spread stand side by side, unless there is none at all.
    alike = {name: text for name, text in same.items() if name not in ("log_chi", "± sd") or text == "-"}
    shown = {name: texts[:_LINES] for name, texts in columns.items() if name not in alike}
    left_out = []
    for name in _LEAST:
        if name in shown and _width(shown) > console.width:
            del shown[name]
            left_out.append(name)
    table = Table(box=None, pad_edge=False, header_style="dim")
    high = any("." in name for name in shown)
    for name in shown:
        head = _head(name) if "." in name else "\n" * high + name
        table.add_column(head, justify="left" if name in _VERDICTS else "right", no_wrap=True)
    for line in zip(*shown.values(), strict=True):
        table.add_row(*line)
    console.print(table)
    if len(groups) > _LINES:
        console.print(f"... and {len(groups) - _LINES} lines more in sweep.csv", markup=False)
    if said := ", ".join(f"{name} {text}" for name, text in alike.items() if text != "-"):
        console.print(f"all       {said}", markup=False)
    if left_out:
        console.print(f"no room   {', '.join(left_out)} (in sweep.csv)", markup=False)


def _head(name: str) -> str:
    """A dotted key takes two lines."""
    return name.replace(".", ".\n", 1)


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Return how wide a table is, whose columns are two spaces apart."""
    return sum(max(map(cell_len, [*_head(name).split("\n"), *texts])) + 2 for name, texts in columns.items()) - 2


def _words(rows: Sequence[Row], key: str) -> str:
    """Return the verdict of most jobs, with their share if it is not that of all."""
    words = [row.numbers[key] for row in rows if row.numbers[key] is not None]
    if not words:
        return "-"
    word, number = Counter(words).most_common(1)[0]
    return word if number == len(words) else f"{word} {number}/{len(words)}"


def _average(rows: Sequence[Row], key: str, form: str, prefix: str = "") -> str:
    mean = average(rows, key)
    return "-" if mean is None else f"{prefix}{mean:{form}}"


def average(rows: Sequence[Row], key: str) -> float | None:
    """Return the mean of a number over the jobs that have it, or None."""
    numbers = [row.numbers[key] for row in rows if row.numbers[key] is not None]
    return float(np.mean(numbers)) if numbers and all(map(math.isfinite, numbers)) else None


def _spread(rows: Sequence[Row], key: str) -> str:
    """Return the sample standard deviation over the seeds."""
    numbers = [row.numbers[key] for row in rows if row.numbers[key] is not None]
    return f"{np.std(numbers, ddof=1):.3f}" if len(numbers) > 1 else "-"


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


_LEAST = ("loss", "theory", "first/last", "training", "test", "± sd", "seeds", "gradient")
_VERDICTS = ("gradient", "training", "theory")
# name: text for the jobs of a line
_COLUMNS: dict[str, Callable[[Sequence[Row]], str]] = {
    "seeds": lambda rows: str(len(rows)),
    "gradient": lambda rows: _words(rows, "gradient"),
    "training": lambda rows: _words(rows, "training"),
    "theory": lambda rows: _words(rows, "theory"),
    "log_chi": lambda rows: _average(rows, "log_chi", "+.3f"),
    "± sd": lambda rows: _spread(rows, "log_chi"),
    "first/last": lambda rows: _average(rows, "log10_first_over_last", "+.1f", "10^"),
    "loss": lambda rows: _average(rows, "loss_last", ".3g"),
    "test": lambda rows: _average(rows, "test_accuracy", ".0%"),
}
