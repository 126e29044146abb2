"""Mixed precision: products in a narrow number format, all else in float32, and the loss scaled up for float16."""

from contextlib import AbstractContextManager, nullcontext

import torch

from gradexp.config import Config


class Precision:
    """In which formats a training computes (Micikevicius et al., 2018, arXiv:1710.03740).

    Args:
        name: ``"full"``, ``"amp_float16"`` or ``"amp_bfloat16"``.
        device: Where the training is.

    Attributes:
        scaler: Multiplies the loss so that float16 can hold its gradients, and leaves out steps whose gradients are
            not finite; it does nothing unless the products are in float16.
    """

    def __init__(self, name: str = "full", device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device).type
        self._format = None if name == "full" else getattr(torch, name.removeprefix("amp_"))
        self.scaler: torch.amp.GradScaler = torch.amp.GradScaler(self._device, enabled=self._format is torch.float16)

    def casting(self) -> AbstractContextManager[object]:
        """Return the context in which a model is called."""
        return nullcontext() if self._format is None else torch.autocast(self._device, dtype=self._format)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Update the weights, and return whether that was done, rather than left out."""
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before


def precision_of(config: Config, device: torch.device | str) -> Precision:
    """Return the formats of a run's training."""
    return Precision(config.precision, device)
