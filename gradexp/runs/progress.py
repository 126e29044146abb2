"""A progress bar in the terminal or in a notebook; nothing where output goes to a file or a pipe."""

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from gradexp.runs.notebook_progress import NotebookProgress
from gradexp.runs.result import Result, Sink, Stage


def progress_here() -> Sink:
    """Return the progress bar that this process can show: in the cell of a notebook, or in its terminal."""
    console = RichConsole(highlight=False, emoji=False)
    return NotebookProgress() if console.is_jupyter else Progress(console=console)


def progress_bar(console: RichConsole) -> RichProgress:
    """Return a bar with the part that is done, the rate and the remaining time; it is gone at its end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return RichProgress(*columns, console=console, transient=True)


class _Rate(ProgressColumn):
    """The column of the rate, per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing until it is known."""
        return Text(f"{task.speed:.3g}/s" if task.speed else "", style="progress.data.speed")


class Progress:
    """A sink that shows the current activity as a bar, and removes the bar at the activity's end.

    Args:
        label: Text before each activity.
        quiet: Whether to show nothing.
        console: The terminal to draw on; None: standard output.
    """

    def __init__(self, label: str = "", quiet: bool = False, console: RichConsole | None = None) -> None:
        self.label = label
        self.quiet = quiet
        self.console = console or RichConsole(highlight=False, emoji=False)
        self._bar: RichProgress | None = None
        self._activity = ""

    def write(self, stage: Stage, result: Result) -> None:
        """Advance the bar."""
        if stage == "progress":
            self.advance(*result.progress)

    def advance(self, activity: str, done: int, total: int) -> None:
        """Show how much of an activity is done; another activity begins a new bar."""
        if self.quiet or not self.console.is_terminal:
            return
        if self._bar is None or activity != self._activity:
            self.close()
            self._activity = activity
            self._bar = progress_bar(self.console)
            self._bar.start()
            self._bar.add_task(self.label + activity, total=total)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
