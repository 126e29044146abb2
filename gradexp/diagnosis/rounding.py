"""Gradients that are nothing but rounding noise: the terms of the sum that they come from cancel.

The same pass in another number format tells: a gradient has the same size in both, and noise the size of the format's
rounding error. In float32 it is compared with float64, which has 2^-29 times the error, in float64 with float32.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.diagnosis.examination import Examination, Observer
from gradexp.diagnosis.graph import leaves, node_of, nodes_below
from gradexp.diagnosis.repetition import Repetition
from gradexp.diagnosis.symmetry import REMEDY, has_equal_units
from gradexp.diagnosis.wording import owners, parameter_names, verb
from gradexp.history.finding import Finding
from gradexp.history.sentences import listed
from gradexp.numerics.norms import has_values, log10_norm
from gradexp.probe.names import named_modules

# Sums of many terms have more than one rounding error: this many powers of ten more at most.
_SUMS = 3.0
# A gradient in a narrow format is noise if this share of it, at least, is gone in float64.
_NOISE = 0.9
# Rounding errors in float32 are 2^29 times those in float64; noise may miss that by this many powers of ten.
_SLACK = 2.0
# A second model of more parameters might not fit into memory, or is not worth its time for harmless vectors alone.
_MOST, _MOST_FOR_VECTORS = 100_000_000, 5_000_000
# The loss is the same in both formats, if nothing is drawn at random and nothing is chaotic.
_SAME_LOSS = 0.1


class RoundingNoise(Observer):
    """Parameters whose gradient is below the rounding error of the sums that it comes from."""

    def begin(self, examination: Examination) -> None:
        """Note where the random number generators stand, for another pass."""
        self._repetition = Repetition()

    def findings(self, examination: Examination) -> Iterator[Finding]:
        """Return one finding for weights, and one for vectors whose gradient is 0 by design."""
        model = examination.model
        sizes = {
            name: float(log10_norm(p.grad))
            for name, p in model.named_parameters()
            if p.grad is not None and has_values(p.grad) and p.grad.numel()
        }
        sizes = {name: size for name, size in sizes.items() if math.isfinite(size)}
        dtype = _narrowest(model)
        if not sizes or dtype is None or examination.inputs is None:
            return
        smallest = max(sizes.values()) + math.log10(torch.finfo(dtype).eps) + _SUMS
        small = [p for name, p in model.named_parameters() if sizes.get(name, math.inf) <= smallest]
        most = _MOST if any(p.dim() > 1 for p in small) else _MOST_FOR_VECTORS
        if not small or sum(p.numel() for p in model.parameters()) > most:
            return
        other = torch.float32 if dtype == torch.float64 else torch.float64
        others = self._sizes_in(other, examination)
        noise = {
            name: (size, others[name])
            for name, size in sizes.items()
            if name in others and size < smallest and _is_noise(size, others[name], dtype)
        }
        if noise:
            yield from _findings(model, sizes, noise, (dtype, other))

    def _sizes_in(self, dtype: torch.dtype, examination: Examination) -> dict[str, float]:
        """Return log10 of the norm of each parameter's gradient in another number format; empty if it fails."""
        loss_fn = examination.loss_fn
        try:
            model = copy.deepcopy(examination.model).to(dtype)
            if isinstance(loss_fn, nn.Module):
                loss_fn = copy.deepcopy(loss_fn).to(dtype)
            batch = _cast((examination.inputs, examination.targets), dtype)
            loss = self._repetition.run(examination, model, loss_fn, batch)
            own = {id(parameter) for parameter in examination.model.parameters()}
            if any(id(leaf) in own for leaf in leaves(nodes_below([node_of(loss)]))):
                return {}  # such as a penalty that is written with the model itself
            assert examination.loss is not None
            expected = examination.loss.item()
            if not abs(loss.item() - expected) <= _SAME_LOSS * abs(expected):
                return {}
            parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        except Exception:  # a model that cannot be copied, or that knows one format only
            return {}
        return {
            name: float(log10_norm(gradient))
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }


def _is_noise(size: float, other: float, dtype: torch.dtype) -> bool:
    if dtype == torch.float64:
        return math.isfinite(other) and other - size > 29 * math.log10(2) - _SLACK
    return other < size + math.log10(1 - _NOISE)


def _findings(
    model: nn.Module,
    sizes: Mapping[str, float],
    noise: Mapping[str, tuple[float, float]],
    dtypes: tuple[torch.dtype, torch.dtype],
) -> Iterator[Finding]:
    parameters = dict(model.named_parameters())
    owner = owners(model)
    weights = [name for name in noise if parameters[name].dim() > 1]
    vectors = [name for name in noise if parameters[name].dim() < 2]
    if weights:
        names = list(dict.fromkeys(owner[id(parameters[name])] for name in weights))
        largest = [max(noise[name][column] for name in weights) for column in range(2)]
        evidence = " and ".join(_size_in(size, dtype) for size, dtype in zip(largest, dtypes, strict=True))
        most = "at most " if len(weights) > 1 else ""
        text = (
            f"in {listed(names)} the gradient is below the rounding error of the sum it comes from ({most}{evidence})"
        )
        text += ", so that it is likely to be exactly 0"
        alike = [name for name, module in named_modules(model).items() if has_equal_units(module)]
        if alike:
            text += f"; all units of {listed(alike)} are equal, and so cancel"
        trained = [name for name in sizes if parameters[name].dim() > 1]
        cure = REMEDY if alike else "look for what cancels: what the loss does not depend on, as one key in attention"
        yield Finding("rounding noise", text, tuple(names), cure, 3 if 2 * len(weights) >= len(trained) else 1)
    elif vectors:
        known = parameter_names(model)
        vectors = [known[id(parameters[name])] for name in vectors]
        text = f"the gradient of {listed(vectors)} is 0 up to rounding: the loss does not depend on "
        text += f"{verb(vectors, 'it', 'them')}, as for a bias before a norm"
        modules = tuple(dict.fromkeys(vector.rpartition(".")[0] for vector in vectors))
        yield Finding("rounding noise", text, modules, severity=0)


def _size_in(log10: float, dtype: torch.dtype) -> str:
    size = f"10^{log10:.1f}" if math.isfinite(log10) else "exactly 0"
    return f"{size} in {str(dtype).removeprefix('torch.')}"


def _narrowest(model: nn.Module) -> torch.dtype | None:
    """Return the parameters' number format with the fewest digits, None if there are others than real ones."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if (
        not dtypes
        or not all(dtype.is_floating_point for dtype in dtypes)
        or any(p.is_complex() for p in model.buffers())
    ):
        return None
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Return nested tensors in another number format."""
    if isinstance(value, Tensor):
        return value.detach().to(dtype).requires_grad_(value.requires_grad) if value.is_floating_point() else value
    if isinstance(value, tuple):
        items = [_cast(item, dtype) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_cast(item, dtype) for item in value]
    if isinstance(value, Mapping):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return value
