"""What is printed: of a run a screen, of a job of a sweep a line."""

import multiprocessing
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console as RichConsole
from rich.table import Table

from gradexp._version import __version__
from gradexp.history import STATUSES, Array, History
from gradexp.progress import Progress
from gradexp.result import Result, outcome, summary
from gradexp.table import power_of_ten


class Console:
    """Tell a person: what is built, the profile at a glance, the training, the verdict.

    Args:
        folder: The run's own folder.
        quiet: Print the verdict only.
        console: Where to print; None: standard output.
    """

    def __init__(self, folder: Path, quiet: bool = False, console: RichConsole | None = None) -> None:
        self.folder = folder
        self.quiet = quiet
        self.console = console or RichConsole(highlight=False, emoji=False)
        self._progress = Progress(quiet=quiet, console=self.console)

    def write(self, stage: str, result: Result) -> None:
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
        shown = sorted({1, (history.depth + 1) // 2, history.depth})
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("")
        for layer in shown:
            table.add_column(f"layer {layer}", justify="right", no_wrap=True)
        table.add_column(f"1 to {history.depth}, log scale", no_wrap=True)
        blocks = _BLOCKS if self.console.encoding.startswith("utf") else _ASCII_BLOCKS
        for quantity, label in _LABELS.items():
            profile, status = history.profile(quantity), history.status[quantity][0]
            sizes = [power_of_ten(profile[layer - 1], STATUSES[status[0, layer - 1]]) for layer in shown]
            table.add_row(label, *sizes, sparkline(profile, blocks=blocks))
            if history.theory:
                predicted = history.theory[f"log10_{quantity}"]
                sizes = [power_of_ten(predicted[layer - 1], "none") for layer in shown]
                table.add_row("  theory", *sizes, sparkline(predicted, blocks=blocks), style="dim")
        self.console.print(table)
        slope, scale = history.log_chi(), history.depth_scale()
        if slope is not None:
            reach = f", depth scale {scale:.3g} layers" if scale is not None else ""
            error = history.log_chi_se()
            spread = f" ± {error:.2g}" if error is not None else ""
            self.console.print(f"log_chi {slope:+.4g}{spread} per layer towards the input{reach}")
        if quantiles := history.log_chi_quantiles():
            low, middle, high = quantiles.values()
            self.console.print(f"  of the networks 5 % are below {low:+.4g}, half {middle:+.4g}, 95 % {high:+.4g}")
        for line in theory_lines(result):
            self.console.print(line)
        dead = float(np.mean(history.dead_fraction)) if history.dead_fraction is not None else 0.0
        if dead:
            self.console.print(f"{dead:.1%} of the samples are exactly 0 at some layer and left out")
        for line in range_lines(history, result.config.dtype):
            self.console.print(line)

    def _end(self, result: Result) -> None:
        training, verdict = result.training, result.verdict
        if result.status != "complete":  # the command says in one line what happened
            return
        if training is not None and training.losses and not self.quiet:
            self.console.print(f"\n[bold]Training[/bold]\n{_course(training)}")
        if verdict is not None:
            if not self.quiet:
                self.console.print()
            self.console.print(f"[bold]{verdict.words}[/bold]")
            self.console.print(verdict.text, markup=False, soft_wrap=self.quiet)
        if not self.quiet:
            parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds_by_part.items())
            shown = _short(self.folder)
            self.console.print(f"\nfiles     {shown}", markup=False, soft_wrap=True)
            self.console.print(
                f"look      python -m gradexp.board {shlex.quote(shown)}", markup=False, soft_wrap=True
            )
            self.console.print(f"seconds   {result.seconds:.1f} ({parts})", markup=False)


class Line:
    """Tell what became of one job of a sweep, in one line.

    Args:
        folder: The job's own folder.
        quiet: Print nothing.
        console: Where to print; None: standard output.
    """

    def __init__(self, folder: Path, quiet: bool = False, console: RichConsole | None = None) -> None:
        self.folder = folder
        self.quiet = quiet
        self.console = console or RichConsole(highlight=False, emoji=False)
        # Bars of several worker processes would overwrite each other.
        alone = multiprocessing.current_process().name == "MainProcess"
        self._progress = Progress(f"{folder.name}: ", quiet or not alone, self.console)

    def write(self, stage: str, result: Result) -> None:
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
    """Return what became of a complete job, from its folder's name and what its summary.json holds."""
    found = outcome(content)
    slope, loss = found["log_chi"], found["loss_last"]
    facts = [
        f"{found['gradient']:<9}",
        f"{found['training']:<8}",
        f"{found['theory']:<11}",
        f"log_chi {'' if slope is None else format(slope, '+.4f'):>7}",
        f"loss {'-' if loss is None else format(loss, '.4g'):>6}",
        f"{found['seconds'] or 0.0:5.1f} s",
    ]
    return "  ".join([*facts, name])


_LABELS = {"output": "output rms", "output_grad": "output gradient", "weight_grad": "weight gradient"}
_BLOCKS = "▁▂▃▄▅▆▇█·"  # the last marks layers without a number
_ASCII_BLOCKS = "_.-~=+*#?"


def sparkline(log10: Array, width: int = 24, blocks: str = _BLOCKS) -> str:
    """Draw values over layers on a log scale, at least one decade high; ``·`` marks layers without a number.

    Example:
        >>> sparkline(np.array([0.0, -1.0, -2.0, np.nan]))
        '█▅▁·'
    """
    there = log10[np.isfinite(log10)]
    if not there.size:
        return blocks[-1] * min(width, log10.size)
    low, high = there.min(), there.max()
    if high - low < 1:
        low = (low + high - 1) / 2 + 0.01  # off the middle, where rounding noise would flicker
        high = low + 1
    bars = []
    for part in np.array_split(log10, min(width, log10.size)):
        numbers = part[np.isfinite(part)]
        missing = numbers.size < part.size
        height = 0.0 if missing else (numbers.mean() - low) / (high - low)
        bars.append(blocks[-1] if missing else blocks[min(7, int(height * 7 + 0.5))])
    return "".join(bars)


def theory_lines(result: Result) -> list[str]:
    """Say what theory expects of log_chi and how far the measurement is from it, or why it says nothing."""
    prediction, comparison = result.prediction, result.comparison
    if prediction is None or comparison is None:
        return []
    if prediction.log_chi is None or prediction.log_chi_sd is None or comparison.z is None:
        return [comparison.text]
    sd = round(prediction.log_chi_sd, 8)  # without fluctuations what is left is rounding
    good_to = f", good to {prediction.tolerance:.1g}" if prediction.tolerance else ""
    return [
        f"theory  {prediction.log_chi:+.4g}, standard deviation {sd:.2g} for one network "
        f"({prediction.reason}{good_to}): {comparison.text}"
    ]


def range_lines(history: History, dtype: str) -> list[str]:
    """Say from which layer on a number format would fail, for outputs and for output gradients."""
    lines = []
    for quantity, label, direction in (("output", "outputs", "up"), ("output_grad", "output gradients", "down")):
        for overflow, word in ((False, "underflow to 0"), (True, "overflow to inf")):
            layer = history.failing_layer(quantity, dtype, overflow)
            if layer is not None:
                lines.append(f"in {dtype} {label} would {word} from layer {layer} {direction}")
    return lines


def _course(training: Any) -> str:
    losses, tests = training.losses, training.tests
    line = f"loss {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps"
    if training.diverged_at is not None:
        return f"{line}, not finite from step {training.diverged_at} on"
    if training.train_accuracy is not None:
        line += f"; accuracy {training.train_accuracy:.1%} in training, {tests[-1][2]:.1%} in test"
    return line


def _short(folder: Path) -> str:
    """Show a folder relative to the current directory, if it is inside."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)
