"""The Jacobian between two layers of an MLP: singular values, Lyapunov exponents and moments, right at any depth.

Between zᶠ (``first``) and zᵐ (``last``) the Jacobian is a product, with Dˡ = diag φ'(zˡ), z⁰ = x and D⁰ = I:

    J = dzᵐ/dzᶠ = (Wᵐ Dᵐ⁻¹) ... (Wᶠ⁺² Dᶠ⁺¹) (Wᶠ⁺¹ Dᶠ),   of shape (n_m, n_f)

By default it goes from z¹ to zᴸ, as the back-propagated gradient does: δ¹ = Jᵀ δᴸ. These are L - 1 factors W D; their
product has the moments of the L - 1 factors D W of Pennington et al. (2017, arXiv:1711.04735; 2018,
arXiv:1802.09979). With ``first=0`` it is dzᴸ/dx, and with ``last`` it may end before a narrow output layer.

A product of hundreds of factors leaves float64's range, and its condition number leaves what float64 tells apart by
even more. So every factor is decomposed on its own, and exponents are carried on the side. All is float64, on the
model's own weights, at the z that a float64 forward pass finds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from torch import Tensor

from gradexp.exact.layers import activate, linear
from gradexp.exact.scaled import scaled
from gradexp.kinds import whole_numbers
from gradexp.networks.mlp import MLP, StackedLinear
from gradexp.numerics.norms import LOG10_2, rescale, times_power_of_two
from gradexp.numerics.seeds import generator

# A singular value that differs by more than this, relatively, between two sweeps is not known.
_AGREEMENT = 1e-8
_MAX_TRIPS = 4
_ROUNDING = 2.0**-52
# What Jacobi's rotations leave changes a singular value by the square of this cosine.
_COSINE = 1e-10
_MAX_ROTATIONS = 30


@dataclass(frozen=True)
class SpectralMoments:
    """Estimates of m_k = tr (J Jᵀ)ᵏ / n_last and their standard errors, each of shape ``(networks, batch)``.

    The standard errors say how far the estimates may be from the moments of this very network, not how much those
    vary from one network to the next.

    Args:
        log10_m1: log10 of m_1, the mean square of the singular values; -inf if J is 0.
        log10_m1_se: Its standard error.
        ratio: m_2 / m_1²: 1 if all n_last singular values are equal, n_last if only one is not 0; nan if J is 0.
        ratio_se: Its standard error.
    """

    log10_m1: Tensor
    log10_m1_se: Tensor
    ratio: Tensor
    ratio_se: Tensor


def singular_values(model: MLP, x: Tensor, *, first: int = 1, last: int | None = None) -> Tensor:
    """Return log10 of the singular values of each sample's Jacobian, the smallest as accurate as the largest.

    Factor by factor J becomes Q R, where R is a triangle with an exponent for each row, graded from top to bottom
    (G. W. Stewart, 1995, ETNA 3:39). The next sweep starts from that Q and goes through Jᵀ, and so on; one-sided
    Jacobi rotations take the singular values of R without mixing its scales (Demmel & Veselić, 1992).

    The condition number of the product costs no digits; those of the single W do, and so does an unstable order of
    factors (D. E. Stewart, 1997, ETNA 5:29). With Gaussian or orthogonal weights the relative error was below 1e-10
    in every test, also behind saturated units. Each value is computed from two sweeps in opposite directions, in one
    of them with each element of each factor changed by a rounding error, and given only if these agree to 1e-8. For
    weights with condition numbers of 1e3 to 1e15, a quarter of 23000 values was nan, and none was wrong by more than
    2e-6; that two wrong ones agree cannot be ruled out.

    Time grows as networks · batch · depth · width³: seconds for a network of width 100 and depth 150.

    Args:
        model: One network or a stack, without normalization and residual; not changed.
        x: Inputs, shape ``(batch, n_0)``.
        first: The layer at whose z the Jacobian starts; 0: at x.
        last: The layer at whose z it ends; None: the last.

    Returns:
        Shape ``(networks, batch, min(n_first, n_last))``, float64, in descending order. -inf: exactly 0, because
        units of slope 0, a narrow layer or weights of 0 lower the rank. nan: not known, as where a weight
        matrix is of lower rank but for rounding, or where one way through the layers drowns what the other keeps.

    Raises:
        ValueError: If ``x``, ``first`` or ``last`` does not fit the model, the model has a normalization or a
            residual, or a z or a slope is not finite.

    Examples:
        >>> mlp = MLP([2] * 21, activation="linear", bias=False)
        >>> for layer in mlp.layers:
        ...     _ = layer.weight.data.copy_(torch.diag(torch.tensor([1e30, 1e-30])))
        >>> singular_values(mlp, torch.ones(1, 2), first=0)[0, 0].round(decimals=4)
        tensor([ 600., -600.], dtype=torch.float64)
    """
    factors = _factors(model, x, first, last)
    inputs, outputs = factors[0].shape[-1], factors[-1].shape[-2]
    # Rounding alone can err alike in both directions; random changes of that size do not.
    source = generator(0, "rounding")
    signs = [torch.randint(2, factor.shape, generator=source) * 2 - 1 for factor in factors]
    nudged = [factor * (1 + sign.to(factor) * _ROUNDING) for factor, sign in zip(factors, signs, strict=True)]
    q = torch.eye(inputs).to(factors[0]).expand(model.networks, len(x), -1, -1)
    q, *_ = _triangle(nudged, q)  # to find where the steepest directions end
    for _ in range(_MAX_TRIPS):
        q, *triangle = _triangle(_transposed(factors), q)
        logs = _one_sided_jacobi(*triangle)
        q, *triangle = _triangle(nudged, q)
        logs_of_nudged = _one_sided_jacobi(*triangle)
        agree = (logs == logs_of_nudged) | ((logs - logs_of_nudged).abs() < _AGREEMENT / math.log(2))
        if agree.all():
            break
    # A value that is exactly 0, although no zeros among the factors' elements make it so, is rounding's.
    rounded_to_zero = (logs == -torch.inf) & (torch.arange(logs.shape[-1]).to(logs) < _rank_bound(factors))
    log10 = logs.where(agree & ~rounded_to_zero, torch.nan) * LOG10_2
    return torch.nn.functional.pad(log10, (0, min(inputs, outputs) - log10.shape[-1]), value=-torch.inf)


def lyapunov_spectrum(
    model: MLP,
    x: Tensor,
    *,
    first: int = 1,
    last: int | None = None,
    count: int | None = None,
    each_layer: bool = False,
    seed: int = 0,
) -> Tensor:
    """Return the Lyapunov exponents of the product of Jacobians along each sample's path, per layer.

    With orthonormal start directions V and the QR decomposition J V = Q R, over the m - f layers between:

        λ_k = log |R_kk| / (m - f) = mean over l of log |Rˡ_kk|,   where Wˡ⁺¹ Dˡ Qˡ = Qˡ⁺¹ Rˡ

    in natural logs of the amplitude (not of its square, as ``log_chi`` is). The first k exponents add up to the rate
    at which the volume of k directions grows. They tend to log s_k / (m - f), s_k the k-th singular value, as the
    depth grows; at a finite depth they differ by O(1 / depth) and need not descend (Benettin et al., 1980, Meccanica
    15:9; for Gaussian weights Newman, 1986, Commun. Math. Phys. 103:121).

    Args:
        model: One network or a stack, without normalization and residual; not changed.
        x: Inputs, shape ``(batch, n_0)``.
        first: The layer at whose z the Jacobian starts; 0: at x.
        last: The layer at whose z it ends; None: the last.
        count: The number of exponents; None: the width of the narrowest of these layers. Few are cheap.
        each_layer: Whether to return log |Rˡ_kk| of each layer instead of the mean.
        seed: The seed of V, which is uniform (Haar) and common to all samples and networks.

    Returns:
        Shape ``(networks, batch, count)``, float64; -inf beyond the rank. With ``each_layer`` a first dimension
        has the layers f + 1, ..., m.

    Raises:
        ValueError: As ``singular_values``, or if ``count`` is out of range.

    Examples:
        >>> mlp = MLP([2] * 61, activation="linear", bias=False)
        >>> for layer in mlp.layers:
        ...     _ = layer.weight.data.copy_(torch.diag(torch.tensor([0.5, 2.0])))
        >>> lyapunov_spectrum(mlp, torch.ones(1, 2)).div(math.log(2)).round(decimals=1)
        tensor([[[ 1., -1.]]], dtype=torch.float64)
    """
    factors = _factors(model, x, first, last)
    inputs = factors[0].shape[-1]
    narrowest = min(inputs, *(weight.shape[-2] for weight in factors[1::2]))
    count = narrowest if count is None else count
    if not 1 <= count <= narrowest:
        raise ValueError(f"count must be from 1 to {narrowest}, the narrowest layer, got {count}")
    drawn = torch.randn(inputs, inputs, generator=generator(seed, "directions"), dtype=torch.float64)
    q = torch.linalg.qr(drawn[:, :count]).Q.mT.to(factors[0]).expand(model.networks, len(x), -1, -1)
    logs = [
        r.diagonal(dim1=-2, dim2=-1).abs().log() + exponent * math.log(2) for _, r, exponent in _sweep(factors, q)
    ]
    layers: Tensor = torch.stack(logs).unflatten(0, (-1, 2)).sum(dim=1)  # D and W
    return layers if each_layer else layers.mean(dim=0)


def spectral_moments(
    model: MLP,
    x: Tensor,
    *,
    first: int = 1,
    last: int | None = None,
    probes: int = 32,
    seeds: Sequence[int] | None = None,
) -> SpectralMoments:
    """Estimate the first two moments of J Jᵀ without ever forming J, for any width and depth.

    For a probe v of random signs and A = J Jᵀ (Hutchinson, 1990):

        u = ‖Jᵀ v‖²,   E u = tr A,        w = ‖J Jᵀ v‖²,   E w = tr A²

    with one product by Jᵀ (a VJP) and one by J (a JVP) per probe. With bars for means over probes, m_1 is ū / n, and

        m_2 / m_1² = n w̄ / ū² · [1 - (3 var(u) / ū² - 2 cov(u, w) / (ū w̄)) / probes]

    where the bracket takes away the bias of order 1 / probes. Standard errors are by the delta method. Probes are
    independent for each sample, and each network has a generator of its own.

    Args:
        model: One network or a stack, without normalization and residual; not changed.
        x: Inputs, shape ``(batch, n_0)``.
        first: The layer at whose z the Jacobian starts; 0: at x.
        last: The layer at whose z it ends; None: the last.
        probes: The number of v, at least 2. If few singular values dominate, the relative standard error of both
            estimates is about √(2 / probes); if many take part, far less.
        seeds: The seed of each network; None: 0, 1, ...

    Raises:
        ValueError: As ``singular_values``, or if there are too few probes, or not as many seeds as networks.

    Examples:
        >>> from gradexp import initialize
        >>> mlp = initialize(MLP([64] * 101, activation="linear", bias=False), "orthogonal", gain=0.1)
        >>> moments = spectral_moments(mlp, torch.ones(1, 64), first=0)
        >>> round(moments.log10_m1.item(), 4), round(moments.ratio.item(), 4)
        (-200.0, 1.0)
    """
    factors = _factors(model, x, first, last)
    seeds = list(range(model.networks)) if seeds is None else whole_numbers("seeds", seeds)
    if len(seeds) != model.networks:
        raise ValueError(f"seeds must name {model.networks} networks, got {len(seeds)}")
    if probes < 2:
        raise ValueError(f"probes must be at least 2, got {probes}")
    outputs = factors[-1].shape[-2]
    shape = (len(x), probes, outputs)
    bits = torch.stack([torch.randint(2, shape, generator=generator(seed, "probes")) for seed in seeds])
    v = (2 * bits - 1).to(factors[0])
    back, exponent = _product(_transposed(factors), v, v.new_zeros(*v.shape[:-1], 1))
    u, log_scale_u = _squares(back, exponent)
    w, log_scale_w = _squares(*_product(factors, back, exponent))

    mean_u, mean_w = u.mean(dim=-1), w.mean(dim=-1)
    du, dw = u / mean_u.unsqueeze(-1) - 1, w / mean_w.unsqueeze(-1) - 1
    bias = (3 * du.square() - 2 * du * dw).sum(dim=-1) / (probes - 1) / probes
    ratio = outputs * mean_w / mean_u.square() * (log_scale_w - 2 * log_scale_u).exp() * (1 - bias)
    root = math.sqrt(probes)
    return SpectralMoments(
        log10_m1=((mean_u / outputs).log() + log_scale_u) / math.log(10),
        log10_m1_se=du.std(dim=-1) / root / math.log(10),
        ratio=ratio,
        ratio_se=ratio * (dw - 2 * du).std(dim=-1) / root,
    )


def _factors(model: MLP, x: Tensor, first: int, last: int | None) -> list[Tensor]:
    """Run forward and return the factors Dᶠ, Wᶠ⁺¹, Dᶠ⁺¹, ..., Wᵐ of J, in the order in which they act.

    Dˡ is its diagonal, of shape ``(networks, batch, 1, n_l)``; Wˡ has shape ``(networks, n_l, n_l-1)``.
    """
    if not isinstance(model, MLP):
        raise TypeError(f"model must be a gradexp.MLP, got a {type(model).__name__}")
    last = model.depth if last is None else last
    if not 0 <= first < last <= model.depth:
        raise ValueError(f"first must be below last, both from 0 to {model.depth}, got {first} and {last}")
    for option in ("normalization", "residual"):
        if getattr(model, option) != "none":
            raise ValueError(f"{option} must be 'none' for a Jacobian, got {getattr(model, option)!r}")
    if x.dim() != 2 or x.shape[1] != model.widths[0] or len(x) == 0:
        raise ValueError(f"x must have shape (batch, {model.widths[0]}), got {tuple(x.shape)}")
    layers = cast("list[StackedLinear]", list(model.layers))
    factors: list[Tensor] = []
    with torch.no_grad():
        z = a = scaled(x.to(layers[0].weight.device, torch.float64).expand(model.networks, *x.shape))
        slope = torch.ones_like(a.value)
        for index, layer in enumerate(layers[:last]):
            if index:
                a, slope = activate(model.activation, z)
            if not all(tensor.isfinite().all() for tensor in (a.value, slope, layer.weight)):
                inputs = f"φ(z) and φ'(z) of layer {index}" if index else "x"
                raise ValueError(f"{inputs} and the weight of layer {index + 1} must be finite, got nan or inf")
            if index >= first:
                factors += [slope.unsqueeze(2), layer.weight.detach().double()]
            z = linear(layer, slice(None), a)
    return factors


def _transposed(factors: list[Tensor]) -> list[Tensor]:
    return [factor if factor.dim() == 4 else factor.mT for factor in reversed(factors)]


def _rank_bound(factors: list[Tensor]) -> Tensor:
    """Return the fewest rows or columns of a factor that are not all 0, of shape ``(networks, batch, 1)``."""
    ranks = [
        (factor != 0).sum(dim=-1)
        if factor.dim() == 4
        else torch.minimum(factor.any(dim=-1).sum(dim=-1), factor.any(dim=-2).sum(dim=-1))[:, None, None]
        for factor in factors
    ]
    return reduce(torch.minimum, ranks)


def _apply(factor: Tensor, v: Tensor) -> Tensor:
    """Multiply the vectors in the rows of ``v``, of shape ``(networks, batch, vectors, n)``, by one factor."""
    if factor.dim() == 4:
        return factor * v
    product: Tensor = torch.bmm(v.flatten(1, 2), factor.mT).unflatten(1, v.shape[1:3])
    return product


def _product(factors: list[Tensor], v: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Return J v for each row v · 2^exponent, as values and exponents."""
    for factor in factors:
        v, shift = rescale(_apply(factor, v), dim=-1)
        exponent = exponent + shift
    return v, exponent


def _squares(v: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared norms of the rows v · 2^exponent beside the largest of their sample, and log of that."""
    logs = 2 * (v.norm(dim=-1).log() + exponent.squeeze(-1) * math.log(2))
    largest = logs.amax(dim=-1)
    return (logs - largest.unsqueeze(-1).nan_to_num(neginf=0)).exp(), largest


def _sweep(factors: list[Tensor], q: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Decompose factor by factor: F qᵀ = q'ᵀ r · 2^exponent, where the rows of q and q' are orthonormal."""
    for factor in factors:
        z, exponent = rescale(_apply(factor, q), dim=(-2, -1))
        # With the largest rows on top Householder's reflections keep the digits of small ones (Cox & Higham, 1998);
        # and rows of 0, from units of slope 0, give rows of r that are exactly 0.
        order = z.abs().amax(dim=-2, keepdim=True).argsort(dim=-1, descending=True)
        columns, r = torch.linalg.qr(z.take_along_dim(order, dim=-1).mT)
        order = order.expand(*columns.mT.shape)
        q = torch.empty_like(columns.mT).scatter_(-1, order, columns.mT)
        yield q, r, exponent.squeeze(-1)


def _triangle(factors: list[Tensor], q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q' and R of J qᵀ = q'ᵀ R, R as rows and an exponent for each; q' with the steepest rows first."""
    rows = torch.eye(q.shape[-2]).to(q)
    exponents = q.new_zeros(*q.shape[:-1], 1)
    for turned, r, exponent in _sweep(factors, q):
        q = turned
        r = r * rows.any(dim=-1).unsqueeze(-2)  # a direction that is lost must not drown others by its exponent
        reach = torch.frexp(r).exponent + exponents.mT
        top = reach.where(r != 0, -torch.inf).amax(dim=-1, keepdim=True).nan_to_num(neginf=0)
        rows, shift = rescale(times_power_of_two(r, exponents.mT - top) @ rows, dim=-1)
        exponents = top + shift + exponent.unsqueeze(-1)
    # The steepest first, so that the rows of the next triangle shrink from the top.
    order = (rows.norm(dim=-1, keepdim=True).log2() + exponents).argsort(dim=-2, descending=True)
    return q.take_along_dim(order, dim=-2), rows, exponents


def _one_sided_jacobi(rows: Tensor, exponents: Tensor) -> Tensor:
    """Return log2 of the singular values of the matrices with these rows · 2^exponents, in descending order.

    Pairs of rows are turned until all are orthogonal; then their lengths are the singular values. That no row is
    ever measured against a larger one keeps the digits of the small ones.

    Args:
        rows: Mantissas of the rows, shape ``(..., k, n)``.
        exponents: Their exponents, shape ``(..., k, 1)``.
    """
    rounds = _rounds(rows.shape[-2])
    for _ in range(_MAX_ROTATIONS):
        rows, shift = rescale(rows, dim=-1)
        exponents = exponents + shift
        largest_cosine = rows.new_zeros(())
        for left, right in rounds:
            a, b = rows[..., left, :], rows[..., right, :]
            gap = exponents[..., left, :] - exponents[..., right, :]
            swap = gap < 0
            big, small = torch.where(swap, b, a), torch.where(swap, a, b)
            ratio = torch.exp2(-2 * gap.abs())  # of the squares of the true sizes; what underflows does not matter
            big2, small2 = big.square().sum(-1, keepdim=True), small.square().sum(-1, keepdim=True)
            dot = (big * small).sum(-1, keepdim=True)
            difference = big2 - ratio * small2
            root = (difference.square() + 4 * ratio * dot.square()).sqrt()
            tangent = 2 * dot / (difference.abs() + root) * torch.where(difference < 0, -1.0, 1.0)
            tangent = tangent.where(dot != 0, 0)  # rows of 0
            scale = (1 + ratio * tangent.square()).rsqrt()
            big, small = scale * (big + ratio * tangent * small), scale * (small - tangent * big)
            rows[..., left, :], rows[..., right, :] = torch.where(swap, small, big), torch.where(swap, big, small)
            cosines = (dot.abs() / (big2 * small2).sqrt()).nan_to_num(nan=0)
            largest_cosine = torch.maximum(largest_cosine, cosines.max())
        if largest_cosine < _COSINE:
            break
    sizes: Tensor = rows.norm(dim=-1).log2() + exponents.squeeze(-1)
    return sizes.sort(dim=-1, descending=True).values


def _rounds(players: int) -> list[tuple[list[int], list[int]]]:
    """Pair all players once, as many pairs at a time as possible: a round-robin tournament."""
    seats = list(range(players + players % 2))
    rounds = []
    for _ in seats[1:]:
        half = len(seats) // 2
        pairs = [pair for pair in zip(seats[:half], reversed(seats[half:]), strict=True) if max(pair) < players]
        rounds.append(([left for left, _ in pairs], [right for _, right in pairs]))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds if players > 1 else []
