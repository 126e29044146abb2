"""Averages over the positions of an image: what infinitely many channels do to lengths, likeness and gradients.

With independent weights the units of a channel are Gaussian over the positions p of an image (Xiao et al., 2018,
arXiv:1806.05393), with variances q_p and correlations c_pq. A convolution averages over its window, A:

    q' = sigma_w2 A E φ² + sigma_b2,   E‖δ_p‖² = sigma_w2 E φ'² A E‖δ'‖²

With circular padding A leaves means over positions as they are, and lengths and gradients are those of the MLP.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradexp.architecture import image_shape
from gradexp.networks.activations import Activation
from gradexp.theory.gaussian import nodes
from gradexp.theory.mean_field import Moments, is_piecewise_linear
from gradexp.theory.weight_laws import WeightLaw

# Numbers of correlations between positions that are followed: of as many samples as that makes, and at least of one.
_PAIRS = 1 << 16
_ANGLES = 25  # of tables over the correlation of two units
_LENGTHS = 100  # of tables over the variance of a unit
_EDGE = 9.0  # standard deviations, beyond which lies 2e-19 of the probability
_SMALLEST = 1e-200


@dataclass(frozen=True)
class Convolution:
    """A convolution as theory knows it.

    Args:
        law: The law of its weights.
        width: Channels of its output.
        side: Height and width of the image.
        kernel: Height and width of the kernel.
        circular: Whether the image goes on at its other side; else it ends in zeros.
        is_delta: Whether the weights are orthogonal at the centre of the kernel and 0 elsewhere.
    """

    law: WeightLaw
    width: int
    side: int
    kernel: int
    circular: bool
    is_delta: bool

    @property
    def positions(self) -> int:
        """Number of positions of the image."""
        return self.side**2

    def over_positions(self, values: Tensor) -> Tensor:
        """Average a number per position over the window, shape ``(sample, position)``."""
        grid = values.unflatten(1, (self.side, self.side))
        return self._averaged(grid, [(1,), (2,)]).flatten(1)

    def over_pairs(self, values: Tensor) -> Tensor:
        """Average a number per pair of positions, which move together, shape ``(sample, position, position)``."""
        grid = values.unflatten(2, (self.side, self.side)).unflatten(1, (self.side, self.side))
        return self._averaged(grid, [(1, 3), (2, 4)]).flatten(3, 4).flatten(1, 2)

    def _averaged(self, values: Tensor, directions: Sequence[tuple[int, ...]]) -> Tensor:
        if self.is_delta or self.kernel == 1:
            return values
        reach = self.kernel // 2
        for dims in directions:
            moved = [self._moved(values, step, dims) for step in range(-reach, reach + 1)]
            values = torch.stack(moved).mean(dim=0)
        return values

    def _moved(self, values: Tensor, step: int, dims: tuple[int, ...]) -> Tensor:
        moved = values.roll([step] * len(dims), dims)
        if not self.circular and step:
            for dim in dims:
                moved.narrow(dim, 0 if step > 0 else self.side + step, abs(step)).zero_()
        return moved

    @functools.cached_property
    def spectrum(self) -> Tensor:
        """What the average multiplies the square of each wave over the image by, shape ``(wave,)``."""
        if self.is_delta or self.kernel == 1:
            return torch.ones(self.positions, dtype=torch.float64)
        window = torch.zeros(self.side, dtype=torch.float64)
        window[: self.kernel] = 1 / self.kernel
        waves = torch.fft.fft(window).abs().square()
        return torch.outer(waves, waves).flatten()


@dataclass(frozen=True)
class Units:
    """Gaussian units over the positions of an image.

    Args:
        q: Variance at each position, shape ``(sample, position)``.
        c: Correlation of two positions, shape ``(some samples, position, position)``.
    """

    q: Tensor
    c: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean square over positions, shape ``(sample, 1)``."""
        return self.q.mean(dim=1, keepdim=True)

    @functools.cached_property
    def likeness(self) -> tuple[Tensor, Tensor]:
        """Mean over pairs of positions of c, and of c², weighted by variances; each of shape ``(some samples,)``."""
        weight = _products(self.q[: len(self.c)])
        weight = weight / weight.mean(dim=(1, 2), keepdim=True)
        return (self.c * weight.sqrt()).mean(dim=(1, 2)), (self.c.square() * weight).mean(dim=(1, 2))

    @staticmethod
    def of_images(x: Tensor, convolution: Convolution) -> "Units":
        """Return what a convolution makes of images, shape ``(sample, features)``."""
        channels, side = image_shape(x.shape[1])
        images, law = x.unflatten(1, (channels, side**2)), convolution.law
        some = images[: max(1, _PAIRS // side**4)]
        covariance = torch.einsum("scp,scq->spq", some, some) / channels
        q = law.sigma_w2 * convolution.over_positions(images.square().mean(dim=1)) + law.sigma_b2
        return Units.of(q, law.sigma_w2 * convolution.over_pairs(covariance) + law.sigma_b2)

    @staticmethod
    def of(q: Tensor, covariance: Tensor) -> "Units":
        """Return units of these variances, and of these covariances for some of the samples."""
        scale = _products(covariance.diagonal(dim1=1, dim2=2)).sqrt()
        return Units(q, torch.where(scale > 0, covariance / scale.where(scale > 0, 1), 0.0).clamp(-1, 1))

    def plus(self, branch: "Units", factor: float) -> "Units":
        """Return the units of a stream to which a branch of independent weights is added, a² = ``factor``."""
        covariance = [units.c * _products(units.q[: len(units.c)]).sqrt() for units in (self, branch)]
        return Units.of(self.q + factor * branch.q, covariance[0] + factor * covariance[1])


def _products(values: Tensor) -> Tensor:
    return values.unsqueeze(2) * values.unsqueeze(1)


@dataclass
class Activated:
    """What an activation makes of units, with n channels.

    Tensors are of shape ``(sample, position)``, or of ``(some samples,)`` where they say how much the mean over
    positions of one channel scatters.

    Args:
        units: The units before it.
        square: E φ².
        slope2: E φ'², divided by what a normaliser divides the units by.
        divisor: What that is, shape ``(sample, 1)``.
        length_slope: d log E φ² / d log q.
        value_noise: n times the relative variance of ‖φ‖².
        slope_noise: n times that of Σ φ'², J - 1 with J = mean over p, q of E φ'_p² φ'_q² / (E φ'²)².
        own_slope: J_0 = E φ'⁴ / (E φ'²)², of one position with itself.
        slope_he2: E φ'² He₂ / E φ'², twice d log E φ'² / d log q.
        mixed_noise: n times the relative covariance of the two.
        slope_likeness: Mean of (E φ'_p φ'_q / E φ'²)².
        product: Mean of φ_p φ_q over channels, shape ``(some samples, position, position)``.
    """

    units: Units
    square: Tensor
    slope2: Tensor
    divisor: Tensor
    length_slope: Tensor
    value_noise: Tensor
    slope_noise: Tensor
    own_slope: float
    slope_he2: float
    mixed_noise: Tensor
    slope_likeness: Tensor
    product: Tensor

    def convolved(self, convolution: Convolution) -> Units:
        """Return the units after a convolution."""
        law = convolution.law
        q = law.sigma_w2 * convolution.over_positions(self.square) + law.sigma_b2
        return Units.of(q, law.sigma_w2 * convolution.over_pairs(self.product) + law.sigma_b2)


class Nonlinearity:
    """An activation, perhaps behind layer norm, as a map of units.

    Args:
        phi: The activation.
        normalization: ``none`` or ``layer``, over the whole image of a sample.
        q: A typical variance; tables over correlations are those of two units of it.
    """

    def __init__(self, phi: Activation, normalization: str, q: float) -> None:
        self.phi = phi
        self.normalization = normalization
        self.is_straight: bool = is_piecewise_linear(phi)
        self._tables = _tables(phi, 1.0 if self.is_straight or normalization == "layer" else q)

    def __call__(self, units: Units, keeps_lengths: bool) -> Activated:
        """Return the activations of units.

        Args:
            units: The units.
            keeps_lengths: Whether products of lengths over positions do not depend on the weights below, as with a
                delta-orthogonal convolution.
        """
        tables, some = self._tables, len(units.c)
        divisor = units.mean if self.normalization == "layer" else torch.ones_like(units.mean)
        square, slope2, length_slope = self._moments(units.q / divisor)
        weights = _products(square[:some])
        weights = weights / weights.mean(dim=(1, 2), keepdim=True)
        slopes = _products(slope2[:some])
        slopes = slopes / slopes.mean(dim=(1, 2), keepdim=True)
        angle = units.c.acos().numpy()

        def mean(table: np.ndarray, weight: Tensor) -> Tensor:
            return (torch.from_numpy(np.interp(angle, tables.angles, table)) * weight).mean(dim=(1, 2))

        value_noise = mean(tables.squares, weights) - 1
        slope_noise = mean(tables.squared_slopes, slopes) - 1
        mixed_noise = mean(tables.mixed, weights) - 1
        c1, c2 = units.likeness
        if keeps_lengths:
            value_noise = value_noise - tables.square_he2**2 / 2 * c2
            slope_noise = slope_noise - tables.slope_he2**2 / 2 * c2
            mixed_noise = mixed_noise - tables.square_he2 * tables.slope_he2 / 2 * c2
        elif self.normalization == "layer":  # which fixes the length of an image, and its mean
            value_noise = value_noise - tables.square_he2**2 / 2 * c2 - tables.square_he1**2 * c1
            slope_noise = slope_noise - tables.slope_he2**2 / 2 * c2 - tables.slope_he1**2 * c1
        product = torch.from_numpy(np.interp(angle, tables.angles, tables.products))
        return Activated(
            units,
            square,
            slope2 / divisor,
            divisor,
            length_slope,
            value_noise,
            slope_noise,
            tables.own_slope,
            tables.slope_he2,
            mixed_noise,
            mean(tables.slopes**2, slopes),
            product * _products(square[:some].sqrt()),
        )

    def between(self, units: Units, ratio: float) -> Tensor:
        """Return J - 1 of units and of what they have become where a stream has grown, shape ``(some samples,)``.

        Args:
            units: The units.
            ratio: Correlation of a unit before and after.
        """
        angle = (units.c * ratio).acos().numpy()
        table = np.interp(angle, self._tables.angles, self._tables.squared_slopes)
        return torch.from_numpy(table).mean(dim=(1, 2)) - 1

    def _moments(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return E φ², E φ'² and the slope of log E φ² over log q, of any variances, by a table over them."""
        zero = torch.zeros(1, dtype=torch.float64)
        at_zero = self.phi(zero).square(), self.phi.value_and_slope(zero)[1].square(), zero
        alive = q > _SMALLEST
        if self.is_straight:
            m = Moments.at(self.phi, torch.ones(1, dtype=torch.float64))
            found = [m.square * q, m.slope2.expand_as(q), torch.ones_like(q)]
        else:
            logs = q.where(alive, 1.0).log()
            low, high = float(logs.min()), float(logs.max())
            grid = torch.linspace(low, high, _LENGTHS if high - low > 1e-9 else 1, dtype=torch.float64)
            m = Moments.at(self.phi, grid.exp())
            columns = (m.square.log(), m.slope2, m.u_value_slope / m.square)
            tabled = [torch.from_numpy(np.interp(logs.numpy(), grid.numpy(), c.numpy())) for c in columns]
            found = [tabled[0].exp(), tabled[1], tabled[2]]
        return tuple(torch.where(alive, value, zeroth) for value, zeroth in zip(found, at_zero, strict=True))  # type: ignore[return-value]


class _Tables:
    """Averages over two units of one variance, relative to those over one, over the angle between them.

    Where a function jumps, as relu's slope does, the rule is good to half a per cent, enough for noise.
    """

    def __init__(self, phi: Activation, q: float) -> None:
        m = Moments.at(phi, torch.tensor(q, dtype=torch.float64))
        self.angles = np.linspace(0, math.pi, _ANGLES)
        z, w = nodes(torch.tensor(q, dtype=torch.float64), phi.kinks)
        inside = z.abs() < _EDGE
        z, w = z[inside], w[inside]

        def functions(z: Tensor) -> Tensor:
            value, slope = phi.value_and_slope(math.sqrt(q) * z)
            return torch.stack([value, value.square(), slope, slope.square()])

        first = functions(z) * w
        pairs = []
        for angle in self.angles:
            other = functions(math.cos(angle) * z.unsqueeze(1) + math.sin(angle) * z) @ w
            pairs.append(torch.einsum("iz,jz->ij", first, other))
        table = torch.stack(pairs).numpy()
        square, slope2 = float(m.square), float(m.slope2)
        self.products = table[:, 0, 0] / square
        self.squares = table[:, 1, 1] / square**2
        self.slopes = table[:, 2, 2] / slope2
        self.squared_slopes = table[:, 3, 3] / slope2**2
        self.mixed = table[:, 1, 3] / (square * slope2)
        self.own_slope = float(m.slope4) / slope2**2
        # How much φ² and φ'² follow lengths (He₂) and means (He₁) of units.
        self.square_he2, self.slope_he2 = float(m.square_he2) / square, float(m.slope2_he2) / slope2
        self.square_he1, self.slope_he1 = float(m.square_he1) / square, float(m.slope2_he1) / slope2


_tables = functools.lru_cache(maxsize=32)(_Tables)
