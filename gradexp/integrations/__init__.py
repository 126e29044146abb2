"""Callbacks for other libraries' trainers. Each module imports its library, so that none is imported from here."""

import os
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from gradexp.history.history import History
from gradexp.history.step import QUANTITIES
from gradexp.probe.alarm import Alarm, AlarmWord
from gradexp.probe.optimizers import Optimizers
from gradexp.probe.probe import GradientProbe, ProbeOptions


class CallbackOptions(ProbeOptions, total=False):
    """Options of ``GradientProbe`` that the callbacks hand on to it."""

    alarm: Alarm | None
    alarm_on: Iterable[AlarmWord]
    log_layers: str | Iterable[str] | None
    save: str | Path | None
    keep: int | None


class ProbeOfTraining:
    """The base of the callbacks: a probe that is attached while an optimizer step is prepared and made.

    Args:
        every: The interval N: optimizer steps 0, N, 2N, ... are recorded.
        options: Options of ``GradientProbe``: ``select``, ``quantities``, ``stats``, ``per_sample``, ``time``,
            ``alarm``, ``alarm_on``, ``log_layers``, ``save``, ``keep``. Quantities are outputs and gradients unless
            ``weight`` or ``update`` are asked for, which cost a copy of the weights.
        log: Where each recorded step goes at once. True: the trainer's loggers; False: nowhere; or as in
            ``GradientProbe``.
    """

    def __init__(self, every: int = 50, log: Any = True, **options: Unpack[CallbackOptions]) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._every = every
        self._log = log
        self._options: CallbackOptions = {"quantities": QUANTITIES[:3], **options}
        self._probe: GradientProbe | None = None
        self._steps = 0  # rounds of batches that ended in a step of an optimizer
        self._is_attached = self._is_collected = self._is_stepped = False
        self._loss: Tensor | None = None
        # A training that runs in processes of its own leaves its history here for the process that began it.
        self._process = os.getpid()
        self._file = Path(tempfile.gettempdir()) / f"gradexp-{uuid.uuid4().hex}.npz"
        self._history: History | None = None

    @property
    def history(self) -> History:
        """The steps of the last training recorded so far; RuntimeError if there was none."""
        if self._probe is not None:
            return self._probe.history
        if self._file.exists():
            self._history = History.load(self._file)
            self._file.unlink()
        if self._history is None:
            raise RuntimeError("nothing is recorded yet: no training has started")
        return self._history

    def remove(self) -> None:
        """Remove every hook; the history stays."""
        self._is_attached = self._is_collected = self._is_stepped = False
        self._loss = None
        if self._probe is not None:
            self._probe.remove()

    def _start(
        self,
        model: nn.Module,
        optimizer: Optimizers,
        scaler: torch.amp.GradScaler | None,
        loggers: Any,
        steps: int = 0,
    ) -> None:
        """Make a new probe for a training, which logs to the trainer's loggers unless others are asked for.

        Args:
            model: The model.
            optimizer: Its optimizer, or several.
            scaler: The GradScaler in use.
            loggers: What the trainer logs to.
            steps: How many steps were made before the checkpoint from which the training goes on.
        """
        self.remove()
        self._steps = steps
        log = loggers if self._log is True else self._log or None
        self._probe = GradientProbe(model, optimizer=optimizer, scaler=scaler, log=log, **self._options)

    def _attach(self) -> None:
        """Attach the probe for a step that is to be recorded, unless an earlier batch of the step has."""
        if self._probe is not None and not self._is_attached and self._steps % self._every == 0:
            self._probe.attach()
            self._is_attached = True

    def _add_loss(self, loss: Tensor) -> None:
        """Add the loss of a backward pass to those before the next collect."""
        if self._is_attached:
            self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def _collect(self, step: int) -> None:
        """Record a step that is about to be made, unless its gradients are recorded already."""
        self._is_stepped = True
        if self._probe is not None and self._is_attached and (not self._is_collected or self._probe.has_news()):
            self._probe.collect(step, self._loss)
            self._loss = None
            self._is_collected = True

    def _finish(self) -> None:
        """Remove the hooks if the step was made; otherwise more batches are to come."""
        if self._is_stepped:
            self._steps += 1
            self.remove()

    def _end(self) -> None:
        """End the training: no hook stays, and the loggers have all."""
        self.remove()
        if self._probe is not None:
            self._probe.close()

    def _leave_history(self) -> None:
        """Leave the history to the process that began the training, if that is another."""
        if os.getpid() != self._process and self._probe is not None:
            self._probe.history.save(self._file)
