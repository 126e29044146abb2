"""Ctrl-C, SIGTERM and the loss of the terminal: the first signal ends the work in order, later ones change nothing.

It imports little, since a command sets itself up for signals before it loads anything else.
"""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# New objects from one look for cycles to the next. Python's own 700 are soon there, and nothing large is in a cycle.
_BETWEEN_COLLECTIONS = 10_000


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. It unwinds the run, so that its files are completed, and sets the exit code.

    A class of its own for Ctrl-C too: Python ends itself by SIGINT, with no exit code, after a plain
    KeyboardInterrupt that passed through an import, even if it was caught.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.exit_code: int = 128 + signum


def leave_at_once() -> None:
    """Let the process end at once: at a signal in one line, until there is work to end in order (``Interruptions``).

    For the entry of a command, before it imports the libraries that take half a second. Signals that the parent
    ignores stay ignored, as in a job that outlives its terminal.
    """
    for signum in _SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _leave)
    # At its end Python would look for cycles in all that torch has loaded, which takes half a second, and before that
    # again and again, which takes a tenth of a short run.
    atexit.register(gc.freeze)
    gc.set_threshold(_BETWEEN_COLLECTIONS)


def _leave(signum: int, _frame: object) -> NoReturn:
    os.write(2, b"interrupted\n")
    os._exit(128 + signum)


def line_of(interruption: BaseException) -> str:
    """Return the line a command prints about an interruption, with its first note: what is left and what to do."""
    return "; ".join(["interrupted", *getattr(interruption, "__notes__", [])[:1]])


class Interruptions:
    """Turn the first SIGINT or SIGTERM into ``Interrupted``, and ignore later ones while files are completed.

    It is the first sink of a run as well. An exception raised inside an import or a callback of a library may be
    swallowed there, and is then raised again at the next sign of life of the run.

    Args:
        waits_for_files: Whether a signal that comes while the files of a run are completed waits for ``release``.
    """

    def __init__(self, waits_for_files: bool = False) -> None:
        self.waits_for_files = waits_for_files
        self.pending: Interrupted | None = None
        self._raised = False
        self._holding = False
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []
        self._unraisable: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Send a fresh one to a worker process: what this one holds belongs to its own process."""
        return type(self), (self.waits_for_files,)

    def __enter__(self) -> Self:
        """Handle the signals from now on, unless they are ignored, as in a job that outlives its terminal."""
        for signum in _SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._interrupt)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            self._terminals = [stream for stream in (1, 2) if os.isatty(stream)]
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._go_on)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._tell_unraisable
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the handlers of the signals, or ignore them if nothing but the end of the process is left to do."""
        sys.unraisablehook = self._unraisable
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_IGN if handler is _leave else handler)

    def write(self, stage: str, result: Any) -> None:
        """Raise an interruption that was swallowed; from the end on hold later ones back."""
        if stage == "end":
            if self.waits_for_files:
                self.hold()
            # It may have come as the error of an import that it cut short.
            if self.pending is not None and result is not None and result.status == "failed":
                result.status, result.error = "interrupted", None
        elif self.pending is not None and not self._holding:
            self._raised = True
            raise self.pending

    def close(self) -> None:
        """Nothing is held open."""

    def hold(self) -> None:
        """Let signals wait from now on."""
        self._holding = True

    def let(self) -> None:
        """Let no further signal wait."""
        self._holding = False

    def release(self) -> None:
        """Raise a signal that has waited, and let no other wait.

        Raises:
            Interrupted: If there was one.
        """
        self.let()
        if self.pending is not None and not self._raised:
            self._raised = True
            raise self.pending

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait while files are completed."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def _interrupt(self, signum: int, _frame: object) -> None:
        if self.pending is None:
            self.pending = Interrupted(signum)
            if not self._holding:
                self._raised = True
                raise self.pending

    def _go_on(self, _signum: int, _frame: object) -> None:
        """Print nowhere: the terminal is gone, and the work is not."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in self._terminals:
            os.dup2(nowhere, stream)
        os.close(nowhere)

    def _tell_unraisable(self, unraisable: Any) -> None:
        """Report what a finaliser has raised, unless that is the interruption, which is pending."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._unraisable(unraisable)
