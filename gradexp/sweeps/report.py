"""Table, csv, figures and page of a sweep."""

import csv
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from gradexp.atomic_write import replacing
from gradexp.choices import ConfigError
from gradexp.plotting import save
from gradexp.runs.layers_file import NAME as LAYERS
from gradexp.runs.layers_file import read_layers
from gradexp.runs.progress import working
from gradexp.runs.summary_file import read_summary
from gradexp.runs.terminal import Terminal
from gradexp.sinks.event_file import read_scalars
from gradexp.sinks.page import NAME as PAGE
from gradexp.sinks.page import run_page
from gradexp.sweeps.compare import SweepResults, compare
from gradexp.sweeps.outcome_figure import ACCURACY, LOG_CHI, outcome_figure
from gradexp.sweeps.page import write_page
from gradexp.sweeps.profile_figure import profiles_figure
from gradexp.sweeps.table import print_table

_DAMAGED = 10  # named in the terminal


def report(folder: Path, console: Console | None = None) -> None:
    """Compare the runs of a sweep: print a table, and write sweep.csv, figures and report.html into its folder.

    Of the folder of a single run only report.html is written. It may be called while the runs go on.

    Args:
        folder: The folder of a run or of several.
        console: The terminal to print to; None: standard output.

    Raises:
        ConfigError: If there are no runs of this version.
        OSError: If the folder cannot be written to.
    """
    console = console or Terminal()
    if (summary := read_summary(folder)) is not None:
        console.print(f"report    {write_run_page(folder, summary)}", markup=False, soft_wrap=True)
        return
    comparison = compare(folder)
    print_table(comparison, console)
    for line in comparison.damaged[:_DAMAGED]:
        console.print(f"left out  {line}", markup=False, soft_wrap=True)
    if len(comparison.damaged) > _DAMAGED:
        console.print(f"... and {len(comparison.damaged) - _DAMAGED} more", markup=False)
    with working(console, "drawing figures"):
        write_csv(comparison)
        page = write_page(comparison, write_figures(comparison))
    for label, text in (
        ("table", str(folder / "sweep.csv")),
        ("report", str(page)),
        ("look", f"python -m gradexp.board {shlex.quote(str(folder))}"),
    ):
        console.print(f"{label:<9} {text}", markup=False, soft_wrap=True)


def write_run_page(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write the page of a run from the files in its folder, and return its path.

    Args:
        folder: The run's folder.
        content: Content of its summary.json.

    Raises:
        ConfigError: If its layers.csv holds no profile.
        OSError: If the page cannot be written.
    """
    try:
        initial, gradients = read_layers(folder / LAYERS)
    except FileNotFoundError:
        initial = None
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if initial is None:
        status = content["status"]
        why = f"{LAYERS} is missing" if status == "complete" else f"its run is {status}"
        raise ConfigError(f"{folder} holds no profile: {why}")
    losses = read_scalars(folder, "train/loss")
    guessing = content["training"].get("guessing_loss")  # unknown of a run of version 0.1
    page = run_page(content, initial, gradients, [losses[step] for step in sorted(losses)], guessing)
    return page.write(folder / PAGE)


def write_csv(comparison: SweepResults) -> None:
    """Write sweep.csv: a line per job, numbers with all their digits, an empty field for none."""
    with replacing(comparison.folder / "sweep.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", "folder", "config_hash", "status", *comparison.keys, *comparison.rows[0].numbers])
        for row in comparison.rows:
            job = row.job
            job_fields = [job.number, job.name, job.config_hash, job.status]
            writer.writerow([*job_fields, *row.swept.values(), *row.numbers.values()])


_DPI = 110


def write_figures(comparison: SweepResults) -> dict[str, Path]:
    """Draw the figures of a sweep into its folder, as PNG and SVG, and return title -> PNG of those on the page.

    The profiles are there as files only, since the page has a chart of them.
    """
    figures = {
        "Output gradient over layers, at initialisation": ("profiles", profiles_figure(comparison)),
        "log_chi over the swept options": ("log_chi", outcome_figure(comparison, LOG_CHI)),
        "Accuracy over the swept options": ("accuracy", outcome_figure(comparison, ACCURACY)),
    }
    written: dict[str, Path] = {}
    for title, (name, figure) in figures.items():
        if figure is not None:
            path = save(figure, comparison.folder / name, _DPI)
            written |= {title: path} if name != "profiles" else {}
    return written
