"""Layers that compute their weight from other tensors: parametrizations, weight and spectral norm, pruning."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradexp.numerics.torch_internals import is_parametrized, parameters_by_name

Computing = parametrize.ParametrizationList
"""What computes a weight each time it is used."""

# What torch's older functions, which work by a hook before the forward pass, call the tensors that are trained.
_SUFFIXES = ("_orig", "_g", "_v")


def computed_weights(module: nn.Module) -> dict[str, Computing]:
    """Return what computes a layer's weights of two or more dimensions, by the name of the weight."""
    return {
        name: computing
        for name, computing in _parametrizations(module)
        if any(parameter.dim() > 1 for parameter in computing.parameters()) or name.startswith("weight")
    }


def computes_weights(module: nn.Module) -> bool:
    """Return whether a layer may compute a weight, by a parametrization or by a hook before its forward pass."""
    return is_parametrized(module) or any(name.endswith(_SUFFIXES) for name in parameters_by_name(module))


def trained_tensors(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters from which a layer's weights are computed."""
    return [parameter for computing in computed_weights(module).values() for parameter in computing.parameters()]


def parts_of_layers(model: nn.Module) -> set[int]:
    """Return the ids of the modules that only compute a weight for the layer which they belong to."""
    return {
        id(part)
        for module in model.modules()
        for _, computing in _parametrizations(module)
        for part in computing.modules()
    }


def kept_weight(module: nn.Module, name: str) -> Tensor | None:
    """Return the weight that a hook has computed from a parameter of a name, as weight and spectral norm once did."""
    for suffix in _SUFFIXES:
        weight = module.__dict__.get(name.removesuffix(suffix)) if name.endswith(suffix) else None
        if isinstance(weight, Tensor):
            return weight
    return None


def _parametrizations(module: nn.Module) -> Iterator[tuple[str, Computing]]:
    # A module of this name need not be torch's.
    held = module.parametrizations if is_parametrized(module) else None
    if isinstance(held, nn.ModuleDict):
        for name, computing in held.items():
            if isinstance(computing, Computing):
                yield name, computing
