"""The profile at initialisation of a chain of steps: a CNN, a ResNet, a transformer, a recurrent network.

Float64 on the network's own weights, like that of the MLP, step by step, with an exponent carried for each sample.
On the way back any gradient may be multiplied by a power of two, since it is linear in the one before; on the way
there the states of some networks may (``Chain.scaling``), and those of others must stay within float64.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradexp.exact.samples import averaged, cosine_of, directions, unit_cotangents
from gradexp.history.history import History
from gradexp.networks.chain import Chain, Step
from gradexp.networks.mlp import evaluating
from gradexp.numerics.norms import LOG10_2, joint_log10_norm, times_power_of_two

# Bytes of states that are kept at most for the way back.
_MEMORY = 1 << 28
# Powers of two within which squares fit into float64, and below which an activation is two straight lines.
_ORDINARY, _SMALL, _TINY = 500, -500, -900

_State = tuple[Tensor, Tensor]  # values and the exponent of each sample


def chain_profile(
    chain: Chain,
    x: Tensor,
    cotangent: Tensor | None = None,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> History:
    """Measure states, their gradients and weight gradients of every step of a chain.

    Each sample b gets a cotangent c at y = h_L, and l_b = c · y is differentiated (where samples mix, Σ l_b):

        δ_L = c,   δ_(l-1) = (∂h_l / ∂h_(l-1))ᵀ δ_l

    Recorded are log10 of rms(h_l), ‖δ_l‖, and the L2 norm of dl_b/dW over all weight matrices W of the step, as
    ``exact_profile`` does for the MLP: logs are averaged over samples, and a sample that is exactly 0 in some row is
    left out and counted in ``dead_fraction``.

    Args:
        chain: The network; not changed.
        x: Inputs, shape ``(batch, features)``.
        cotangent: Vectors c, shape ``(batch, outputs)``; None: of length 1, in directions drawn by ``seed``.
        seed: The seed of the network.
        progress: A function of (steps done, steps in all).

    Returns:
        A History with the single step 0.

    Raises:
        ValueError: If a shape does not fit the network.
    """
    chain = copy.deepcopy(chain).double()
    device = next(chain.parameters()).device
    x = x.to(device, torch.float64)
    scaling = chain.scaling if _has_no_biases(chain) else "none"
    with evaluating(chain), torch.no_grad():
        state, steps = chain.unrolled(x[:2])
        numbers = state.numel()
        for step in steps:
            state = step.run(state)
            numbers += state.numel()
        outputs = state.shape[-1]
        if cotangent is None:
            cotangent = unit_cotangents(seed, len(x), outputs)
        if cotangent.shape != (len(x), outputs):
            raise ValueError(f"cotangent must have shape {(len(x), outputs)}, got {tuple(cotangent.shape)}")
        cotangent = cotangent.to(device, torch.float64)
        at_once = len(x) if chain.mixes_samples else max(1, _MEMORY * len(x[:2]) // (8 * numbers))
        starts = range(0, len(x), at_once)
        parts = []
        for index, start in enumerate(starts):
            chosen = slice(start, start + at_once)

            def report(done: int, total: int, before: int = index) -> None:
                if progress is not None:
                    progress(before * total + done, len(starts) * total)

            parts.append(_sizes(chain, x[chosen], cotangent[chosen], scaling, report))
    sizes = {key: torch.cat([part[key] for part, _ in parts], dim=1).unsqueeze(1).cpu() for key in parts[0][0]}
    # Samples of all parts together have the sum of the parts' directions.
    rows = [
        [torch.stack(both).sum(0) for both in zip(*row, strict=True)]
        for row in zip(*(pointing for _, pointing in parts), strict=True)
    ]
    sizes["cosine"] = torch.stack([cosine_of(total, samples) for total, samples in rows]).cpu()
    elements = [int(count) for count in sizes.pop("elements")[:, 0, 0]]
    return averaged([step.name for step in steps], elements, [seed], sizes)


def _has_no_biases(chain: Chain) -> bool:
    return not any(bool(value.any()) for name, value in chain.named_parameters() if name.endswith("bias"))


def _sizes(
    chain: Chain, x: Tensor, cotangent: Tensor, scaling: str, report: Callable[[int, int], None]
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Return log10 sizes of some samples, each of shape ``(step, sample)``, and their ``directions`` in each row."""
    start, steps = chain.unrolled(x)
    total = 2 * len(steps)
    last_fixed = max((index for index, step in enumerate(steps) if not step.scales), default=0)
    before, outputs, pointing = [], [], []
    state: _State = start, torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for index, step in enumerate(steps):
        before.append(state)
        free = scaling if index >= last_fixed else "none"
        state = _brought_back(step.run(state[0]), state[1], free, chain.mixes_samples)
        pointing.append(directions(_of_ordinary_size(state[0])[0].flatten(1).unsqueeze(0)))
        outputs.append((*_log10_sizes(state), torch.full_like(state[1], state[0][0].numel())))
        report(index + 1, total)

    gradients, weights = [], []
    delta: _State = cotangent, torch.zeros_like(state[1])
    with _calls(chain) as calls:
        for index in reversed(range(len(steps))):
            values, exponent = before[index]
            gradients.append(_log10_sizes(delta))
            below, of_weights = _pulled_back(steps[index], values, delta[0], calls)
            weights.append(of_weights + (exponent + delta[1]) * LOG10_2)
            is_lost = ~values.flatten(1).isfinite().all(1)  # relu's slope at nan is 0: no gradient that is exactly 0
            below[is_lost] = torch.nan
            delta = _brought_back(below, delta[1], "all", chain.mixes_samples)
            report(total - index, total)
    sizes = {
        "output_norm": torch.stack([norm for norm, _, _ in outputs]),
        "output_largest": torch.stack([largest for _, largest, _ in outputs]),
        "elements": torch.stack([count for _, _, count in outputs]),
        "output_grad_norm": torch.stack([norm for norm, _ in reversed(gradients)]),
        "output_grad_largest": torch.stack([largest for _, largest in reversed(gradients)]),
        "weight_grad_norm": torch.stack(weights[::-1]),
    }
    return sizes, pointing


def _pulled_back(step: Step, values: Tensor, delta: Tensor, calls: "list[_Call]") -> tuple[Tensor, Tensor]:
    """Return the gradient below a step, and log10 of the norm of each sample's gradient of the step's weights."""
    calls.clear()
    with torch.enable_grad():
        h = values.detach().requires_grad_()
        reached = step.run(h)
        seen = [call for call in calls if call.output.requires_grad]
        below, *of_outputs = torch.autograd.grad(
            reached, [h, *(call.output for call in seen)], delta, allow_unused=True
        )
    norms = [
        _weight_grad_norms(call, gradient)
        for call, gradient in zip(seen, of_outputs, strict=True)
        if gradient is not None
    ]
    total = joint_log10_norm(torch.stack(norms)) if norms else torch.full_like(delta.flatten(1)[:, 0], -torch.inf)
    return torch.zeros_like(values) if below is None else below, total


def _weight_grad_norms(call: "_Call", of_output: Tensor) -> Tensor:
    """Return log10 of the norm of each sample's gradient of a module's weight, shape ``(sample,)``."""

    def of_sample(inputs: Tensor, gradient: Tensor) -> Tensor:
        def output(weight: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(call.module, {"weight": weight}, (inputs.unsqueeze(0),))
            return result

        pull: Callable[[Tensor], tuple[Tensor]] = torch.func.vjp(output, weight)[1]
        norm: Tensor = torch.linalg.vector_norm(pull(gradient.unsqueeze(0))[0])
        return norm

    weight = call.module.get_parameter("weight").detach()
    # It is linear in the input and in the gradient of the output; of ordinary size their product stays within range.
    (inputs, size), (gradient, other) = _of_ordinary_size(call.inputs.detach()), _of_ordinary_size(of_output)
    norms: Tensor = torch.func.vmap(of_sample)(inputs, gradient)
    return norms.log10() + (size + other) * LOG10_2


class _Call(NamedTuple):
    module: nn.Module
    inputs: Tensor
    output: Tensor


@contextmanager
def _calls(chain: Chain) -> Iterator[list[_Call]]:
    """Collect the calls of modules with a weight matrix."""
    calls: list[_Call] = []

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append(_Call(module, inputs[0], output))

    modules = [module for module in chain.modules() if getattr(getattr(module, "weight", None), "ndim", 0) > 1]
    hooks = [module.register_forward_hook(see) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _size(values: Tensor) -> Tensor:
    """Return the power of two of the largest magnitude of each sample, 0 where that is 0 or not finite."""
    largest = values.abs().flatten(1).amax(1)
    counts = (largest > 0) & (largest < torch.inf)
    return torch.frexp(largest.where(counts, 0.5)).exponent.double()


def _of_ordinary_size(values: Tensor) -> _State:
    """Return values whose largest magnitude is in [0.5, 1) in each sample, and the exponents that are left."""
    size = _size(values)
    return times_power_of_two(values, -size.view(-1, *[1] * (values.dim() - 1))), size


def _brought_back(values: Tensor, exponent: Tensor, scaling: str, together: bool) -> _State:
    """Return values · 2**exponent with the values of samples that have drifted away at ordinary size.

    Args:
        values: Shape ``(sample, ...)``.
        exponent: Shape ``(sample,)``.
        scaling: The ``scaling`` of the chain.
        together: Whether all samples must have the same exponent.
    """
    if scaling == "none":
        return values, exponent
    size = _size(values)
    if together:
        size = size.amax(0, keepdim=True).expand_as(size)
    if scaling == "all":
        shift = torch.where(size.abs() > _ORDINARY, -size, 0)
    else:  # true values, or values that are small
        grown = (exponent < 0) & (size > _SMALL)
        shift = torch.where(size < _TINY, _SMALL - size, torch.where(grown, exponent, 0))
    if not shift.any():
        return values, exponent
    return times_power_of_two(values, shift.view(-1, *[1] * (values.dim() - 1))), exponent - shift


def _log10_sizes(state: _State) -> tuple[Tensor, Tensor]:
    """Return log10 of the L2 norm and of the largest magnitude of each sample."""
    values, size = _of_ordinary_size(state[0])
    flat, offset = values.flatten(1), (size + state[1]) * LOG10_2
    return torch.linalg.vector_norm(flat, dim=1).log10() + offset, flat.abs().amax(1).log10() + offset
