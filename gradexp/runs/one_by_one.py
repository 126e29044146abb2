"""An optimizer of a stack of networks that has one of somebody else's for each of them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version


class OneByOne(torch.optim.Optimizer):
    """Steps each network of a stack by an optimizer of its own, which sees weights of shape ``(out, in)``.

    So an optimizer that looks at whole matrices, or adds up over parameters, does with a network in a stack what it
    does with the network alone.

    Args:
        stacked: Parameters with a leading network dimension.
        build: Returns the optimizer of the parameters of one network: its ``step`` is called, and its
            ``param_groups`` hold its learning rates.
        is_stacked: False for the parameters of one network, without that dimension.
    """

    def __init__(
        self, stacked: list[nn.Parameter], build: Callable[[list[nn.Parameter]], Any], is_stacked: bool = True
    ) -> None:
        super().__init__(stacked, {})
        self._stacked = stacked
        self._is_stacked = is_stacked
        networks = len(stacked[0]) if is_stacked else 1
        self._alone = [[nn.Parameter(self._of(p, network)) for p in stacked] for network in range(networks)]
        self._optimizers = [build(alone) for alone in self._alone]

    def _of(self, tensor: Tensor, network: int) -> Tensor:
        return tensor.detach()[network] if self._is_stacked else tensor.detach()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of all networks' optimizers."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update the weights of all networks."""
        for network, (alone, optimizer) in enumerate(zip(self._alone, self._optimizers, strict=True)):
            for own, stacked in zip(alone, self._stacked, strict=True):
                own.data = self._of(stacked, network)  # whose memory may have moved
                own.grad = None if stacked.grad is None else self._of(stacked.grad, network)
            with torch.enable_grad():
                optimizer.step()
            for own, stacked in zip(alone, self._stacked, strict=True):
                own.grad = None
                if own.data_ptr() != self._of(stacked, network).data_ptr():  # it has put another tensor in its place
                    self._of(stacked, network).copy_(own)
        for stacked in self._stacked:
            increment_version(stacked)
