"""Gaussian averages against closed forms, series and one-dimensional reductions."""

import math
from collections.abc import Callable
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from cases import few
from scipy.integrate import quad
from torch import Tensor

from gradexp.networks.activations import activation
from gradexp.theory.gaussian import average, nodes, pair_average

LENGTHS = (1e-200, 1e-6, 0.01, 1.0, 30.0, 1e6, 1e200)
DISTANCES = (0, 1e-12, 1e-6, 0.01, 0.3, 1, 1.9, 1.999, 2)
PAIRS = ((1, 1), (1e-6, 1e-6), (100, 100), (1, 2), (1e-3, 1e4), (1e4, 1e-3))


def density(z: float) -> float:
    return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def above(z: float) -> float:
    """P(N(0, 1) > z)."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def one_dimensional(f: Callable[[float], float], breaks: list[float]) -> float:
    """E f(z) by scipy, between breaks."""
    points = sorted({-12.0, 0.0, 12.0, *(at for at in breaks if abs(at) < 12)})
    parts = pairwise(points)
    return sum(quad(lambda z: f(z) * density(z), a, b, epsabs=1e-14, epsrel=1e-12, limit=200)[0] for a, b in parts)


@pytest.mark.parametrize("q", LENGTHS)
def test_even_powers_have_the_moments_of_a_gaussian(q: float) -> None:
    z, w = nodes(torch.tensor(q, dtype=torch.float64))
    for power, moment in ((0, 1), (2, 1), (4, 3), (6, 15), (8, 105), (10, 945)):
        assert (w * z**power).sum().item() == pytest.approx(moment, rel=1e-13)
        assert abs((w * z ** (power + 1)).sum().item()) < 1e-12 * moment


def test_each_variance_of_a_batch_has_its_kinks_in_its_own_place() -> None:
    q = torch.tensor([[1e-6, 0.3], [7.0, 1e6]], dtype=torch.float64)
    z, w = nodes(q, kinks=(-0.4, 1.7))
    assert z.shape == w.shape == (2, 2, z.shape[-1])
    assert (w * (q.sqrt().unsqueeze(-1) * z > 1.7)).sum(-1).flatten().tolist() == pytest.approx(
        [above(1.7 / math.sqrt(v)) for v in q.flatten().tolist()], rel=1e-13, abs=1e-300
    )
    assert (w * (q.sqrt().unsqueeze(-1) * z < -0.4)).sum(-1).flatten().tolist() == pytest.approx(
        [above(0.4 / math.sqrt(v)) for v in q.flatten().tolist()], rel=1e-13, abs=1e-300
    )


@pytest.mark.parametrize("q", [1e-6, 0.01, 1.0, 30.0, 100.0])
def test_averages_of_waves_and_exponentials_are_their_closed_forms(q: float) -> None:
    assert average(torch.cos, q)[0] == pytest.approx(math.exp(-q / 2), rel=1e-12, abs=1e-13)
    assert average(torch.exp, q)[0] == pytest.approx(math.exp(q / 2), rel=1e-12)
    assert average(lambda u: u * torch.exp(u), q)[0] == pytest.approx(q * math.exp(q / 2), rel=1e-12)


@pytest.mark.parametrize("q", LENGTHS)
@pytest.mark.parametrize("kink", [0.0, 1.7, -1.7, 5.0])
def test_a_kink_where_it_is_named_costs_no_accuracy(q: float, kink: float) -> None:
    at = kink / math.sqrt(q)
    expected = math.sqrt(q) * density(at) - kink * above(at) if at < 38 else 0.0
    value, error = average(lambda u: torch.relu(u - kink), q, (kink,))
    # The tail beyond 5 standard deviations is a difference of two numbers that are nearly alike.
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-15 * math.sqrt(q))
    assert error < 1e-11 * max(expected, math.sqrt(q))


@pytest.mark.parametrize("q", [1.0, 1.3, 50.0, 1e4])
def test_a_kink_that_is_not_named_shows_in_the_estimated_error(q: float) -> None:
    at = 1.7 / math.sqrt(q)
    expected = q * (1 - 2 * above(at)) - 2 * 1.7 * math.sqrt(q) * density(at) + 2 * 1.7**2 * above(at)
    named, error_named = average(lambda u: u.clamp(-1.7, 1.7).square(), q, (-1.7, 1.7))
    assert named == pytest.approx(expected, rel=1e-13)
    assert error_named < 1e-13 * expected
    unnamed, error = average(lambda u: u.clamp(-1.7, 1.7).square(), q)
    assert 1e-7 * expected < error < 0.1 * expected
    assert unnamed == pytest.approx(expected, abs=5 * error)


@pytest.mark.parametrize(("shift", "q"), few([(5, 0.3), (20, 100.0), (5, 1.6), (5, 100.0), (5, 1e6), (50, 1e6)], 2))
def test_features_away_from_0_are_found_or_the_estimated_error_says_not(shift: float, q: float) -> None:
    with mpmath.workdps(20):
        root = mpmath.sqrt(q)
        points = [-12 * root, *sorted([0.0, shift - 8, shift - 2, shift, shift + 2, shift + 8]), 12 * root]
        points = sorted(point for point in points if abs(point) <= 12 * root)
        expected = float(
            mpmath.quad(lambda u: mpmath.sech(u - shift) ** 4 * mpmath.npdf(u, 0, root), points, maxdegree=8)
        )
    value, error = average(lambda u: torch.cosh(u - shift).pow(-4), q)
    assert abs(value - expected) < 2 * error + 1e-13 * expected  # an estimate, not a bound
    if shift == 5:
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("q", [0, -1.0, math.nan, math.inf])
def test_no_average_without_a_variance(q: float) -> None:
    with pytest.raises(ValueError, match="q must be above 0 and finite, got"):
        average(torch.tanh, q)


def erf_pair(q_a: float, q_b: float, distance: float) -> mpmath.mpf:
    a, b, c = mpmath.mpf(q_a), mpmath.mpf(q_b), 1 - mpmath.mpf(distance)
    return 2 / mpmath.pi * mpmath.asin(2 * mpmath.sqrt(a * b) * c / mpmath.sqrt((1 + 2 * a) * (1 + 2 * b)))


def erf_slope_pair(q_a: float, q_b: float, distance: float) -> mpmath.mpf:
    a, b, c = mpmath.mpf(q_a), mpmath.mpf(q_b), 1 - mpmath.mpf(distance)
    return 4 / mpmath.pi / mpmath.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * a * b * c * c)


def relu_pair(q_a: float, q_b: float, distance: float) -> mpmath.mpf:
    c = 1 - mpmath.mpf(distance)
    angle = mpmath.acos(c)
    return mpmath.sqrt(mpmath.mpf(q_a) * q_b) * (mpmath.sin(angle) + (mpmath.pi - angle) * c) / (2 * mpmath.pi)


def relu_slope_pair(_q_a: float, _q_b: float, distance: float) -> mpmath.mpf:
    return (mpmath.pi - mpmath.acos(1 - mpmath.mpf(distance))) / (2 * mpmath.pi)


def product(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: activation(name)(a) * activation(name)(b)


def slope_product(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: activation(name).value_and_slope(a)[1] * activation(name).value_and_slope(b)[1]


CLOSED = {
    "erf": (product("erf"), erf_pair),
    "erf slope": (slope_product("erf"), erf_slope_pair),
    "relu": (product("relu"), relu_pair),
    "relu slope": (slope_product("relu"), relu_slope_pair),
}


@pytest.mark.parametrize(("q_a", "q_b"), few(PAIRS))
@pytest.mark.parametrize("case", CLOSED)
def test_pairs_of_erf_and_relu_are_their_closed_forms(case: str, q_a: float, q_b: float) -> None:
    f, closed = CLOSED[case]
    kinks = activation(case.split()[0]).kinks
    for distance in DISTANCES:
        with mpmath.workdps(40):
            expected = float(closed(q_a, q_b, distance))
            size = float(mpmath.sqrt(closed(q_a, q_a, 0) * closed(q_b, q_b, 0)))
        assert pair_average(f, q_a, q_b, distance, kinks) == pytest.approx(expected, rel=1e-12, abs=1e-14 * size)


@pytest.mark.parametrize("q", few([1.0, 1e-6, 1e6]))
@pytest.mark.parametrize(("name", "closed"), [("erf", erf_pair), ("relu", relu_pair)])
@pytest.mark.parametrize("distance", [1e-12, 1e-9, 1e-4, 0.3, 1.999])
def test_a_small_distance_keeps_its_digits(
    name: str, closed: Callable[..., mpmath.mpf], distance: float, q: float
) -> None:
    phi = activation(name)
    with mpmath.workdps(50):
        expected = float(2 * (closed(q, q, 0) - closed(q, q, distance)))
    apart = pair_average(lambda a, b: (phi(a) - phi(b)).square(), q, q, distance, phi.kinks)
    assert apart == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("name", few(["tanh", "sigmoid", "gelu", "silu", "softplus"]))
@pytest.mark.parametrize(("q_a", "q_b"), [(1.0, 1.0), (0.5, 1.5)])
def test_pairs_of_smooth_activations_are_their_mehler_series(name: str, q_a: float, q_b: float) -> None:
    """E φ(u_a) φ(u_b) = Σ c^k a_k b_k, with a_k the coefficients of φ(√q_a z) in normalised Hermite polynomials."""
    z, w = np.polynomial.hermite_e.hermegauss(180)
    w = w / w.sum()
    phi = activation(name)
    polynomials = [np.ones_like(z), z]
    for k in range(2, 90):
        polynomials.append((z * polynomials[-1] - math.sqrt(k - 1) * polynomials[-2]) / math.sqrt(k))
    a, b = (
        [
            float((w * polynomial * phi(torch.from_numpy(math.sqrt(q) * z)).numpy()).sum())
            for polynomial in polynomials
        ]
        for q in (q_a, q_b)
    )
    for c in (-0.7, -0.2, 0.0, 0.4, 0.7):
        series = sum(c**k * x * y for k, (x, y) in enumerate(zip(a, b, strict=True)))
        assert pair_average(product(name), q_a, q_b, 1 - c) == pytest.approx(series, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("q_a", "q_b"), few([(0.3, 0.5), (0.5, 0.3), (1, 1), (100, 0.1)]))
def test_pairs_of_hard_tanh_are_integrals_over_one_variable(q_a: float, q_b: float) -> None:
    root_a, root_b = math.sqrt(q_a), math.sqrt(q_b)

    def ramp(x: float) -> float:  # ∫ P(z < x) dx
        return x * above(-x) + density(x)

    def clipped_mean(mean: float, deviation: float) -> float:
        if deviation == 0:
            return max(-1.0, min(1.0, mean))
        return deviation * (ramp((mean + 1) / deviation) - ramp((mean - 1) / deviation)) - 1

    phi = activation("hard_tanh")
    for distance in (0, 1e-6, 0.1, 1, 1.99, 2):
        c, s = 1 - distance, math.sqrt(distance * (2 - distance))
        expected = one_dimensional(
            lambda z, c=c, s=s: max(-1.0, min(1.0, root_a * z)) * clipped_mean(root_b * c * z, root_b * s),
            [sign * (1 / root + j * s) for sign in (-1, 1) for root in (root_a, root_b) for j in (-6, -2, 0, 2, 6)],
        )
        value = pair_average(lambda a, b: phi(a) * phi(b), q_a, q_b, distance, phi.kinks)
        assert value == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("q_a", "q_b"), few([(4, 1), (1, 1), (100, 0.1)]))
@pytest.mark.parametrize("kink", few([-1.0, 1.0, -3.0], 2))
def test_a_kink_on_one_side_is_met_at_every_correlation(kink: float, q_a: float, q_b: float) -> None:
    root_a, root_b = math.sqrt(q_a), math.sqrt(q_b)
    size = math.sqrt(
        one_dimensional(lambda z: max(root_a * z - kink, 0) ** 2, [kink / root_a])
        * one_dimensional(lambda z: max(root_b * z - kink, 0) ** 2, [kink / root_b])
    )
    for distance in (0, 1e-6, 0.1, 1, 1.99, 2 - 1e-5, 2):
        c, s = 1 - distance, math.sqrt(distance * (2 - distance))

        def bent(z: float, c: float = c, s: float = s) -> float:
            mean, deviation = root_b * c * z - kink, root_b * s
            if s == 0:
                second = max(mean, 0)
            else:
                second = mean * above(-mean / deviation) + deviation * density(mean / deviation)
            return max(root_a * z - kink, 0) * second

        at = kink / (root_b * c) if c else 0.0
        expected = one_dimensional(bent, [kink / root_a, *(at + j * s for j in (-8, -4, -2, 0, 2, 4, 8))])
        value = pair_average(lambda a, b: torch.relu(a - kink) * torch.relu(b - kink), q_a, q_b, distance, (kink,))
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12 * size)


def test_uncorrelated_variables_average_apart() -> None:
    value = pair_average(lambda a, b: torch.exp(a) * torch.cos(b), 0.7, 2.0, 1.0)
    assert value == pytest.approx(math.exp(0.35 - 1), rel=1e-12)


def test_the_two_variables_are_not_mixed_up() -> None:
    value = pair_average(lambda a, b: a.square() * torch.erf(b), 4.0, 0.25, 0.4)
    assert value == pytest.approx(0, abs=1e-13)
    value = pair_average(lambda a, b: a * torch.erf(b), 4.0, 0.25, 0.4)
    # Stein: E a f(b) = cov(a, b) E f'(b).
    assert value == pytest.approx(0.6 * 2 * 0.5 * 2 / math.sqrt(math.pi) / math.sqrt(1.5), rel=1e-12)
