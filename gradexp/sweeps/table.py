"""The comparison of a sweep as a table in the terminal."""

from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradexp.history.sentences import loss_text
from gradexp.sinks.badges import COLOURS
from gradexp.sweeps.compare import Row, SweepResults, average, seed_groups

Group = tuple[dict[str, Any], list[Row]]
"""What some jobs share, and these jobs."""

_LINES = 40  # of the table in the console
_ERRORS = 10  # named below it


def print_table(comparison: SweepResults, console: Console) -> None:
    """Print a line for complete jobs that differ in their seed only, what all lines share, and what went wrong.

    The loss of a job that is not complete is that of an earlier step, and would spoil a mean.
    """
    groups = complete_groups(comparison)
    if groups:
        _print_groups(groups, console)
    others = {status: number for status, number in comparison.statuses.items() if status != "complete"}
    if others:
        counts = ", ".join(f"{number} {status}" for status, number in others.items())
        console.print(f"not complete: {counts}", markup=False)
    failed = [row.job for row in comparison.rows if row.job.status == "failed"]
    for job in failed[:_ERRORS]:
        console.print(f"  {job.name}: {job.summary['error']}", markup=False, soft_wrap=True)
    if len(failed) > _ERRORS:
        console.print(f"  ... and {len(failed) - _ERRORS} more in report.html", markup=False)


def complete_groups(comparison: SweepResults) -> list[Group]:
    """Return the complete jobs that differ in their seed only, with what they share."""
    groups = []
    for shared, rows in seed_groups(comparison):
        if complete := [row for row in rows if row.job.status == "complete"]:
            groups.append((shared, complete))
    return groups


def columns_of(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the columns of the table: heading -> a text for each group."""
    keys = groups[0][0]
    columns: dict[str, list[str]] = {key: [_text(shared[key]) for shared, _ in groups] for key in keys}
    for name, column in _COLUMNS.items():
        columns[_heading(name, keys)] = [column(rows) for _, rows in groups]
    if all(_seeds(rows) == 1 for _, rows in groups):
        del columns[_heading("seeds", keys)], columns["± sd"]
    return columns


def _heading(name: str, keys: Container[str]) -> str:
    """Return the heading of a result, which an option of the same name has where it differs."""
    return _OTHERWISE.get(name, name) if name in keys else name


def _print_groups(groups: Sequence[Group], console: Console) -> None:
    columns = columns_of(groups)
    same = {name: texts[0] for name, texts in columns.items() if len(set(texts)) == 1 and len(groups) > 1}
    # A mean and its spread stand side by side, unless there is none at all.
    alike = {name: text for name, text in same.items() if name not in ("log_chi", "± sd") or text == "-"}
    visible = {name: texts[:_LINES] for name, texts in columns.items() if name not in alike}
    left_out = []
    keys = groups[0][0]
    for name in (*(_heading(name, keys) for name in _LEAST), *reversed(keys)):
        if name in visible and _width(visible, _short_heads(visible)) > console.width:
            del visible[name]
            left_out.append(name)
    table = Table(box=None, pad_edge=False, header_style="dim")
    whole = {name: name for name in visible}
    heads = whole if _width(visible, whole) <= console.width else _short_heads(visible)
    for name, head in heads.items():
        table.add_column(head, justify="left" if name in VERDICTS else "right", no_wrap=True)
    for line in zip(*visible.values(), strict=True):
        table.add_row(*(Text(text, COLOURS.get(text.partition(" ")[0], "")) for text in line))
    console.print(table)
    if len(groups) > _LINES:
        console.print(f"... and {len(groups) - _LINES} more lines in sweep.csv", markup=False)
    if alike_text := ", ".join(f"{name} {text}" for name, text in alike.items() if text != "-"):
        console.print(f"all       {alike_text}", markup=False)
    if left_out:
        console.print(f"not shown {', '.join(left_out)} (see sweep.csv)", markup=False)


def _short_heads(names: Collection[str]) -> dict[str, str]:
    """Return what heads each column where there is no room: of a dotted key its last word, if that is of one only.

    Examples:
        >>> _short_heads(["model.cell", "data.seed", "seed"])
        {'model.cell': 'cell', 'data.seed': 'data.seed', 'seed': 'seed'}
    """
    times = Counter(name.rpartition(".")[2] for name in names)
    return {name: word if times[word := name.rpartition(".")[2]] == 1 else name for name in names}


def _width(columns: Mapping[str, Sequence[str]], heads: Mapping[str, str]) -> int:
    """Return the width of a table whose columns are two spaces apart."""
    return sum(max(map(cell_len, [heads[name], *texts])) + 2 for name, texts in columns.items()) - 2


def _words(rows: Sequence[Row], key: str) -> str:
    """Return the verdict of most jobs, with their share if it is not that of all."""
    words = [row.numbers[key] for row in rows if row.numbers[key] is not None]
    if not words:
        return "-"
    word, number = Counter(words).most_common(1)[0]
    return word if number == len(words) else f"{word} {number}/{len(words)}"


def _average(rows: Sequence[Row], key: str, form: str, prefix: str = "") -> str:
    mean = average(rows, key)
    digits = int(form[-2]) + (2 if form.endswith("%") else 0)
    return "-" if mean is None else f"{prefix}{round(mean, digits) + 0.0:{form}}"  # no -0.0


def _spread(rows: Sequence[Row], key: str) -> str:
    """Return the sample standard deviation over the seeds; runs of the same seed are one network."""
    numbers = {row.swept.get("seed"): row.numbers[key] for row in rows if row.numbers[key] is not None}
    return f"{np.std(list(numbers.values()), ddof=1):.3f}" if len(numbers) > 1 else "-"


def _seeds(rows: Sequence[Row]) -> int:
    return len({row.swept.get("seed") for row in rows})


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


_LEAST = ("loss", "theory", "first/last", "training", "test", "± sd", "seeds", "gradient")
_OTHERWISE = {"loss": "last loss", "seeds": "networks"}
VERDICTS = ("gradient", "training", "theory")
# name: text for the jobs of a line
_COLUMNS: dict[str, Callable[[Sequence[Row]], str]] = {
    "seeds": lambda rows: str(_seeds(rows)),
    "gradient": lambda rows: _words(rows, "gradient"),
    "training": lambda rows: _words(rows, "training"),
    "theory": lambda rows: _words(rows, "theory"),
    "log_chi": lambda rows: _average(rows, "log_chi", "+.3f"),
    "± sd": lambda rows: _spread(rows, "log_chi"),
    "first/last": lambda rows: _average(rows, "log10_first_over_last", "+.1f", "10^"),
    "loss": lambda rows: "-" if (mean := average(rows, "loss_last")) is None else loss_text(mean),
    "test": lambda rows: _average(rows, "test_accuracy", ".0%"),
}
