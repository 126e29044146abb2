"""The smallest and largest element of tensors, which tell nan, inf and -inf apart, read in one copy per device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradexp.numerics.norms import has_values, plain

Extremes = tuple[float, float]
"""The smallest and the largest element: (nan, nan) if any is nan."""


def extremes(tensor: Tensor) -> Tensor | None:
    """Return the smallest and the largest element on the tensor's device, or None if there is nothing to compare.

    Returns:
        Shape ``(2,)``; both nan if any element is nan. Complex numbers count as two.

    Examples:
        >>> extremes(torch.tensor([1.0, -torch.inf, 3.0])).tolist()
        [-inf, 3.0]
    """
    if not has_values(tensor) or not tensor.numel():
        return None
    with torch.no_grad():
        values = plain(tensor.detach())
        return torch.stack(torch.aminmax(values)) if values.numel() else None


def read(pairs: Sequence[Tensor]) -> list[Extremes]:
    """Copy what ``extremes`` returned to the host."""
    by_device: dict[torch.device, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_device.setdefault(pair.device, []).append(index)
    values: list[Extremes] = [(0.0, 0.0)] * len(pairs)
    for device, indices in by_device.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        rows = torch.stack([pairs[index].to(wide) for index in indices]).tolist()
        for index, (low, high) in zip(indices, rows, strict=True):
            values[index] = low, high
    return values


def nonfinite(pair: Extremes) -> str:
    """Return ``nan``, ``inf`` or ``-inf``, whichever is among the elements, or an empty text for finite ones.

    Examples:
        >>> nonfinite((-math.inf, math.inf))
        'inf'
    """
    low, high = pair
    if math.isnan(low) or math.isnan(high):
        return "nan"
    return "inf" if high == math.inf else "-inf" if low == -math.inf else ""
