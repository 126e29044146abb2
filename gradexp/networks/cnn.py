"""The plain deep convolutional network: every layer a convolution, and nothing beside it."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from gradexp.architecture import check_sizes, image_shape
from gradexp.choices import NORMALIZATIONS, PADDINGS, check_choice
from gradexp.networks.activations import Activation, as_activation
from gradexp.networks.chain import Chain, Step, scaling_of
from gradexp.networks.normalization import normalize_images


class CNN(Chain):
    """A plain convolutional network of constant width and resolution, without pooling.

    For layers l = 1..L-1, with a⁰ = x as an image:

        zˡ = Wˡ * aˡ⁻¹ + bˡ,   aˡ = φ(N(zˡ)),   output y = Wᴸ flat(aᴸ⁻¹) + bᴸ

    It is the network of Xiao et al. (2018, arXiv:1806.05393), which learns with 10,000 layers. With circular padding
    all positions of the image are alike, and mean field is that of the MLP.

    Args:
        features: Number of inputs, channels · side · side.
        outputs: Number of outputs.
        depth: Number of weight matrices L: L - 1 convolutions and a linear layer.
        width: Channels of every convolution.
        kernel: Height and width of the kernels; odd, and no larger than the image.
        padding: ``"circular"`` (the image goes on at its other side) or ``"zeros"``.
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        bias: Whether layers have a bias.
        negative_slope: The slope below 0 of ``leaky_relu``.
        normalization: ``"none"``, ``"batch"``, ``"layer"`` or ``"rms"``: see ``normalize_images``.

    Raises:
        ValueError: If the inputs are no square images, an option is unknown, or a size cannot work.

    Examples:
        >>> import torch
        >>> CNN(64, 10, depth=5, width=8)(torch.ones(3, 64)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        depth: int,
        width: int,
        kernel: int = 3,
        padding: str = "circular",
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        bias: bool = True,
        negative_slope: float = 0.01,
        normalization: str = "none",
    ) -> None:
        super().__init__()
        check_sizes("cnn", depth=depth, width=width, features=features, kernel=kernel)
        check_choice("normalization", normalization, NORMALIZATIONS)
        channels, side = image_shape(features)
        self.side: int = side
        self.activation: Activation = as_activation(activation, negative_slope)
        self.normalization = normalization
        self.mixes_samples: bool = normalization == "batch"
        self.scaling: str = scaling_of(str(activation), self.activation, normalization)
        self.convolutions: nn.ModuleList = nn.ModuleList(
            convolution(width if index else channels, width, kernel, padding, bias) for index in range(depth - 1)
        )
        self.readout: nn.Linear = nn.Linear(width * self.side**2 if depth > 1 else features, outputs, bias=bias)

    def unrolled(self, x: Tensor) -> tuple[Tensor, list[Step]]:
        """Return the image, and a step for each layer."""
        steps = [
            Step(f"convolutions.{index}", partial(self._layer, index)) for index in range(len(self.convolutions))
        ]
        return x.unflatten(1, (-1, self.side, self.side)), [*steps, Step("readout", self._read)]

    def _layer(self, index: int, z: Tensor) -> Tensor:
        return cast(Tensor, self.convolutions[index](self._activated(z) if index else z))

    def _read(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.readout((self._activated(z) if len(self.convolutions) else z).flatten(1)))

    def _activated(self, z: Tensor) -> Tensor:
        return self.activation(normalize_images(z, self.normalization))


def convolution(into: int, out: int, kernel: int, padding: str, bias: bool) -> nn.Conv2d:
    """Return a convolution that keeps the image's size.

    Args:
        into: Channels of its input.
        out: Channels of its output.
        kernel: Height and width of the kernel.
        padding: ``"circular"`` or ``"zeros"``.
        bias: Whether it has a bias.

    Raises:
        ValueError: If the padding is unknown.
    """
    check_choice("padding", padding, PADDINGS)
    mode: Any = padding
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, padding_mode=mode, bias=bias)
