"""The plain deep convolutional network: every layer a convolution, and nothing beside it."""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

from torch import Tensor, nn

from gradexp.networks.activations import Activation, as_activation
from gradexp.networks.chain import Chain, Step, scaling_of


class CNN(Chain):
    """A plain convolutional network of constant width, without pooling.

    For layers l = 1..L-1, with a⁰ = x as an image, and circular padding, so that all positions are alike:

        zˡ = Wˡ * aˡ⁻¹ + bˡ,   aˡ = φ(zˡ),   output y = Wᴸ flat(aᴸ⁻¹) + bᴸ

    It is the network of Xiao et al. (2018, arXiv:1806.05393), which learns with 10,000 layers.

    Args:
        features: Number of inputs, channels · side · side.
        outputs: Number of outputs.
        depth: Number of weight matrices L: L - 1 convolutions and a linear layer.
        width: Channels of every convolution.
        kernel: Height and width of the kernels; odd.
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        bias: Whether layers have a bias.
        negative_slope: The slope below 0 of ``leaky_relu``.

    Raises:
        ValueError: If the inputs are no square images, or a size cannot work.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        depth: int,
        width: int,
        kernel: int = 3,
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        bias: bool = True,
        negative_slope: float = 0.01,
    ) -> None:
        super().__init__()
        channels, self.side = image_shape(features)
        self.activation: Activation = as_activation(activation, negative_slope)
        self.scaling = scaling_of(str(activation), self.activation)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width if index else channels, width, kernel, padding="same", padding_mode="circular", bias=bias)
            for index in range(depth - 1)
        )
        self.readout = nn.Linear(width * self.side**2 if depth > 1 else features, outputs, bias=bias)

    def unrolled(self, x: Tensor) -> tuple[Tensor, list[Step]]:
        """Return the image, and a step for each layer."""
        steps = [
            Step(f"convolutions.{index}", partial(self._layer, index)) for index in range(len(self.convolutions))
        ]
        return x.unflatten(1, (-1, self.side, self.side)), [*steps, Step("readout", self._read)]

    def _layer(self, index: int, z: Tensor) -> Tensor:
        return cast(Tensor, self.convolutions[index](self.activation(z) if index else z))

    def _read(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.readout((self.activation(z) if len(self.convolutions) else z).flatten(1)))


def image_shape(features: int) -> tuple[int, int]:
    """Return channels and side of the square images that some features are: of one channel, or of three.

    Raises:
        ValueError: If they are none.

    Examples:
        >>> image_shape(64), image_shape(3 * 32 * 32)
        ((1, 8), (3, 32))
    """
    for channels in (1, 3):
        side = math.isqrt(features // channels)
        if channels * side**2 == features:
            return channels, side
    raise ValueError(f"images are channels · side · side features with 1 or 3 channels, got {features} features")
