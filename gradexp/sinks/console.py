"""Terminal output: a screen per run, a line per job of a sweep."""

import multiprocessing
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console as RichConsole
from rich.table import Table

from gradexp._version import __version__
from gradexp.history.columns import power_of_ten
from gradexp.history.history import History
from gradexp.history.step import STATUSES, Array
from gradexp.runs.progress import Progress
from gradexp.runs.remedies import command_with
from gradexp.runs.result import Result, Stage
from gradexp.runs.summary import metrics, summary
from gradexp.runs.wording import training_line
from gradexp.sinks.lines import range_lines, slope_lines, theory_lines
from gradexp.sinks.page import NAME as PAGE


class Console:
    """Print what is built, the profile at a glance, the training and the verdict.

    Args:
        folder: The run's own folder.
        quiet: Whether to print the verdict only.
        console: The terminal to print to; None: standard output.
    """

    def __init__(self, folder: Path, quiet: bool = False, console: RichConsole | None = None) -> None:
        self.folder = folder
        self.quiet = quiet
        self.console = console or RichConsole(highlight=False, emoji=False)
        self._progress = Progress(quiet=quiet, console=self.console)

    def write(self, stage: Stage, result: Result) -> None:
        """Print what is new."""
        self._progress.write(stage, result)
        if stage == "end":
            self._progress.close()
            self._end(result)
        elif stage == "built" and not self.quiet:
            self._progress.close()
            self.console.print(f"[bold]gradexp {__version__}[/bold]")
            self.console.print(result.building or "", markup=False)
        elif stage == "initial" and not self.quiet and result.initial is not None:
            self._progress.close()
            self._initial(result)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.close()

    def _initial(self, result: Result) -> None:
        history = result.initial
        assert history is not None
        networks = f"{len(history.seeds)} networks" if len(history.seeds) > 1 else "1 network"
        self.console.print(
            f"\n[bold]At initialisation[/bold] ({result.config.batch_size} samples, {networks}, exact)"
        )
        profiles = _ProfileTable(history.depth, self.console)
        for quantity, label in _LABELS.items():
            profile, predicted = history.profile(quantity), history.theory.get(f"log10_{quantity}")
            profiles.add(label, profile, history.status[quantity][0, 0], beside=predicted)
            if predicted is not None:
                profiles.add("  theory", predicted, style="dim", beside=profile)
        self.console.print(profiles.table)
        for line in (*slope_lines(history.at()), *theory_lines(result)):
            self.console.print(line)
        dead = float(np.mean(history.dead_fraction)) if history.dead_fraction is not None else 0.0
        if dead:
            self.console.print(f"{dead:.1%} of the samples are exactly 0 at some layer and left out")
        for line in range_lines(history.at(), result.config.dtype):
            self.console.print(line)

    def _end(self, result: Result) -> None:
        training, verdict = result.training, result.verdict
        if result.status != "complete":  # the command says in one line what happened
            return
        if training is not None and training.losses and not self.quiet:
            self.console.print(f"\n[bold]Training[/bold]\n{training_line(training)}")
            self._gradient(result.gradients)
        if verdict is not None:
            if not self.quiet:
                self.console.print()
            self.console.print(f"[bold]{verdict.words}[/bold]")
            self.console.print(verdict.text, markup=False, soft_wrap=self.quiet)
            if verdict.remedy:  # in one line, to be pasted
                command = command_with(result.overrides, verdict.remedy)
                self.console.print(f"try       {command}", markup=False, soft_wrap=True)
        if not self.quiet:
            timings = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds_by_part.items())
            folder = _short(self.folder)
            self.console.print(f"\nfiles     {folder}", markup=False, soft_wrap=True)
            if (self.folder / PAGE).exists():
                page = _short(self.folder / PAGE)
                self.console.print(f"report    {page}   open it in a browser", markup=False, soft_wrap=True)
            self.console.print(
                f"look      python -m gradexp.board {shlex.quote(folder)}", markup=False, soft_wrap=True
            )
            self.console.print(f"seconds   {result.seconds:.1f} ({timings})", markup=False)

    def _gradient(self, history: History | None) -> None:
        """Show the real gradient that the probe saw last."""
        if history is not None and history.steps:
            profiles = _ProfileTable(history.depth, self.console, "output gradient")
            status = history.status["output_grad"][-1, 0]
            profiles.add(f"  step {history.steps[-1]}", history.profile("output_grad"), status)
            self.console.print(profiles.table)


class _ProfileTable:
    """A table of profiles: first, middle and last layer, and all at a glance.

    Args:
        depth: Number of layers.
        console: The terminal that the table is printed to.
        title: Header of the first column.
    """

    def __init__(self, depth: int, console: RichConsole, title: str = "") -> None:
        self.layers = sorted({1, (depth + 1) // 2, depth})
        self.blocks = _BLOCKS if console.encoding.startswith("utf") else _ASCII_BLOCKS
        self.table = Table(box=None, pad_edge=False, header_style="dim")
        self.table.add_column(title, min_width=_LABEL)
        for layer in self.layers:
            self.table.add_column(f"layer {layer}", justify="right", no_wrap=True)
        self.table.add_column(f"1 to {depth}, log scale", no_wrap=True)

    def add(
        self,
        label: str,
        log10: Array,
        status: NDArray[np.int8] | None = None,
        style: str = "",
        beside: Array | None = None,
    ) -> None:
        """Add a row, drawn on the scale of the row beside it. Without a status every layer has a number."""
        words = ["none"] * log10.size if status is None else [STATUSES[code] for code in status]
        sizes = [power_of_ten(log10[layer - 1], words[layer - 1]) for layer in self.layers]
        self.table.add_row(label, *sizes, sparkline(log10, status, blocks=self.blocks, beside=beside), style=style)


class Line:
    """Print the outcome of one job of a sweep, in one line.

    Args:
        folder: The job's own folder.
        quiet: Whether to print nothing.
        console: The terminal to print to; None: standard output.
    """

    def __init__(self, folder: Path, quiet: bool = False, console: RichConsole | None = None) -> None:
        self.folder = folder
        self.quiet = quiet
        self.console = console or RichConsole(highlight=False, emoji=False)
        # Bars of several worker processes would overwrite each other.
        alone = multiprocessing.current_process().name == "MainProcess"
        self._progress = Progress(f"{folder.name}: ", quiet or not alone, self.console)

    def write(self, stage: Stage, result: Result) -> None:
        """Print the line at the end."""
        self._progress.write(stage, result)
        if stage != "end":
            return
        self._progress.close()
        if not self.quiet and result.status == "complete":  # what went wrong is said in a line by the command
            self.console.print(job_line(self.folder.name, summary(result)), markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.close()


def job_line(name: str, content: Mapping[str, Any]) -> str:
    """Return the outcome of a complete job, from its folder's name and the content of its summary.json."""
    numbers = metrics(content)
    slope, loss = numbers["log_chi"], numbers["loss_last"]
    facts = [
        f"{numbers['gradient']:<9}",
        f"{numbers['training']:<8}",
        f"{numbers['theory']:<11}",
        f"log_chi {'' if slope is None else format(slope, '+.4f'):>7}",
        f"loss {'-' if loss is None else format(loss, '.4g'):>6}",
        f"{numbers['seconds'] or 0.0:5.1f} s",
    ]
    return "  ".join([*facts, name])


_LABELS = {"output": "output rms", "output_grad": "output gradient", "weight_grad": "weight gradient"}
_LABEL = max(map(len, _LABELS.values()))
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-~=+*#"
# Layers without a number: exactly 0, inf or nan, or unseen.
_MARKS = {"nonfinite": "x", "zero": "0"}
_UNSEEN = "?"


def sparkline(
    log10: Array,
    status: NDArray[np.int8] | None = None,
    width: int = 24,
    blocks: str = _BLOCKS,
    beside: Array | None = None,
) -> str:
    """Draw values over layers on a log scale, at least one decade high, and mark layers without a number.

    Args:
        log10: Values, shape ``(layer,)``, nan where there is no number.
        status: Index into ``STATUSES`` of each layer. ``0`` marks zero, ``x`` inf or nan, ``?`` unknown.
        width: Greatest number of characters; a mark stands if one of the layers that share a character has none.
        blocks: Eight characters, from low to high.
        beside: Values that share the scale.

    Examples:
        >>> sparkline(np.array([0.0, -1.0, -2.0, np.nan]))
        '█▅▁?'
    """
    if not log10.size:
        return ""
    values = log10 if beside is None else np.concatenate([log10, beside])
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if high - low < 1:
        low = (low + high - 1) / 2 + 0.01  # off the middle, where rounding noise would flicker
        high = low + 1
    bars = []
    for layers in np.array_split(np.arange(log10.size), min(width, log10.size)):
        numbers = log10[layers]
        missing = layers[~np.isfinite(numbers)]
        if missing.size:
            words = {STATUSES[code] for code in status[missing]} if status is not None else set()
            bars.append(next((mark for word, mark in _MARKS.items() if word in words), _UNSEEN))
        else:
            bars.append(blocks[min(7, int((numbers.mean() - low) / (high - low) * 7 + 0.5))])
    return "".join(bars)


def _short(folder: Path) -> str:
    """Show a folder relative to the current directory, if it is inside."""
    current = Path.cwd()
    return str(folder.relative_to(current)) if folder.is_relative_to(current) else str(folder)
