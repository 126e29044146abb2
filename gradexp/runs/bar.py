"""A bar or a spinner in the terminal, which is gone at its end."""

from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_PER_SECOND = 6  # redrawn


class Bar(Progress):
    """A bar with the part that is done, the rate and the remaining time, gone at its end.

    Without a total it is a spinner.

    Args:
        console: The terminal to draw on.
        columns: What it consists of; None: all of the above.
    """

    def __init__(self, console: RichConsole, columns: Iterable[ProgressColumn] | None = None) -> None:
        self.above: RenderableType | None = None
        super().__init__(
            *(_columns() if columns is None else columns),
            console=console,
            transient=True,
            refresh_per_second=_PER_SECOND,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is shown above the bar, and the bar."""
        return [*([self.above] if self.above is not None else []), *super().get_renderables()]


def _columns() -> list[ProgressColumn]:
    counted = (BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    return [
        _Either(SpinnerColumn(), is_counted=False),
        TextColumn("{task.description}", markup=False),
        *(_Either(column, is_counted=True) for column in counted),
    ]


class _Either(ProgressColumn):
    """A column of tasks of which the total is known, or of those of which it is not.

    Args:
        column: The column.
        is_counted: Whether it is of tasks of known size.
    """

    def __init__(self, column: ProgressColumn, is_counted: bool) -> None:
        super().__init__()
        self.column = column
        self.is_counted = is_counted

    def render(self, task: Task) -> RenderableType:
        """Return the column, or nothing."""
        return self.column(task) if (task.total is not None) == self.is_counted else Text()


class _Rate(ProgressColumn):
    """The column of the rate, per second."""

    def render(self, task: Task) -> Text:
        """Return the rate, or nothing until it is known."""
        return Text(f"{task.speed:.3g}/s" if task.speed else "", style="progress.data.speed")
