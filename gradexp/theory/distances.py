"""How far two inputs are apart after many layers, with all digits of 1 - c where their correlation c is nearly 1."""

import math
from collections.abc import Callable

# Distance of two points on the axis of log(1 - c) at which the map is computed, and how many are interpolated. The
# power law of relu, log(1 - C) - log(1 - c) = -k (1 - c)^½, is then good to 1e-8 of itself, and so is what is left
# after any number of layers.
_STEP, _POINTS = 0.25, 6
# Below this 1 - c the map is its slope at c = 1: two inputs there differ by too few digits for the quadrature.
_NEAREST = 1e-14


class DistanceMap:
    """The map of 1 - c from one layer to the next, computed only where layers pass.

    Where χ₁ = 1 distances shrink like a power of the layer, by a factor that comes ever closer to 1. So log(1 - C) is
    interpolated over log(1 - c), whose error is a share of how far the factor is from 1. Beyond c = 0 it is
    log(1 + C) over log(1 + c): odd activations treat opposed inputs as they treat equal ones.

    Args:
        exact: The map of 1 - c.
        slope: Its slope at 0.
    """

    def __init__(self, exact: Callable[[float], float], slope: float) -> None:
        self.exact = exact
        self.slope = slope
        self.at_zero: float = exact(0.0)
        self.known: dict[tuple[bool, int], float] = {}

    def after(self, layers: int, distance: float) -> float:
        """Return 1 - c after some layers, from 1 - c = ``distance``, 0 to 2, at the first.

        Near the fixed point of a map that contracts nothing is left to follow, and the rest is left out.
        """
        for _ in range(layers):
            following = self._next(distance)
            if following == distance:
                break
            distance = following
        return distance

    def _next(self, distance: float) -> float:
        if distance == 2:
            return self.exact(distance)
        if distance < _NEAREST:
            return self.at_zero + self.slope * distance
        opposed = distance > 1
        near = self._interpolated(math.log(2 - distance if opposed else distance), opposed)
        return min(max(2 - near if opposed else near, 0.0), 2.0)

    def _interpolated(self, x: float, opposed: bool) -> float:
        """Return exp of the polynomial through the points around x, or the first ones."""
        first = max(math.floor(-x / _STEP) - _POINTS // 2 + 1, 0)
        at = -x / _STEP - first
        total = 0.0
        for k in range(_POINTS):
            weight = math.prod((at - j) / (k - j) for j in range(_POINTS) if j != k)
            total += weight * self._at(opposed, first + k)
        return math.exp(total)

    def _at(self, opposed: bool, index: int) -> float:
        if (opposed, index) not in self.known:
            near = math.exp(-index * _STEP)
            mapped = self.exact(2 - near if opposed else near)
            self.known[opposed, index] = math.log(max(2 - mapped if opposed else mapped, 1e-300))
        return self.known[opposed, index]
