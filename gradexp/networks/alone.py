"""A network of any kind in the form of a stack of one, which is what trains."""

from typing import cast

from torch import Tensor, nn


class Alone(nn.Module):
    """One network whose inputs and outputs have a leading network dimension of 1; its parameters have none.

    Args:
        module: The network, from ``(batch, features)`` to ``(batch, outputs)``.
    """

    networks: int = 1

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(1, batch, features)`` to ``(1, batch, outputs)``."""
        return cast(Tensor, self.module(x.squeeze(0))).unsqueeze(0)
