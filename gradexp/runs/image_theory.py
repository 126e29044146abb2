"""Theory for the convolutional networks of a run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from gradexp.architecture import blocks_of, image_shape
from gradexp.config import Config
from gradexp.networks.activations import activation
from gradexp.runs.layer_law import layer_law
from gradexp.theory.convolution import Convolution
from gradexp.theory.images import Row, predict_images
from gradexp.theory.prediction import Prediction
from gradexp.theory.weight_laws import UnknownLawError, WeightLaw


def predict_cnn(config: Config, x: Tensor, outputs: int) -> Prediction:
    """Return theory's prediction for a plain convolutional network."""
    if config.depth < 2:
        raise UnknownLawError("one layer has no slope")
    rows = [Row([_convolution(config, x, config.width)])] * (config.depth - 2)
    return _predicted(config, x, outputs, rows)


def predict_resnet(config: Config, x: Tensor, outputs: int) -> Prediction:
    """Return theory's prediction for a residual convolutional network."""
    blocks = blocks_of(config.depth)
    factors = {"none": None, "plain": 1.0, "depth": 1 / max(blocks, 1), "zero": 0.0, "fixup": 1.0}
    first = last = _convolution(config, x, config.width)
    if config.residual == "fixup" and blocks:  # single numbers that start at 0 are its biases
        scaled = replace(first.law, sigma_w2=first.law.sigma_w2 / blocks, sigma_b2=0.0)
        first, last = replace(first, law=scaled), replace(last, law=WeightLaw(0.0))
    return _predicted(config, x, outputs, [Row([first, last], factors[config.residual])] * blocks)


def _predicted(config: Config, x: Tensor, outputs: int, rows: list[Row]) -> Prediction:
    channels, side = image_shape(x.shape[1])
    stem = _convolution(config, x, channels)
    readout = layer_law(config, config.width * side**2, outputs)
    phi = activation(config.activation, config.negative_slope)
    return predict_images(phi, x, stem, rows, readout, outputs, config.normalization)


def _convolution(config: Config, x: Tensor, channels: int) -> Convolution:
    """Return a convolution of images with these channels into as many as the network is wide."""
    options: Mapping[str, Any] = config.model.options
    kernel, side = options["kernel"], image_shape(x.shape[1])[1]
    # Orthogonal matrices are of the flattened kernel, which is seen from each position of the output alone.
    is_orthogonal = config.init.name == "orthogonal"
    law = layer_law(config, channels * kernel**2, config.width * (1 if is_orthogonal else kernel**2))
    is_delta = config.init.name == "delta_orthogonal" or (is_orthogonal and kernel == 1)
    return Convolution(law, config.width, side, kernel, options["padding"] == "circular", is_delta)
