"""Normalisation without parameters: to mean 0 and variance 1, or to mean square 1, over units or over a batch."""

import torch
from torch import Tensor

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
    takes no mean off: N(z) = z / rms(z) over units (Zhang & Sennrich, 2019, arXiv:1910.07467). Three things are left
    out that layers for training have: a learnable scale and shift; running averages, so that
    evaluation too takes the statistics of the batch at hand; and the epsilon beside the variance, with which a
    network's function would depend on the scale of its weights. N(z) is right for z of any size.

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
