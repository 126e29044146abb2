"""What goes wrong in an observer costs no more than what it would have found."""

import os
import warnings
from collections.abc import Callable, Iterable
from textwrap import shorten as shortened
from typing import Any

from torch import nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.history.finding import Finding

STRICT = "GRADEXP_STRICT"
"""The environment variable that lets errors of observers out, as tests do."""


_WIDTH = 200  # characters of an error


class Guarded(Observer):
    """An observer that looks no longer after an error, of which a warning tells.

    Args:
        observer: The observer.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._has_failed = False

    def begin(self, examination: Examination) -> None:
        """Look at the model."""
        self._ask(lambda: self._observer.begin(examination))

    def see_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Look at a call."""
        self._ask(lambda: self._observer.see_call(name, module, args, output))

    def see_loss(self, examination: Examination) -> None:
        """Look at the loss."""
        self._ask(lambda: self._observer.see_loss(examination))

    def findings(self, examination: Examination) -> Iterable[Finding]:
        """Return what was found, nothing after an error."""
        return self._ask(lambda: tuple(self._observer.findings(examination))) or ()

    def end(self) -> None:
        """Let it go, also one that has failed."""
        self._has_failed = False
        self._ask(self._observer.end)

    def _ask(self, question: Callable[[], Any]) -> Any:
        if self._has_failed:
            return None
        try:
            return question()
        except Exception as error:
            self._has_failed = True
            _tell(type(self._observer), error)
            return None


def harmless(kind: type[Observer], hook: Callable[..., None]) -> Callable[..., None]:
    """Return a hook on a node that lets the backward pass go on after an error.

    It must hold no node, nor anything that does: what autograd keeps in its own memory is never found to be a circle.

    Args:
        kind: The observer whose hook it is.
        hook: The hook.
    """

    def call(*args: Any) -> None:
        try:
            hook(*args)
        except Exception as error:
            _tell(kind, error)

    return call


def _tell(kind: type[Observer], error: Exception) -> None:
    """Warn of an error of an observer, or raise it where errors are wanted."""
    if os.environ.get(STRICT):
        raise error
    first = shortened(next(iter(str(error).splitlines()), ""), width=_WIDTH, placeholder=" ...")
    warnings.warn(
        f"measure did not look for what {kind.__name__} finds, by a bug of gradexp; all else stands. "
        f"{STRICT}=1 shows where: {type(error).__name__}: {first}",
        RuntimeWarning,
        stacklevel=2,
    )
