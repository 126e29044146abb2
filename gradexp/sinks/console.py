"""Terminal output: a screen per run, a line per job of a sweep."""

import multiprocessing
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console as RichConsole
from rich.table import Table

from gradexp._version import __version__
from gradexp.history.encoding import printable
from gradexp.history.sentences import counted, loss_text
from gradexp.history.step import Array, Quantity
from gradexp.runs.command_line import command_with
from gradexp.runs.progress import Progress
from gradexp.runs.result import Result, Stage
from gradexp.runs.summary import summary
from gradexp.runs.sweep_bar import bar_of_sweep
from gradexp.runs.terminal import Terminal
from gradexp.sinks.badges import badges
from gradexp.sinks.job_line import job_line
from gradexp.sinks.lines import format_lines, range_lines, slope_lines, theory_lines
from gradexp.sinks.page import NAME as PAGE
from gradexp.sinks.profile_table import ProfileTable


class Console:
    """Print what is built at once, and at the end the verdict first, then the numbers that it rests on.

    On a terminal the profile is shown above the bar while the training goes on.

    Args:
        folder: The run's own folder.
        quiet: Whether to print the verdict only.
        console: The terminal to print to; None: standard output.
    """

    def __init__(self, folder: Path, quiet: bool = False, console: RichConsole | None = None) -> None:
        self.folder = folder
        self.quiet = quiet
        self.console: RichConsole = console or Terminal()
        self._progress = Progress(quiet=quiet, console=self.console)

    def write(self, stage: Stage, result: Result) -> None:
        """Print what is new."""
        if stage == "start" and not self.quiet:
            self.console.print(f"[bold]gradexp {__version__}[/bold]")
        self._progress.write(stage, result)
        if stage == "built" and not self.quiet:
            for line in (result.building or "").splitlines():
                self._paragraph(line)
        elif stage == "initial":
            self._progress.keep_above(self._profiles(result))
        elif stage == "end":
            self._progress.close()
            self._end(result)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.close()

    def _end(self, result: Result) -> None:
        verdict = result.verdict
        is_complete = result.status == "complete"  # else the command says in one line what happened
        if is_complete and verdict is not None:
            if not self.quiet:
                self.console.print()
            self.console.print(badges(verdict, self.console.is_terminal))
            reason = verdict.text.removesuffix(f"; try {verdict.remedy}")  # the command says it
            self.console.print(reason, markup=False, soft_wrap=self.quiet)
            if verdict.remedy:  # in one line, to be pasted
                command = command_with(result.overrides, verdict.remedy)
                self.console.print(f"try       {command}", markup=False, soft_wrap=True)
        if self.quiet:
            return
        if result.initial is not None:
            self.console.print(self._profiles(result))
            for line in self._facts(result):
                self._paragraph(line)
        if is_complete:
            for line in self._files():
                self.console.print(line, markup=False, soft_wrap=True)
            self._paragraph(_seconds(result))

    def _profiles(self, result: Result) -> Table:
        """Return the profile at initialisation, theory where it differs, and the gradient that training saw last."""
        initial, training = result.initial, result.gradients
        assert initial is not None
        table = ProfileTable(initial.depth, self.console, "before training")
        is_alike = training is not None and training.steps and training.has_rows_of(initial)
        trained = training.profile("output_grad") if training is not None and is_alike else None
        for quantity, label in _LABELS.items():
            profile, predicted = initial.profile(quantity), initial.theory.get(f"log10_{quantity}")
            is_gradient = quantity == "output_grad"
            beside = [each for each in (profile, predicted, trained if is_gradient else None) if each is not None]
            scale, backwards = np.concatenate(beside), quantity != "output"
            table.add(label, profile, initial.status[quantity][0, 0], beside=scale, backwards=backwards)
            if predicted is not None and _differ(profile, predicted):
                table.add("  theory", predicted, style="dim", beside=scale, backwards=backwards)
            if is_gradient and training is not None and trained is not None:
                label = f"  after {counted(training.steps[-1], 'step')}"
                table.add(label, trained, training.status["output_grad"][-1, 0], beside=scale)
        return table.table()

    def _facts(self, result: Result) -> Iterator[str]:
        """Yield a line for each number that the verdict rests on."""
        initial = result.initial
        assert initial is not None
        yield from slope_lines(initial.at())
        yield from theory_lines(result)
        dead = float(np.mean(initial.dead_fraction)) if initial.dead_fraction is not None else 0.0
        if dead:
            yield f"dead      {dead:.1%} of the samples are exactly 0 at some layer and left out"
        yield from range_lines(initial.at(), result.config.number_format)
        yield from format_lines(result)
        if result.status == "complete" and result.training is not None and result.training.losses:
            yield from _training_lines(result)

    def _files(self) -> Iterator[str]:
        folder = _short(self.folder)
        yield f"files     {folder}"
        if (self.folder / PAGE).exists():
            line, remark = f"report    {_short(self.folder / PAGE)}", "   open it in a browser"
            yield line + remark * (len(line + remark) <= self.console.width)
        yield f"look      python -m gradexp.board {shlex.quote(folder)}"

    def _paragraph(self, line: str) -> None:
        """Print a line that begins with a word, and go on below its text where it is too long."""
        width, line = self.console.width, printable(line, self.console.encoding)
        self.console.print(textwrap.fill(line, width, subsequent_indent=" " * 10), markup=False)


_LABELS: dict[Quantity, str] = {
    "output": "output rms",
    "output_grad": "gradient ∂L/∂z",
    "weight_grad": "weight gradient",
}
_PARTS = 3  # of the time that are named
_FACTOR_2 = 0.3


def _differ(measured: Array, predicted: Array) -> bool:
    """Return whether theory is a factor of 2 or more from what was measured, at some layer."""
    difference = np.abs(measured - predicted)
    return bool(np.isnan(difference).any() or difference.max() >= _FACTOR_2)


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
        sweep = bar_of_sweep()
        self.console: RichConsole = console or (sweep.console if sweep else Terminal())
        # Bars of several worker processes would overwrite each other.
        alone = multiprocessing.current_process().name == "MainProcess"
        self._progress = Progress("", quiet or not alone, self.console)

    def write(self, stage: Stage, result: Result) -> None:
        """Print the line at the end."""
        self._progress.write(stage, result)
        if stage != "end":
            return
        self._progress.close()
        if not self.quiet and result.status == "complete":  # what went wrong is said in a line by the command
            line = job_line(self.folder.name, summary(result), self.console.width)
            self.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.close()


def _training_lines(result: Result) -> Iterator[str]:
    training, guessing = result.training, result.guessing
    assert training is not None
    losses, tests = training.losses, training.tests
    line = f"training  loss {loss_text(losses[0])} to {loss_text(losses[-1])} in {counted(len(losses), 'step')}"
    if training.diverged_at is not None:
        yield f"{line}, not finite from step {training.diverged_at} on"
        return
    yield line + (f" (guessing: {loss_text(guessing)})" if guessing is not None else "")
    if training.train_accuracy is not None:
        chance = result.guessing_accuracy
        yield f"accuracy  {training.train_accuracy:.0%} in training, {tests[-1][2]:.0%} in test" + (
            f" (guessing: {chance:.0%})" if chance is not None else ""
        )


def _seconds(result: Result) -> str:
    largest = sorted(result.seconds_by_part.items(), key=lambda part: -part[1])[:_PARTS]
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in largest)
    return f"seconds   {result.seconds:.1f}{f', of which {parts}' if parts else ''}"


def _short(folder: Path) -> str:
    """Show a folder relative to the current directory, if it is inside."""
    current = Path.cwd()
    return str(folder.relative_to(current)) if folder.is_relative_to(current) else str(folder)
