"""Mean-field theory: what infinitely wide networks do to lengths, to angles and to gradients.

With zˡ = Wˡ φ(zˡ⁻¹) + bˡ, fan_in · Var(W) = sigma_w2 and Var(b) = sigma_b2, every unit of layer l is Gaussian with
variance qˡ, and averages E[·] below are over u from N(0, q) (Poole et al., 2016, arXiv:1606.05340; Schoenholz et
al., 2017, arXiv:1611.01232). Lengths and slopes are of squared norms, and natural logarithms are used throughout.
Numbers in comments are those of the equations in docs/theory.md, sections 2 and 3.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from gradexp.networks.activations import Activation, as_activation
from gradexp.numerics.roots import bracketed_root
from gradexp.theory.distances import DistanceMap
from gradexp.theory.gaussian import average, nodes, pair_average

# Stands for q = 0, where u has no size: φ follows its lines at 0 there, and φ² is still a number.
_SMALLEST, _LARGEST = 1e-200, 1e200
# A length that passes e^±300 on its way goes to 0 or infinity.
_FAR = 300.0
# chi and V(q) / q count as 1 within this; quadrature is good to about 1e-14.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Moments:
    """Gaussian averages at one or many variances q; ``z`` is u / √q, and each field has the shape of q.

    He₂ = z² - 1 and He₄ = z⁴ - 6z² + 3 turn derivatives by q into averages: d/dq E[f(u)] = E[f He₂] / 2q (5).
    """

    q: Tensor
    value: Tensor  # E φ
    square: Tensor  # E φ²
    slope2: Tensor  # E φ'²
    slope4: Tensor  # E φ'⁴
    fourth: Tensor  # E φ⁴
    square_slope2: Tensor  # E φ² φ'²
    value_slope: Tensor  # E φ φ'
    u_value_slope: Tensor  # E u φ φ'
    u2_slope2: Tensor  # E u² φ'²
    square_he1: Tensor  # E φ² z
    square_he2: Tensor  # E φ² He₂
    square_he4: Tensor  # E φ² He₄
    slope2_he1: Tensor  # E φ'² z
    slope2_he2: Tensor  # E φ'² He₂
    slope2_he4: Tensor  # E φ'² He₄

    @classmethod
    def at(cls, phi: Activation, q: Tensor) -> "Moments":
        """Return the averages for an activation."""
        q = q.clamp(_SMALLEST, _LARGEST)
        z, w = nodes(q, phi.kinks)
        root = q.sqrt().unsqueeze(-1)
        value, slope = phi.value_and_slope(root * z)
        square, slope2 = value.square(), slope.square()
        he2, u2 = z.square() - 1, (root * z).square()
        he4 = z.square().square() - 6 * he2 - 3

        averaged = (
            *(value, square, slope2, slope2.square(), square.square(), square * slope2, value * slope),
            *(root * z * value * slope, u2 * slope2, square * z, square * he2, square * he4),
            *(slope2 * z, slope2 * he2, slope2 * he4),
        )
        # In the order of the fields. As one product, since at one length each call takes longer than its numbers.
        return cls(q, *(torch.stack(averaged) * w).sum(dim=-1))

    def scaled(self, q: Tensor) -> "Moments":
        """Return the averages at lengths q from those at length 1, of a φ that is a line on either side of 0."""
        q = q.clamp(_SMALLEST, _LARGEST)
        powers = {**dict.fromkeys(_LIKE_ROOT, 0.5), **dict.fromkeys(_LIKE_Q, 1.0), "q": 1.0, "fourth": 2.0}
        return Moments(**{name: value * q ** powers.get(name, 0.0) for name, value in vars(self).items()})

    def thinned(self, keep: float) -> "Moments":
        """Return the averages behind dropout, where φ becomes φ / keep for a share ``keep`` of units and else 0."""
        if keep == 1:
            return self
        factors = {"q": 1.0, "value": 1.0} | dict.fromkeys(("slope4", "fourth", "square_slope2"), keep**-3)
        return Moments(**{name: value * factors.get(name, 1 / keep) for name, value in vars(self).items()})


# The averages that grow with √q and with q where φ is a line on either side of 0.
_LIKE_ROOT = ("value", "value_slope")
_LIKE_Q = ("square", "square_slope2", "u_value_slope", "u2_slope2", "square_he1", "square_he2", "square_he4")


class MeanField:
    """One point (sigma_w2, sigma_b2) of an activation's phase diagram.

    Args:
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        sigma_w2: fan_in · Var(W), at least 0.
        sigma_b2: Var(b), at least 0.
        negative_slope: The slope of ``leaky_relu`` below 0.
        kinks: Every z at which a function or a derivative of it jumps. Without them ``quadrature_error`` tells how
            far the averages can be trusted.
        start: The length q from which the fixed point is sought.
        dropout: The probability with which φ(z) is 0 in training, and else divided by what is left of 1; each input
            has masks of its own. E[φ²] and E[φ'²] grow by 1 / keep, so that relu is critical at 2 keep, and c* is
            below 1 everywhere: two equal inputs part (Schoenholz et al., 2017, section 5).

    Raises:
        ValueError: If a variance is negative or not finite, ``start`` is not above 0, or the activation is no
            elementwise function.

    Examples:
        >>> point = MeanField("tanh", sigma_w2=2.5, sigma_b2=0.05)
        >>> round(point.q_star, 4), round(point.chi_1, 4), round(point.c_star, 4)
        (1.064, 1.1335, 0.4468)
    """

    def __init__(
        self,
        activation: str | Activation | Callable[[Tensor], Tensor],
        sigma_w2: float,
        sigma_b2: float = 0.0,
        *,
        negative_slope: float = 0.01,
        kinks: Sequence[float] = (),
        start: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        for name, variance in (("sigma_w2", sigma_w2), ("sigma_b2", sigma_b2)):
            check_variance(name, variance)
        if not 0 < start < math.inf:
            raise ValueError(f"start must be above 0 and finite, got {start}")
        check_dropout(dropout)
        self.activation: Activation = usable_activation(activation, negative_slope, kinks)
        self.sigma_w2: float = float(sigma_w2)
        self.sigma_b2: float = float(sigma_b2)
        self.start: float = float(start)
        self.dropout: float = float(dropout)
        self._keep = 1 - self.dropout

    # Lengths.

    def length_map(self, q: float) -> float:
        """Return V(q) = sigma_w2 E[φ²] + sigma_b2, the length qˡ⁺¹ that follows qˡ = q."""
        m = self.moments(q)
        square = float(m.square)
        # Moments end where φ² would leave float64, and φ is a line by then.
        if (q < m.q and self._starts_at_zero) or (q > m.q and self._growth_at_infinity > 0):
            square *= q / float(m.q)
        return self.sigma_w2 * square + self.sigma_b2  # (8)

    def length_slope(self, q: float) -> float:
        """Return the slope of the length map, V' = sigma_w2 E[u φ φ'] / q."""
        m = self.moments(q)
        return float(self.sigma_w2 * m.u_value_slope / m.q)  # (9)

    def chi(self, q: float) -> float:
        """Return sigma_w2 E[φ'²], which is E‖δˡ‖² / E‖δˡ⁺¹‖² at a layer of length q.

        Also the slope of the correlation map at c = 1, and the mean squared singular value of one layer.
        """
        return float(self.sigma_w2 * self.moments(q).slope2)  # (10)

    def lengths(self, q: float, depth: int) -> list[float]:
        """Return q¹ … q^depth, the lengths of layers that begin with q¹ = q."""
        lengths = [q]
        while len(lengths) < depth:
            lengths.append(self.length_map(lengths[-1]))
        return lengths[:depth]

    @functools.cached_property
    def q_star(self) -> float:
        """The length to which layers converge from ``start``; inf if lengths grow for ever.

        Where every length is kept, as with relu at (2, 0), it is ``start``.
        """
        return self._fixed_length()

    @functools.cached_property
    def chi_1(self) -> float:
        """Chi at q*: above 1 gradients explode and inputs part (chaos), below 1 they vanish and align (order)."""
        return self._growth_at_infinity if self.q_star == math.inf else self.chi(self.q_star)

    @functools.cached_property
    def chi_q(self) -> float:
        """V', the slope of the length map, at q*: the factor per layer of a distance from the fixed length."""
        return self._growth_at_infinity if self.q_star == math.inf else self.length_slope(self.q_star)

    @functools.cached_property
    def is_homogeneous(self) -> bool:
        """Whether φ is a line on either side of 0 and there are no biases, so that V(q) / q is constant."""
        return self.sigma_b2 == 0 and is_piecewise_linear(self.activation)

    @functools.cached_property
    def is_marginal(self) -> bool:
        """Whether lengths reach their fixed point by no exponential, so that no depth scale describes them."""
        return not self.is_homogeneous and abs(self.chi_q - 1) < 1e-9

    # Angles.

    def correlation_map(self, c: float, q_a: float | None = None, q_b: float | None = None) -> float:
        """Return the correlation of two inputs at the next layer, from their correlation c at this one.

        C(c) = (sigma_w2 E[φ(u_a) φ(u_b)] + sigma_b2) / √(V(q_a) V(q_b)).

        Args:
            c: Correlation of u_a and u_b, from -1 to 1.
            q_a: Length of one input; None: q*.
            q_b: Length of the other; None: that of the one.

        Raises:
            ValueError: If c is outside [-1, 1], a length is negative or not finite, or there is no finite fixed point
                above 0 to stand for q_a.
        """
        if not -1 <= c <= 1:
            raise ValueError(f"c must be from -1 to 1, got {c}")
        q_a = self._finite_q_star() if q_a is None else q_a
        q_b = q_a if q_b is None else q_b
        for q in (q_a, q_b):
            check_variance("q", q)
        return 1 - self._next_distance(1 - c, *(min(max(q, _SMALLEST), _LARGEST) for q in (q_a, q_b)))

    @functools.cached_property
    def c_star(self) -> float:
        """The correlation to which any two inputs converge: 1 in the ordered phase, less in the chaotic one."""
        return 1 - self._fixed_distance

    def correlation_after(self, layers: int, c: float = 0.0) -> float:
        """Return the correlation after ``layers`` layers, from c at the first, at the fixed length.

        Raises:
            ValueError: If c is outside [-1, 1], or ``layers`` below 0.
        """
        return 1 - self.distance_after(layers, c)

    def distance_after(self, layers: int, c: float = 0.0, q: float | None = None) -> float:
        """Return 1 - ``correlation_after``, with its digits where two inputs look nearly alike.

        relu's 1 - c goes like 9π² / 2l² (Hayou et al., 2019, arXiv:1902.06853). The map is interpolated: good to 1e-6
        of a small 1 - c, and to 1e-4 of a large one.

        Args:
            layers: Number of layers.
            c: Correlation at the first.
            q: Length of both inputs at all layers; None: q*. Layer normalisation makes it 1.

        Raises:
            ValueError: If c is outside [-1, 1], ``layers`` below 0, or q not above 0.

        Examples:
            >>> f"{MeanField('relu', 2.0).distance_after(1000):.2e}"
            '4.31e-05'
        """
        if not -1 <= c <= 1:
            raise ValueError(f"c must be from -1 to 1, got {c}")
        if layers < 0:
            raise ValueError(f"layers must be at least 0, got {layers}")
        if q is not None and not 0 < q < math.inf:
            raise ValueError(f"q must be above 0 and finite, got {q}")
        return self._distance_map(self._settled_length if q is None else q).after(layers, 1 - c)

    @functools.cached_property
    def _fixed_distance(self) -> float:
        """1 - c*, with its digits just inside chaos; 0 where it is too small to be found."""
        if not self.dropout and (self.chi_1 <= 1 + _ROUNDING or not 0 < self.q_star < math.inf):
            return 0.0
        q = self._settled_length

        def excess(log_distance: float) -> float:
            distance = math.exp(log_distance)
            return self._next_distance(distance, q, q) / distance - 1

        # excess is log chi_1 > 0 near distance 0, and at most 0 at correlation 0, where it is 0 for an odd φ.
        if excess(0.0) > -_ROUNDING:
            return 1.0
        low = -1.0
        while excess(low) <= 0:
            low -= 2
            if low < -30:
                return 0.0
        return math.exp(bracketed_root(excess, low, 0.0))

    @property
    def _settled_length(self) -> float:
        """q*; where there is none above 0, one at which φ follows the line that it has there."""
        if 0 < self.q_star < math.inf:
            return self.q_star
        return self.start if self.is_homogeneous else 1e-12 if self.q_star == 0 else 1e12

    def _distance_map(self, q: float) -> DistanceMap:
        if q not in self._distance_maps:
            length = self.length_map(q)
            slope = self.chi(q) * self._keep * q / length if length else 0.0
            self._distance_maps[q] = DistanceMap(lambda distance: self._next_distance(distance, q, q), slope)
        return self._distance_maps[q]

    @functools.cached_property
    def _distance_maps(self) -> dict[float, DistanceMap]:
        return {}

    # Depth scales, in layers.

    @functools.cached_property
    def xi_q(self) -> float:
        """-1 / log chi_q, over which the distance from the fixed length shrinks by e; 0 if at once."""
        return _scale(self.chi_q)

    @functools.cached_property
    def xi_c(self) -> float:
        """-1 / log(sigma_w2 E[φ'(u_a) φ'(u_b)] at c*), over which two inputs lose their difference from c*.

        In the ordered phase that is xi_grad, also where lengths go to 0 and angles do so more slowly.
        """
        if self._fixed_distance == 0:
            # Where lengths grow for ever, angles are what is left, and those shrink by no exponential (14). Of a c*
            # that is too near 1 to be told from it inputs come as slowly nearer as they part from 1.
            return math.inf if self.q_star == math.inf else abs(_scale(self.chi_1))
        q = self._settled_length

        def product(u_a: Tensor, u_b: Tensor) -> Tensor:
            return self.activation.value_and_slope(u_a)[1] * self.activation.value_and_slope(u_b)[1]

        together = pair_average(product, q, q, self._fixed_distance, self.activation.kinks)
        return _scale(self.sigma_w2 * together * q / self.length_map(q))

    @functools.cached_property
    def xi_grad(self) -> float:
        """-1 / log chi_1, over which ‖δ‖² shrinks by e towards the input; negative: grows, inf: keeps its size."""
        return _scale(self.chi_1)

    @functools.cached_property
    def quadrature_error(self) -> float:
        """Largest estimated relative error of the averages at q* (at ``start`` if that is 0 or inf)."""
        q = self.q_star if 0 < self.q_star < math.inf else self.start
        phi = self.activation
        errors = []
        for f in (lambda u: phi(u).square(), lambda u: phi.value_and_slope(u)[1].square()):
            value, error = average(f, q, phi.kinks)
            errors.append(error / value if value else 0.0)
        return max(errors)

    def moments(self, q: float) -> Moments:
        """Return the Gaussian averages at one length.

        Raises:
            ValueError: If ``q`` is negative or not finite.
        """
        if not 0 <= q < math.inf:
            raise ValueError(f"q must be at least 0 and finite, got {q}")
        return _moments(self.activation, q).thinned(self._keep)

    def _next_distance(self, distance: float, q_a: float, q_b: float) -> float:
        """Map 1 - c, keeping the digits that 1 - C(c) would lose near c = 1."""
        phi, w2, b2 = self.activation, self.sigma_w2, self.sigma_b2
        next_a, next_b = self.length_map(q_a), self.length_map(q_b)
        if q_a == q_b:
            apart = pair_average(lambda a, b: (phi(a) - phi(b)).square(), q_a, q_b, distance, phi.kinks)
            if self.dropout:  # two masks
                apart += 2 * (1 - self._keep) * float(self.moments(q_a).square)
            return w2 * apart / (2 * next_a) if next_a else 0.0  # (12)
        product = pair_average(lambda a, b: phi(a) * phi(b), q_a, q_b, distance, phi.kinks)
        return 1 - (w2 * product + b2) / math.sqrt(next_a * next_b)  # (11)

    def _fixed_length(self) -> float:
        """Follow the sign of V(q) - q from ``start`` to the first root."""
        if self.is_homogeneous:
            growth = self._growth_at_zero
            return self.start if abs(growth - 1) < _ROUNDING else 0.0 if growth < 1 else math.inf

        def excess(log_q: float) -> float:
            q = math.exp(log_q)
            return self.length_map(q) / q - 1

        log_q = math.log(self.start)
        value = excess(log_q)
        if value == 0:
            return self.start
        direction = 1 if value > 0 else -1
        step = 0.1
        while abs(log_q) < _FAR:
            next_log_q = log_q + direction * step
            next_excess = excess(next_log_q) * direction
            # On a line of slope 1 what is left of the excess is rounding, and no root.
            if (
                abs(next_excess) < 1e-13
                and abs((self._growth_at_zero, self._growth_at_infinity)[direction > 0] - 1) < 1e-9
            ):
                return math.inf if direction > 0 else 0.0
            if next_excess <= 0:
                low, high = sorted((log_q, next_log_q))
                return math.exp(bracketed_root(excess, low, high))
            log_q, step = next_log_q, min(step * 1.2, 5)
        return math.inf if direction > 0 else 0.0

    def _finite_q_star(self) -> float:
        if not 0 < self.q_star < math.inf:
            raise ValueError(f"lengths converge to {self.q_star:g} at {self}; give q_a")
        return self.q_star

    @functools.cached_property
    def _starts_at_zero(self) -> bool:
        return self.sigma_b2 == 0 and float(self.activation(torch.zeros((), dtype=torch.float64))) == 0

    @functools.cached_property
    def _growth_at_zero(self) -> float:
        """V(q) / q for q to 0, where φ(0) = 0 and there are no biases."""
        return self.sigma_w2 * mean_squared_slope(self.activation.slopes_at_zero) / self._keep

    @functools.cached_property
    def _growth_at_infinity(self) -> float:
        return self.sigma_w2 * mean_squared_slope(self.activation.slopes_at_infinity) / self._keep

    def __repr__(self) -> str:
        return f"sigma_w2={self.sigma_w2:g}, sigma_b2={self.sigma_b2:g}"


def usable_activation(
    activation: str | Activation | Callable[[Tensor], Tensor], negative_slope: float, kinks: Sequence[float]
) -> Activation:
    """Return ``as_activation``, checked to be finite between -3 and 3.

    Raises:
        ValueError: If it is not finite there, or as in ``as_activation``.
    """
    phi = as_activation(activation, negative_slope, kinks)
    if not phi(torch.linspace(-3, 3, 13, dtype=torch.float64)).isfinite().all():
        name = getattr(activation, "__name__", None) or type(activation).__name__
        raise ValueError(f"activation must be finite for every z; {name} is not, between -3 and 3")
    return phi


def check_variance(name: str, value: float) -> None:
    """Check that a variance is a number that is not negative.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a variance, at least 0 and finite, got {value!r}")


def check_dropout(value: float) -> None:
    """Check that a probability of dropout is at least 0 and below 1.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, Real) or not 0 <= value < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, got {value!r}")


def is_piecewise_linear(phi: Activation) -> bool:
    """Return whether φ is a line through 0 on either side of 0, as linear, relu and leaky_relu are."""
    z = torch.tensor([1e-3, 0.1, 0.7, 1, 3, 50, 1e4], dtype=torch.float64)
    below, above = phi.slopes_at_zero
    return torch.allclose(phi(z), above * z, rtol=1e-12, atol=0) and torch.allclose(
        phi(-z), -below * z, rtol=1e-12, atol=0
    )


def share_without_slope(phi: Activation, q: float) -> float:
    """Return the probability that φ' is exactly 0 at u from N(0, q): 1/2 for relu, P(|u| > 1) for hard_tanh."""
    variance = torch.tensor(q, dtype=torch.float64).clamp(_SMALLEST, _LARGEST)
    z, w = nodes(variance, phi.kinks)
    return float(w[phi.value_and_slope(variance.sqrt() * z)[1] == 0].sum())


def is_flat_somewhere(phi: Activation) -> bool:
    """Return whether φ' is exactly 0 over some stretch, as relu's, so that a unit may let no gradient through."""
    z = torch.tensor([1e-3, 0.1, 0.7, 2, 5, 20], dtype=torch.float64)
    return bool((phi.value_and_slope(torch.cat([-z, z]))[1] == 0).any())


@functools.lru_cache(maxsize=4096)
def _moments(phi: Activation, q: float) -> Moments:
    return Moments.at(phi, torch.tensor(q, dtype=torch.float64))


def mean_squared_slope(slopes: tuple[float, float]) -> float:
    """Return the mean of the squares of a pair of slopes, E φ'² of a φ that is a line on either side of 0."""
    return (slopes[0] * slopes[0] + slopes[1] * slopes[1]) / 2  # inf where ** 2 would raise OverflowError


def _scale(factor: float) -> float:
    """Return -1 / log factor (13)."""
    if factor <= 0:
        return 0.0
    return math.inf if abs(factor - 1) < _ROUNDING else -1 / math.log(factor)
