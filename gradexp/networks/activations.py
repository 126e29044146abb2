"""Activations φ with their derivatives, and the straight lines that they follow near 0 and far out."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradexp.choices import ACTIVATION_ALIASES
from gradexp.own_parts import OwnPart


@dataclass(frozen=True)
class Activation:
    """A scalar nonlinearity φ and the straight lines that it follows near 0 and far out.

    The lines let ``exact_profile`` go on where z itself leaves float64's range: for tiny z, φ(z) is
    φ(0) + slope · z, and for huge z it is slope · z (or bounded, slope 0).

    Args:
        function: φ, elementwise.
        slopes_at_zero: φ'(0-) and φ'(0+).
        slopes_at_infinity: The slopes at -inf and +inf.
        derivative: φ', where differentiating ``function`` by autograd would lose digits or take long; else None.
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
    """Return an activation by name.

    Args:
        name: A key of ``ACTIVATIONS``, ``swish`` (silu), or an own part.
        negative_slope: The slope below 0 of ``leaky_relu``; the others have none.

    Raises:
        ValueError: If there is no activation of that name.
        ConfigError: If an own part is no activation.

    Examples:
        >>> activation("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if isinstance(name, OwnPart):
        return _own(name)
    name = ACTIVATION_ALIASES.get(name, name)
    if name not in ACTIVATIONS:
        names = [*ACTIVATIONS, *ACTIVATION_ALIASES]
        raise ValueError(f"unknown activation '{name}'; choose one of {', '.join(names)}")
    if name == "leaky_relu":
        slopes = (negative_slope, 1.0)
        return Activation(lambda z: F.leaky_relu(z, negative_slope), slopes, slopes, kinks=(0,))
    return ACTIVATIONS[name]


def as_activation(
    phi: "str | Activation | Callable[[Tensor], Tensor]", negative_slope: float = 0.01, kinks: Sequence[float] = ()
) -> Activation:
    """Return a built-in activation by name, an ``Activation`` as it is, or one made of any elementwise function.

    Of a function the slopes at 0 are autograd's at ±1e-100, and those at infinity φ(z) / z at ±1e100.

    Args:
        phi: The function of every unit: a built-in's name, an ``Activation``, or any elementwise function.
        negative_slope: The slope below 0 of ``leaky_relu``; the others have none.
        kinks: Every z at which a function or one of its derivatives jumps.

    Raises:
        ValueError: For an unknown name; for a function that is random, changes the shape, or lets one element
            depend on another; for kinks given to a built-in activation.
        TypeError: If ``phi`` is none of these.
    """
    if not math.isfinite(negative_slope):
        raise ValueError(f"negative_slope must be finite, got {negative_slope}")
    if isinstance(phi, str | Activation):
        if kinks:
            raise ValueError("kinks are for a function; built-in activations name their own")
        return phi if isinstance(phi, Activation) else activation(phi, negative_slope)
    if not callable(phi):
        raise TypeError(f"activation must be a name, an Activation or a function, got {type(phi).__name__}")
    name = getattr(phi, "__name__", None) or type(phi).__name__

    def function(z: Tensor) -> Tensor:
        return phi(z.clone())  # it may work in place

    probe = torch.linspace(-3, 3, 12, dtype=torch.float64).reshape(3, 4)
    try:
        with torch.no_grad():
            at_once = function(probe)
            one_by_one = torch.cat([function(z) for z in probe.flatten().split(1)])
        elementwise = at_once.shape == probe.shape and one_by_one.shape == (probe.numel(),)
        elementwise = elementwise and torch.allclose(
            at_once.flatten(), one_by_one, rtol=1e-12, atol=1e-300, equal_nan=True
        )
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
    # A ratio, since a wave has no slope there; a function that grows less than |z| has slope 0.
    far_below, far_above = (function(far) / far).round(decimals=12).tolist()
    return replace(made, slopes_at_zero=(below, above), slopes_at_infinity=(far_below, far_above))


# Theory keeps what it has found of an activation, and knows it by its identity.
@functools.lru_cache(maxsize=64)
def _own(part: OwnPart) -> Activation:
    """Return an own part as an activation; its attribute ``kinks`` names every z at which φ or a derivative jumps.

    Raises:
        ConfigError: If it raises, or is not elementwise, differentiable and finite where units begin.
    """
    phi: Any = part.function
    if isinstance(phi, Activation):
        return phi
    if isinstance(phi, nn.Module) and any(True for _ in phi.parameters()):
        raise part.mistake("has parameters of its own, which a run would not train")

    z = torch.linspace(-3, 3, 13, dtype=torch.float64)
    with part.named():
        value = phi(z.clone().requires_grad_().clone())  # it may work in place
    if not isinstance(value, Tensor):
        raise part.mistake(f"returns {type(value).__name__}, not a tensor")
    if value.shape != z.shape:
        raise part.mistake(f"returns shape {tuple(value.shape)} for {tuple(z.shape)}, and must act on each element")
    if not value.isfinite().all():
        at = z[~value.isfinite()][0].item()
        raise part.mistake(f"returns {value[~value.isfinite()][0].item()} at z = {at:g}, and must be finite")
    if not value.requires_grad and not torch.equal(value, value[:1].expand_as(value)):
        raise part.mistake("has no derivative that autograd knows: use torch's functions, not numpy's, nor detach()")
    try:
        return as_activation(lambda z: _forward(part, phi, z), kinks=tuple(getattr(phi, "kinks", ())))
    except ValueError as error:
        raise part.mistake("must act on each element alone, and always alike") from error


def _forward(part: OwnPart, phi: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with part.named():
        return phi(z)


def _tanh_slope(z: Tensor) -> Tensor:
    # autograd's 1 - tanh² is exactly 0 from z = 19.1 on; this is right up to z = 370.
    return torch.cosh(z).reciprocal().square()


def _relu_slope(z: Tensor) -> Tensor:
    return (~(z <= 0)).to(z.dtype)  # autograd's, in a third of the time: 0 at 0, and 1 at nan


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

# name: φ, slopes at 0- and 0+, slopes at -inf and +inf, φ' where autograd's loses digits or takes long
ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(lambda z: z, (1, 1), (1, 1), torch.ones_like),
    "tanh": Activation(torch.tanh, (1, 1), (0, 0), _tanh_slope),
    "relu": Activation(torch.relu, (0, 1), (0, 1), _relu_slope, kinks=(0,)),
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
