"""Normalisation to mean 0 and variance 1, or to mean square 1, over units or over a batch; parameters if asked."""

import torch
from torch import Tensor, nn

from gradexp.numerics.norms import rescale, times_power_of_two

# kind: the dimension of ``(network, sample, unit)`` along which means are taken
DIMENSIONS = {"batch": -2, "layer": -1, "rms": -1}
# What a kind takes off: the mean, or nothing. So many values, and no more, are the same whatever they are.
_DEGENERATE = {"batch": 2, "layer": 2, "rms": 1}

# Numbers of these formats could not hold the squares of their own rounding errors.
_HALF = (torch.float16, torch.bfloat16)


def normalize(z: Tensor, kind: str) -> Tensor:
    """Return N(z) = (z - mean) / std, and 0 where std is 0, with a gradient of 0 there.

    Mean and population variance are taken over the units of each sample (``layer``: Ba et al., 2016,
    arXiv:1607.06450) or over the batch for each unit (``batch``: Ioffe & Szegedy, 2015, arXiv:1502.03167). ``rms``
    takes no mean off: N(z) = z / rms(z) over units (Zhang & Sennrich, 2019, arXiv:1910.07467). Two things are left
    out that layers for training have: running averages, so that evaluation too takes the statistics of the batch at
    hand; and the epsilon beside the variance, with which a network's function would depend on the scale of its
    weights. A learnable scale and shift are ``StackedNorm``'s. N(z) is right for z of any size.

    Args:
        z: Outputs of a layer, shape ``(..., samples, units)``.
        kind: ``"none"`` (z itself), ``"batch"``, ``"layer"`` or ``"rms"``.

    Returns:
        A tensor like ``z``.

    Raises:
        KeyError: For another kind.

    Examples:
        >>> normalize(torch.tensor([[1e-30, 3e-30]]), "layer")
        tensor([[-1.,  1.]])
    """
    if kind == "none":
        return z
    normal = standardize(z.float() if z.dtype in _HALF else z, kind)[0].to(z.dtype)
    # Two values become ±1 whatever they are; autograd would return its rounding errors.
    return normal if z.shape[DIMENSIONS[kind]] > _DEGENERATE[kind] else normal.detach() + 0 * z


def normalize_images(z: Tensor, kind: str) -> Tensor:
    """Return N(z) of images: ``batch`` over samples and positions, ``layer`` and ``rms`` over a sample's whole image.

    Args:
        z: Outputs of a convolution, shape ``(samples, channels, height, width)``.
        kind: As in ``normalize``.

    Raises:
        KeyError: For another kind.
    """
    if kind == "batch":
        positions = z.movedim(1, -1)
        return normalize(positions.flatten(0, -2), kind).view(positions.shape).movedim(-1, 1)
    return normalize(z.flatten(1), kind).view(z.shape)


def is_lack_of_samples(error: Exception) -> bool:
    """Return whether it is what torch's batch norm raises in training mode for a single value per channel."""
    return isinstance(error, ValueError) and str(error).startswith("Expected more than 1 value per channel")


def standardize(z: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return N(z), and 1 / std (1 / rms) of z as a number and a power of two: ``inverse * 2**-exponent``.

    Args:
        z: A float64 or float32 tensor.
        kind: A key of ``DIMENSIONS``.

    Returns:
        N(z); the other two have size 1 along the dimension of the kind, and ``inverse`` is 0 where std is 0.
    """
    dim = DIMENSIONS[kind]
    # A constant shift or positive factor cancels in N, so autograd need not see it.
    with torch.no_grad():
        _, exponent = rescale(z.detach(), dim)
        # Equal values differ from one of them by exactly 0, and from their rounded mean perhaps not.
        origin = times_power_of_two(z.narrow(dim, 0, 1), -exponent)
    centred = times_power_of_two(z, -exponent)
    if kind != "rms":
        shifted = centred - origin
        centred = shifted - shifted.mean(dim, keepdim=True)
    variance = centred.square().mean(dim, keepdim=True)
    varies = variance != 0  # true for nan
    inverse = torch.where(varies, variance.where(varies, 1).rsqrt(), 0)
    return centred * inverse, inverse, exponent


def pull_back(gradient: Tensor, normal: Tensor, inverse: Tensor, kind: str) -> Tensor:
    """Return the gradient with respect to z, given the one with respect to ``normal`` = N(z) (see ``standardize``).

    With g for the gradient: (g - mean(g) - N(z) mean(g N(z))) / std; ``rms`` without mean(g), and with rms for std.
    """
    dim = DIMENSIONS[kind]
    if normal.shape[dim] <= _DEGENERATE[kind]:
        return gradient * 0
    along = (gradient * normal).mean(dim, keepdim=True)
    centred = gradient if kind == "rms" else gradient - gradient.mean(dim, keepdim=True)
    return (centred - normal * along) * inverse


class StackedNorm(nn.Module):
    """The same normaliser of many independent networks, with a learnable scale and shift: γ_e N(z_e) + β_e.

    Args:
        networks: Number of networks E.
        width: Number of units.
        kind: ``"batch"``, ``"layer"`` or ``"rms"``, which has no shift, as in its paper.
        device: The parameters' device.
        dtype: The parameters' number format.

    Attributes:
        scale: γ, shape ``(networks, width)``, from 1.
        shift: β, shape ``(networks, width)``, from 0, or None.

    Examples:
        >>> StackedNorm(1, 2, "layer")(torch.tensor([[[1.0, 3.0]]])).tolist()
        [[[-1.0, 1.0]]]
    """

    def __init__(
        self,
        networks: int,
        width: int,
        kind: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.kind = kind
        self.scale: nn.Parameter = nn.Parameter(torch.ones(networks, width, device=device, dtype=dtype))
        own_shift = None if kind == "rms" else nn.Parameter(torch.zeros(networks, width, device=device, dtype=dtype))
        self.shift: nn.Parameter | None = own_shift

    def forward(self, z: Tensor) -> Tensor:
        """Map ``(networks, batch, width)`` to a tensor of the same shape."""
        normal = normalize(z, self.kind) * self.scale.unsqueeze(1)
        return normal if self.shift is None else normal + self.shift.unsqueeze(1)

    def extra_repr(self) -> str:
        """Return kind and sizes for ``repr``."""
        return f"{self.kind}, networks={self.networks}, width={self.scale.shape[1]}"
