"""An alarm: what a step of a training was found to be, and how the user is told."""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

from gradexp.history.finding import Finding
from gradexp.history.step import Step
from gradexp.history.verdict import gradient_verdict
from gradexp.kinds import texts

AlarmWord = Literal["nonfinite", "dead", "vanishing", "exploding"]

KINDS: tuple[AlarmWord, ...] = get_args(AlarmWord)
"""What an alarm may be about."""


class AlarmError(RuntimeError):
    """The first bad step of a training, in one line.

    Args:
        step: The step's label, as given to ``collect``.
        finding: What was found.
        recent: The norm of all gradients in the steps before, oldest first.
    """

    def __init__(self, step: int, finding: Finding, recent: Sequence[float] = ()) -> None:
        self.step = step
        self.finding = finding
        self.recent: list[float] = list(recent)
        norms = [f"{norm:.3g}" for norm in recent if math.isfinite(norm)]
        before = f"; before, the norm of all gradients was {', '.join(norms)}" if norms else ""
        super().__init__(f"step {step}: {finding.kind}: {finding.text}{before}")

    def __reduce__(self) -> Any:
        """Let it pass from one process to another."""
        return type(self), (self.step, self.finding, self.recent)


Alarm = Literal["warn", "raise"] | Callable[[AlarmError], object]
"""``"warn"``, ``"raise"``, or a function of the ``AlarmError``."""


class Bell:
    """Tell the user about findings of some kinds, once for as long as each lasts.

    Args:
        alarm: How.
        kinds: Of which kinds.

    Raises:
        ValueError: If one of them is unknown.
        TypeError: If ``alarm`` is neither a word nor a function, or ``kinds`` are no words.
    """

    def __init__(self, alarm: Alarm, kinds: Iterable[str]) -> None:
        if isinstance(alarm, str) and alarm not in ("warn", "raise"):
            raise ValueError(f"alarm must be 'warn', 'raise' or a function, got '{alarm}'")
        if not isinstance(alarm, str) and not callable(alarm):
            raise TypeError(f"alarm must be 'warn', 'raise' or a function, got {alarm!r}")
        self._alarm = alarm
        self.kinds: list[str] = texts("alarm_on", kinds, "kinds of findings")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            fault = f"unknown kind {unknown[0]!r}" if unknown else "alarm_on is empty"
            raise ValueError(f"{fault}; choose from {', '.join(KINDS)}")
        self._ringing: set[str] = set()

    @property
    def is_about_profiles(self) -> bool:
        """Whether recorded steps are to be judged."""
        return self.kinds != ["nonfinite"]

    def judged(self, step: Step) -> list[Finding]:
        """Return what a recorded step shows of the chosen kinds, other than ``nonfinite``."""
        verdict = gradient_verdict(step)
        word, text = verdict.gradient, verdict.text.removeprefix(f"{verdict.gradient}: ")
        findings = [*verdict.findings, *([Finding(word, text)] if word != "stable" else [])]
        by_kind = {finding.kind: finding for finding in reversed(findings)}
        return [by_kind[kind] for kind in self.kinds if kind in by_kind and kind != "nonfinite"]

    def new(self, findings: Sequence[Finding], kinds: Iterable[str]) -> list[Finding]:
        """Return findings of kinds that were not found the last time, of those that were looked for now."""
        fresh = [finding for finding in findings if finding.kind not in self._ringing]
        self._ringing -= set(kinds)
        self._ringing |= {finding.kind for finding in findings}
        return fresh

    def ring(self, step: int, findings: Sequence[Finding], recent: Sequence[float]) -> None:
        """Tell the user.

        Raises:
            AlarmError: If that is how.
        """
        for finding in findings:
            error = AlarmError(step, finding, recent)
            if callable(self._alarm):
                self._alarm(error)
            elif self._alarm == "warn":
                warnings.warn(str(error), RuntimeWarning, stacklevel=4)
            else:
                raise error
