"""The forward pass once more, for whoever has to look closer."""

import random
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, output_of
from gradexp.probe.hooks import unwatched


class Repetition:
    """Where the random number generators stood before a pass, so that another one draws the same."""

    def __init__(self) -> None:
        self._python, self._numpy, self._torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def run(
        self, examination: Examination, model: nn.Module | None = None, loss_fn: Any = None, batch: Any = None
    ) -> Tensor:
        """Return the loss of another pass.

        Args:
            examination: The pass to repeat.
            model: In place of the model.
            loss_fn: In place of the loss function.
            batch: In place of its inputs and targets.
        """
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        with unwatched():
            loss_fn = examination.loss_fn if loss_fn is None else loss_fn
            if examination.inputs is None:
                return cast(Tensor, loss_fn())
            model = examination.model if model is None else model
            inputs, targets = (examination.inputs, examination.targets) if batch is None else batch
            return cast(Tensor, loss_fn(output_of(model, inputs), *targets))
