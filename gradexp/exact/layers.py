"""One layer with exponents carried: linear map, activation and normalisation."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradexp.exact.scaled import ORDINARY, Scaled, scaled
from gradexp.networks.activations import Activation
from gradexp.networks.mlp import StackedLinear
from gradexp.networks.normalization import StackedNorm, pull_back, standardize
from gradexp.numerics.norms import times_power_of_two


def linear(layer: StackedLinear, networks: slice, a: Scaled, with_bias: bool = True) -> Scaled:
    """Return W a + b of some networks of a stack, or W a."""
    value, exponent = a.mantissas()
    z = scaled(torch.bmm(value, layer.weight[networks].double().mT), exponent)
    if layer.bias is None or not with_bias or not layer.bias[networks].any():
        return z
    return z.plus(scaled(layer.bias[networks].double().unsqueeze(1).expand_as(z.value)))


def units_without_a_say(layer: StackedLinear, networks: slice, a: Scaled) -> Tensor:
    """Return which units of a change the length of W a + b and not its direction, shape ``(network, sample, unit)``.

    They are a sample's only ones that are not 0, where there is no bias. A normaliser over units takes all that they
    say out again, and back-propagation would leave the rounding errors of 0 there.
    """
    on = a.value != 0
    alone = on & (on.sum(dim=2, keepdim=True) == 1)
    return alone if layer.bias is None else alone & ~layer.bias[networks].any(dim=1)[:, None, None]


def branch_factor(layer: StackedLinear, networks: slice, like: Tensor) -> Tensor:
    """Return the factor of a branch, shape ``(network or 1, 1, 1)``."""
    branch = layer.branch[networks].double() if isinstance(layer.branch, Tensor) else like.new_tensor([layer.branch])
    return branch[:, None, None]


class Normalised(NamedTuple):
    """N(z), and 1 / std of z as ``inverse * 2**-exponent``."""

    kind: str
    value: Tensor
    inverse: Tensor
    exponent: Tensor

    def pull_back(self, gradient: Scaled) -> Scaled:
        """Return the gradient with respect to z, given the one with respect to N(z)."""
        value, exponent = _side_by_side(gradient, self.kind)
        # Units of a batch-normalised layer have an exponent each, of which the largest becomes the sample's.
        largest = (-self.exponent).where(self.inverse != 0, -torch.inf).amax(dim=2, keepdim=True)
        common = largest.where(largest > -torch.inf, 0)
        inverse = times_power_of_two(self.inverse, -self.exponent - common)
        return scaled(pull_back(value, self.value, inverse, self.kind), exponent + common)


def normalise(z: Scaled, kind: str) -> tuple[Scaled, Normalised]:
    """Return N(z), and itself with all that its gradient needs."""
    value, exponent = _side_by_side(z, kind)
    normal, inverse, shift = standardize(value, kind)
    return scaled(normal), Normalised(kind, normal, inverse, exponent + shift)


def scale_and_shift(norm: nn.Module, networks: slice, normal: Scaled) -> tuple[Scaled, Tensor]:
    """Return γ N(z) + β of some networks of a stack, and γ, shape ``(network, 1, unit)``."""
    assert isinstance(norm, StackedNorm)
    scale = norm.scale[networks].double().unsqueeze(1)
    value, exponent = normal.mantissas()
    stretched = scaled(value * scale, exponent)
    if norm.shift is None:
        return stretched, scale
    return stretched.plus(scaled(norm.shift[networks].double().unsqueeze(1).expand_as(value))), scale


def _side_by_side(v: Scaled, kind: str) -> tuple[Tensor, Tensor]:
    """Return value and exponent, with one exponent for all elements that are normalised together."""
    return v.with_common_exponent() if kind == "batch" else (v.value, v.exponent)


def activate(phi: Activation, z: Scaled) -> tuple[Scaled, Tensor]:
    """Return φ(z) and φ'(z).

    Below ordinary size φ follows its line at 0, and where φ(0) is not 0 it is back at ordinary size; above,
    elements beyond 2**500 follow the line at infinity where it is not flat, and a sample with no such element is
    bounded, so that its true φ(z) is of ordinary size too.
    """
    if not z.exponent.any():
        value, slope = phi.value_and_slope(z.value)
        return scaled(value), slope
    edge = 2.0**ORDINARY
    point = times_power_of_two(z.value, z.exponent)
    point = torch.where(z.exponent == 0, point, point.clamp(-edge, edge))  # exponent 0 may hold inf
    value, slope = phi.value_and_slope(point)
    tiny = z.exponent < 0
    line = torch.where(tiny, _per_sign(z.value, phi.slopes_at_zero), _per_sign(z.value, phi.slopes_at_infinity))
    on_line = (z.exponent != 0) & (z.value != 0) & (tiny | (point.abs() >= edge))
    slope = torch.where(on_line, line, slope)
    steep = on_line & (line != 0)
    carried = torch.where(steep, line * z.value, times_power_of_two(value, -z.exponent))
    starts_off_zero = bool(phi(z.value.new_zeros(())) != 0)
    ordinary = ~steep.any(dim=2, keepdim=True) | (tiny & starts_off_zero)
    return scaled(torch.where(ordinary, value, carried), z.exponent.where(~ordinary, 0)), slope


def _per_sign(z: Tensor, slopes: tuple[float, float]) -> Tensor:
    below, above = (z.new_tensor(slope) for slope in slopes)
    return torch.where(z < 0, below, above)
