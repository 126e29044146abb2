"""Each recorded step, handed to loggers at once: its numbers, and what it is the first to show."""

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from gradexp.history.finding import Finding
from gradexp.history.heat_map import heat_map
from gradexp.history.live import LiveCurves
from gradexp.history.loggers import loggers_of, painters_among
from gradexp.probe.processes import is_first_process
from gradexp.probe.record import Record

_JUMPS = 4  # that are judged at once, and one more in as many steps as follow, so that judging costs little
_BETWEEN_JUMPS = 40
_COURSE = 128  # steps that a step is judged by
_DECADES = 1.0  # a jump
_FIRST_PICTURE = 10  # recorded steps
_DRAWN_STEPS = 300
_SHARE = 0.02  # of the time of a training that pictures may take
_LOADING = 0.5  # seconds: a guess at what the first one takes


class Log:
    """Hand the steps of a record to loggers, each once and in their order.

    What a logger raises is a warning, the first time; the training and the record go on.

    To judge a step takes longer than to record it. Judged are the first one, those at which there are twice as many,
    and those at which the statuses change or the gradients' size jumps by ten.

    Loggers that take pictures get one of the gradient over layers and steps whenever there are twice as many steps,
    but not before a fiftieth of the training's time pays for it, and one at the end.

    Args:
        log: The target, or several.
        layers: Patterns of names that have curves of their own.
        record: Where the steps are.

    Raises:
        TypeError: If something is no target, or no pattern.
        ValueError: If a path or a pattern is wrong.
        OSError: If a file cannot be opened.
    """

    def __init__(self, log: Any, layers: str | Iterable[str] | None, record: Record) -> None:
        self._loggers = loggers_of(log) if is_first_process() else []
        self._curves = LiveCurves(layers)
        self._curves.check(record.names)
        self._record = record
        self._count = 0  # steps that were handed on
        self._judge = _Judge()
        self._drawn = 0  # steps there were at the last picture
        self._begin = time.monotonic()
        self._spent, self._drawing = 0.0, _LOADING  # seconds: for all pictures, and for the last
        self._has_failed = False

    def hand_on(self) -> None:
        """Hand on all steps that were not yet."""
        if not self._loggers or not is_first_process():
            self._count = self._record.count
        while self._count < self._record.count:
            index = len(self._record.steps) - (self._record.count - self._count)
            self._count += 1
            with self._warning(self._record.steps[index], "numbers"):
                history = self._record.history([index])
                numbers = self._curves.numbers(history)
                known = history.findings[0] if history.findings else ()
                found = self._judge.found(self._record, index, self._count, numbers, known)
                self._write(history.steps[0], numbers, found)
        is_due = bool(self._loggers) and self._count >= max(_FIRST_PICTURE, 2 * self._drawn)
        if is_due and time.monotonic() - self._begin >= (self._spent + self._drawing) / _SHARE:
            self._draw()

    def finish(self) -> None:
        """Hand on what is left, and wait until it is where it belongs."""
        self.hand_on()
        if not self._loggers or not is_first_process():
            return
        if self._count >= max(_FIRST_PICTURE, 1.25 * self._drawn):  # a probe may be attached and closed often
            self._draw()
        for logger in self._loggers:
            if hasattr(logger, "finish"):
                with self._warning(self._record.steps[-1] if self._record.steps else 0, type(logger).__name__):
                    logger.finish()

    def _draw(self) -> None:
        """Hand a picture of what is in memory to the loggers that take one."""
        self._drawn = self._count
        begin = time.monotonic()
        with self._warning(self._record.steps[-1], "picture"), suppress(ImportError):  # of matplotlib
            painters = painters_among(self._loggers)
            if painters and "output_grad" in self._record.subject.quantities:
                indices = np.unique(np.linspace(0, len(self._record.steps) - 1, _DRAWN_STEPS).round().astype(int))
                history = self._record.history(indices.tolist())
                figure = heat_map(history)
                for painter in painters:
                    painter.draw(history.steps[-1], figure)
        self._drawing = time.monotonic() - begin
        self._spent += self._drawing

    def tell(self, finding: Finding) -> None:
        """Hand on a finding of the last step, unless that is still to be handed on."""
        new = self._judge.new([finding]) if self._count == self._record.count else []
        if new and is_first_process():
            self._write(self._record.steps[-1], {}, new)

    def _write(self, step: int, numbers: Mapping[str, float], found: list[Finding]) -> None:
        for logger in self._loggers:
            with self._warning(step, type(logger).__name__):
                logger.write(step, numbers, found)

    @contextmanager
    def _warning(self, step: int, where: str) -> Iterator[None]:
        """Turn the first error into a warning, and no other one into anything."""
        try:
            yield
        except Exception as error:
            if not self._has_failed:
                self._has_failed = True
                cause = f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"
                text = f"step {step} is in the record, but not in the log: {cause}"
                warnings.warn(text, RuntimeWarning, stacklevel=4)


class _Judge:
    """Find what is new at a step."""

    def __init__(self) -> None:
        self._told: set[str] = set()  # kinds of findings that last
        self._jumps = 0
        self._next = 1
        self._seen: dict[str, float] = {}

    def found(
        self, record: Record, index: int, count: int, numbers: Mapping[str, float], known: Iterable[Finding]
    ) -> list[Finding]:
        """Return the new findings of a step: all of one that is judged, else those that are known already."""
        watched = {tag: numbers[tag] for tag in _WATCHED if tag in numbers}
        if count >= self._next:
            self._next = 2 * count
        elif self._jumps < _JUMPS + count // _BETWEEN_JUMPS and _has_jumped(self._seen, watched):
            self._jumps += 1
        else:
            return self.new(known)
        self._seen = watched
        stride = -(-count // _COURSE)
        history = record.history([*range(0, index, stride), index])
        step = history.at()
        findings = history.verdict().findings if "output_grad" in step.log10 else step.findings
        found = self.new(findings)
        self._told = {finding.kind for finding in findings}
        return found

    def new(self, findings: Iterable[Finding]) -> list[Finding]:
        """Return the findings of kinds that were not told yet, and take them as told."""
        new = [finding for finding in findings if finding.severity and finding.kind not in self._told]
        self._told |= {finding.kind for finding in new}
        return new


_WATCHED = {
    "gradient/nonfinite_layers": 0.0,
    "gradient/zero_layers": 0.0,
    "gradient/log10_total": _DECADES,
    "gradient/log10_first_over_last": _DECADES,
}
"""By how much a number may change before its step is judged."""


def _has_jumped(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
    for tag, value in now.items():
        old = before.get(tag, math.nan)
        if math.isfinite(value) != math.isfinite(old) or abs(value - old) > _WATCHED[tag]:
            return True
    return False
