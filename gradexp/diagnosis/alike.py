"""How much alike the samples are in what modules get and return, in the order of the calls."""

from collections.abc import Container
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from gradexp.diagnosis.rows import Row
from gradexp.probe.calls import tensors_in

# Few samples, or outputs of few numbers such as logits, have a cosine that says nothing.
ENOUGH_SAMPLES, ENOUGH_NUMBERS = 4, 16
_MOST_SAMPLES = 256
# They make samples differ by noise, which tells nothing apart.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Course:
    """The mean cosines of what modules get and return, one after the other, with or without weights.

    What a row returns may be bypassed: the end of a residual branch may give nothing but its bias. Whether the sum
    tells samples apart is seen in what comes after it: what a block returns, or what the next layer gets.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, Node]] = []
        self._known: dict[tuple[Node | None, int], Tensor] = {}
        self._rows: dict[Row, tuple[int, Node | None]] = {}

    def see_call(self, module: nn.Module, args: Any, output: Any, samples: int) -> None:
        """Take what a call got and returned.

        Args:
            module: The module that was called.
            args: Its positional and keyword arguments.
            output: What it returned.
            samples: How many samples there are.
        """
        given = next((x for x in tensors_in(args) if x.grad_fn is not None and has_samples(x, samples)), None)
        if isinstance(module, _DROPOUTS):
            if given is not None and isinstance(output, Tensor) and output.grad_fn is not None:
                self._known[output.grad_fn, output.output_nr] = self.cosine(given, samples)
            return
        # A module with others inside got its inputs before they were called, and this is after.
        for x in (None if next(module.children(), None) else given, output):
            if has_samples(x, samples) and x.grad_fn is not None and x.numel() >= ENOUGH_NUMBERS * samples:
                self._seen.append((self.cosine(x, samples), x.grad_fn))

    def see_row(self, row: Row, output: Tensor) -> None:
        """Note that the last call was that of a row, and what it returned."""
        self._rows[row] = len(self._seen), output.grad_fn

    def cosine(self, x: Tensor, samples: int) -> Tensor:
        """Return the mean cosine of the samples in a tensor, without the noise of a dropout that returned it."""
        if x.grad_fn is None:
            return mean_cosine(x.detach().reshape(samples, -1))
        place = x.grad_fn, x.output_nr
        if place not in self._known:
            self._known[place] = mean_cosine(x.detach().reshape(samples, -1))
        return self._known[place]

    def is_told_apart_after(self, row: Row, limit: float, logits: Container[Node | None]) -> bool | None:
        """Return whether anything after a row tells samples apart; None if nothing was seen there.

        Args:
            row: The row.
            limit: The mean cosine below which samples are told apart.
            logits: What does not count.
        """
        begin, own = self._rows[row]
        cosines = [cosine.cpu() for cosine, node in self._seen[begin:] if node is not own and node not in logits]
        values = torch.stack(cosines) if cosines else torch.empty(0)
        return bool((values < limit).any()) if (~values.isnan()).any() else None


def has_samples(x: Any, samples: int) -> TypeGuard[Tensor]:
    """Return whether something is one tensor of floating point numbers with all samples along the first dimension."""
    return (
        type(x) is Tensor
        and x.is_floating_point()
        and x.layout is torch.strided
        and not x.is_nested
        and x.dim() > 1
        and samples >= ENOUGH_SAMPLES
        and len(x) > 0
        and len(x) % samples == 0
    )


def mean_cosine(x: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of rows, up to the first 256; nan if a row is 0 or not finite.

    Args:
        x: Shape ``(sample, number)``.
    """
    x = x[:_MOST_SAMPLES]
    x = x.float() if x.element_size() < 4 else x
    norms = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    n = len(x)
    return (torch.mv(x.T, (1 / norms).to(x.dtype)).double().square().sum() - n) / (n * (n - 1))
