"""L2 norms that are right over the whole exponent range.

``torch.linalg.vector_norm``, ``Tensor.norm`` and ``clip_grad_norm_`` square in the tensor's own number format:
in float32 a vector of elements below 2.6e-23 has norm exactly 0, one of elements above 1.8e19 norm inf. In a
deep network those are ordinary gradients. Here squares are taken where they can neither under- nor overflow.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradexp.numerics.compiled import square_sum_if_asked
from gradexp.numerics.torch_internals import foreach_copy_, foreach_norm

LOG10_2 = math.log10(2.0)

# A float64 copy of a chunk this long stays in the cache; one of a whole large weight would not.
_CHUNK = 1 << 17
# Tensors this long are put side by side: a call for each would take longer than its norm.
_SMALL = 1 << 12
# A float64 norm in this range lost nothing that matters to under- or overflow of squares.
_SAFE = (1e-140, 1e140)
# Their squares are normal float64 numbers.
_NARROW = (torch.float32, torch.bfloat16, torch.float16)

_NO_VALUES = "a tensor of type {kind} on device {device} holds no values"
_ORDINARY = (Tensor, nn.Parameter)

_square_sum = square_sum_if_asked()

ScaledNorm = tuple[float | Tensor, float | Tensor]
"""A norm m·2^e as (m, e): numbers for one network on the CPU, else tensors of shape ``(networks,)``."""


def scaled_norm(x: Tensor, networks: int = 1) -> ScaledNorm:
    """Return the L2 norm of each network's part of ``x`` as a number and a power of two: ‖x‖ = m·2^e.

    Squares are accumulated in float64. Elements of narrower formats can neither under- nor overflow there, so
    that e = 0; float64 elements are first scaled, exactly, by a power of two that brings the largest to about
    1. So are all elements, in float32, on a device without float64.

    Args:
        x: Any shape, layout and floating or complex dtype. If ``networks`` is not 1, the first dimension is a
            multiple of it, of which each network has an equal run.
        networks: The number of norms.

    Returns:
        m and e: for one network on the CPU two numbers, else tensors of shape ``(networks,)`` on the device of
        ``x``, so that nothing waits for the device (e may be the number 0). m is 0 where every element is
        exactly 0, and nan or inf where an element is not finite.

    Raises:
        TypeError: If ``x`` holds no values (see ``has_values``).

    Examples:
        >>> m, e = scaled_norm(torch.full((4,), 1e-300, dtype=torch.float64))  # torch's own float64 norm gives 0
        >>> print(f"{m * 2**e:.3g}")
        2e-300
    """
    norm = norm_on_host(x) if networks == 1 else None
    if norm is not None:
        return norm, 0.0
    if type(x) not in _ORDINARY or x.dtype not in _NARROW or x.layout is not torch.strided or x.is_nested:
        x = plain(x)
    if x.requires_grad and torch.is_grad_enabled():
        x = x.detach()
    if networks == 1 and x.is_cpu:
        return _norm_on_cpu(x)
    if x.is_meta:
        raise TypeError(_NO_VALUES.format(kind=type(x).__name__, device=x.device))
    rows = x.reshape(networks, -1)
    if x.device.type == "mps":
        return scaled_rows(rows.float())
    if x.dtype == torch.float64 and rows.numel():
        return scaled_rows(rows)
    if x.is_cpu and rows.numel() > _CHUNK:
        columns = rows.split(max(1, _CHUNK // networks), dim=1)
        norms = [torch.linalg.vector_norm(chunk, dim=1, dtype=torch.float64) for chunk in columns]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0), 0.0
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64), 0.0


def norm_on_host(x: Tensor) -> float | None:
    """Return the norm of an ordinary tensor on the CPU, in the least time; None for any other, which has its own way.

    As ``scaled_norm`` does, it takes squares in float64 of elements that are of a narrower format.
    """
    if (
        type(x) not in _ORDINARY
        or not x.is_cpu
        or x.dtype not in _NARROW
        or x.layout is not torch.strided
        or x.is_nested
    ):
        return None
    if x.requires_grad and torch.is_grad_enabled():
        x = x.detach()
    return _norm(x)


def scaled_norms(tensors: Sequence[Tensor], networks: int = 1) -> list[ScaledNorm]:
    """Return ``scaled_norm`` of each tensor, faster than one after the other."""
    sizes: list[ScaledNorm | None] = [None] * len(tensors)
    groups: dict[torch.Size | torch.device, list[int]] = {}  # on the CPU by shape, else by device
    for index, x in enumerate(tensors):
        if networks > 1 or (_square_sum is not None and x.dtype is torch.float32 and x.is_cpu):
            continue  # on its own it takes no longer
        if type(x) in _ORDINARY and x.dtype in _NARROW and x.layout is torch.strided:
            if x.is_cpu and 0 < x.numel() <= _SMALL:
                groups.setdefault(x.shape, []).append(index)
            elif x.is_cuda:
                groups.setdefault(x.device, []).append(index)
    with torch.no_grad():
        for key, indices in groups.items():
            group = [tensors[index] for index in indices]
            norms: list[float | Tensor] = []
            if isinstance(key, torch.device):  # few kernels for all of them
                norms += foreach_norm(group)
            else:
                norms += _scratch.buffer.norms(group, key)
            for index, norm in zip(indices, norms, strict=True):
                sizes[index] = norm, 0.0
        return [size or scaled_norm(x, networks) for x, size in zip(tensors, sizes, strict=True)]


def log10_norm(x: Tensor, networks: int = 1) -> Tensor:
    """Return log10 of the L2 norm of each network's part of ``x`` (see ``scaled_norm``).

    Returns:
        Shape ``(networks,)``, float64, on the device of ``x``: -inf where every element is exactly 0, nan or
        +inf where an element is not finite.

    Examples:
        >>> round(log10_norm(torch.full((4,), 1e-30)).item(), 6)  # torch's own float32 norm gives 0
        -29.69897
    """
    norm, exponent = scaled_norm(x, networks)
    if not isinstance(norm, Tensor):
        norm = torch.tensor([norm], dtype=torch.float64, device="cpu")
    return norm.log10() + exponent * LOG10_2


def joint_log10_norm(log10_norms: Tensor) -> Tensor:
    """Return log10 of the L2 norm of several parts together: ½ log10 Σ 10^(2 log10_norm), over dimension 0.

    Examples:
        >>> round(joint_log10_norm(torch.tensor([200.4771212547, 200.6020599913]).double()).item(), 4)  # 3e200, 4e200
        200.699
    """
    scale = 2 * math.log(10)
    return torch.logsumexp(log10_norms * scale, dim=0) / scale


def has_values(x: Tensor) -> bool:
    """Return whether ``x`` holds real or complex numbers, unlike those that are fake, meta, freed or of integers."""
    kind = type(x)
    if kind in _ORDINARY and x.dtype in _NARROW:
        return not (x.is_meta or _is_freed(x))
    if not (x.is_floating_point() or x.is_complex()):
        return False
    if kind in _ORDINARY:
        return not x.is_meta and not _is_freed(x) and not str(x.dtype).startswith("torch.float4")
    overrides = getattr(kind, "__torch_dispatch__", None) != Tensor.__torch_dispatch__
    return not x.is_meta and (not overrides or x.is_nested or hasattr(x, "full_tensor"))


def _is_freed(x: Tensor) -> bool:
    """Return whether the memory of a tensor's elements is given back, as FSDP does by ``storage.resize_(0)``."""
    if x.layout is not torch.strided or not x.numel():
        return False
    try:
        return not x.untyped_storage().nbytes()
    except NotImplementedError:  # inside of torch.func, where tensors have no memory of their own
        return False


def scaled_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm of each row as m·2^e, by squares in the rows' own format of elements scaled to about 1.

    Args:
        rows: A float64 or float32 tensor of shape ``(rows, n)``, n at least 1.
    """
    mantissas, exponents = rescale(rows, dim=1)
    return torch.linalg.vector_norm(mantissas, dim=1), exponents.squeeze(1)


def rescale(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Split ``x`` into mantissas and one exponent per slice: ``x = mantissas * 2**exponents``, exactly.

    Only an element more than 2**1022 times (float32: 2**126 times) smaller than the largest of its slice loses
    digits.

    Args:
        x: A float64 or float32 tensor.
        dim: The dimensions that share an exponent.

    Returns:
        The mantissas, whose largest magnitude in each slice is in [0.5, 1), and the exponents: whole numbers
        in the format of ``x``, of its shape with ``dim`` reduced to 1. A slice that is all 0 or not finite
        keeps exponent 0.
    """
    largest = x.abs().amax(dim=dim, keepdim=True)
    # frexp leaves the exponent of inf and nan undefined.
    exponents = torch.where(largest.isfinite(), torch.frexp(largest).exponent, 0).to(x.dtype)
    return times_power_of_two(x, -exponents), exponents


def times_power_of_two(x: Tensor, exponents: Tensor) -> Tensor:
    """Return ``x * 2**exponents``, exact unless the result itself leaves the range of the format.

    The factor is applied in two halves, since 2**1074, which brings the smallest subnormal to 1, is itself
    outside that range.

    Args:
        x: A float64 tensor, or float32 with exponents that float32 numbers have.
        exponents: Whole numbers as floats, broadcastable to ``x``; cut at -2140 and 2040, beyond which the
            result is 0, or out of range for all but a subnormal ``x``.
    """
    exponents = exponents.clamp(-2140, 2040)  # keeps both factors finite: 0 * inf would be nan
    half = (exponents / 2).floor()
    return x * torch.exp2(half) * torch.exp2(exponents - half)


def _norm_on_cpu(x: Tensor) -> ScaledNorm:
    if x.dtype == torch.float64:
        norm = torch.linalg.vector_norm(x).item()
        if x.numel() and not _SAFE[0] < norm < _SAFE[1]:
            scaled, exponent = scaled_rows(x.reshape(1, -1))
            return scaled.item(), exponent.item()
        return norm, 0.0
    return _norm(x), 0.0


def _norm(x: Tensor) -> float:
    """Return the norm of a strided real tensor of a narrow format on the CPU."""
    if _square_sum is not None and x.dtype is torch.float32 and x.is_contiguous():
        address = x.data_ptr()
        if address:  # not so of no elements, nor of zeros that take no memory
            return math.sqrt(_square_sum(address, x.numel()))
    return _scratch.buffer.norm(x)


class _Buffer:
    """A float64 buffer: a fresh copy for each norm would cost more than the norm itself."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.buffer = torch.empty(_CHUNK, dtype=torch.float64, device="cpu")
        self.views: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    def norm(self, x: Tensor) -> float:
        """Return the norm of a strided real tensor, each of whose elements is converted to float64 first."""
        views = self.views.get(x.shape)
        if views is not None:  # the same as below, without a call for each step
            views[0].copy_(x)
            return math.sqrt(torch.dot(views[1], views[1]).item())
        if x.numel() <= _CHUNK:
            return math.sqrt(self.square_sum(x))
        return math.sqrt(sum(map(self.square_sum, x.reshape(-1).split(_CHUNK))))

    def norms(self, tensors: list[Tensor], shape: torch.Size) -> list[float]:
        """Return the norms of tensors of the same shape, as many at a time as fit into the buffer."""
        size, norms = shape.numel(), []
        count = 8 * _SMALL // size  # more would leave the fastest cache
        for start in range(0, len(tensors), count):
            chunk = tensors[start : start + count]
            rows = self.buffer[: len(chunk) * size].view(len(chunk), size)
            foreach_copy_(rows.view(len(chunk), *shape).unbind(), chunk)
            norms += torch.linalg.vector_norm(rows, dim=1).tolist()
        return norms

    def square_sum(self, x: Tensor) -> float:
        """Return Σ x² of a tensor of at most ``_CHUNK`` elements, each converted to float64 first."""
        views = self.views.get(x.shape)
        if views is None:
            if len(self.views) > 1000:
                self.views.clear()
            flat = self.buffer[: x.numel()]
            views = self.views[x.shape] = (flat.view(x.shape), flat)
        views[0].copy_(x)
        return torch.dot(views[1], views[1]).item()


class _Scratch(threading.local):
    """A buffer for each thread."""

    def __init__(self) -> None:
        self.buffer = _Buffer()


_scratch = _Scratch()


def plain(x: Tensor) -> Tensor:
    """Return the elements of any tensor as a strided real one whose format ``scaled_norm`` knows."""
    x = x.detach()
    if not has_values(x):
        raise TypeError(_NO_VALUES.format(kind=type(x).__name__, device=x.device))
    if hasattr(x, "full_tensor"):  # a DTensor: its own norm would be that of the local shard
        x = x.full_tensor()
    if x.is_nested:
        x = torch.cat([component.reshape(-1) for component in x.unbind()])
    elif x.layout is torch.sparse_coo:
        x = x.coalesce().values()  # zeros do not count, repeated indices add up
    elif x.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        x = x.values()
    elif x.layout is not torch.strided:
        x = x.to_dense()
    if type(x) is not Tensor:
        x = x.as_subclass(Tensor)
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x if x.dtype in _NARROW or x.dtype == torch.float64 else x.float()
