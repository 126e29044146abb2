"""Activations and the MLP: one network, or a stack of independent ones computed together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradexp.config import NORMALIZATIONS, RESIDUALS, check_choice
from gradexp.normalization import normalize


@dataclass(frozen=True)
class Activation:
    """A scalar nonlinearity φ and the straight lines that it follows near 0 and far out.

    The lines let ``exact_profile`` go on where z itself leaves float64's range: for tiny z, φ(z) is
    φ(0) + slope · z, and for huge z it is slope · z (or bounded, slope 0).

    Args:
        function: φ, elementwise.
        slopes_at_zero: φ'(0-) and φ'(0+).
        slopes_at_infinity: The slopes at -inf and +inf.
        derivative: φ', where differentiating ``function`` by autograd would lose digits; else None.
        kinks: Every z at which φ or one of its derivatives jumps; quadrature breaks its intervals there.
    """

    function: Callable[[Tensor], Tensor]
    slopes_at_zero: tuple[float, float]
    slopes_at_infinity: tuple[float, float]
    derivative: Callable[[Tensor], Tensor] | None = None
    kinks: tuple[float, ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        """Return φ(z)."""
        return self.function(z)

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return φ(z) and φ'(z); at a kink φ' is what autograd takes."""
        if self.derivative is not None:
            return self.function(z), self.derivative(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.function(z)
            if not value.requires_grad:  # a constant
                return value, torch.zeros_like(z)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope


def activation(name: str, negative_slope: float = 0.01) -> Activation:
    """Return a built-in activation by name.

    Args:
        name: A key of ``ACTIVATIONS``.
        negative_slope: Slope below 0 of ``leaky_relu``; the others have none.

    Raises:
        ValueError: If there is no activation of that name.

    Example:
        >>> activation("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation '{name}'; choose one of {', '.join(ACTIVATIONS)}")
    if name == "leaky_relu":
        slopes = (negative_slope, 1.0)
        return Activation(lambda z: F.leaky_relu(z, negative_slope), slopes, slopes, kinks=(0,))
    return ACTIVATIONS[name]


def as_activation(
    given: "str | Activation | Callable[[Tensor], Tensor]", negative_slope: float = 0.01, kinks: Sequence[float] = ()
) -> Activation:
    """Return a built-in activation by name, an ``Activation`` as it is, or one made of any elementwise function.

    Of a function the slopes at 0 are autograd's at ±1e-100, and those at infinity φ(z) / z at ±1e100.

    Args:
        given: What is applied to every unit.
        negative_slope: As in ``activation``.
        kinks: Of a function: every z at which it or a derivative jumps.

    Raises:
        ValueError: For an unknown name; for a function that is random, changes the shape, or lets one element
            depend on another; for kinks given to a built-in activation.
        TypeError: If ``given`` is none of these.
    """
    if not math.isfinite(negative_slope):
        raise ValueError(f"negative_slope must be finite, got {negative_slope}")
    if isinstance(given, str | Activation):
        if kinks:
            raise ValueError("kinks are for a function; built-in activations name their own")
        return given if isinstance(given, Activation) else activation(given, negative_slope)
    if not callable(given):
        raise TypeError(f"activation must be a name, an Activation or a function, got {type(given).__name__}")
    name = getattr(given, "__name__", None) or type(given).__name__

    def function(z: Tensor) -> Tensor:
        return given(z.clone())  # it may work in place

    probe = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(3, 4)
    try:
        with torch.no_grad():
            whole = function(probe)
            alone = torch.cat([function(z) for z in probe.flatten().split(1)])
        elementwise = whole.shape == probe.shape and alone.shape == (probe.numel(),)
        elementwise = elementwise and torch.allclose(whole.flatten(), alone, rtol=1e-12, atol=1e-300, equal_nan=True)
        made = Activation(function, (0, 0), (0, 0), kinks=tuple(sorted(kinks)))
        made.value_and_slope(probe)  # numpy's functions have no derivative
    except Exception:  # whatever it raises, such as a layer norm of another width
        elementwise = False
    if not elementwise:
        raise ValueError(f"activation must act on each element alone and always alike; {name} does not")
    small = torch.tensor([-1e-100, 1e-100], dtype=torch.float64)
    far = torch.tensor([-1e100, 1e100], dtype=torch.float64)
    _, near_zero = made.value_and_slope(small)
    below, above = near_zero.tolist()
    # A ratio, since the slope of a wave is none; what grows less than |z| has slope 0.
    far_below, far_above = (function(far) / far).round(decimals=12).tolist()
    return replace(made, slopes_at_zero=(below, above), slopes_at_infinity=(far_below, far_above))


def check_cures(normalization: str, residual: str, widths: Sequence[int]) -> None:
    """Refuse an unknown normaliser or residual, and skip connections between layers of different widths.

    Raises:
        ValueError: If one is unknown, or widths n_1 to n_(L-1) differ in a residual network.
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("residual", residual, RESIDUALS)
    hidden = list(widths[1:-1])
    if residual != "none" and len(set(hidden)) > 1:
        raise ValueError(f"residual={residual!r} needs hidden layers of equal width, got {hidden}")


class StackedLinear(nn.Module):
    """The same linear layer of many independent networks: ``x_e W_eᵀ + b_e``, alone or added to a skip connection.

    Args:
        networks: Number of networks E.
        fan_in: Inputs of each.
        fan_out: Outputs of each.
        bias: Whether to add a bias.
        device: As in ``nn.Linear``.
        dtype: As in ``nn.Linear``.
        draw: Whether to draw weights; False leaves whatever the memory holds, for weights that are filled in next.
        branch: Factor of the layer where it is added to a skip connection; None: a learnable one per network,
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
        self.weight = nn.Parameter(torch.empty(networks, fan_out, fan_in, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(networks, fan_out, device=device, dtype=dtype)) if bias else None
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
            skip: Like the outputs. If given, the result is ``skip + branch · (x Wᵀ + b)``, so that what hooks see
                of the layer is the sum.
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

    Two cures change what lies between hidden layers. With ``normalization``, aˡ = φ(N(zˡ)), where N has no
    parameters (see ``gradexp.normalization.normalize``). With ``residual``, the layers 2 ≤ l < L are branches that
    are added to a stream of signals which nothing else touches:

        zˡ = zˡ⁻¹ + a_l (Wˡ aˡ⁻¹ + bˡ)

    ``plain``: a_l = 1. ``depth``: a_l = 1/√L. ``zero``: a learnable number per layer that starts at 0, so that the
    network starts as a shallow one (ReZero: Bachlechner et al., 2020, arXiv:2003.04887; SkipInit: De & Smith,
    2020, arXiv:2002.10444). The last layer is never residual.

    One network and a stack run through the same code, and a network computes the same alone as in a stack.

    Args:
        widths: n_0, n_1, ..., n_L: input width, hidden widths, output width.
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        bias: Whether layers have a bias.
        networks: Number of networks E.
        negative_slope: For ``leaky_relu``.
        device: Where the parameters live.
        dtype: Number format of the parameters.
        draw: Whether to draw weights, as ``nn.Linear`` does; False leaves them to be filled in next.
        normalization: ``"none"``, ``"batch"`` (over the samples, for each unit) or ``"layer"`` (over the units of
            each sample).
        residual: ``"none"``, ``"plain"``, ``"depth"`` or ``"zero"``.

    Raises:
        ValueError: If fewer than two widths are given, a width or ``networks`` is below 1, the activation or a
            cure is unknown, or a residual network has hidden layers of different widths.

    Example:
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
    ) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths must be at least two numbers of at least 1, got {list(widths)}")
        if networks < 1:
            raise ValueError(f"networks must be at least 1, got {networks}")
        check_cures(normalization, residual, widths)
        self.widths = tuple(widths)
        self.networks = networks
        self.activation = as_activation(activation, negative_slope)
        self.normalization = normalization
        self.residual = residual
        branches = {"none": 1.0, "plain": 1.0, "depth": 1 / math.sqrt(self.depth), "zero": None}
        self.layers = nn.ModuleList(
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

    @property
    def depth(self) -> int:
        """Number of weight matrices L."""
        return len(self.widths) - 1

    def has_skip(self, index: int) -> bool:
        """Say whether ``layers[index]`` is a branch beside a skip connection."""
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
        return stacks[0]._of([torch.cat(own) for own in zip(*(stack.parameters() for stack in stacks), strict=True)])

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
        )
        with torch.no_grad():
            for own, given in zip(other.parameters(), parameters, strict=True):
                own.copy_(given)
        return other

    def forward(self, x: Tensor) -> Tensor:
        """Return y = zᴸ.

        Args:
            x: Shape ``(batch, n_0)``, the same inputs for every network, or ``(networks, batch, n_0)``.

        Returns:
            Shape ``(networks, batch, n_L)``; for one network given ``(batch, n_0)``: ``(batch, n_L)``.
        """
        z = x.expand(self.networks, *x.shape) if x.dim() == 2 else x
        for index, layer in enumerate(self.layers):
            a = self.activation(normalize(z, self.normalization)) if index else z
            z = layer(a, z) if self.has_skip(index) else layer(a)
        return z.squeeze(0) if x.dim() == 2 and self.networks == 1 else z

    def extra_repr(self) -> str:
        """Return the cures for ``repr``."""
        cures = {"normalization": self.normalization, "residual": self.residual}
        return ", ".join(f"{key}={value}" for key, value in cures.items() if value != "none")


def _tanh_slope(z: Tensor) -> Tensor:
    # autograd's 1 - tanh² is exactly 0 from z = 19.1 on; this is right up to z = 370.
    return torch.cosh(z).reciprocal().square()


def _sigmoid_slope(z: Tensor) -> Tensor:
    return torch.sigmoid(z) * torch.sigmoid(-z)


def _softsign_slope(z: Tensor) -> Tensor:
    return (1 + z.abs()).reciprocal().square()


def _gelu_slope(z: Tensor) -> Tensor:
    # autograd's Φ(z) is 1 + erf, which has no digit left below z = -8.3.
    return 0.5 * torch.erfc(-z / math.sqrt(2)) + z * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772
_ERF_SLOPE = 2 / math.sqrt(math.pi)

# name: φ, slopes at 0- and 0+, slopes at -inf and +inf, φ' where autograd's loses digits
ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda z: z, (1, 1), (1, 1), torch.ones_like),
    "tanh": Activation(torch.tanh, (1, 1), (0, 0), _tanh_slope),
    "relu": Activation(torch.relu, (0, 1), (0, 1), kinks=(0,)),
    "sigmoid": Activation(torch.sigmoid, (0.25, 0.25), (0, 0), _sigmoid_slope),
    "leaky_relu": Activation(F.leaky_relu, (0.01, 1), (0.01, 1), kinks=(0,)),
    "hard_tanh": Activation(F.hardtanh, (1, 1), (0, 0), kinks=(-1, 1)),
    "erf": Activation(torch.erf, (_ERF_SLOPE, _ERF_SLOPE), (0, 0)),
    "elu": Activation(F.elu, (1, 1), (0, 1), kinks=(0,)),
    "selu": Activation(F.selu, (_SELU_SCALE * _SELU_ALPHA, _SELU_SCALE), (0, _SELU_SCALE), kinks=(0,)),
    "gelu": Activation(F.gelu, (0.5, 0.5), (0, 1), _gelu_slope),
    "silu": Activation(F.silu, (0.5, 0.5), (0, 1)),
    "softplus": Activation(lambda z: F.softplus(z, threshold=40), (0.5, 0.5), (0, 1)),
    "softsign": Activation(F.softsign, (1, 1), (0, 0), _softsign_slope, kinks=(0,)),
}
