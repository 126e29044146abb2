"""Widths, activation and variances of an existing model."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gradexp.networks.activations import Activation
from gradexp.networks.mlp import MLP, StackedLinear
from gradexp.networks.normalization import StackedNorm
from gradexp.networks.sequential import named_activation, read_sequential
from gradexp.theory.mean_field import usable_activation
from gradexp.theory.prediction import Prediction, predict_layers
from gradexp.theory.weight_laws import WeightLaw


def from_model(model: nn.Module, x: Tensor | float | None = None, *, kinks: Sequence[float] = ()) -> Prediction:
    """Predict the profile of a chain of linear layers from the variances of its actual weights.

    Args:
        model: ``nn.Sequential`` of ``nn.Linear`` with one elementwise activation between them, or an ``MLP``.
        x: Inputs, shape ``(sample, n_0)``, or the mean square ‖x‖² / n_0 of one input; None: 1.
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
        known = function if function is None or kinks else named_activation(function)
        function = usable_activation("linear" if known is None else known, 0.01, kinks)
    if x is not None and not bool(torch.as_tensor(x).isfinite().all()):
        raise ValueError("x must be finite, got inf or nan in it")
    return predict_layers(
        function,
        laws,
        widths,
        1.0 if x is None else x,
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
            ``gradexp.MLP`` that is one network. ``Flatten``, ``Identity``, ``Dropout`` and an activation after the
            last layer are passed over.

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
    layers, function = read_sequential(model, "theory")
    return *_read([(layer.weight, layer.bias) for layer in layers.values()]), function


def _is_at_start(norm: nn.Module) -> bool:
    """Return whether a normaliser's scale is 1 and its shift 0."""
    assert isinstance(norm, StackedNorm)
    return bool((norm.scale == 1).all()) and (norm.shift is None or not bool(norm.shift.any()))


def _read(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[list[WeightLaw], list[int]]:
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
