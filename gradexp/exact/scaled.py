"""Numbers of any size: float64 values with an exponent carried on the side."""

from typing import NamedTuple

import torch
from torch import Tensor

from gradexp.numerics.norms import LOG10_2, rescale, times_power_of_two

ORDINARY = 500
"""Samples whose largest element is within 2**±500 are held as they are: squares still fit."""


class Scaled(NamedTuple):
    """The numbers ``value * 2**exponent``, with one exponent for each sample of each network.

    ``scaled`` makes them: samples of ordinary size, all 0 or not finite have exponent 0, so that ``value`` is what
    they are; the largest element of any other is in [0.5, 1).

    Args:
        value: Float64 numbers, shape ``(network, sample, unit)``.
        exponent: Whole numbers as floats, shape ``(network, sample, 1)``.
        largest: The largest magnitude of ``value`` in each sample, shape ``(network, sample, 1)``.
    """

    value: Tensor
    exponent: Tensor
    largest: Tensor

    def plus(self, other: "Scaled") -> "Scaled":
        """Return the sum: a · 2ᵐ + b · 2ⁿ; a term that is too small beside the other counts as 0."""
        if not (self.exponent.any() or other.exponent.any()):
            return scaled(self.value + other.value)
        (a, m), (b, n) = self.mantissas(), other.mantissas()
        common = _highest(torch.maximum(_size(self.largest, m), _size(other.largest, n)))
        return scaled(times_power_of_two(a, m - common) + times_power_of_two(b, n - common), common)

    def times(self, factor: Tensor) -> "Scaled":
        """Return the product with a float64 number of any size for each network, shape ``(network, 1, 1)``."""
        mantissa, exponent = rescale(factor, dim=2)
        return scaled(self.value * mantissa, self.exponent + exponent)

    def log10_product(self, other: "Scaled") -> Tensor:
        """Return log10 of the magnitude of each sample's inner product with another's, ``(network, sample)``."""
        (a, m), (b, n) = self.mantissas(), other.mantissas()
        return ((a * b).sum(dim=2, keepdim=True).abs().log10() + (m + n) * LOG10_2).squeeze(2)

    def mantissas(self) -> tuple[Tensor, Tensor]:
        """Return values of at most 1, so that products with weights do not overflow, and exponents."""
        shift = _exponent_of(self.largest)
        return self.value * torch.exp2(-shift), self.exponent + shift

    def with_common_exponent(self) -> tuple[Tensor, Tensor]:
        """Return values with one exponent for all samples of a network, of shape ``(network, 1, 1)``."""
        value, exponent = self.mantissas()
        common = _highest(_size(self.largest, exponent).amax(dim=1, keepdim=True))
        return times_power_of_two(value, exponent - common), common

    def log10_sizes(self) -> tuple[Tensor, Tensor]:
        """Return log10 of the L2 norm and of the largest magnitude of each sample, ``(network, sample)``."""
        offset = self.exponent * LOG10_2
        norm = torch.linalg.vector_norm(self.value, dim=2, keepdim=True)
        return (norm.log10() + offset).squeeze(2), (self.largest.log10() + offset).squeeze(2)


def scaled(value: Tensor, exponent: Tensor | None = None) -> Scaled:
    """Return ``value * 2**exponent`` (None: all 0), whatever the sizes of value and exponent, as a ``Scaled``."""
    largest = value.abs().amax(dim=2, keepdim=True)
    exponent = torch.zeros_like(largest) if exponent is None else exponent.expand_as(largest)
    counts = (largest > 0) & (largest < torch.inf)
    shift = _exponent_of(largest)
    total = (exponent + shift).where(counts, 0)
    ordinary = total.abs() <= ORDINARY
    change = torch.where(ordinary, exponent, -shift).where(counts, 0)
    if change.any():
        value, largest = times_power_of_two(value, change), times_power_of_two(largest, change)
    return Scaled(value, total.where(~ordinary, 0), largest)


def _exponent_of(largest: Tensor) -> Tensor:
    # frexp leaves the exponent of inf and nan undefined.
    return torch.where(largest.isfinite(), torch.frexp(largest).exponent, 0).to(largest.dtype)


def _size(largest: Tensor, exponent: Tensor) -> Tensor:
    return exponent.where(largest != 0, -torch.inf)


def _highest(sizes: Tensor) -> Tensor:
    return sizes.where(sizes > -torch.inf, 0)
