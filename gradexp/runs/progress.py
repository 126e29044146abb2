"""What goes on, as a bar or a spinner in terminal or notebook; nothing where output goes to a file or a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.console import RenderableType

from gradexp.runs.bar import Bar
from gradexp.runs.notebook_progress import NotebookProgress
from gradexp.runs.result import Result, Sink, Stage
from gradexp.runs.sweep_bar import bar_of_sweep
from gradexp.runs.terminal import Terminal


def progress_here() -> Sink:
    """Return the progress bar that this process can show: in the cell of a notebook, or in its terminal."""
    console = Terminal()
    return NotebookProgress() if console.is_jupyter else Progress(console=console)


def is_loaded(package: str) -> bool:
    """Return whether a package is in memory."""
    return package in sys.modules


@contextmanager
def working(console: RichConsole, activity: str) -> Iterator[None]:
    """Show a spinner on a terminal."""
    progress = Progress(console=console)
    progress.advance(activity, 0, 0)
    try:
        yield
    finally:
        progress.close()


class Progress:
    """A sink that shows the current activity as a bar, and removes the bar at the end.

    Args:
        label: Text before each activity.
        quiet: Whether to show nothing.
        console: The terminal to draw on; None: standard output.
        jobs: Of how many jobs of a sweep this is the progress.
    """

    def __init__(
        self, label: str = "", quiet: bool = False, console: RichConsole | None = None, jobs: int = 1
    ) -> None:
        self.label = label
        self.quiet = quiet
        self.console: RichConsole = console or Terminal()
        self.jobs = jobs
        self._above: RenderableType | None = None
        self._bar: Bar | None = None
        self._activity = ""

    def write(self, stage: Stage, result: Result) -> None:
        """Advance the bar."""
        if stage == "start" and not is_loaded("torch"):
            self.advance("loading PyTorch", 0, 0)
        elif stage == "progress":
            self.advance(*result.progress)

    def advance(self, activity: str, done: int, total: int) -> None:
        """Show how much of an activity is done; another activity begins a new bar.

        Args:
            activity: What goes on.
            done: How much is done.
            total: How much there is to do; 0: unknown.
        """
        if self.quiet:
            return
        if (sweep := bar_of_sweep()) is not None:
            # Which part of a job's time its training will take is not known, but it is the most.
            share = done / total if total and activity == "training" else 0.0
            sweep.show(self.label + activity, share, self.jobs)
            return
        if not self.console.is_terminal:
            return
        if self._bar is None or activity != self._activity:
            self.close()
            self._activity = activity
            self._bar = Bar(self.console)
            self._bar.above = self._above
            self._bar.start()
            self._bar.add_task(self.label + activity, total=total or None)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total or None)

    def keep_above(self, shown: RenderableType) -> None:
        """Show something above the bar for as long as there is one."""
        self._above = shown
        if self._bar is not None:
            self._bar.above = shown

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
