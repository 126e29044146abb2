"""The profile at initialisation: forward and backward through an MLP with exponents carried on the side.

Everything is float64 on the model's own weights. Multiplying by a power of two is exact, so each sample of each
network is brought back to ordinary size whenever it drifts away, and its exponent is kept as a number of its own.
Nothing under- or overflows, at any depth. The units of one sample share its exponent: one that is 2**1074 times
smaller than the largest counts as 0.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import cast

import torch
from torch import Tensor

from gradexp.exact.layers import Normalised, activate, branch_factor, linear, normalise
from gradexp.exact.scaled import scaled
from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.kinds import whole_numbers
from gradexp.networks.mlp import MLP, StackedLinear
from gradexp.numerics.seeds import generator

# A stack that must store more bytes than this for the way back is worked through slice by slice.
_MEMORY = 1 << 26


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

    With normalisation, δˡ is pulled back through N too; beside a skip connection δˡ⁺¹ is added, and
    dl_b/dWˡ has the branch's factor. Batch normalisation lets each sample's output depend on all samples: there
    Σ l_b is differentiated, δˡ of a sample is its row of the gradient, and what counts as dl_b/dWˡ is the part of
    the weight gradient that comes through this row.

    Recorded are log10 of rms(zˡ), ‖δˡ‖ and ‖dl_b/dWˡ‖, averaged over samples after taking the log. A sample
    that is exactly 0 at some layer is left out at every layer and counted in ``dead_fraction``; a layer at which one
    is not finite, as inputs or weights are not, has no number. Of the first sample
    ‖δˡ‖ is recorded by itself (``samples``): the spread of one sample of one network is what theory predicts.

    Args:
        mlp: One network or a stack; not changed.
        x: Inputs, shape ``(batch, n_0)``.
        cotangent: Vectors c, shape ``(batch, n_L)`` or ``(networks, batch, n_L)``, used as it is; None: drawn from
            N(0, I) by each network's own generator and scaled to length 1.
        seeds: The seed of each network; None: 0, 1, ...
        progress: A function of (layers done, layers in all), called for a large stack from threads of its own.

    Returns:
        A History with the single step 0.

    Raises:
        ValueError: If a shape does not fit the network.

    Examples:
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
    seeds = list(range(networks)) if seeds is None else whole_numbers("seeds", seeds)
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
    stored = 1 if mlp.normalization == "none" else 2
    at_once = max(1, _memory(device) // (8 * stored * batch * sum(mlp.widths)))
    slices = [slice(start, start + at_once) for start in range(0, networks, at_once)]
    done, total, lock = 0, 2 * mlp.depth * len(slices), Lock()

    def advance() -> None:
        nonlocal done
        with lock:
            done += 1
            if progress is not None:
                progress(done, total)

    def measure(chunk: slice) -> dict[str, Tensor]:
        with torch.no_grad():
            return _log10_sizes(mlp, chunk, x, cotangent[chunk], advance)

    measured = _map(measure, slices, 1 if device.type != "cpu" else torch.get_num_threads())
    sizes = {key: torch.cat([m[key] for m in measured], dim=1).cpu() for key in measured[0]}
    return _summarise(mlp, seeds, sizes)


def _memory(device: torch.device) -> int:
    """Return the bytes to store at most for the way back: a CPU is fastest where a layer fits into its cache."""
    return _MEMORY if device.type == "cpu" else 16 * _MEMORY


def _map(measure: Callable[[slice], dict[str, Tensor]], slices: list[slice], threads: int) -> list[dict[str, Tensor]]:
    """Measure several slices of a stack at a time, with a thread for each.

    Sharing each operation among the threads, as torch does, would make them wait for each other thousands of times,
    which takes very long when another program needs one of the cores.
    """
    workers = min(threads, len(slices))
    if workers == 1:
        return [measure(networks) for networks in slices]
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(measure, slices))
    finally:
        torch.set_num_threads(threads)  # for threads to come


def _unit_cotangents(seed: int, batch: int, width: int) -> Tensor:
    drawn = torch.randn(batch, width, generator=generator(seed, "cotangent"), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def _log10_sizes(
    mlp: MLP, networks: slice, x: Tensor, cotangent: Tensor, advance: Callable[[], None]
) -> dict[str, Tensor]:
    """Return log10 sizes of every sample of some networks, each of shape ``(layer, network, sample)``."""
    layers = cast("list[StackedLinear]", list(mlp.layers))
    outputs: list[tuple[Tensor, Tensor]] = []
    inputs, slopes = [], []
    normals: list[Normalised] = []
    z = a = scaled(x.expand(cotangent.shape[0], *x.shape))
    for index, layer in enumerate(layers):
        if index:
            a = z
            if mlp.normalization != "none":
                a, normal = normalise(z, mlp.normalization)
                normals.append(normal)
            a, slope = activate(mlp.activation, a)
            lost = ~(outputs[-1][0] < torch.inf)
            if lost.any():  # relu's slope at nan is 0, and that of tanh at inf: no gradient that is exactly 0
                slope = slope.where(~lost.unsqueeze(2), torch.nan)
            slopes.append(slope)
        norm, largest = a.log10_sizes()
        branch = linear(layer, networks, a)
        if mlp.has_skip(index):
            factor = branch_factor(layer, networks, x)
            norm = norm + factor.abs().log10().squeeze(2)
            z = z.plus(branch.times(factor))
        else:
            z = branch
        inputs.append((norm, largest))
        outputs.append(z.log10_sizes())
        advance()
    cosine = _mean_cosine(z.mantissas()[0])

    gradients = []
    delta = scaled(cotangent)
    for index in reversed(range(mlp.depth)):
        gradients.append(delta.log10_sizes())
        advance()
        if index:
            value, exponent = delta.mantissas()
            back = scaled(slopes.pop() * torch.bmm(value, layers[index].weight[networks].double()), exponent)
            if normals:
                back = normals.pop().pull_back(back)
            delta = delta.plus(back.times(branch_factor(layers[index], networks, x))) if mlp.has_skip(index) else back
    gradients.reverse()

    sizes = {
        f"{kind}_{size}": torch.stack([pair[place] for pair in pairs])
        for kind, pairs in (("output", outputs), ("input", inputs), ("output_grad", gradients))
        for place, size in enumerate(("norm", "largest"))
    }
    sizes["cosine"] = cosine.unsqueeze(0)
    return sizes


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
    signals = torch.cat([logs["output"], logs["output_grad"]])
    zero = (signals == -torch.inf).any(dim=0) & (signals < torch.inf).all(dim=0)  # the latter is false for nan
    alive = signals.isfinite().all(dim=0)
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
        lost = (log.isnan() | (log == torch.inf)).any(dim=2)
        mean[lost], code[lost] = torch.nan, STATUSES.index("nonfinite")
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
        samples=logs["output_grad"].where(alive, torch.nan)[:, :, :1].transpose(0, 1).unsqueeze(0).numpy(),
    )
