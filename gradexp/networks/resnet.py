"""The residual convolutional network: a stream of images, to which blocks of two convolutions each add."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradexp.architecture import blocks_of, check_sizes, image_shape
from gradexp.choices import NORMALIZATIONS, RESNET_RESIDUALS, check_choice
from gradexp.networks.activations import Activation, as_activation
from gradexp.networks.chain import Chain, Step, scaling_of
from gradexp.networks.cnn import convolution
from gradexp.networks.normalization import normalize_images


class ResNet(Chain):
    """A residual network of constant width and resolution, with pre-activation (He et al., 2016, arXiv:1603.05027).

    A stem, B = (L - 2) / 2 blocks, and a linear readout; with h⁰ = W * x + b:

        hˡ = hˡ⁻¹ + a_l F_l(hˡ⁻¹),   F(h) = W' * φ(N(W * φ(N(h)) + b)) + b',   y = W'' flat(φ(N(hᴮ))) + b''

    What the branches are scaled by is ``residual``:

    - ``none``: there is no skip, hˡ = F_l(hˡ⁻¹): the plain network of the same layers.
    - ``plain``: a = 1.
    - ``depth``: a = 1 / √B.
    - ``zero``: a is learned and starts at 0 (SkipInit: De & Smith, 2020, arXiv:2002.10444).
    - ``fixup``: a is learned and starts at 1, the weights W of the first convolution are scaled by 1 / √B and W' is
      0; instead of biases of each channel there are single numbers before and after each convolution (Zhang et al.,
      2019, arXiv:1901.09321). The paper also sets the readout to 0, which would leave no gradient to measure.

    Args:
        features: Number of inputs, channels · side · side.
        outputs: Number of outputs.
        depth: Number of weight matrices L, even: the lesson's 152 are a stem, 75 blocks of two and a readout.
        width: Channels of every convolution.
        kernel: Height and width of the kernels; odd, and no larger than the image.
        padding: ``"circular"`` or ``"zeros"``.
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        bias: Whether layers have a bias.
        negative_slope: The slope below 0 of ``leaky_relu``.
        normalization: ``"none"``, ``"batch"``, ``"layer"`` or ``"rms"``: see ``normalize_images``.
        residual: ``"none"``, ``"plain"``, ``"depth"``, ``"zero"`` or ``"fixup"``.

    Raises:
        ValueError: If the depth is odd or below 2, the inputs are no square images, an option is unknown, or a size
            cannot work.

    Examples:
        >>> import torch
        >>> ResNet(64, 10, depth=6, width=8)(torch.ones(3, 64)).shape
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
        residual: str = "plain",
    ) -> None:
        super().__init__()
        check_sizes("resnet", depth=depth, width=width, features=features, kernel=kernel)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("residual", residual, RESNET_RESIDUALS)
        blocks = blocks_of(depth)
        channels, side = image_shape(features)
        self.side: int = side
        self.activation: Activation = as_activation(activation, negative_slope)
        self.normalization = normalization
        self.residual = residual
        self.mixes_samples: bool = normalization == "batch"
        self.scaling: str = scaling_of(str(activation), self.activation, normalization)
        self.stem: nn.Conv2d = convolution(channels, width, kernel, padding, bias)
        self.blocks: nn.ModuleList = nn.ModuleList(
            Block(width, kernel, padding, bias, residual, blocks) for _ in range(blocks)
        )
        self.readout: nn.Linear = nn.Linear(width * self.side**2, outputs, bias=bias)
        if residual == "fixup" and blocks:
            self.rules: Mapping[str, Any] = {"scale": {"blocks.*.first": blocks**-0.5}, "skip": "blocks.*.last"}

    def unrolled(self, x: Tensor) -> tuple[Tensor, list[Step]]:
        """Return the image, and a step for the stem, for each block and for the readout."""
        blocks = [
            Step(f"blocks.{index}", partial(cast(Block, block), phi=self._activated))
            for index, block in enumerate(self.blocks)
        ]
        image = x.unflatten(1, (-1, self.side, self.side))
        return image, [Step("stem", self.stem), *blocks, Step("readout", self._read)]

    def _read(self, h: Tensor) -> Tensor:
        return cast(Tensor, self.readout(self._activated(h).flatten(1)))

    def _activated(self, h: Tensor) -> Tensor:
        return self.activation(normalize_images(h, self.normalization))


class Block(nn.Module):
    """Two convolutions beside a skip connection: see ``ResNet``."""

    def __init__(self, width: int, kernel: int, padding: str, bias: bool, residual: str, blocks: int) -> None:
        super().__init__()
        is_fixup = residual == "fixup"
        self.first: nn.Conv2d = convolution(width, width, kernel, padding, bias and not is_fixup)
        self.last: nn.Conv2d = convolution(width, width, kernel, padding, bias and not is_fixup)
        self.has_skip: bool = residual != "none"
        self.branch: float | nn.Parameter = 1.0
        if residual == "depth":
            self.branch = blocks**-0.5
        elif residual == "zero":
            self.branch = nn.Parameter(torch.zeros(()))
        elif is_fixup:
            nn.init.zeros_(self.last.weight)
            self.branch = nn.Parameter(torch.ones(()))
        self.shifts: nn.ModuleList = nn.ModuleList(Shift() if is_fixup and bias else nn.Identity() for _ in range(4))

    def forward(self, h: Tensor, phi: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the stream after the block.

        Args:
            h: The stream, shape ``(batch, channels, side, side)``.
            phi: Normalisation and activation.
        """
        z = self.shifts[1](self.first(self.shifts[0](phi(h))))
        z = self.last(self.shifts[2](phi(z)))
        return self.shifts[3](h + self.branch * z) if self.has_skip else cast(Tensor, z)


class Shift(nn.Module):
    """One number, added to all there is."""

    def __init__(self) -> None:
        super().__init__()
        self.bias: nn.Parameter = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x + b."""
        return x + self.bias
