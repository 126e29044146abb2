"""An ordinary model that is a chain of linear layers: read as one, and made the MLP that it is."""

import functools
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gradexp.networks.activations import ACTIVATIONS, Activation, activation, as_activation
from gradexp.networks.mlp import MLP, StackedLinear

# What does nothing in evaluation.
_PASSED = (nn.Flatten, nn.Identity, nn.Dropout)


class LinearLayers(NamedTuple):
    """Linear layers with one activation between every two of them.

    Args:
        layers: Module name -> layer.
        activation: The module between two of them; None if there is one layer only.
    """

    layers: dict[str, nn.Linear]
    activation: nn.Module | None


def read_sequential(model: nn.Module, reader: str) -> LinearLayers:
    """Read an ``nn.Sequential`` (also nested) of ``nn.Linear`` with one elementwise activation between them.

    ``Flatten``, ``Identity``, ``Dropout`` and an activation after the last layer are passed over.

    Args:
        model: The model.
        reader: Who reads, for error messages.

    Raises:
        ValueError: If the model is no such chain; the text names the module that breaks it.
    """
    layers: dict[str, nn.Linear] = {}
    activations: list[nn.Module | None] = []
    for name, module in _leaves(model, reader):
        if isinstance(module, nn.Linear):
            layers[name] = module
            activations.append(None)
        elif isinstance(module, _PASSED):
            continue
        elif any(True for _ in module.parameters()) or not layers or activations[-1] is not None:
            raise ValueError(
                f"{reader} reads chains of nn.Linear with one activation between two of them; "
                f"'{name}' ({type(module).__name__}) does not fit"
            )
        else:
            activations[-1] = module
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear")
    for below, above in pairwise(layers.values()):
        if above.in_features != below.out_features:
            outputs, inputs = below.out_features, above.in_features
            raise ValueError(f"a layer with {outputs} outputs is followed by one with {inputs} inputs")
    between = activations[:-1]
    if any(repr(module) != repr(between[0]) for module in between):
        raise ValueError(f"all activations must be alike, got {', '.join(dict.fromkeys(map(repr, between)))}")
    return LinearLayers(layers, (between[0] or nn.Identity()) if between else None)


def as_mlp(model: nn.Module, reader: str) -> tuple[MLP, list[str]]:
    """Return an MLP with the weights of a chain, and the names of its layers; an MLP as it is.

    Args:
        model: An ``MLP``, or a chain as ``read_sequential`` reads it.
        reader: Who reads, for error messages.

    Raises:
        ValueError: If the model is neither.
    """
    if isinstance(model, MLP):
        return model, [f"layers.{index}" for index in range(model.depth)]
    layers, phi = read_sequential(model, reader)
    linears = list(layers.values())
    weights = [layer.weight for layer in linears]
    mlp = MLP(
        [linears[0].in_features, *(layer.out_features for layer in linears)],
        "linear" if phi is None else named_activation(phi),
        any(layer.bias is not None for layer in linears),
        device=weights[0].device,
        dtype=functools.reduce(torch.promote_types, (weight.dtype for weight in weights)),
        draw=False,
    )
    with torch.no_grad():
        for own, layer in zip(cast("list[StackedLinear]", list(mlp.layers)), linears, strict=True):
            own.weight.copy_(layer.weight.unsqueeze(0))
            if own.bias is not None:
                own.bias.copy_(torch.zeros_like(own.bias) if layer.bias is None else layer.bias.unsqueeze(0))
    return mlp, list(layers)


def named_activation(module: nn.Module) -> Activation:
    """Return the built-in activation that a module computes, which is exact far out and knows its kinks; else itself.

    Raises:
        ValueError: If the module is not elementwise.
    """
    z = torch.linspace(-9, 9, 37, dtype=torch.float64)
    phi = as_activation(module)
    slope = getattr(module, "negative_slope", None)
    known = [*ACTIVATIONS.values(), *([] if slope is None else [activation("leaky_relu", slope)])]
    same = [one for one in known if torch.allclose(one(z), _value(phi, z), rtol=1e-12, atol=1e-300)]
    return same[0] if same else phi


@torch.no_grad()
def _value(phi: Activation, z: Tensor) -> Tensor:
    return phi(z)


def _leaves(model: nn.Module, reader: str) -> list[tuple[str, nn.Module]]:
    if isinstance(model, nn.Linear):
        return [("", model)]
    if not isinstance(model, nn.Sequential):
        raise ValueError(f"{reader} reads nn.Sequential chains and gradexp.MLP, got {type(model).__name__}")
    leaves = []
    for name, module in model.named_children():
        inner = _leaves(module, reader) if isinstance(module, nn.Sequential) else [("", module)]
        leaves += [(f"{name}.{below}".rstrip("."), leaf) for below, leaf in inner]
    return leaves
