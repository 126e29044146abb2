"""Plain networks of Gaussian weights drawn without their weights, for one sample: thousands in a second.

Given a, W a is Gaussian; and given a and W a, W is known along a and independent of it across. So a forward and a
backward pass need a few vectors per layer only, and their law is exactly that of networks whose weights are drawn.
"""

import math

import torch
from torch import Tensor

from gradexp.networks.activations import Activation


def drawn(
    phi: Activation,
    width: int,
    depth: int,
    networks: int,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    *,
    input_square: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return log of the mean square of z, and log ‖δ‖² from 0 at the last layer, each of shape (network, layer)."""
    source = torch.Generator().manual_seed(seed)

    def normal(scale: Tensor | float = 1.0) -> Tensor:
        return scale * torch.randn(networks, width, generator=source, dtype=torch.float64)

    through_w = [normal(math.sqrt(sigma_w2 * input_square))]
    z = [through_w[0] + normal(math.sqrt(sigma_b2))]
    inputs = []
    for _ in range(depth - 1):
        inputs.append(phi(z[-1]))
        through_w.append(normal(math.sqrt(sigma_w2 / width) * inputs[-1].norm(dim=1, keepdim=True)))
        z.append(through_w[-1] + normal(math.sqrt(sigma_b2)))
    delta = torch.nn.functional.normalize(normal(), dim=1)
    log_square = torch.zeros(networks, dtype=torch.float64)
    log_grad = [log_square]
    for layer in reversed(range(depth - 1)):
        a = torch.nn.functional.normalize(inputs[layer], dim=1)
        length = inputs[layer].norm(dim=1, keepdim=True)
        across = normal(math.sqrt(sigma_w2 / width))  # of the unit vector delta
        across = across - a * (a * across).sum(dim=1, keepdim=True)
        along = a * (through_w[layer + 1] * delta).sum(dim=1, keepdim=True) / length
        delta = phi.value_and_slope(z[layer])[1] * (along + across)
        norm = delta.norm(dim=1, keepdim=True)
        delta, log_square = delta / norm, log_square + 2 * norm.log().squeeze(1)
        log_grad.append(log_square)
    return torch.stack(z).square().mean(dim=2).log().T, torch.stack(log_grad[::-1], dim=1)
