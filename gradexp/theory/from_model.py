"""Widths, activation and variances of an existing model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from gradexp.networks.activations import Activation
from gradexp.networks.mlp import MLP, StackedLinear
from gradexp.networks.normalization import StackedNorm
from gradexp.theory.mean_field import usable_activation
from gradexp.theory.prediction import Prediction, predict_layers
from gradexp.theory.weight_laws import WeightLaw


def from_model(model: nn.Module, x: Tensor | None = None, *, kinks: Sequence[float] = ()) -> Prediction:
    """Predict the profile of a chain of linear layers from the variances of its actual weights.

    Args:
        model: ``nn.Sequential`` of ``nn.Linear`` with one elementwise activation between them, or an ``MLP``.
        x: Inputs, shape ``(sample, n_0)``; None: one of mean square 1.
        kinks: Every z at which an activation that is not built in, or a derivative of it, jumps.

    Raises:
        ValueError: If the model is no such chain, or x does not fit.

    Examples:
        >>> layers = [layer for _ in range(50) for layer in (nn.Linear(100, 100), nn.Tanh())]
        >>> prediction = from_model(nn.Sequential(*layers))
        >>> round(prediction.sigma_w2, 1), prediction.log_chi < -1  # torch's default: 1/3, gradients vanish
        (0.3, True)
    """
    laws, widths, function = read_weights(model)
    if not isinstance(function, Activation):
        function = usable_activation("linear" if function is None else function, 0.01, kinks)
    x = torch.ones(1, widths[0], dtype=torch.float64) if x is None else torch.as_tensor(x)
    if x.dim() != 2 or x.shape[1] != widths[0] or not len(x):
        raise ValueError(f"x must have shape (sample, {widths[0]}), got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise ValueError("x must be finite, got inf or nan in it")
    return predict_layers(
        function,
        laws,
        widths,
        x.detach().double().cpu(),
        normalization=getattr(model, "normalization", "none"),
        residual=getattr(model, "residual", "none"),
    )


def read_weights(model: nn.Module) -> tuple[list[WeightLaw], list[int], Activation | nn.Module | None]:
    """Read widths, activation and the variances of the actual weights from a chain of linear layers.

    Variances are mean squares over a layer's entries, so that a finite layer has a sampling error of about
    √(2 / entries). A square weight whose Wᵀ W is a multiple of the identity counts as orthogonal, or as a scaled
    identity.

    Args:
        model: ``nn.Sequential`` (also nested) of ``nn.Linear`` with one elementwise activation between them, or a
            ``gradexp.MLP`` that is one network. ``Flatten``, ``Identity`` and an activation after the last layer
            are passed over.

    Returns:
        Laws, n_0 to n_L, and the activation (None if there is but one layer).

    Raises:
        ValueError: If the model is no such chain; the text names the module that breaks it.
    """
    if isinstance(model, MLP):
        if model.networks != 1:
            raise ValueError(f"give one network of the stack, mlp.network(index), got a stack of {model.networks}")
        if model.norms is not None and not all(map(_is_at_start, model.norms)):
            raise ValueError("theory is of normalisers whose scale is 1 and whose shift is 0, as they start")
        stack = cast("list[StackedLinear]", list(model.layers))
        pairs = [(layer.weight[0], None if layer.bias is None else layer.bias[0]) for layer in stack]
        return *_read(pairs), model.activation
    pairs = []
    activations: list[nn.Module | None] = []
    for name, module in _leaves(model):
        if isinstance(module, nn.Linear):
            pairs.append((module.weight, module.bias))
            activations.append(None)
        elif isinstance(module, nn.Flatten | nn.Identity):
            continue
        elif any(True for _ in module.parameters()) or not pairs or activations[-1] is not None:
            raise ValueError(
                "theory reads chains of nn.Linear with one activation between two of them; "
                f"'{name}' ({type(module).__name__}) does not fit"
            )
        else:
            activations[-1] = module
    if not pairs:
        raise ValueError(f"{type(model).__name__} has no nn.Linear")
    between = activations[:-1]
    if any(repr(module) != repr(between[0]) for module in between):
        raise ValueError(f"all activations must be alike, got {', '.join(dict.fromkeys(map(repr, between)))}")
    return *_read(pairs), (between[0] or torch.nn.Identity()) if between else None


def _is_at_start(norm: nn.Module) -> bool:
    """Return whether a normaliser's scale is 1 and its shift 0."""
    assert isinstance(norm, StackedNorm)
    return bool((norm.scale == 1).all()) and (norm.shift is None or not bool(norm.shift.any()))


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if isinstance(model, nn.Linear):
        return [("", model)]
    if not isinstance(model, nn.Sequential):
        raise ValueError(f"theory reads nn.Sequential chains and gradexp.MLP, got {type(model).__name__}")
    leaves = []
    for name, module in model.named_children():
        inner = _leaves(module) if isinstance(module, nn.Sequential) else [("", module)]
        leaves += [(f"{name}.{below}".rstrip("."), leaf) for below, leaf in inner]
    return leaves


def _read(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[list[WeightLaw], list[int]]:
    for (below, _), (above, _) in pairwise(pairs):
        if above.shape[1] != below.shape[0]:
            raise ValueError(f"a layer with {below.shape[0]} outputs is followed by one with {above.shape[1]} inputs")
    laws = []
    for weight, bias in pairs:
        w = weight.detach().double().cpu()
        fan_out, fan_in = w.shape
        square = w.square().mean().item()
        b2 = 0.0 if bias is None else bias.detach().double().square().mean().item()
        larger = max(fan_in, fan_out)
        gain2 = square * larger
        gram = w @ w.T if fan_out <= fan_in else w.T @ w
        rounding = max(1e-4, 4 * torch.finfo(weight.dtype).eps)
        orthogonal = (
            square > 0
            and min(fan_in, fan_out) > 1
            and torch.allclose(gram, gain2 * torch.eye(len(gram), dtype=w.dtype), rtol=0, atol=rounding * gain2)
        )
        diagonal = w.diagonal()
        is_identity = orthogonal and int(w.count_nonzero()) == len(diagonal) and bool(diagonal[0])
        is_identity = is_identity and torch.allclose(diagonal, diagonal[0].expand_as(diagonal), rtol=1e-5, atol=0)
        fourth = (w.square().square().mean() / square**2).item() - 3 if square else 0.0
        laws.append(
            WeightLaw(
                fan_in * square,
                b2,
                kurtosis=0.0 if orthogonal else fourth,
                orthogonal=orthogonal and not is_identity,
                diagonal=diagonal[0].item() if is_identity else None,
            )
        )
    widths = [pairs[0][0].shape[1], *(weight.shape[0] for weight, _ in pairs)]
    return laws, widths
