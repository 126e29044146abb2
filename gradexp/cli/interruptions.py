"""Ctrl-C and SIGTERM: the first ends the work in order, a second one at once."""

import signal
from typing import Any, Self


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. It unwinds the run, so that its files are completed, and sets the exit code.

    A class of its own for Ctrl-C too: Python ends itself by SIGINT, with no exit code, after a plain
    KeyboardInterrupt that passed through an import, even if it was caught.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.exit_code = 128 + signum


class Interruptions:
    """Turn the first SIGINT or SIGTERM into ``Interrupted``, and ignore later ones while files are completed.

    It is a sink as well: an exception raised inside an import or a callback of a library may be swallowed there,
    and is then raised again at the next sign of life of the run.
    """

    def __init__(self) -> None:
        self.pending: Interrupted | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over both signals, unless they are ignored, as in a job that outlives its terminal."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def write(self, stage: str, _result: object) -> None:
        """Raise an interruption that was swallowed."""
        if self.pending is not None and stage != "end":
            raise self.pending

    def close(self) -> None:
        """Nothing is held open."""

    def _raise(self, signum: int, _frame: object) -> None:
        if self.pending is None:
            self.pending = Interrupted(signum)
            raise self.pending
