"""The networks that a run builds: the MLP, other families, and anybody's own.

A family is one function and one entry in ``MODELS`` at the foot of the file. Its parameters before the ``*`` are the
options ``model.NAME`` of the family. Those behind it, but for ``features``, ``outputs`` and ``networks``, are the
options of a run that it takes, such as ``depth``: a default there is the family's own.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradexp.choices import MODEL_TAKES, ConfigError
from gradexp.config import Config
from gradexp.networks.activations import activation
from gradexp.networks.chain import Chain
from gradexp.networks.cnn import CNN
from gradexp.networks.initialize import initialize
from gradexp.networks.mlp import MLP, evaluating
from gradexp.networks.normalization import is_lack_of_samples
from gradexp.networks.resnet import ResNet
from gradexp.networks.rnn import RNN
from gradexp.networks.transformer import Transformer
from gradexp.numerics.seeds import generator, steady
from gradexp.own_parts import OwnPart
from gradexp.runs.image_theory import predict_cnn, predict_resnet
from gradexp.runs.layer_law import layer_law
from gradexp.theory import Prediction
from gradexp.theory.rnn import predict_rnn
from gradexp.theory.transformer import predict_transformer

Predict = Callable[[Config, Tensor, int], Prediction]
"""Theory for a family: of the options, inputs ``(sample, features)`` in float64, and the number of outputs.

It raises ``UnknownLawError`` with the reason where there is no law.
"""


@dataclass(frozen=True)
class Family:
    """Networks of one kind.

    Args:
        build: A function that returns a network; see the top of the file for its parameters.
        predict: Theory for its profile at initialisation; None where none is known.
    """

    build: Callable[..., nn.Module]
    predict: Predict | None = None


def build(config: Config, x: Tensor, outputs: int, seed: int) -> nn.Module:
    """Return the network of a run that is no MLP, on the CPU in the run's number format, with its weights drawn.

    Args:
        config: The options of the run.
        x: Inputs of the profile, shape ``(batch, features)``, at which some schemes look.
        outputs: Number of outputs.
        seed: Seed of the weights.

    Raises:
        ConfigError: If an option cannot work, or an own part raises or returns no such network.
    """
    is_own = isinstance(config.model.name, OwnPart)
    with steady(generator(seed, "model")):  # for what a scheme does not fill
        model = _own(config, x, outputs) if is_own else _built_in(config, x.shape[1], outputs)
    if config.init.name != AS_BUILT:
        draw_weights(model, config, seed, x.to(next(model.parameters()).dtype))
    return model


def draw_weights(
    model: nn.Module, config: Config, seed: int, inputs: Tensor, progress: Callable[[int, int], None] | None = None
) -> None:
    """Fill the weights of a run's network by its scheme.

    Args:
        model: The network, or a stack of some with neighbouring seeds.
        config: The options of the run.
        seed: Seed of the (first) network.
        inputs: Inputs at which some schemes look, shape ``(batch, features)``.
        progress: A function of (layers done, layers in all).

    Raises:
        ConfigError: If the scheme cannot work with the network or the inputs.
    """
    rules: Mapping[str, Any] = model.rules if isinstance(model, Chain) else {}
    try:
        with evaluating(model):  # lsuv passes data through it
            initialize(
                model,
                config.init.name,
                seed=seed,
                sigma_b2=config.sigma_b2,
                activation=None if isinstance(config.model.name, OwnPart) else config.activation,
                negative_slope=config.negative_slope,
                inputs=inputs,
                progress=progress,
                **rules,
                **config.init.options,
            )
    except ValueError as error:
        raise ConfigError(str(error)) from error


AS_BUILT = "auto"
"""The init of an own model that keeps the weights it comes with."""


def _built_in(config: Config, features: int, outputs: int) -> nn.Module:
    name = config.model.name
    taken = {key: getattr(config, key) for key in MODEL_TAKES[name]}
    try:
        model = MODELS[name].build(**config.model.options, features=features, outputs=outputs, **taken)
    except ValueError as error:
        raise ConfigError(f"model '{name}': {error}") from error
    return model.to(getattr(torch, config.dtype))


def _own(config: Config, x: Tensor, outputs: int) -> nn.Module:
    """Return an own model after checking that it maps inputs to outputs."""
    part = config.model.name
    assert isinstance(part, OwnPart)
    with part.named():
        model = part.function(x.shape[1], outputs, **part.arguments(config.model))
    if not isinstance(model, nn.Module):
        raise part.mistake(f"returns {type(model).__name__}, not a torch.nn.Module")
    if next(model.parameters(), None) is None:
        raise part.mistake("returns a module without parameters")
    model = model.cpu().to(getattr(torch, config.dtype))
    with part.named(), evaluating(model):
        found = model(x[:2].to(next(model.parameters()).dtype))
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    wanted = len(x[:2]), outputs
    if shape != wanted:
        raise part.mistake(
            f"maps inputs of shape {tuple(x[:2].shape)} to {shape}, not to (samples, outputs) {wanted}"
        )
    if config.steps and config.batch_size == 1 and not _trains_on_one_sample(model, x):
        raise part.mistake("has batch norm, which cannot train on a single sample: batch_size must be at least 2")
    if not found.requires_grad:
        raise part.mistake("gives outputs through which no parameter can be trained: all are frozen, or detached")
    return model


def _trains_on_one_sample(model: nn.Module, x: Tensor) -> bool:
    try:
        copy.deepcopy(model).train()(x[:1].to(next(model.parameters()).dtype))
    except ValueError as error:
        return not is_lack_of_samples(error)
    return True


def _mlp(
    *,
    features: int,
    outputs: int,
    depth: int = 150,
    width: int = 128,
    widths: Sequence[int] | None = None,
    activation: str = "relu",
    negative_slope: float = 0.01,
    bias: bool = True,
    normalization: str = "none",
    residual: str = "none",
    dropout: float = 0.0,
    affine: bool = False,
    networks: int = 1,
    **memory: Any,
) -> MLP:
    hidden = [width] * (depth - 1) if widths is None else widths
    return MLP(
        [features, *hidden, outputs],
        activation,
        bias,
        networks,
        negative_slope,
        normalization=normalization,
        residual=residual,
        dropout=dropout,
        affine=affine,
        **memory,
    )


def _cnn(
    kernel: int = 3,
    padding: str = "circular",
    *,
    features: int,
    outputs: int,
    depth: int = 50,
    width: int = 16,
    activation: str = "relu",
    negative_slope: float = 0.01,
    bias: bool = True,
    normalization: str = "none",
) -> CNN:
    return CNN(features, outputs, depth, width, kernel, padding, activation, bias, negative_slope, normalization)


def _resnet(
    kernel: int = 3,
    padding: str = "circular",
    *,
    features: int,
    outputs: int,
    depth: int = 50,
    width: int = 16,
    activation: str = "relu",
    negative_slope: float = 0.01,
    bias: bool = True,
    normalization: str = "none",
    residual: str = "depth",
) -> ResNet:
    return ResNet(
        features, outputs, depth, width, kernel, padding, activation, bias, negative_slope, normalization, residual
    )


def _transformer(
    heads: int = 4,
    context: int = 8,
    norm: str = "pre",
    queries: str = "zero",
    depth_scaled: bool = False,
    *,
    features: int,
    outputs: int,
    depth: int = 12,
    width: int = 64,
    activation: str = "relu",
    negative_slope: float = 0.01,
    bias: bool = True,
) -> Transformer:
    return Transformer(
        features,
        outputs,
        depth,
        width,
        heads,
        context,
        norm,
        queries,
        depth_scaled,
        activation,
        bias,
        negative_slope,
    )


def _predict_transformer(config: Config, x: Tensor, outputs: int) -> Prediction:
    options = {key: value for key, value in config.model.options.items() if key != "heads"}
    phi, law = activation(config.activation, config.negative_slope), partial(layer_law, config)
    return predict_transformer(phi, law, x, outputs, depth=config.depth, width=config.width, **options)


def _rnn(
    cell: str = "rnn",
    context: int = 8,
    *,
    features: int,
    outputs: int,
    depth: int = 101,
    width: int = 128,
    activation: str = "tanh",
    negative_slope: float = 0.01,
    bias: bool = True,
) -> RNN:
    return RNN(features, outputs, depth, width, cell, context, activation, bias, negative_slope)


def _predict_rnn(config: Config, x: Tensor, outputs: int) -> Prediction:
    phi, law = activation(config.activation, config.negative_slope), layer_law(config, config.width, config.width)
    return predict_rnn(phi, law, x, outputs, depth=config.depth, width=config.width, **config.model.options)


# Options and defaults are read from here without importing the file: see gradexp/choices.py.
MODELS: dict[str, Family] = {
    "mlp": Family(_mlp),
    "cnn": Family(_cnn, predict_cnn),
    "resnet": Family(_resnet, predict_resnet),
    "transformer": Family(_transformer, _predict_transformer),
    "rnn": Family(_rnn, _predict_rnn),
}
