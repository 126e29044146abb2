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
from torch import Tensor, nn

from gradexp.exact.layers import (
    Normalised,
    activate,
    branch_factor,
    linear,
    normalise,
    scale_and_shift,
    units_without_a_say,
)
from gradexp.exact.samples import averaged, mean_cosine, unit_cotangents
from gradexp.exact.scaled import Scaled, scaled
from gradexp.history.history import History
from gradexp.kinds import whole_numbers
from gradexp.networks.mlp import MLP, StackedLinear
from gradexp.networks.sequential import as_mlp

# A stack that must store more bytes than this for the way back is worked through slice by slice.
_MEMORY = 1 << 26


# Bytes of weights that are drawn at a time where networks are made for the measurement.
_DRAWN = 1 << 28

Make = Callable[[Sequence[int]], MLP]
"""A function that returns the networks of some neighbouring seeds as one stack."""


def exact_profile(
    mlp: nn.Module | Make,
    x: Tensor,
    cotangent: Tensor | None = None,
    *,
    seeds: int | Sequence[int] | None = None,
    products: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Measure outputs, output gradients and weight gradients of every layer, exact at any depth.

    Each sample b of each network gets a cotangent c at zᴸ, and l_b = c · zᴸ is differentiated:

        δᴸ = c,   δˡ = φ'(zˡ) ⊙ Wˡ⁺¹ᵀ δˡ⁺¹,   dl_b/dWˡ = δˡ aˡ⁻¹ᵀ,  so  ‖dl_b/dWˡ‖ = ‖δˡ‖ ‖aˡ⁻¹‖

    With normalisation, δˡ is pulled back through its scale and N too; beside a skip connection δˡ⁺¹ is added, and
    dl_b/dWˡ has the branch's factor. Batch normalisation lets each sample's output depend on all samples: there
    Σ l_b is differentiated, δˡ of a sample is its row of the gradient, and what counts as dl_b/dWˡ is the part of
    the weight gradient that comes through this row.

    Recorded are log10 of rms(zˡ), ‖δˡ‖ and ‖dl_b/dWˡ‖, averaged over samples after taking the log. A sample
    that is exactly 0 at some layer is left out at every layer and counted in ``dead_fraction``; a layer at which one
    is not finite, as inputs or weights are not, has no number. Of the first sample
    ‖δˡ‖ is recorded by itself (``samples``): the spread of one sample of one network is what theory predicts.
    The mean cosine between two samples' zˡ is ``stats["output.cosine"]``: whether inputs still differ at layer l.

    Args:
        mlp: One network or a stack; or an ``nn.Sequential`` of ``nn.Linear`` with one activation between them; not
            changed. Or a function of some seeds that returns their networks as one stack: it is called for as many at
            a time as fit into memory.
        x: Inputs, shape ``(batch, n_0)``.
        cotangent: Vectors c, shape ``(batch, n_L)`` or ``(networks, batch, n_L)``, used as it is; None: drawn from
            N(0, I) by each network's own generator and scaled to length 1.
        seeds: The seed of each network, of neighbouring ones their number; None: 0, 1, ...
        products: Whether to record log10 of |⟨Wˡ, dl_b/dWˡ⟩| too, averaged like the others, as
            ``stats["weight_grad.product"]``. In a network of linear, relu or leaky_relu without biases it is the same
            for all layers, by Euler's theorem, and training by gradient flow conserves ‖Wˡ‖² - ‖Wˡ⁺¹‖² (Du et al.,
            2018, arXiv:1806.00900).
        progress: A function of (layers done, layers in all), called for a large stack from threads of its own.

    Returns:
        A History with the single step 0.

    Raises:
        ValueError: If a shape does not fit the network, or it is no chain of linear layers: ``gradexp.measure``
            takes any model.

    Examples:
        >>> mlp = MLP([2, 2, 2], activation="linear", bias=False)
        >>> for layer in mlp.layers:
        ...     _ = torch.nn.init.eye_(layer.weight.data[0]).mul_(1.5)
        >>> profile = exact_profile(mlp, torch.ones(1, 2), cotangent=torch.ones(1, 2))
        >>> [round(10**v, 6) for v in profile.profile("output").tolist()]
        [1.5, 2.25]
        >>> from gradexp import initialize
        >>> def drawn(seeds):
        ...     return initialize(MLP([20] * 9, "relu", networks=len(seeds)), "he", seed=seeds[0])
        >>> len(exact_profile(drawn, torch.ones(1, 20), seeds=100).seeds)
        100
    """
    if not isinstance(mlp, nn.Module):
        return _in_parts(mlp, x, cotangent, seeds, products, progress)
    try:
        mlp, names = as_mlp(mlp, "exact_profile")
    except ValueError as error:
        raise ValueError(f"{error}; gradexp.measure takes any model") from None
    if x.dim() != 2 or x.shape[1] != mlp.widths[0] or len(x) == 0:
        raise ValueError(f"x must have shape (batch, {mlp.widths[0]}), got {tuple(x.shape)}")
    networks, batch = mlp.networks, len(x)
    if isinstance(seeds, int | None):
        seeds = range(networks if seeds is None else seeds)
    seeds = whole_numbers("seeds", seeds)
    if len(seeds) != networks:
        raise ValueError(f"seeds must name {networks} networks, got {len(seeds)}")
    if cotangent is None:
        cotangent = torch.stack([unit_cotangents(seed, batch, mlp.widths[-1]) for seed in seeds])
    if cotangent.shape not in ((batch, mlp.widths[-1]), (networks, batch, mlp.widths[-1])):
        raise ValueError(
            f"cotangent must have shape {(batch, mlp.widths[-1])} or {(networks, batch, mlp.widths[-1])}, "
            f"got {tuple(cotangent.shape)}"
        )

    device = next(mlp.parameters()).device
    x = x.to(device, torch.float64)
    cotangent = cotangent.to(device, torch.float64).expand(networks, -1, -1)
    stored = (1 if mlp.normalization == "none" else 2) + products
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
            return _log10_sizes(mlp, chunk, x, cotangent[chunk], products, advance)

    measured = _map(measure, slices, 1 if device.type != "cpu" else torch.get_num_threads())
    sizes = {key: torch.cat([m[key] for m in measured], dim=1).cpu() for key in measured[0]}
    return averaged(names, mlp.widths[1:], seeds, sizes)


def _in_parts(
    make: Make,
    x: Tensor,
    cotangent: Tensor | None,
    seeds: int | Sequence[int] | None,
    products: bool,
    progress: Callable[[int, int], None] | None,
) -> History:
    """Measure the networks that a function makes, the first alone to see how many fit into memory."""
    if seeds is None:
        raise ValueError("seeds must say how many networks the function is to make")
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    if not len(seeds):
        raise ValueError("seeds must name at least one network")
    histories: list[History] = []
    at_once = 1
    while (done := sum(len(history.seeds) for history in histories)) < len(seeds):
        part = seeds[done : done + at_once]
        stack = make(part)
        if not isinstance(stack, MLP) or stack.networks != len(part):
            found = f"{stack.networks} networks" if isinstance(stack, MLP) else f"a {type(stack).__name__}"
            raise ValueError(
                f"the function must return an MLP of {len(part)} networks for as many seeds, got {found}"
            )
        own = cotangent[done : done + len(part)] if cotangent is not None and cotangent.dim() == 3 else cotangent
        histories.append(exact_profile(stack, x, own, seeds=list(part), products=products))
        size = sum(parameter.nbytes for parameter in stack.parameters())
        at_once = max(1, _DRAWN * len(part) // size)
        del stack  # before the next one is made
        if progress is not None:
            progress(done + len(part), len(seeds))
    return History.join(histories)


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


def _log10_sizes(
    mlp: MLP, networks: slice, x: Tensor, cotangent: Tensor, products: bool, advance: Callable[[], None]
) -> dict[str, Tensor]:
    """Return log10 sizes of every sample of some networks, each of shape ``(layer, network, sample)``.

    Cosines have shape ``(layer, network)``.
    """
    layers = cast("list[StackedLinear]", list(mlp.layers))
    outputs: list[tuple[Tensor, Tensor]] = []
    inputs, slopes, cosines = [], [], []
    weighted: list[Scaled] = []  # what each layer's weights add to its output
    normals: list[Normalised] = []
    z = a = scaled(x.expand(cotangent.shape[0], *x.shape))
    for index, layer in enumerate(layers):
        if index:
            a = z
            if mlp.normalization != "none":
                a, normal = normalise(z, mlp.normalization)
                normals.append(normal)
            a, scale = (a, None) if mlp.norms is None else scale_and_shift(mlp.norms[index - 1], networks, a)
            a, slope = activate(mlp.activation, a)
            slope = slope if scale is None else slope * scale
            lost = ~(outputs[-1][0] < torch.inf)
            if lost.any():  # relu's slope at nan is 0, and that of tanh at inf: no gradient that is exactly 0
                slope = slope.where(~lost.unsqueeze(2), torch.nan)
            if mlp.normalization in ("layer", "rms") and index + 1 < mlp.depth and not mlp.has_skip(index):
                slope = slope.where(~units_without_a_say(layer, networks, a), 0)
            slopes.append(slope)
        norm, _ = a.log10_sizes()
        branch = linear(layer, networks, a)
        if products:
            weighted.append(linear(layer, networks, a, with_bias=False))
        if mlp.has_skip(index):
            share = branch_factor(layer, networks, x)
            weighted[-1:] = [one.times(share) for one in weighted[-1:]]
            norm = norm + share.abs().log10().squeeze(2)
            z = z.plus(branch.times(share))
        else:
            z = branch
        inputs.append(norm)
        outputs.append(z.log10_sizes())
        cosines.append(mean_cosine(z.value))
        advance()

    gradients = []
    inner: list[Tensor] = []
    delta = scaled(cotangent)
    for index in reversed(range(mlp.depth)):
        gradients.append(delta.log10_sizes())
        if products:
            inner.append(delta.log10_product(weighted.pop()))
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
        for kind, pairs in (("output", outputs), ("output_grad", gradients))
        for place, size in enumerate(("norm", "largest"))
    }
    sizes["weight_grad_norm"] = sizes["output_grad_norm"] + torch.stack(inputs)
    sizes["cosine"] = torch.stack(cosines)
    if products:
        sizes["product"] = torch.stack(inner[::-1])
    return sizes
