"""The MLP: one network, or a stack of independent ones computed together."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from gradexp.architecture import check_additions
from gradexp.networks.activations import Activation, as_activation
from gradexp.networks.normalization import StackedNorm, normalize


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Leave out what a model does in training mode only, such as dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class StackedLinear(nn.Module):
    """The same linear layer of many independent networks: ``x_e W_eᵀ + b_e``, alone or added to a skip connection.

    Args:
        networks: Number of networks E.
        fan_in: Number of inputs of each network.
        fan_out: Number of outputs of each network.
        bias: Whether to add a bias.
        device: The parameters' device.
        dtype: The parameters' number format.
        draw: Whether to draw weights; False leaves whatever the memory holds, for weights that are filled in next.
        branch: The factor of the layer where it is added to a skip connection; None: a learnable one per network,
            which starts at 0.

    Attributes:
        weight: Shape ``(networks, fan_out, fan_in)``.
        bias: Shape ``(networks, fan_out)``, or None.
        branch: A number, or a parameter of shape ``(networks,)``.
    """

    def __init__(
        self,
        networks: int,
        fan_in: int,
        fan_out: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        draw: bool = True,
        branch: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.networks = networks
        self.weight: nn.Parameter = nn.Parameter(torch.empty(networks, fan_out, fan_in, device=device, dtype=dtype))
        own_bias = nn.Parameter(torch.empty(networks, fan_out, device=device, dtype=dtype)) if bias else None
        self.bias: nn.Parameter | None = own_bias
        self.branch: float | nn.Parameter = (
            nn.Parameter(torch.zeros(networks, device=device, dtype=dtype)) if branch is None else branch
        )
        if draw:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases from U(-1/√fan_in, 1/√fan_in), as ``nn.Linear`` does; a learnable branch is 0."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        if isinstance(self.branch, Tensor):
            nn.init.zeros_(self.branch)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map ``(networks, batch, fan_in)`` to ``(networks, batch, fan_out)``.

        Args:
            x: The inputs.
            skip: A tensor like the outputs. The result is then ``skip + branch · (x Wᵀ + b)``, so that hooks on the
                layer see the sum.
        """
        if self.bias is None:
            z = torch.bmm(x, self.weight.mT)
        else:
            z = torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)
        if skip is None:
            return z
        if isinstance(self.branch, Tensor):
            return skip + self.branch[:, None, None] * z
        return torch.add(skip, z, alpha=self.branch)

    def extra_repr(self) -> str:
        """Return the layer's sizes for ``repr``."""
        networks, fan_out, fan_in = self.weight.shape
        return f"networks={networks}, fan_in={fan_in}, fan_out={fan_out}, bias={self.bias is not None}"


class MLP(nn.Module):
    """A multilayer perceptron, or a stack of independent ones of the same shape.

    For layers l = 1..L, with a⁰ = x and depth L = ``len(widths) - 1``:

        zˡ = Wˡ aˡ⁻¹ + bˡ,   aˡ = φ(zˡ) for l < L,   output y = zᴸ (no activation)

    Two options change what lies between hidden layers. With ``normalization``, aˡ = φ(N(zˡ)), where N has no
    parameters (see ``gradexp.networks.normalization.normalize``); with ``affine`` too, aˡ = φ(γˡ N(zˡ) + βˡ), with a
    learnable scale and shift of each unit that start at 1 and 0. With ``residual``, the layers 2 ≤ l < L are
    branches that are added to a stream of signals which nothing else touches:

        zˡ = zˡ⁻¹ + a_l (Wˡ aˡ⁻¹ + bˡ)

    ``plain``: a_l = 1. ``depth``: a_l = 1/√L. ``zero``: a learnable number per layer that starts at 0, so that the
    network starts as a shallow one (ReZero: Bachlechner et al., 2020, arXiv:2003.04887; SkipInit: De & Smith,
    2020, arXiv:2002.10444). The last layer is never residual.

    With ``dropout`` each φ(zˡ) is 0 with that probability, and else divided by what is left of 1, in training mode
    only (Srivastava et al., 2014). Each network takes its masks from a generator of its own, ``mask_sources``.

    One network and a stack run through the same code, and a network computes the same alone as in a stack.

    Args:
        widths: n_0, n_1, ..., n_L: input width, hidden widths, output width.
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        bias: Whether layers have a bias.
        networks: Number of networks E.
        negative_slope: The slope below 0 of ``leaky_relu``.
        device: The parameters' device.
        dtype: The parameters' number format.
        draw: Whether to draw weights, as ``nn.Linear`` does; False leaves them to be filled in next.
        normalization: ``"none"``, ``"batch"`` (over the samples, for each unit), ``"layer"`` or ``"rms"`` (over the
            units of each sample).
        residual: ``"none"``, ``"plain"``, ``"depth"`` or ``"zero"``.
        dropout: The probability with which a unit is 0 in training mode, at least 0 and below 1.
        affine: Whether normalisers have a learnable scale, and but for ``"rms"`` a shift.

    Raises:
        ValueError: If fewer than two widths are given, a width or ``networks`` is below 1, the activation or an
            option is unknown, or a residual network has hidden layers of different widths.

    Examples:
        >>> MLP([64, 128, 10])(torch.ones(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: str | Activation | Callable[[Tensor], Tensor] = "relu",
        bias: bool = True,
        networks: int = 1,
        negative_slope: float = 0.01,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        draw: bool = True,
        normalization: str = "none",
        residual: str = "none",
        dropout: float = 0.0,
        affine: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {dropout}")
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must be at least two numbers of at least 1, got {list(widths)}")
        if networks < 1:
            raise ValueError(f"networks must be at least 1, got {networks}")
        check_additions(normalization, residual, widths[1:-1], affine)
        self.widths: tuple[int, ...] = tuple(widths)
        self.networks = networks
        self.activation: Activation = as_activation(activation, negative_slope)
        self.normalization = normalization
        self.residual = residual
        self.dropout = dropout
        self.mask_sources: list[torch.Generator] | None = None  # None: torch's global generator
        branches = {"none": 1.0, "plain": 1.0, "depth": 1 / math.sqrt(self.depth), "zero": None}
        self.layers: nn.ModuleList = nn.ModuleList(
            StackedLinear(
                networks,
                fan_in,
                fan_out,
                bias,
                device,
                dtype,
                draw,
                branch=branches[residual] if self.has_skip(index) else 1.0,
            )
            for index, (fan_in, fan_out) in enumerate(zip(self.widths, self.widths[1:], strict=False))
        )
        self.norms: nn.ModuleList | None = None
        if affine:
            hidden = self.widths[1:-1]
            self.norms = nn.ModuleList(StackedNorm(networks, n, normalization, device, dtype) for n in hidden)

    @property
    def depth(self) -> int:
        """Number of weight matrices L."""
        return len(self.widths) - 1

    def has_skip(self, index: int) -> bool:
        """Return whether ``layers[index]`` is a branch beside a skip connection."""
        return self.residual != "none" and 0 < index < self.depth - 1

    def network(self, index: int) -> "MLP":
        """Return one network of a stack as an MLP of its own, with copies of the parameters.

        Raises:
            IndexError: If the stack has no such network.
        """
        if not -self.networks <= index < self.networks:
            raise IndexError(f"the stack has {self.networks} networks, got index {index}")
        return self._of([parameter[index].unsqueeze(0) for parameter in self.parameters()])

    @staticmethod
    def join(stacks: Sequence["MLP"]) -> "MLP":
        """Return the networks of some stacks of the same shape as one stack, with copies of the parameters."""
        parameters = zip(*(stack.parameters() for stack in stacks), strict=True)
        return stacks[0]._of([torch.cat(same) for same in parameters])

    def _of(self, parameters: Sequence[Tensor]) -> "MLP":
        """Return an MLP like this one with other networks' parameters."""
        first = cast("StackedLinear", self.layers[0])
        other = MLP(
            self.widths,
            self.activation,
            first.bias is not None,
            networks=len(parameters[0]),
            device=first.weight.device,
            dtype=first.weight.dtype,
            draw=False,
            normalization=self.normalization,
            residual=self.residual,
            dropout=self.dropout,
            affine=self.norms is not None,
        )
        with torch.no_grad():
            for new, old in zip(other.parameters(), parameters, strict=True):
                new.copy_(old)
        return other

    def forward(self, x: Tensor) -> Tensor:
        """Return y = zᴸ.

        Args:
            x: Inputs of shape ``(batch, n_0)``, the same for every network, or ``(networks, batch, n_0)``.

        Returns:
            Shape ``(networks, batch, n_L)``; for one network given ``(batch, n_0)``: ``(batch, n_L)``.
        """
        z = x.expand(self.networks, *x.shape) if x.dim() == 2 else x
        for index, layer in enumerate(self.layers):
            a = self.activation(self._normal(z, index)) if index else z
            if index and self.dropout and self.training:
                a = self._masked(a)
            z = layer(a, z) if self.has_skip(index) else layer(a)
        return z.squeeze(0) if x.dim() == 2 and self.networks == 1 else z

    def _normal(self, z: Tensor, index: int) -> Tensor:
        """Return what goes into the activation ahead of a layer."""
        return normalize(z, self.normalization) if self.norms is None else cast("Tensor", self.norms[index - 1](z))

    def _masked(self, a: Tensor) -> Tensor:
        """Return a with some units 0 and the others larger, so that the mean stays."""
        sources: Sequence[torch.Generator | None] = self.mask_sources or [None] * self.networks
        # On the CPU and in float32, so that a seed is the same training on any device and in any format.
        drawn = [torch.rand(a.shape[1:], generator=source, device="cpu") for source in sources]
        kept = (torch.stack(drawn) >= self.dropout).to(a.device)
        return a * kept / (1 - self.dropout)

    def extra_repr(self) -> str:
        """Return normalisation, residual and dropout for ``repr``."""
        choices = {"normalization": self.normalization, "residual": self.residual, "dropout": self.dropout or "none"}
        return ", ".join(f"{key}={value}" for key, value in choices.items() if value != "none")
