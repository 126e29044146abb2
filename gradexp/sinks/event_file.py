"""One event file of TensorBoard, written by a thread of its own.

TensorBoard is imported when the first file is opened, since it is slow to load.
"""

import os
import re
import socket
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_NAME = "events.out.tfevents.{time:010d}.{host}.{process}.{number}"  # as TensorBoard's own writer names it
_OLD = re.compile(r"events\.out\.tfevents\.\d{10,}\..+\.\d+\.\d+")

# Seconds from one flush to the next at most.
_BETWEEN_FLUSHES = 5.0

_numbers = count()


def event_files(folder: Path) -> list[Path]:
    """Return the event files of a folder that are named as ``EventFile`` and TensorBoard's own writer name them."""
    return [path for path in folder.glob("events.out.tfevents.*") if _OLD.fullmatch(path.name)]


def read_scalars(folder: Path, tag: str) -> dict[int, float]:
    """Return step -> value of a scalar in the event files of a folder, up to the first damaged record of each.

    Args:
        folder: The folder; those below it are not read.
        tag: The scalar's tag, such as ``train/loss``.
    """
    return read_all_scalars(folder, (tag,)).get(tag, {})


def read_all_scalars(folder: Path, prefixes: tuple[str, ...]) -> dict[str, dict[int, float]]:
    """Return step -> value, by tag, of the scalars whose tags begin with one of some prefixes."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto import event_pb2

    values: dict[str, dict[int, float]] = {}
    sought = [prefix.encode() for prefix in prefixes]
    for path in event_files(folder):
        for record in _records(path):
            if not any(prefix in record for prefix in sought):  # most are of something else, and parsing takes long
                continue
            try:
                event = event_pb2.Event.FromString(record)
            except DecodeError:
                break
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value" and value.tag.startswith(prefixes):
                    values.setdefault(value.tag, {})[int(event.step)] = value.simple_value
    return values


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of an event file: length and its checksum before each, the content's behind."""
    try:
        content = path.read_bytes()
    except OSError:
        return
    at = 0
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 8], "little")
        if end + 4 > len(content):
            return
        yield content[at + 12 : end]
        at = end + 4


class EventFile:
    """Events on their way into a file; the caller never waits for the disk.

    TensorBoard's own writer prints the traceback of its thread where a disk is full. Here the error is kept, and
    raised in the thread that adds the next event or closes the file.

    Args:
        folder: The folder of the file, made if it does not exist. A run that is made again replaces its old file.

    Raises:
        OSError: If the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        for old in event_files(folder):
            old.unlink()
        name = _NAME.format(
            time=int(time.time()), host=socket.gethostname(), process=os.getpid(), number=next(_numbers)
        )
        self.path: Path = folder / name
        self._make_event = event_pb2.Event
        self._file = self.path.open("wb")
        self._records = RecordWriter(self._file)
        self._waiting: SimpleQueue[bytes | Event | None] = SimpleQueue()
        self._error: OSError | None = None
        self._closed = False
        self._thread = Thread(target=self._work, name="event file", daemon=True)
        self._thread.start()
        source = event_pb2.SourceMetadata(writer="tensorboard.summary.writer.event_file_writer")
        self._add(file_version="brain.Event:2", source_metadata=source)

    def add_summary(self, summary: "Summary", step: int | None = None) -> None:
        """Hand a summary to the writing thread.

        Args:
            summary: The summary.
            step: Its training step, or its layer; None for a summary without one.

        Raises:
            OSError: If an earlier one could not be written.
        """
        self._add(summary=summary, **({} if step is None else {"step": int(step)}))

    def flush(self) -> None:
        """Wait until all that was added is in the file.

        Raises:
            OSError: If something could not be written.
        """
        done = Event()
        self._waiting.put(done)
        done.wait()
        self._check()

    def close(self) -> None:
        """Write what is waiting, and close the file.

        Raises:
            OSError: If something could not be written.
        """
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
            self._thread.join()
            self._check()

    def _add(self, **content: Any) -> None:
        self._check()
        self._waiting.put(self._make_event(wall_time=time.time(), **content).SerializeToString())

    def _check(self) -> None:
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self.path))

    def _work(self) -> None:
        """Write until told to end. After an error the rest is dropped, so that nothing piles up."""
        try:
            self._write_waiting()
        except OSError as error:
            self._error = error
            while (left := self._waiting.get()) is not None:
                if isinstance(left, Event):
                    left.set()
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error

    def _write_waiting(self) -> None:
        due = 0.0  # the first event is flushed at once
        while True:
            try:
                record = self._waiting.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                self._file.flush()
                record = self._waiting.get()
            if record is None:
                return
            if isinstance(record, Event):
                self._file.flush()
                record.set()
                continue
            self._records.write(record)
            if time.monotonic() >= due:
                self._file.flush()
                due = time.monotonic() + _BETWEEN_FLUSHES
