"""Mean-field theory against closed forms, quadrature with 30 digits and iterated maps."""

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from cases import few
from mpmath import mp, mpf
from scipy.optimize import brentq
from torch import Tensor, nn

from gradexp.networks.activations import ACTIVATIONS, Activation, activation, as_activation
from gradexp.theory.critical import critical_line, critical_range, critical_sigma_b2, critical_sigma_w2
from gradexp.theory.mean_field import MeanField, Moments, is_piecewise_linear

# φ and φ' with all digits that mpmath is told to keep.
_SCALE = mpf("1.0507009873554804934193349852946")
_ALPHA = mpf("1.6732632423543772848170429916717")


def _sigmoid(z: mpf) -> mpf:
    return 1 / (1 + mp.exp(-z))


EXACT: dict[str, Callable[[mpf], tuple[mpf, mpf]]] = {
    "linear": lambda z: (z, mpf(1)),
    "tanh": lambda z: (mp.tanh(z), mp.sech(z) ** 2),
    "relu": lambda z: (z, mpf(1)) if z > 0 else (mpf(0), mpf(0)),
    "sigmoid": lambda z: (_sigmoid(z), _sigmoid(z) * _sigmoid(-z)),
    "leaky_relu": lambda z: (z, mpf(1)) if z > 0 else (mpf(0.01) * z, mpf(0.01)),
    "hard_tanh": lambda z: (z, mpf(1)) if abs(z) < 1 else (mp.sign(z), mpf(0)),
    "erf": lambda z: (mp.erf(z), 2 / mp.sqrt(mp.pi) * mp.exp(-z * z)),
    "elu": lambda z: (z, mpf(1)) if z > 0 else (mp.expm1(z), mp.exp(z)),
    "selu": lambda z: (_SCALE * z, _SCALE) if z > 0 else (_SCALE * _ALPHA * mp.expm1(z), _SCALE * _ALPHA * mp.exp(z)),
    "gelu": lambda z: (z * mp.ncdf(z), mp.ncdf(z) + z * mp.npdf(z)),
    "silu": lambda z: (z * _sigmoid(z), _sigmoid(z) + z * _sigmoid(z) * _sigmoid(-z)),
    "softplus": lambda z: (mp.log1p(mp.exp(z)), _sigmoid(z)),
    "softsign": lambda z: (z / (1 + abs(z)), 1 / (1 + abs(z)) ** 2),
}
FIELDS = [field for field in Moments.__dataclass_fields__ if field != "q"]


def rule(q: mpf, kinks: tuple[float, ...]) -> list[tuple[mpf, mpf]]:
    """Points u and weights for ∫ du: the trapezoidal rule after a change of variables, where it converges fastest.

    Without kinks u = sinh t; beyond the outermost kinks u = exp(t - exp(-t)), and between two u = tanh(sinh t).
    """
    root = mp.sqrt(q)
    size = min(root, mpf(1))
    points = []
    if not kinks:
        step = mpf(1) / 10
        last = int(mp.asinh(40 * root / size) / step) + 1
        return [(size * mp.sinh(k * step), step * size * mp.cosh(k * step)) for k in range(-last, last + 1)]
    step = mpf(1) / 18
    inner = sorted({*kinks, *([0.0] if len(kinks) > 1 else [])})
    for start, sign in ((inner[-1], 1), (inner[0], -1)):
        for k in range(-int(5 / step), int(mp.log(41 * root / size) / step) + 3):
            t = k * step
            away = size * mp.exp(t - mp.exp(-t))
            points.append((start + sign * away, step * away * (1 + mp.exp(-t))))
    for low, high in pairwise(inner):
        low, high = max(mpf(low), -12 * root), min(mpf(high), 12 * root)
        for k in range(-int(4 / step), int(4 / step) + 1):
            x = mp.pi / 2 * mp.sinh(k * step)
            weight = step * mp.pi / 2 * mp.cosh(k * step) / mp.cosh(x) ** 2
            points.append(((low + high) / 2 + (high - low) / 2 * mp.tanh(x), (high - low) / 2 * weight))
    return points


@functools.cache
def exact_moments(name: str, q: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return every field of ``Moments``, and the same averages of absolute values."""
    with mp.workdps(30):
        root = mp.sqrt(mpf(q))
        total, size = dict.fromkeys(FIELDS, mpf(0)), dict.fromkeys(FIELDS, mpf(0))
        for u, weight in rule(mpf(q), ACTIVATIONS[name].kinks):
            z = u / root
            if abs(z) > 39:
                continue
            w = weight / root * mp.npdf(z)
            v, d = EXACT[name](u)
            v2, d2, z2 = v * v, d * d, z * z
            he2, he4 = z2 - 1, z2 * z2 - 6 * z2 + 3
            terms = {
                "value": v,
                "square": v2,
                "slope2": d2,
                "slope4": d2 * d2,
                "fourth": v2 * v2,
                "square_slope2": v2 * d2,
                "value_slope": v * d,
                "u_value_slope": u * v * d,
                "u2_slope2": u * u * d2,
                "square_he1": v2 * z,
                "square_he2": v2 * he2,
                "square_he4": v2 * he4,
                "slope2_he1": d2 * z,
                "slope2_he2": d2 * he2,
                "slope2_he4": d2 * he4,
            }
            for field, term in terms.items():
                total[field] += w * term
                size[field] += abs(w * term)
        return {k: float(v) for k, v in total.items()}, {k: float(v) for k, v in size.items()}


def exact(name: str, field: str, q: float) -> float:
    return exact_moments(name, q)[0][field]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Averages.


@pytest.mark.parametrize(
    ("name", "q"),
    [
        ("tanh", 0.3),
        ("selu", 1e-6),
        ("gelu", 1e6),
        *few([(name, 0.3) for name in EXACT if name != "tanh"], 0),
        *few([("tanh", 30.0), ("hard_tanh", 1e6), ("relu", 1e-6)], 0),
    ],
)
def test_moments_of_every_activation_agree_with_30_digits(name: str, q: float) -> None:
    moments = Moments.at(activation(name), torch.tensor(q, dtype=torch.float64))
    expected, size = exact_moments(name, q)
    assert moments.q.item() == q
    # Of averages that cancel, such as those with He₄, float64 can keep but digits of the average of absolute values.
    # torch's softplus is the line z from z = 20 on, which is 2e-9 off.
    rounding = 4e-10 if name == "softplus" else 2e-13
    for field in FIELDS:
        value = getattr(moments, field).item()
        assert value == pytest.approx(expected[field], rel=1e-9, abs=rounding * size[field] + 1e-300), field


@pytest.mark.parametrize("name", ["linear", "relu", "leaky_relu"])
@pytest.mark.parametrize("q", few([1e-6, 0.3, 7e5]))
def test_averages_of_two_lines_follow_from_those_at_length_1(name: str, q: float) -> None:
    moments = Moments.at(activation(name), torch.tensor(1.0, dtype=torch.float64)).scaled(tensor(q, 1.0))
    expected, size = exact_moments(name, q)
    for field in FIELDS:
        value = getattr(moments, field)[0].item()
        assert value == pytest.approx(expected[field], rel=1e-12, abs=2e-13 * size[field] + 1e-300), field


def test_every_activation_has_a_reference() -> None:
    assert set(EXACT) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", EXACT)
def test_hermite_averages_are_derivatives_by_the_length(name: str) -> None:
    """By Stein's lemma, and since q d/dq E f = E[f He₂] / 2 and q² d²/dq² E f = E[f He₄] / 4."""
    phi, q, h = activation(name), 0.8, 0.02
    m = Moments.at(phi, tensor(*(q * math.exp(k * h) for k in (-2, -1, 0, 1, 2))))
    at = 2
    assert m.square_he1[at].item() == pytest.approx(2 * math.sqrt(q) * m.value_slope[at].item(), rel=1e-11, abs=1e-14)
    assert m.square_he2[at].item() == pytest.approx(2 * m.u_value_slope[at].item(), rel=1e-11)
    for field in ("square", "slope2"):
        f = getattr(m, field).tolist()
        first = (f[0] - 8 * f[1] + 8 * f[3] - f[4]) / (12 * h)
        second = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * h * h)
        he2, he4 = getattr(m, f"{field}_he2")[at].item(), getattr(m, f"{field}_he4")[at].item()
        assert he2 / 2 == pytest.approx(first, rel=1e-6, abs=1e-11)
        assert he4 / 4 == pytest.approx(second - first, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("q", [0.01, 1.0, 50.0])
def test_hermite_averages_of_erf_are_derivatives_of_its_closed_forms(q: float) -> None:
    m = Moments.at(activation("erf"), torch.tensor(q, dtype=torch.float64))
    # With A = asin(2q / (1 + 2q)): dA/dq = 2 / ((1 + 2q) √(1 + 4q)).
    first = 4 / math.pi / ((1 + 2 * q) * math.sqrt(1 + 4 * q))
    second = -first * (2 / (1 + 2 * q) + 2 / (1 + 4 * q))
    assert m.square_he2.item() == pytest.approx(2 * q * first, rel=1e-10)
    assert m.square_he4.item() == pytest.approx(4 * q * q * second, rel=1e-8)
    assert m.slope2_he2.item() == pytest.approx(-16 / math.pi * q * (1 + 4 * q) ** -1.5, rel=1e-10)
    assert m.slope2_he4.item() == pytest.approx(192 / math.pi * q * q * (1 + 4 * q) ** -2.5, rel=1e-8)


def test_moments_of_many_lengths_are_those_of_each() -> None:
    phi = activation("hard_tanh")
    q = tensor(1e-3, 0.5, 2, 400, 1e5, 3).reshape(2, 3)
    together = Moments.at(phi, q)
    for field in FIELDS:
        assert getattr(together, field).shape == (2, 3)
    for index in np.ndindex(2, 3):
        alone = Moments.at(phi, q[index])
        for field in FIELDS:
            value = getattr(together, field)[index].item()
            assert value == pytest.approx(
                getattr(alone, field).item(), rel=1e-12, abs=1e-12 * max(q[index].item(), 1)
            )


@pytest.mark.parametrize("name", EXACT)
def test_at_length_0_an_activation_is_its_lines(name: str) -> None:
    phi = activation(name)
    below, above = phi.slopes_at_zero
    point = MeanField(name, 1.7, 0.2)
    at_zero = float(phi(torch.zeros((), dtype=torch.float64)))
    assert point.length_map(0) == pytest.approx(1.7 * at_zero**2 + 0.2, rel=1e-12)
    assert point.chi(0) == pytest.approx(1.7 * (below**2 + above**2) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "length", "chi"),
    [
        ("linear", {}, lambda q: q, lambda _q: 1.0),
        ("relu", {}, lambda q: q / 2, lambda _q: 0.5),
        ("leaky_relu", {"negative_slope": 0.3}, lambda q: 1.09 * q / 2, lambda _q: 1.09 / 2),
        ("leaky_relu", {"negative_slope": -2.0}, lambda q: 5 * q / 2, lambda _q: 2.5),
        (
            "erf",
            {},
            lambda q: 2 / math.pi * math.asin(2 * q / (1 + 2 * q)),
            lambda q: 4 / math.pi / math.sqrt(1 + 4 * q),
        ),
        (
            "hard_tanh",
            {},
            lambda q: (
                q * math.erf((2 * q) ** -0.5)
                - math.sqrt(2 * q / math.pi) * math.exp(-0.5 / q)
                + math.erfc((2 * q) ** -0.5)
            ),
            lambda q: math.erf((2 * q) ** -0.5),
        ),
    ],
)
@pytest.mark.parametrize("q", [1e-6, 1.0, 1e6])
def test_length_map_and_chi_are_their_closed_forms(
    name: str, options: dict[str, float], length: Callable[[float], float], chi: Callable[[float], float], q: float
) -> None:
    point = MeanField(name, 1.3, 0.07, **options)
    assert point.length_map(q) == pytest.approx(1.3 * length(q) + 0.07, rel=1e-12)
    assert point.chi(q) == pytest.approx(1.3 * chi(q), rel=1e-12)


def test_tanh_has_its_series_at_small_lengths() -> None:
    point, q = MeanField("tanh", 1.0), 1e-3
    # The next terms are about 20 and 30 q.
    assert (point.length_map(q) - q + 2 * q**2) / q**3 == pytest.approx(17 / 3, rel=0.03)
    assert (point.chi(q) - 1 + 2 * q) / q**2 == pytest.approx(7, rel=0.03)
    assert MeanField("tanh", 3.0).chi(q) == pytest.approx(3 * point.chi(q), rel=1e-14)


@pytest.mark.parametrize(
    ("name", "q"), [("tanh", 60.0), ("relu", 2.0), ("hard_tanh", 2.0), ("gelu", 0.05), ("sigmoid", 2.0)]
)
def test_length_slope_is_the_derivative_of_the_length_map(name: str, q: float) -> None:
    point, h = MeanField(name, 1.4, 0.3), 1e-2
    v = [point.length_map(q * (1 + k * h)) for k in (-2, -1, 1, 2)]
    difference = (v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * h * q)
    assert point.length_slope(q) == pytest.approx(difference, rel=1e-6)


# Fixed points.

POINTS = [
    ("tanh", 2.5, 0.05),
    ("tanh", 1.3, 0.0),
    ("tanh", 0.9, 1e-40),
    ("relu", 1.5, 0.1),
    ("tanh", 1e6, 0.0),
    ("sigmoid", 200.0, 1.0),
    ("hard_tanh", 1.5, 0.0),
    ("selu", 1.0, 0.0),
    ("gelu", 2.0, 0.1),
    ("softsign", 4.0, 0.1),
]


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), few(POINTS, 4))
def test_fixed_length_is_kept_by_the_exact_map(name: str, sigma_w2: float, sigma_b2: float) -> None:
    point = MeanField(name, sigma_w2, sigma_b2)
    q = point.q_star
    assert 0 < q < math.inf
    assert sigma_w2 * exact(name, "square", q) + sigma_b2 == pytest.approx(q, rel=1e-10)
    assert point.chi_1 == pytest.approx(sigma_w2 * exact(name, "slope2", q), rel=1e-9)
    assert point.chi_q == point.length_slope(q)
    assert point.chi_q < 1  # else layers would not converge to it
    assert point.quadrature_error < 1e-12


@pytest.mark.parametrize(("name", "sigma_w2", "sigma_b2"), few(POINTS[k] for k in (0, 3, 5, 7, 9)))
@pytest.mark.parametrize("start", [40.0])
def test_layers_reach_the_fixed_length(name: str, sigma_w2: float, sigma_b2: float, start: float) -> None:
    point = MeanField(name, sigma_w2, sigma_b2, start=start)
    lengths = point.lengths(start, 150)
    assert len(lengths) == 150
    assert lengths[0] == start
    assert lengths[1] == point.length_map(start)
    assert lengths[-1] == pytest.approx(point.q_star, rel=1e-8)


def test_known_fixed_points() -> None:
    assert MeanField("relu", 1.5, 0.1).q_star == pytest.approx(0.1 / (1 - 1.5 / 2), rel=1e-12)
    assert MeanField("linear", 0.5, 0.1).q_star == pytest.approx(0.2, rel=1e-12)
    selu = MeanField("selu", 1.0)  # by construction of its constants (Klambauer et al., 2017)
    assert selu.q_star == pytest.approx(1, abs=1e-12)
    assert selu.chi_1 == pytest.approx(1.0715750, abs=5e-8)
    sigmoid = MeanField("sigmoid", 1.0)
    assert sigmoid.q_star == pytest.approx(0.264687, abs=5e-7)
    assert sigmoid.chi_1 == pytest.approx(0.0557207, abs=5e-8)
    assert MeanField("relu", 1.9999999, 1e6).q_star == pytest.approx(1e6 / 5e-8, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2", "q_star", "chi_1"),
    [
        ("relu", 2, 0.1, math.inf, 1.0),
        ("relu", 3, 0.1, math.inf, 1.5),
        ("relu", 3, 0, math.inf, 1.5),
        ("relu", 1, 0, 0.0, 0.5),
        ("linear", 1, 0.1, math.inf, 1.0),
        ("linear", 3, 0, math.inf, 3.0),
        ("leaky_relu", 2, 0, math.inf, 1.0001),
        ("tanh", 0.5, 0, 0.0, 0.5),
        ("tanh", 1, 0, 0.0, 1.0),
        ("erf", 0.5, 0, 0.0, 2 / math.pi),
        ("hard_tanh", 1, 0, 0.0, 1.0),
        ("gelu", 2, 0, 0.0, 0.5),
        ("gelu", 3, 0.1, math.inf, 1.5),
        ("elu", 2, 0, math.inf, 1.0),
        ("softplus", 2, 0, math.inf, 1.0),
        ("selu", 2, 0, math.inf, 1.0507009873554804**2),
        ("tanh", 0, 0, 0.0, 0.0),
        ("relu", 0, 0, 0.0, 0.0),
        ("tanh", 0, 0.1, 0.1, 0.0),
        ("relu", 0, 0.1, 0.1, 0.0),
        ("sigmoid", 0, 0.1, 0.1, 0.0),
    ],
)
def test_corners_of_the_phase_diagram(
    name: str, sigma_w2: float, sigma_b2: float, q_star: float, chi_1: float
) -> None:
    point = MeanField(name, sigma_w2, sigma_b2)
    assert point.q_star == pytest.approx(q_star, rel=1e-12)
    assert point.chi_1 == pytest.approx(chi_1, rel=1e-12)
    assert point.c_star == 1
    if q_star == 0:
        assert point.chi_q == pytest.approx(chi_1, rel=1e-12)
    if q_star == math.inf:
        assert point.xi_c == math.inf  # angles converge as a power of the layer, if at all
    if sigma_w2 == 0:
        assert point.xi_q == point.xi_c == point.xi_grad == 0


@pytest.mark.parametrize("start", [0.3, 1.0, 7.0])
@pytest.mark.parametrize(("name", "sigma_w2"), [("relu", 2.0), ("linear", 1.0), ("leaky_relu", 2 / 1.0001)])
def test_where_every_length_is_kept_it_is_that_of_the_start(name: str, sigma_w2: float, start: float) -> None:
    point = MeanField(name, sigma_w2, start=start)
    assert point.q_star == start
    assert point.is_homogeneous
    assert not point.is_marginal
    assert point.chi_1 == pytest.approx(1, rel=1e-12)
    assert point.xi_grad == math.inf


def test_lengths_reach_0_by_no_exponential_only_where_both_slopes_are_1() -> None:
    for name, sigma_w2, sigma_b2 in (
        ("tanh", 1, 0),
        ("erf", math.pi / 4, 0),
        ("hard_tanh", 1, 0),
        ("relu", 2, 0.1),
        ("linear", 1, 0.1),
    ):
        point = MeanField(name, sigma_w2, sigma_b2)
        assert point.is_marginal
        assert not point.is_homogeneous
        assert point.xi_q == point.xi_grad == math.inf
    for name, sigma_w2, sigma_b2 in (("tanh", 0.99, 0), ("tanh", 1.01, 0), ("tanh", 1, 1e-3), ("relu", 1.9, 0.1)):
        assert not MeanField(name, sigma_w2, sigma_b2).is_marginal


@pytest.mark.slow
def test_of_several_fixed_lengths_it_is_the_one_that_layers_reach_from_the_start() -> None:
    """At (2.3, 0) gelu's lengths go to 0 from below an unstable fixed length, and grow from above it."""
    unstable = brentq(lambda q: 2.3 * exact("gelu", "square", q) / q - 1, 0.1, 100, xtol=1e-4)
    assert MeanField("gelu", 2.3, start=0.99 * unstable).q_star == 0
    assert MeanField("gelu", 2.3, start=1.01 * unstable).q_star == math.inf


# Angles.


@pytest.mark.parametrize("c", [-1.0, -0.999, -0.3, 0.0, 0.5, 0.999, 1 - 1e-9, 1.0])
def test_relu_maps_correlations_as_cho_and_saul_say(c: float) -> None:
    expected = (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi
    for sigma_w2 in (1.5, 2.0):  # which does not matter without biases
        assert MeanField("relu", sigma_w2).correlation_map(c, 3.0) == pytest.approx(expected, rel=1e-11, abs=1e-13)
        assert MeanField("relu", sigma_w2).correlation_map(c, 3.0, 0.2) == pytest.approx(
            expected, rel=1e-11, abs=1e-13
        )
    with_bias = (1.5 * 2 * expected / 2 + 0.1) / (1.5 * 2 / 2 + 0.1)
    assert MeanField("relu", 1.5, 0.1).correlation_map(c, 2.0) == pytest.approx(with_bias, rel=1e-11)


@pytest.mark.parametrize("c", [-0.9, 0.0, 0.4, 0.99])
@pytest.mark.parametrize(("q_a", "q_b"), [(0.5, 0.5), (0.3, 4.0)])
def test_erf_maps_correlations_by_its_closed_form(c: float, q_a: float, q_b: float) -> None:
    def v(q: float, covariance: float, other: float) -> float:
        return 2.2 * 2 / math.pi * math.asin(2 * covariance / math.sqrt((1 + 2 * q) * (1 + 2 * other))) + 0.3

    expected = v(q_a, c * math.sqrt(q_a * q_b), q_b) / math.sqrt(v(q_a, q_a, q_a) * v(q_b, q_b, q_b))
    assert MeanField("erf", 2.2, 0.3).correlation_map(c, q_a, q_b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid", "gelu", "silu", "softplus"])
def test_slope_of_the_correlation_map_at_1_is_chi_1(name: str) -> None:
    point = MeanField(name, 1.8, 0.3)
    # C(1 - d) = 1 - chi_1 d + curvature d² / 2.
    d = 1e-6
    assert (1 - point.correlation_map(1 - d)) / d == pytest.approx(point.chi_1, rel=1e-5)


@pytest.mark.parametrize("name", few(EXACT, 3))
def test_equal_inputs_stay_equal_and_uncorrelated_ones_share_means_and_biases(name: str) -> None:
    point = MeanField(name, 1.2, 0.3)
    assert point.correlation_map(1, 0.3) == 1
    mean, square = exact(name, "value", 0.3), exact(name, "square", 0.3)
    expected = (1.2 * mean**2 + 0.3) / (1.2 * square + 0.3)
    assert point.correlation_map(0, 0.3) == pytest.approx(expected, rel=1e-10)


def test_correlation_with_an_input_of_length_0() -> None:
    # One input's units are φ(0) + 0, the other's are free: φ(0) E φ + biases.
    point = MeanField("sigmoid", 3.0, 0.2)
    square = exact("sigmoid", "square", 1.0)
    expected = (3 * 0.25 + 0.2) / math.sqrt((3 * 0.25 + 0.2) * (3 * square + 0.2))
    assert point.correlation_map(0.5, 0, 1.0) == pytest.approx(expected, rel=1e-10)
    assert point.correlation_map(0.5, 1.0, 0) == pytest.approx(expected, rel=1e-10)
    assert MeanField("tanh", 0.5).correlation_map(0.3, 0, 0) == pytest.approx(0.3, rel=1e-10)
    assert MeanField("tanh", 0.5).correlation_map(0.3, 1e-250) == pytest.approx(0.3, rel=1e-10)


def hermite(name: str, q: float, terms: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Squared coefficients of φ(√q z) and φ'(√q z) in normalised Hermite polynomials."""
    z, w = np.polynomial.hermite_e.hermegauss(180)
    w = w / w.sum()
    value, slope = (part.numpy() for part in activation(name).value_and_slope(torch.from_numpy(math.sqrt(q) * z)))
    polynomials = [np.ones_like(z), z]
    for k in range(2, terms):
        polynomials.append((z * polynomials[-1] - math.sqrt(k - 1) * polynomials[-2]) / math.sqrt(k))
    found = [np.array([float((w * p * f).sum()) ** 2 for p in polynomials]) for f in (value, slope)]
    return found[0], found[1]


@pytest.mark.parametrize(("sigma_w2", "sigma_b2"), few([(2.5, 0.05), (4.0, 0.05)]))
def test_c_star_and_xi_c_of_tanh_follow_from_iterating_the_map_as_a_series(sigma_w2: float, sigma_b2: float) -> None:
    point = MeanField("tanh", sigma_w2, sigma_b2)
    squares, slopes = hermite("tanh", point.q_star)
    powers = np.arange(len(squares))
    c = 0.5
    for _ in range(400):
        c = (sigma_w2 * float((squares * c**powers).sum()) + sigma_b2) / point.q_star
    assert point.chi_1 > 1
    assert point.c_star == pytest.approx(c, rel=1e-8)
    factor = sigma_w2 * float((slopes * c**powers).sum())
    assert point.xi_c == pytest.approx(-1 / math.log(factor), rel=1e-7)


@pytest.mark.parametrize(("sigma_w2", "sigma_b2"), few([(3.0, 0.2), (1.5, 0.05), (20.0, 1.0)]))
def test_c_star_and_xi_c_of_erf_follow_from_its_closed_forms(sigma_w2: float, sigma_b2: float) -> None:
    point = MeanField("erf", sigma_w2, sigma_b2)
    with mp.workdps(30):
        q = c = mpf(1) / 2
        for _ in range(600):
            q = sigma_w2 * 2 / mp.pi * mp.asin(2 * q / (1 + 2 * q)) + sigma_b2
        for _ in range(3000):
            c, before = (sigma_w2 * 2 / mp.pi * mp.asin(2 * q * c / (1 + 2 * q)) + sigma_b2) / q, c
            if abs(c - before) < mpf(10) ** -25:
                break
        slope = sigma_w2 * 4 / mp.pi / mp.sqrt((1 + 2 * q) ** 2 - 4 * q * q * c * c)
        chi_q = sigma_w2 * 4 / mp.pi / ((1 + 2 * q) * mp.sqrt(1 + 4 * q))
        chi_1 = sigma_w2 * 4 / mp.pi / mp.sqrt(1 + 4 * q)
        assert point.q_star == pytest.approx(float(q), rel=1e-12)
        assert point.c_star == pytest.approx(float(c), rel=1e-10)
        assert point.xi_c == pytest.approx(float(-1 / mp.log(slope)), rel=1e-8)
        assert point.xi_q == pytest.approx(float(-1 / mp.log(chi_q)), rel=1e-9)
        assert point.xi_grad == pytest.approx(float(-1 / mp.log(chi_1)), rel=1e-9)
        assert (point.xi_grad < 0) == (chi_1 > 1)


@pytest.mark.parametrize("name", ["tanh", "erf", "hard_tanh", "softsign"])
def test_without_biases_odd_activations_forget_all_correlation_in_chaos(name: str) -> None:
    point = MeanField(name, 2.5)
    assert point.chi_1 > 1
    assert point.c_star == 0


def test_in_order_inputs_align_as_fast_as_gradients_vanish() -> None:
    for name, sigma_w2, sigma_b2 in (("tanh", 1.0, 0.3), ("relu", 1.5, 0.1), ("sigmoid", 1.0, 0.0)):
        point = MeanField(name, sigma_w2, sigma_b2)
        assert point.c_star == 1
        assert point.xi_c == point.xi_grad == pytest.approx(-1 / math.log(point.chi_1))


@pytest.mark.slow
def test_just_inside_chaos_c_star_keeps_its_digits() -> None:
    """C(1 - d) = 1 - chi_1 d + C'' d² / 2, so that d* = 2 (chi_1 - 1) / C''."""
    sigma_w2 = critical_sigma_w2("tanh", 0.05) + 1e-5
    point = MeanField("tanh", sigma_w2, 0.05)
    q = point.q_star
    with mp.workdps(20):
        bends = mp.quad(
            lambda u: (2 * mp.tanh(u) * mp.sech(u) ** 2) ** 2 * mp.npdf(u, 0, mp.sqrt(q)), [-9, -3, 0, 3, 9]
        )
    expected = 2 * (point.chi_1 - 1) / (sigma_w2 * q * float(bends))
    assert 1 - point.c_star == pytest.approx(expected, rel=1e-3)


def test_lengths_and_angles_approach_their_fixed_points_at_the_rate_of_the_depth_scales() -> None:
    point = MeanField("tanh", 2.5, 0.05)
    lengths = point.lengths(point.q_star * (1 + 1e-4), 3)
    assert (lengths[2] - point.q_star) / (lengths[1] - point.q_star) == pytest.approx(
        math.exp(-1 / point.xi_q), rel=1e-3
    )
    c = [point.c_star + 1e-4]
    for _ in range(2):
        c.append(point.correlation_map(c[-1]))
    assert (c[2] - point.c_star) / (c[1] - point.c_star) == pytest.approx(math.exp(-1 / point.xi_c), rel=1e-3)
    assert point.xi_grad == pytest.approx(-1 / math.log(point.chi_1), rel=1e-12)
    assert point.xi_grad < 0


# The critical line.


@pytest.mark.parametrize(
    ("name", "sigma_b2", "sigma_w2"),
    [
        ("linear", 0, 1),
        ("relu", 0, 2),
        ("erf", 0, math.pi / 4),
        ("tanh", 0, 1),
        ("hard_tanh", 0, 1),
        ("softsign", 0, 1),
        ("elu", 0, 1),
        ("selu", 0, 2 / (1.0507009873554804**2 * (1 + 1.6732632423543772**2))),
    ],
)
def test_critical_points_without_biases(name: str, sigma_b2: float, sigma_w2: float) -> None:
    assert critical_sigma_w2(name, sigma_b2) == pytest.approx(sigma_w2, rel=1e-12)
    assert critical_sigma_b2(name, sigma_w2) == 0
    assert MeanField(name, sigma_w2).chi_1 == pytest.approx(1, rel=1e-12)


def test_leaky_relu_is_critical_at_its_own_slope() -> None:
    assert critical_sigma_w2("leaky_relu", negative_slope=0.5) == pytest.approx(1.6, rel=1e-14)
    assert critical_sigma_w2("leaky_relu") == pytest.approx(2 / 1.0001, rel=1e-14)
    assert critical_sigma_b2("leaky_relu", 1.6, negative_slope=0.5) == 0


def test_critical_tanh_with_biases_is_where_the_literature_has_it() -> None:
    assert 1.7603 < critical_sigma_w2("tanh", 0.05) < 1.7611


@pytest.mark.parametrize(
    ("name", "sigma_b2"),
    few(
        [
            ("tanh", 100.0),
            ("gelu", 0.3),
            ("tanh", 1e-10),
            ("hard_tanh", 0.1),
            ("selu", 0.1),
            ("sigmoid", 10.0),
            ("silu", 1.0),
        ],
    ),
)
def test_on_the_critical_line_chi_1_is_1_and_the_way_back_leads_home(name: str, sigma_b2: float) -> None:
    sigma_w2 = critical_sigma_w2(name, sigma_b2)
    point = MeanField(name, sigma_w2, sigma_b2, start=1.0 if name != "silu" else 50.0)
    q = point.q_star
    assert sigma_w2 * exact(name, "slope2", q) == pytest.approx(1, rel=1e-9)
    assert sigma_w2 * exact(name, "square", q) + sigma_b2 == pytest.approx(q, rel=1e-9)
    assert point.chi_q <= 1
    assert critical_sigma_b2(name, sigma_w2) == pytest.approx(sigma_b2, rel=1e-6, abs=1e-9)
    assert MeanField(name, 0.99 * sigma_w2, sigma_b2).chi_1 < 1
    line_w2, line_b2 = critical_line(activation(name), torch.tensor(q, dtype=torch.float64))
    assert (line_w2.item(), line_b2.item()) == pytest.approx((sigma_w2, sigma_b2), rel=1e-6, abs=1e-9)


def test_critical_erf_solves_both_closed_equations() -> None:
    sigma_w2 = critical_sigma_w2("erf", 0.05)
    q = ((4 * sigma_w2 / math.pi) ** 2 - 1) / 4  # from chi = 1
    assert sigma_w2 * 2 / math.pi * math.asin(2 * q / (1 + 2 * q)) + 0.05 == pytest.approx(q, rel=1e-12)


def half_stable(phi: Callable[[mpf], tuple[mpf, mpf]], q: float) -> tuple[float, float]:
    """sigma_w2 and sigma_b2 where both slopes of the maps are 1, near a length, with 20 digits."""
    with mp.workdps(20):

        def averages(q: mpf) -> tuple[mpf, mpf, mpf]:
            points = rule(q, ())
            sums = [mpf(0)] * 3
            for u, w in points:
                value, slope = phi(u)
                share = w * mp.npdf(u, 0, mp.sqrt(q))
                terms = (value**2, slope**2, u * value * slope / q)
                sums = [total + share * term for total, term in zip(sums, terms, strict=True)]
            return tuple(sums)

        def difference(q: mpf) -> mpf:
            _, slope2, mixed = averages(q)
            return mixed / slope2 - 1

        at = mp.findroot(difference, (0.98 * q, 1.02 * q), tol=1e-24)
        square, slope2, _ = averages(at)
        return float(1 / slope2), float(at - square / slope2)


def _mish(z: mpf) -> tuple[mpf, mpf]:
    softplus = mp.log1p(mp.exp(z))
    return z * mp.tanh(softplus), mp.tanh(softplus) + z * mp.sech(softplus) ** 2 * _sigmoid(z)


@pytest.mark.parametrize(
    ("name", "sigma_w2", "sigma_b2"),
    [("silu", 1.98800468, 0.55514317), ("gelu", 1.98305826, 0.17292239)],
)
def test_half_stable_points_of_the_literature_end_the_critical_lines(
    name: str, sigma_w2: float, sigma_b2: float
) -> None:
    """Both slopes are 1 there (Roberts, Yaida & Hanin, 2022, arXiv:2106.10165): no smaller sigma_b2 is critical."""
    assert critical_sigma_w2(name, sigma_b2) == pytest.approx(sigma_w2, abs=6e-9)
    assert critical_sigma_w2(name, sigma_b2 + 1e-6) == pytest.approx(sigma_w2, rel=1e-5)
    assert critical_range(name) == (pytest.approx(sigma_b2, abs=6e-9), math.inf)
    text = rf"^{name} has no critical sigma_w2 for sigma_b2=[0-9.]+; it has one from sigma_b2={sigma_b2} on$"
    with pytest.raises(ValueError, match=text):
        critical_sigma_w2(name, sigma_b2 - 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phi", "exact", "q"),
    [
        ("gelu", EXACT["gelu"], 3.56),
        (nn.functional.mish, _mish, 1.5),
        (lambda z: 2 * z * torch.sigmoid(2 * z), lambda z: (2 * z * _sigmoid(2 * z), mpf(0)), None),
    ],
)
def test_half_stable_points_are_where_20_digits_have_them(
    phi: Any, exact: Callable[[mpf], tuple[mpf, mpf]], q: float | None
) -> None:
    found = critical_range(phi)
    assert found is not None
    if q is None:  # silu of a doubled unit: half of its length is silu's own, and a quarter of the weights' variance
        silu = critical_range("silu")
        assert silu is not None
        assert found == (pytest.approx(silu[0] / 4, rel=1e-7), math.inf)
        assert critical_sigma_w2(phi, found[0]) == pytest.approx(critical_sigma_w2("silu", silu[0]) / 4, rel=1e-7)
        return
    sigma_w2, sigma_b2 = half_stable(exact, q)
    assert found == (pytest.approx(sigma_b2, rel=1e-8), math.inf)
    assert critical_sigma_w2(phi, found[0]) == pytest.approx(sigma_w2, rel=1e-8)


def test_the_range_of_critical_points_of_every_kind() -> None:
    assert critical_range("tanh") == (0, math.inf)
    assert critical_range("tanh", "sigma_w2") == (1, math.inf)
    assert critical_range("leaky_relu", negative_slope=1.0) == (0, 0)
    assert critical_range("relu", "sigma_w2") == (2, 2)
    assert critical_range("softplus") is critical_range(torch.zeros_like) is None
    low, high = critical_range("gelu", "sigma_w2") or (0.0, 0.0)
    assert high == 2
    assert critical_sigma_b2("gelu", low + 1e-6) > 0
    with pytest.raises(
        ValueError, match=f"for sigma_w2={low - 1e-4:.10g}; it has one from sigma_w2={low:.8g} to just"
    ):
        critical_sigma_b2("gelu", low - 1e-4)
    with pytest.raises(ValueError, match=r"^of must be one of sigma_b2, sigma_w2, got 'bias'$"):
        critical_range("tanh", "bias")


@pytest.mark.parametrize(
    ("find", "given", "text"),
    [
        (critical_sigma_w2, ("relu", 0.1), r"^relu is critical at sigma_b2=0 only, got sigma_b2=0\.1$"),
        (critical_sigma_w2, ("linear", 1.0), r"^linear is critical at sigma_b2=0 only, got sigma_b2=1$"),
        (
            critical_sigma_w2,
            ("gelu", 0),
            r"^gelu has no critical sigma_w2 for sigma_b2=0; it has one from sigma_b2=0\.172",
        ),
        pytest.param(
            critical_sigma_w2,
            ("softplus", 0.3),
            r"^softplus has no critical sigma_w2 for sigma_b2=0\.3; it has none at all$",
            marks=pytest.mark.slow,
        ),
        (
            critical_sigma_w2,
            (nn.GELU(), 0.05),
            "^this activation has no critical sigma_w2 for sigma_b2=0.05; it has",
        ),
        (critical_sigma_w2, ("tanh", -1), "^sigma_b2 must be a variance, at least 0 and finite, got -1$"),
        (critical_sigma_w2, ("tanh", math.nan), "^sigma_b2 must be a variance, at least 0 and finite, got nan$"),
        (critical_sigma_w2, ("tank", 0), "^unknown activation 'tank'; choose one of linear, "),
        (
            critical_sigma_b2,
            ("relu", 1.5),
            "^relu has no critical sigma_b2 for sigma_w2=1.5; it is critical at sigma_w2=2, sigma_b2=0 only$",
        ),
        pytest.param(
            critical_sigma_b2,
            ("tanh", 0.9),
            r"^tanh has no critical sigma_b2 for sigma_w2=0\.9; it has one from sigma_w2=1 on$",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            critical_sigma_b2,
            ("sigmoid", 16),
            "^sigmoid has no critical sigma_b2 for sigma_w2=16; it has one from sigma_w2=103.0",
            marks=pytest.mark.slow,
        ),
        # Here chi is 1 at some length, but only a negative variance would make it a fixed one.
        (critical_sigma_b2, ("sigmoid", 40), "^sigmoid has no critical sigma_b2 for sigma_w2=40; "),
        pytest.param(
            critical_sigma_b2,
            ("softplus", 2.5),
            r"^softplus has no critical sigma_b2 for sigma_w2=2\.5; it has none at all$",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            critical_sigma_b2,
            ("gelu", 2.0),
            r"^gelu has no critical sigma_b2 for sigma_w2=2; it has one from sigma_w2=1\.95\d+ to just below 2$",
            marks=pytest.mark.slow,
        ),
        (
            critical_sigma_b2,
            ("tanh", 0),
            "^tanh has no critical sigma_b2 for sigma_w2=0; it has one from",
        ),
        (critical_sigma_b2, ("tanh", math.inf), "^sigma_w2 must be a variance, at least 0 and finite, got inf$"),
    ],
)
def test_where_there_is_no_critical_point_the_error_says_so(
    find: Callable[..., float], given: tuple[Any, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        find(*given)


# Any elementwise function.


def shifted_tanh(z: Tensor) -> Tensor:
    return torch.tanh(z - 5)


def facts(point: MeanField) -> tuple[float, ...]:
    return point.q_star, point.chi_1, point.chi_q, point.c_star, point.xi_q, point.xi_c, point.xi_grad


@pytest.mark.parametrize(
    ("function", "kinks", "name", "options"),
    few(
        [
            (nn.GELU(), (), "gelu", {}),
            (lambda z: torch.where(z > 0, z, -0.3 * z), (0,), "leaky_relu", {"negative_slope": -0.3}),
            (nn.Hardtanh(), (1, -1), "hard_tanh", {}),
            (nn.Tanh(), (), "tanh", {}),
            (lambda z: z * torch.sigmoid(z), (), "silu", {}),
        ],
        2,
    ),
)
def test_a_function_counts_as_the_activation_that_it_is(
    function: Callable[[Tensor], Tensor], kinks: tuple[float, ...], name: str, options: dict[str, float]
) -> None:
    named = MeanField(name, 1.4, 0.2, **options)
    assert facts(MeanField(function, 1.4, 0.2, kinks=kinks)) == pytest.approx(facts(named), rel=1e-10)
    if name in ("tanh", "hard_tanh"):
        assert critical_sigma_w2(function, 0.1, kinks=kinks) == pytest.approx(critical_sigma_w2(name, 0.1), rel=1e-10)


@pytest.mark.parametrize("sigma_w2", [0.8, 3.0])
def test_sine_has_closed_forms(sigma_w2: float) -> None:
    point = MeanField(torch.sin, sigma_w2, 0.1)
    q = point.q_star
    assert sigma_w2 * (1 - math.exp(-2 * q)) / 2 + 0.1 == pytest.approx(q, rel=1e-12)
    assert point.chi_1 == pytest.approx(sigma_w2 * (1 + math.exp(-2 * q)) / 2, rel=1e-12)
    assert point.chi_q == pytest.approx(sigma_w2 * math.exp(-2 * q), rel=1e-11)
    c = point.correlation_map(0.3)
    assert c == pytest.approx((sigma_w2 * math.exp(-q) * math.sinh(0.3 * q) + 0.1) / q, rel=1e-12)
    c_star = 0.5
    for _ in range(1000):
        c_star = (sigma_w2 * math.exp(-q) * math.sinh(c_star * q) + 0.1) / q
    assert point.c_star == pytest.approx(c_star, rel=1e-10)
    slope = sigma_w2 * math.exp(-q) * math.cosh(c_star * q)
    assert point.xi_c == pytest.approx(-1 / math.log(slope), rel=1e-9)


@pytest.mark.slow
def test_a_clamp_with_its_kinks_is_a_scaled_hard_tanh() -> None:
    """φ(z) = k h(z / k) has q* of h at (sigma_w2, sigma_b2 / k²), times k²."""
    k = 1.7
    unit = MeanField("hard_tanh", 2.0, 0.1 / k**2)
    named = MeanField(lambda z: z.clamp(-k, k), 2.0, 0.1, kinks=(-k, k))
    unnamed = MeanField(lambda z: z.clamp(-k, k), 2.0, 0.1)
    expected = (unit.q_star * k**2, unit.chi_1, unit.chi_q, unit.c_star)
    assert facts(named)[:4] == pytest.approx(expected, rel=1e-10)
    assert named.quadrature_error < 1e-13
    assert facts(unnamed)[:4] == pytest.approx(expected, rel=0.03)
    assert unnamed.q_star != pytest.approx(expected[0], rel=1e-8)
    assert unnamed.quadrature_error > 1e-6


def test_a_feature_far_from_0_is_resolved_or_owned_up_to() -> None:
    point = MeanField(shifted_tanh, 50.0, 0.1, start=50.0)
    q = point.q_star
    with mp.workdps(20):
        root = mp.sqrt(q)
        points = [-9 * root, 0, 2, 4, 5, 6, 8, 12, 9 * root]
        square = mp.quad(lambda u: mp.tanh(u - 5) ** 2 * mp.npdf(u, 0, root), points)
        slope2 = mp.quad(lambda u: mp.sech(u - 5) ** 4 * mp.npdf(u, 0, root), points)
    assert q == pytest.approx(50 * float(square) + 0.1, rel=1e-9)
    assert point.chi_1 == pytest.approx(50 * float(slope2), rel=1e-7)
    assert point.quadrature_error < 1e-4
    assert MeanField(lambda z: torch.tanh(z - 50), 2500.0, 0.1).quadrature_error > 1e-2


def test_functions_that_outgrow_every_line_grow_for_ever() -> None:
    cube = MeanField(lambda z: z**3, 1.0)
    assert cube.q_star == cube.chi_1 == math.inf
    assert MeanField(lambda z: z**3, 1.0, start=0.01).q_star == 0


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"activation": "tank"}, ValueError, "unknown activation 'tank'; choose one of linear, tanh, relu, "),
        ({"activation": 3}, TypeError, "activation must be a name, an Activation or a function, got int"),
        ({"activation": lambda z: z / z.norm()}, ValueError, "activation must act on each element alone"),
        ({"activation": nn.Softmax(-1)}, ValueError, "activation must act on each element alone"),
        ({"activation": torch.rand_like}, ValueError, "activation must act on each element alone"),
        ({"kinks": (1,)}, ValueError, "kinks are for a function"),
        ({"sigma_w2": -1}, ValueError, "sigma_w2 must be a variance, at least 0 and finite, got -1"),
        ({"sigma_w2": math.nan}, ValueError, "sigma_w2 must be a variance, at least 0 and finite, got nan"),
        ({"sigma_b2": -0.1}, ValueError, "sigma_b2 must be a variance, at least 0 and finite, got -0.1"),
        ({"sigma_b2": math.inf}, ValueError, "sigma_b2 must be a variance, at least 0 and finite, got inf"),
        ({"start": 0}, ValueError, "start must be above 0 and finite, got 0"),
        ({"start": math.nan}, ValueError, "start must be above 0 and finite, got nan"),
    ],
)
def test_impossible_points_are_refused(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        MeanField(**{"activation": "tanh", "sigma_w2": 1.0, **given})


@pytest.mark.parametrize("q", [-1.0, math.nan, math.inf])
def test_impossible_lengths_and_correlations_are_refused(q: float) -> None:
    point = MeanField("tanh", 1.5, 0.1)
    for ask in (point.length_map, point.length_slope, point.chi, point.moments):
        with pytest.raises(ValueError, match="q must be at least 0 and finite, got"):
            ask(q)
    for lengths in ((q,), (1.0, q)):
        with pytest.raises(ValueError, match=r"q must be .*at least 0 and finite, got"):
            point.correlation_map(0.5, *lengths)
    with pytest.raises(ValueError, match="c must be from -1 to 1, got"):
        point.correlation_map(q - 1 if q == -1 else q)
    with pytest.raises(ValueError, match=r"lengths converge to 0 at sigma_w2=0\.5, sigma_b2=0; give q_a"):
        MeanField("tanh", 0.5).correlation_map(0.5)
    with pytest.raises(ValueError, match=r"lengths converge to inf at sigma_w2=3, sigma_b2=0\.1; give q_a"):
        MeanField("relu", 3, 0.1).correlation_map(0.5)


def test_piecewise_linear_activations_are_recognised() -> None:
    assert [name for name in ACTIVATIONS if is_piecewise_linear(activation(name))] == ["linear", "relu", "leaky_relu"]
    assert is_piecewise_linear(as_activation(torch.abs, kinks=(0,)))
    assert is_piecewise_linear(Activation(lambda z: 0 * z, (0, 0), (0, 0)))
    assert not is_piecewise_linear(as_activation(lambda z: torch.relu(z) + 1e-6))
    assert not is_piecewise_linear(as_activation(lambda z: z.clamp(-100, 100)))


@pytest.mark.slow
@pytest.mark.parametrize("layers", few([1000, 10, 10_000]))
def test_relu_inputs_align_by_the_power_law_of_cho_and_sauls_map(layers: int) -> None:
    distance, pi = 1.0, math.pi
    for _ in range(layers):
        angle = 2 * math.asin(math.sqrt(distance / 2))
        bent = angle**3 / 3 - angle**5 / 30 if angle < 0.01 else math.sin(angle) - angle * math.cos(angle)
        distance -= bent / pi
    assert MeanField("relu", 2.0).distance_after(layers) == pytest.approx(distance, rel=1e-6)
    # With biases lengths grow for ever, and angles are those without.
    assert MeanField("relu", 2.0, 0.1).distance_after(layers) == pytest.approx(distance, rel=1e-4)


def erf_distances(sigma_w2: float, sigma_b2: float, q: float, c: float, layers: int) -> mpf:
    """1 - c after some layers by the arcsine of Williams (1997), with 30 digits."""
    with mp.workdps(30):
        at = mpf(c)
        for _ in range(layers):
            at = (sigma_w2 * 2 / mp.pi * mp.asin(2 * q * at / (1 + 2 * q)) + sigma_b2) / q
        return 1 - at


@pytest.mark.parametrize(("sigma_w2", "c"), few([(None, 0.0), (3.0, -0.9), (0.9, 0.5), (3.0, 0.9999)]))
def test_erf_inputs_part_and_align_by_their_closed_map(sigma_w2: float | None, c: float) -> None:
    sigma_b2 = 0.05
    sigma_w2 = critical_sigma_w2("erf", sigma_b2) if sigma_w2 is None else sigma_w2
    with mp.workdps(30):
        q = mp.findroot(lambda q: sigma_w2 * 2 / mp.pi * mp.asin(2 * q / (1 + 2 * q)) + sigma_b2 - q, (0.3, 2.0))
    point = MeanField("erf", sigma_w2, sigma_b2)
    expected = float(erf_distances(sigma_w2, sigma_b2, q, c, 40))
    assert point.distance_after(40, c) == pytest.approx(expected, rel=1e-4 if expected > 0.1 else 1e-5)
    assert point.correlation_after(40, c) == pytest.approx(1 - expected, abs=1e-4)


def test_odd_activations_without_biases_treat_opposed_inputs_as_they_treat_equal_ones() -> None:
    point = MeanField("erf", 3.0)
    for c in (-1.0, -0.999, -0.3, 0.0):
        assert 2 - point.distance_after(8, c) == pytest.approx(point.distance_after(8, -c), rel=1e-3, abs=1e-12)


def test_what_moves_no_further_is_not_followed_and_impossible_correlations_are_refused() -> None:
    # Near 0 tanh is the identity, which keeps angles.
    assert MeanField("tanh", 0.5).correlation_after(30, 0.4) == pytest.approx(0.4, abs=1e-6)
    point = MeanField("erf", 3.0)
    assert point.correlation_after(0, 0.3) == pytest.approx(0.3)
    assert point.correlation_after(10**9, 1.0) == 1
    for given, text in (((3, 2), "c must be from -1 to 1, got 2"), ((-1, 0), "layers must be at least 0, got -1")):
        with pytest.raises(ValueError, match=text):
            point.correlation_after(*given)
    with pytest.raises(ValueError, match=r"^q must be above 0 and finite, got 0$"):
        point.distance_after(1, 0.0, 0)


@pytest.mark.slow
def test_so_near_to_the_line_that_c_star_is_not_told_from_1_inputs_part_slowly() -> None:
    point = MeanField("hard_tanh", critical_sigma_w2("hard_tanh", 0.05) * (1 + 1e-9), 0.05)
    assert point.chi_1 > 1
    assert point.c_star == 1
    assert 1e8 < point.xi_c < 1e10
