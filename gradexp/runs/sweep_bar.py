"""One bar for all jobs of a sweep that run in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from gradexp.runs.bar import Bar


class SweepBar:
    """One bar for all jobs of a sweep, with the time that is left, which stays below the lines of its jobs.

    Args:
        total: The number of jobs.
        console: The terminal that the lines are printed to, too.
    """

    def __init__(self, total: int, console: Console) -> None:
        self.console = console
        self.ended: int = 0
        columns = (
            TextColumn("sweep"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self.bar: Bar = Bar(console, columns)
        self.task: TaskID = self.bar.add_task("", total=total)

    def show(self, activity: str, share: float, jobs: int) -> None:
        """Show what goes on.

        Args:
            activity: What it is.
            share: The part of it that is done.
            jobs: The number of jobs that it is for.
        """
        room = self.console.width - 50
        text = activity if len(activity) <= room else f"{activity[: max(room, 1) - 1]}…"
        so_far = self.bar.tasks[0].completed
        self.bar.update(self.task, description=text, completed=max(so_far, self.ended + share * jobs))

    def count(self) -> None:
        """Count a job that has come to its end, in whatever way."""
        self.ended += 1
        self.bar.update(self.task, completed=max(self.bar.tasks[0].completed, self.ended))


_sweep: SweepBar | None = None


def bar_of_sweep() -> SweepBar | None:
    """Return the bar of the sweep whose jobs run in this process, if there is one."""
    return _sweep


def count_job() -> None:
    """Count a job that has come to its end, if there is a bar to count it."""
    if _sweep is not None:
        _sweep.count()


@contextmanager
def sweep_bar(total: int, console: Console, is_shown: bool = True) -> Iterator[None]:
    """Show a bar for all jobs of a sweep, in which they show what they do; none where there is no terminal.

    Args:
        total: The number of jobs.
        console: The terminal.
        is_shown: Whether to show it.
    """
    global _sweep
    if not is_shown or not console.is_terminal:
        yield
        return
    _sweep = SweepBar(total, console)
    try:
        with _sweep.bar:
            yield
    finally:
        _sweep = None
