"""A progress bar in the cell of a notebook, by IPython, which every notebook has; rich would need ipywidgets."""

import html
import time
from typing import Any

from gradexp.runs.result import Result, Stage

_PAUSE = 0.1  # seconds between two updates, for thousands of short steps


class NotebookProgress:
    """A sink that shows the current activity as a bar below the cell, and removes the bar at the end."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._activity = ""
        self._next = 0.0

    def write(self, stage: Stage, result: Result) -> None:
        """Advance the bar."""
        if stage == "progress":
            self.advance(*result.progress)

    def advance(self, activity: str, done: int, total: int) -> None:
        """Show how much of an activity is done."""
        if activity == self._activity and (done < total or not total) and time.monotonic() < self._next:
            return
        from IPython.display import HTML, display

        self._activity, self._next = activity, time.monotonic() + _PAUSE
        style = "vertical-align:middle;width:20em;max-width:60%"
        # Without a total, which may be unknown, it is a bar that only moves.
        size, counts = (f'max="{total}" value="{done}" ', f" {done:,} of {total:,}") if total else ("", "")
        shown = HTML(f'<progress {size}style="{style}"></progress> {html.escape(activity)}{counts}')
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def close(self) -> None:
        """Remove the bar."""
        if self._handle is not None:
            self._handle.update({"text/html": "", "text/plain": ""}, raw=True)
            self._handle = None
