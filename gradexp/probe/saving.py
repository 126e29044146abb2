"""Each recorded step, appended to a file at once."""

import warnings
from pathlib import Path
from typing import Any

from gradexp.history.finding import Finding
from gradexp.history.probe_steps import Layout
from gradexp.history.record_file import RecordFile, Rows, SavedStep
from gradexp.probe.processes import is_first_process
from gradexp.probe.record import Record


class Saving:
    """Append the steps of a record to a file, and restore those that are in it.

    A step that is changed after it was written, as by the updates of a second optimizer, is written again. What
    cannot be written is a warning, the first time: it stays in memory, and is tried again with the next step.

    Args:
        path: The file.
        keep: How many of the last steps stay in memory, and at most as many of those before; None: all.
        record: Where the steps are.

    Raises:
        TypeError: If that is no path.
        ValueError: If the file is there and not the record of this model.
        OSError: If it cannot be written.
    """

    def __init__(self, path: Any, keep: int | None, record: Record) -> None:
        if not isinstance(path, (str, Path)):
            raise TypeError(f"save must be a path, got {path!r}")
        self._record = record
        self._keep = keep
        self._count = 0  # steps that are written
        self._version = 0  # of the record that is written
        self._layout: Layout | None = None
        self._has_failed = False
        self._file = RecordFile(Path(path), record.subject, self._restore) if is_first_process() else None

    def _restore(self, step: SavedStep) -> None:
        record = self._record
        record.restore(step.place, step.label, step.reading, step.findings)
        if step.rows is not None:
            record.numbers, record.order, record.feeds, record.kinds = step.rows
        self._thin_out()

    def hand_on(self) -> None:
        """Write the steps that were added or changed since."""
        record = self._record
        if record.version == self._version:
            return
        self._count -= self._count == record.count  # the last one was changed
        while self._file is not None and self._count < record.count:
            index = len(record.steps) - (record.count - self._count)
            try:
                self._write(self._file, index)
            except Exception as error:
                self._warn(record.steps[index], error)
                return
            self._count += 1
        self._count, self._version = record.count, record.version
        self._thin_out()

    def finish(self) -> None:
        """Write what is left."""
        self.hand_on()

    def tell(self, _: Finding) -> None:
        """Write the last step again, in which something was found, unless it is still to be written."""
        if self._count == self._record.count:
            self.hand_on()

    def _write(self, file: RecordFile, index: int) -> None:
        record, layout = self._record, self._record.layout()
        rows = Rows(record.numbers, record.order, record.feeds, record.kinds) if layout is not self._layout else None
        step = SavedStep(
            record.places[index], record.steps[index], record.readings[index], record.findings[index], rows
        )
        file.append(step)
        self._layout = layout

    def _thin_out(self) -> None:
        if self._keep is not None:
            self._record.thin_out(self._keep)

    def _warn(self, label: int, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            cause = " ".join(str(error).split())
            text = f"step {label} is not saved, but stays in memory until it can be: {type(error).__name__}: {cause}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
