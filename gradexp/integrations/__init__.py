"""Callbacks for other libraries' trainers. Each module imports its library, so that none is imported from here."""

from typing import Any

import torch
from torch import nn

from gradexp.history.history import History
from gradexp.history.step import QUANTITIES
from gradexp.probe.probe import GradientProbe


class ProbeOfTraining:
    """The base of the callbacks: a probe that is attached while an optimizer step is prepared and made.

    Args:
        every: The interval N: optimizer steps 0, N, 2N, ... are recorded.
        options: Options of ``GradientProbe``: ``select``, ``quantities``, ``stats``, ``per_sample``. Quantities are
            outputs and gradients unless ``weight`` or ``update`` are asked for, which cost a copy of the weights.
    """

    def __init__(self, every: int = 50, **options: Any) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._options = {"every": every, "quantities": QUANTITIES[:3], **options}
        self._probe: GradientProbe | None = None
        self._is_attached = self._is_collected = False

    @property
    def history(self) -> History:
        """The steps of the last training recorded so far; RuntimeError if there was none."""
        if self._probe is None:
            raise RuntimeError("nothing is recorded yet: no training has started")
        return self._probe.history

    def remove(self) -> None:
        """Remove every hook; the history stays."""
        self._is_attached = self._is_collected = False
        if self._probe is not None:
            self._probe.remove()

    def _start(self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
        """Make a new probe for a new training."""
        self.remove()
        self._probe = GradientProbe(model, optimizer=optimizer, scaler=scaler, **self._options)

    def _attach(self) -> None:
        """Attach the probe for a step, unless an earlier batch of the step has."""
        if self._probe is not None and not self._is_attached:
            self._probe.attach()
            self._is_attached = True

    def _collect(self, step: int) -> None:
        """Record a step that is about to be made."""
        if self._probe is not None and self._is_attached:
            self._probe.collect(step)
            self._is_collected = True

    def _finish(self) -> None:
        """Remove the hooks if the step was made; otherwise more batches are to come."""
        if self._is_collected:
            self.remove()
