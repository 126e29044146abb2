"""The profile at initialisation: forward and backward through an MLP with exponents carried on the side.

Everything is float64 on the model's own weights. Multiplying by a power of two is exact, so each sample of each
network is brought back to ordinary size whenever it drifts away, and its exponent is kept as a number of its own.
Nothing under- or overflows, at any depth. The units of one sample share its exponent: one that is 2**1074 times
smaller than the largest counts as 0.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from gradexp.history import STATUSES, History
from gradexp.models import MLP, Activation, StackedLinear
from gradexp.norms import LOG10_2, rescale, times_power_of_two
from gradexp.seeds import generator

# While the largest element of a sample is within 2**±500, its true z is used; float64 squares of it still fit.
_ORDINARY = 500
# Bytes of stored slopes beyond which a stack is worked through in parts.
_MEMORY = 1 << 30


def exact_profile(
    mlp: MLP,
    x: Tensor,
    cotangent: Tensor | None = None,
    *,
    seeds: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Measure outputs, output gradients and weight gradients of every layer, exact at any depth.

    Each sample b of each network gets a cotangent c at zᴸ, and l_b = c · zᴸ is differentiated:

        δᴸ = c,   δˡ = φ'(zˡ) ⊙ Wˡ⁺¹ᵀ δˡ⁺¹,   dl_b/dWˡ = δˡ aˡ⁻¹ᵀ,  so  ‖dl_b/dWˡ‖ = ‖δˡ‖ ‖aˡ⁻¹‖

    Recorded are log10 of rms(zˡ), ‖δˡ‖ and ‖dl_b/dWˡ‖, averaged over samples after taking the log. A sample
    that is exactly 0 at some layer is left out at every layer and counted in ``dead_fraction``.

    Args:
        mlp: One network or a stack; not changed.
        x: Inputs, shape ``(batch, n_0)``.
        cotangent: Shape ``(batch, n_L)`` or ``(networks, batch, n_L)``, used as it is; None: drawn from
            N(0, I) by each network's own generator and scaled to length 1.
        seeds: Seed of each network; None: 0, 1, ...
        progress: Called with (layers done, layers in all).

    Returns:
        A History with the single step 0.

    Raises:
        ValueError: If a shape does not fit the network.

    Example:
        >>> mlp = MLP([2, 2, 2], activation="linear", bias=False)
        >>> for layer in mlp.layers:
        ...     _ = torch.nn.init.eye_(layer.weight.data[0]).mul_(1.5)
        >>> profile = exact_profile(mlp, torch.ones(1, 2), cotangent=torch.ones(1, 2))
        >>> [round(10**v, 6) for v in profile.profile("output").tolist()]
        [1.5, 2.25]
    """
    if x.dim() != 2 or x.shape[1] != mlp.widths[0] or len(x) == 0:
        raise ValueError(f"x must have shape (batch, {mlp.widths[0]}), got {tuple(x.shape)}")
    networks, batch = mlp.networks, len(x)
    seeds = list(range(networks)) if seeds is None else list(seeds)
    if len(seeds) != networks:
        raise ValueError(f"seeds must name {networks} networks, got {len(seeds)}")
    if cotangent is None:
        cotangent = torch.stack([_unit_cotangents(seed, batch, mlp.widths[-1]) for seed in seeds])
    if cotangent.shape not in ((batch, mlp.widths[-1]), (networks, batch, mlp.widths[-1])):
        raise ValueError(
            f"cotangent must have shape {(batch, mlp.widths[-1])} or {(networks, batch, mlp.widths[-1])}, "
            f"got {tuple(cotangent.shape)}"
        )

    device = next(mlp.parameters()).device
    x = x.to(device, torch.float64)
    cotangent = cotangent.to(device, torch.float64).expand(networks, -1, -1)
    at_once = max(1, _MEMORY // (8 * batch * sum(mlp.widths)))
    parts = [slice(start, start + at_once) for start in range(0, networks, at_once)]
    done, total = 0, 2 * mlp.depth * len(parts)

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with torch.no_grad():
        measured = [_measure(mlp, part, x, cotangent[part], advance) for part in parts]
    sizes = {key: torch.cat([m[key] for m in measured], dim=1).cpu() for key in measured[0]}
    return _summarise(mlp, seeds, sizes)


def _unit_cotangents(seed: int, batch: int, width: int) -> Tensor:
    drawn = torch.randn(batch, width, generator=generator(seed, "cotangent"), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def _measure(mlp: MLP, part: slice, x: Tensor, cotangent: Tensor, advance: Callable[[], None]) -> dict[str, Tensor]:
    """Return log10 sizes of every sample of some networks, each of shape ``(layer, network, sample)``."""
    layers = cast("list[StackedLinear]", list(mlp.layers))
    outputs, inputs, slopes = [], [], []
    a = x.expand(cotangent.shape[0], *x.shape)
    exponent = a.new_zeros(*a.shape[:2], 1)
    for index, layer in enumerate(layers):
        if index:
            a, exponent, slope = _activate(mlp.activation, a, exponent)
            slopes.append(slope)
        inputs.append(_log10_sizes(a, exponent))
        a, exponent = _linear(layer, part, a, exponent)
        outputs.append(_log10_sizes(a, exponent))
        advance()
    cosine = _mean_cosine(rescale(a, dim=2)[0])

    gradients = []
    delta, exponent = rescale(cotangent, dim=2)
    for index in reversed(range(mlp.depth)):
        gradients.append(_log10_sizes(delta, exponent))
        advance()
        if index:
            weight = layers[index].weight[part].double()
            delta, shift = rescale(slopes.pop() * torch.bmm(delta, weight), dim=2)
            exponent = exponent + shift
    gradients.reverse()

    sizes = {
        f"{kind}_{size}": torch.stack([pair[place] for pair in pairs])
        for kind, pairs in (("output", outputs), ("input", inputs), ("output_grad", gradients))
        for place, size in enumerate(("norm", "largest"))
    }
    sizes["cosine"] = cosine.unsqueeze(0)
    return sizes


def _linear(layer: StackedLinear, part: slice, a: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Return z = W a + b for ``a * 2**exponent``, again as a value and an exponent."""
    weight = layer.weight[part].double()
    a, shift = rescale(a, dim=2)  # or the product of a large a and a large W would overflow
    exponent = exponent + shift
    if layer.bias is None or not layer.bias[part].any():
        z = torch.bmm(a, weight.mT)
    else:
        bias = layer.bias[part].double().unsqueeze(1)
        # Whichever is larger, signal or bias, sets the common exponent; the other may shrink to nothing beside it.
        size = torch.where(bias.abs().amax(dim=2, keepdim=True) > 0, rescale(bias, dim=2)[1], -torch.inf)
        common = torch.maximum(exponent, size)
        z = times_power_of_two(bias, -common) + torch.bmm(times_power_of_two(a, exponent - common), weight.mT)
        exponent = common
    mantissa, shift = rescale(z, dim=2)
    exponent = exponent + shift
    ordinary = exponent.abs() <= _ORDINARY
    return times_power_of_two(mantissa, exponent.where(ordinary, 0)), exponent.where(~ordinary, 0)


def _activate(phi: Activation, z: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return φ(z) with its exponent, and φ'(z), for the true value ``z * 2**exponent``.

    Samples of ordinary size have exponent 0. Below, φ follows its line at 0, and where φ(0) is not 0 it is
    back at ordinary size; above, elements beyond 2**500 follow the line at infinity where it is not flat, and
    a sample with no such element is bounded, so that its true φ(z) is of ordinary size too.
    """
    edge = 2.0**_ORDINARY
    point = times_power_of_two(z, exponent)
    point = torch.where(exponent == 0, point, point.clamp(-edge, edge))  # exponent 0 may hold inf
    value, slope = phi.value_and_slope(point)
    if not exponent.any():
        return value, exponent, slope
    tiny = exponent < 0
    line = torch.where(tiny, _per_sign(z, phi.slopes_at_zero), _per_sign(z, phi.slopes_at_infinity))
    on_line = (exponent != 0) & (z != 0) & (tiny | (point.abs() >= edge))
    slope = torch.where(on_line, line, slope)
    steep = on_line & (line != 0)
    scaled = torch.where(steep, line * z, times_power_of_two(value, -exponent))
    starts_off_zero = bool(phi(z.new_zeros(())) != 0)
    ordinary = ~steep.any(dim=2, keepdim=True) | (tiny & starts_off_zero)
    return torch.where(ordinary, value, scaled), exponent.where(~ordinary, 0), slope


def _per_sign(z: Tensor, slopes: tuple[float, float]) -> Tensor:
    below, above = (z.new_tensor(slope) for slope in slopes)
    return torch.where(z < 0, below, above)


def _log10_sizes(v: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Return log10 of the L2 norm and of the largest magnitude of each sample, ``(network, sample)``."""
    mantissa, shift = rescale(v, dim=2)
    offset = (exponent + shift).squeeze(2) * LOG10_2
    norm: Tensor = torch.linalg.vector_norm(mantissa, dim=2)
    return norm.log10() + offset, mantissa.abs().amax(dim=2).log10() + offset


def _mean_cosine(z: Tensor) -> Tensor:
    """Return the mean cosine between two samples of each network that are not 0; nan where there are no two."""
    unit = torch.nn.functional.normalize(z, dim=2, eps=0.0)
    has_direction = unit.isfinite().all(dim=2)
    samples = has_direction.sum(dim=1, dtype=torch.float64)
    total = unit.where(has_direction.unsqueeze(2), 0).sum(dim=1)
    cosine = (total.square().sum(dim=1) - samples) / (samples * (samples - 1))
    return cosine.where(samples > 1, torch.nan)


def _summarise(mlp: MLP, seeds: list[int], sizes: dict[str, Tensor]) -> History:
    """Average the logs over the samples that are alive at every layer."""
    widths = torch.tensor(mlp.widths[1:], dtype=torch.float64)
    logs = {
        "output": sizes["output_norm"] - 0.5 * widths.log10()[:, None, None],
        "output_grad": sizes["output_grad_norm"],
        "weight_grad": sizes["output_grad_norm"] + sizes["input_norm"],
    }
    both = torch.cat([logs["output"], logs["output_grad"]])
    zero = (both == -torch.inf).any(dim=0) & (both < torch.inf).all(dim=0)  # the latter is false for nan
    alive = both.isfinite().all(dim=0)
    # A network with no sample left still shows each layer up to where it died.
    chosen = alive | ~alive.any(dim=1, keepdim=True)

    log10, status = {}, {}
    for quantity, log in logs.items():
        counted = chosen & log.isfinite()
        count = counted.sum(dim=2)
        mean = log.where(counted, 0).sum(dim=2) / count
        code = torch.full(count.shape, STATUSES.index("ok"), dtype=torch.int8)
        code[count == 0] = STATUSES.index("nonfinite")
        code[((log == -torch.inf) | ~chosen).all(dim=2)] = STATUSES.index("zero")
        log10[quantity] = mean.T.unsqueeze(0).numpy()
        status[quantity] = code.T.unsqueeze(0).numpy()
    return History(
        phase="init",
        names=[f"layers.{index}" for index in range(mlp.depth)],
        steps=[0],
        seeds=seeds,
        log10=log10,
        status=status,
        largest_log10={
            quantity: sizes[f"{quantity}_largest"].amax(dim=2).T.unsqueeze(0).numpy()
            for quantity in ("output", "output_grad")
        },
        dead_fraction=zero.double().mean(dim=1).numpy(),
        output_cosine=sizes["cosine"].squeeze(0).numpy(),
    )
