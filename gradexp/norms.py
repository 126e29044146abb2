"""L2 norms that are right over the whole exponent range.

``torch.linalg.vector_norm``, ``Tensor.norm`` and ``clip_grad_norm_`` square in the tensor's own number format:
in float32 a vector of elements below 2.6e-23 has norm exactly 0, one of elements above 1.8e19 norm inf. In a
deep network those are ordinary gradients. Here the logarithm of the norm is taken, from squares that can
neither under- nor overflow.
"""

import math

import torch
from torch import Tensor

LOG10_2 = math.log10(2.0)

# A float64 copy of a chunk this long stays in the cache; one of a whole large weight would not.
_CHUNK = 1 << 15


def log10_norm(x: Tensor, networks: int = 1) -> Tensor:
    """Return log10 of the L2 norm of each network's part of ``x``.

    Squares are accumulated in float64. Half, bfloat16 and float32 elements cannot under- or overflow there;
    float64 elements are first scaled, exactly, by a power of two that brings the largest to about 1.

    Args:
        x: Any shape, any floating or complex dtype; the first dimension is a multiple of ``networks``, and
            each network owns an equal run of it.
        networks: How many norms to take.

    Returns:
        Shape ``(networks,)``, float64, on the device of ``x``: -inf where every element is exactly 0, nan or
        +inf where an element is not finite.

    Example:
        >>> round(log10_norm(torch.full((4,), 1e-30)).item(), 6)  # torch's own float32 norm gives 0
        -29.69897
    """
    x = x.detach()
    if x.is_sparse:
        x = x.coalesce().values()  # zeros do not count, repeated indices add up
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    rows = x.reshape(networks, -1)
    if rows.shape[1] == 0:
        return torch.full((networks,), -torch.inf, dtype=torch.float64, device=x.device)
    if x.dtype == torch.float64:
        mantissas, exponents = rescale(rows, dim=1)
        norm: Tensor = torch.linalg.vector_norm(mantissas, dim=1)
        return norm.log10() + exponents.squeeze(1) * LOG10_2
    if x.device.type == "cpu" and rows.shape[1] > _CHUNK:
        parts = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in rows.split(_CHUNK, 1)]
        norm = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    else:
        norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norm.log10()


def joint_log10_norm(log10_norms: Tensor) -> Tensor:
    """Return log10 of the L2 norm of several parts together: ½ log10 Σ 10^(2 log10_norm), over dimension 0.

    Example:
        >>> round(joint_log10_norm(torch.tensor([200.4771212547, 200.6020599913]).double()).item(), 4)  # 3e200, 4e200
        200.699
    """
    scale = 2 * math.log(10)
    return torch.logsumexp(log10_norms * scale, dim=0) / scale


def rescale(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Split ``x`` into mantissas and one exponent per slice: ``x = mantissas * 2**exponents``, exactly.

    Only an element more than 2**1022 times smaller than the largest of its slice loses digits.

    Args:
        x: A float64 tensor.
        dim: The dimensions that share an exponent.

    Returns:
        The mantissas, whose largest magnitude in each slice is in [0.5, 1), and the exponents: float64, of
        the shape of ``x`` with ``dim`` reduced to 1. A slice that is all 0 or not finite keeps exponent 0.
    """
    largest = x.abs().amax(dim=dim, keepdim=True)
    # frexp leaves the exponent of inf and nan undefined.
    exponents = torch.where(largest.isfinite(), torch.frexp(largest).exponent, 0).to(torch.float64)
    return times_power_of_two(x, -exponents), exponents


def times_power_of_two(x: Tensor, exponents: Tensor) -> Tensor:
    """Return ``x * 2**exponents``, exact unless the result itself leaves float64's range.

    The factor is applied in two halves, since 2**1074, which brings the smallest subnormal to 1, is itself
    outside that range.

    Args:
        x: A float64 tensor.
        exponents: Whole numbers as float64, broadcastable to ``x``; cut at -2140 and 2040, beyond which the
            result is 0, or out of range for all but a subnormal ``x``.
    """
    exponents = exponents.clamp(-2140, 2040)  # keeps both factors finite: 0 * inf would be nan
    half = (exponents / 2).floor()
    return x * torch.exp2(half) * torch.exp2(exponents - half)
