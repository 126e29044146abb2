"""Hermite series of an activation: how the correlation of two inputs goes on, at many lengths at once.

With φ(√q z) = Σ a_n h_n(z), h_n the normalised Hermite polynomials, E[φ(u_a) φ(u_b)] = Σ a_n² cⁿ at correlation c
(Mehler's formula), and likewise for φ' (Poole et al., 2016; Daniely et al., 2016, arXiv:1602.05897). One quadrature
over one variable gives a_n, and every correlation after that costs a sum, where ``pair_average`` takes a quadrature
over two variables for each.
"""

import math

import torch
from torch import Tensor

from gradexp.networks.activations import Activation
from gradexp.theory.gaussian import legendre

# Terms of the series. The coefficients of a function with poles at z = ±is fall as exp(-s √(2n)).
_TERMS = 560
# φ √density is below float64's last digit beyond; h_n oscillates with a wavelength of about 0.26 at least inside.
_EDGE, _PANELS = 13.0, 104
# Share of E φ'² that may be missing in the series.
_MISSING = 1e-13
# Lengths beyond are sharper than the panels.
_LONGEST = 30.0


class HermiteSeries:
    """Squared coefficients of φ and of φ' at many lengths.

    Args:
        phi: The activation.
        q: Lengths, above 0, shape ``(point,)``.
        slope2: E φ'² at each, by a rule of its own.
    """

    def __init__(self, phi: Activation, q: Tensor, slope2: Tensor) -> None:
        z, weighted = _functions()
        value, slope = phi.value_and_slope(q.sqrt().unsqueeze(1) * z)
        self.value2: Tensor = (value @ weighted).square()
        self.slope2: Tensor = (slope @ weighted).square()
        self.is_whole: Tensor = (q <= _LONGEST) & ((slope2 - self.slope2.sum(1)).abs() <= _MISSING * slope2)
        """Where the series holds all of φ': what it misses of ``pair_average`` is that share of it at most."""

    def apart(self, distance: Tensor) -> Tensor:
        """Return E[(φ(u_a) - φ(u_b))²] / 2 = Σ a_n² (1 - cⁿ) at 1 - c = ``distance``, with all digits near 0."""
        return -(self.value2 * torch.expm1(_exponents(distance))).sum(1)

    def slopes_together(self, distance: Tensor) -> Tensor:
        """Return E[φ'(u_a) φ'(u_b)] at 1 - c = ``distance``."""
        return (self.slope2 * torch.exp(_exponents(distance))).sum(1)


def _exponents(distance: Tensor) -> Tensor:
    """Return n log c, shape ``(point, term)``; of c = 0 the term n = 0 is left."""
    order = torch.arange(_TERMS, dtype=torch.float64)
    log_c = torch.log1p(-distance).clamp(min=-1e300).unsqueeze(1)
    return order * log_c


_made: list[tuple[Tensor, Tensor]] = []


def _functions() -> tuple[Tensor, Tensor]:
    """Return nodes z, and weight · density · h_n(z) at each, shape ``(node, term)``."""
    if not _made:
        at, weight = legendre(16)
        half = _EDGE / _PANELS
        middle = torch.arange(1 - _PANELS, _PANELS, 2, dtype=torch.float64) * half
        z = (middle.unsqueeze(1) + half * at).flatten()
        w = (half * weight).expand(_PANELS, -1).flatten()
        root = torch.exp(-0.25 * z.square()) / (2 * math.pi) ** 0.25  # of the density: h_n alone would overflow
        terms = [root, z * root]
        for n in range(1, _TERMS - 1):
            terms.append((z * terms[n] - math.sqrt(n) * terms[n - 1]) / math.sqrt(n + 1))
        _made.append((z, torch.stack(terms, dim=1) * (w * root).unsqueeze(1)))
    return _made[0]
