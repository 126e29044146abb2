"""Exact laws of finite layers against mixtures of digamma functions, integrals, and the matrices themselves.

Monte Carlo tests fix the seed and allow 4.5 standard errors: of a mean √(variance / N), of a variance its estimate
from the sample's fourth moment.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import few
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import digamma, polygamma
from scipy.stats import binom
from torch import Tensor

from gradexp.theory import LogMoments, dead_probability, gaussian_lyapunov_exponents, layer_law, log_square_sum
from gradexp.theory.finite_width import log_chi_square

RELU, LINEAR = (0.0, 1.0), (1.0, 1.0)


def binomial_mixture(n: int) -> LogMoments:
    """Law of log χ²_K with K from Bin(n, 1/2), given that K is not 0."""
    k = np.arange(1, n + 1)
    p = binom.pmf(k, n, 0.5)
    p = p / p.sum()
    mean = float((p * digamma(k / 2)).sum())
    variance = float((p * polygamma(1, k / 2)).sum() + (p * (digamma(k / 2) - mean) ** 2).sum())
    return LogMoments(mean + math.log(2), variance)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def haar(networks: int, fan_out: int, fan_in: int, seed: int = 0) -> Tensor:
    """Orthonormal rows or columns, by QR with the signs that make it uniform."""
    tall = normal(networks, max(fan_out, fan_in), min(fan_out, fan_in), seed=seed)
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return q if fan_out >= fan_in else q.mT


def assert_law(sample: Tensor, law: LogMoments) -> None:
    n = len(sample)
    centred = sample - sample.mean()
    assert abs(sample.mean() - law.mean) < 4.5 * math.sqrt(max(law.variance, 1e-28) / n)
    squares = centred.square()
    assert abs(squares.mean() - law.variance) < 4.5 * squares.std() / math.sqrt(n) + 1e-15


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100, 1000, 10**6])
def test_without_kinks_the_law_is_that_of_log_chi_square(n: int) -> None:
    for law in (log_square_sum(n), log_chi_square(n)):
        assert law.mean == pytest.approx(digamma(n / 2) + math.log(2), rel=1e-11, abs=1e-11)
        assert law.variance == pytest.approx(polygamma(1, n / 2), rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 32, 100, 1000])
def test_relu_is_a_binomial_mixture(n: int) -> None:
    law, expected = log_square_sum(n, RELU), binomial_mixture(n)
    assert law.mean == pytest.approx(expected.mean, rel=1e-11, abs=1e-12)
    assert law.variance == pytest.approx(expected.variance, rel=1e-10)
    assert log_square_sum(n, (1.0, 0.0)) == law


@pytest.mark.parametrize("a", [0.01, 0.3, 1.0, 2.5])
def test_one_leaky_unit_is_a_mixture_of_two(a: float) -> None:
    law = log_square_sum(1, (a, 1.0))
    assert law.mean == pytest.approx(digamma(0.5) + math.log(2) + math.log(a), abs=1e-12)
    assert law.variance == pytest.approx(polygamma(1, 0.5) + math.log(a) ** 2, rel=1e-11)


@pytest.mark.parametrize("a", [0.01, 0.3, 2.5])
def test_two_leaky_units_are_a_mixture_over_angles(a: float) -> None:
    """With one of each slope S = χ²₂ (cos² + a² sin²) of a uniform angle, whose log has mean 2 log((1 + a) / 2)."""
    angle_mean = 2 * math.log((1 + a) / 2)
    angle_square = quad(lambda t: math.log(math.cos(t) ** 2 + (a * math.sin(t)) ** 2) ** 2, 0, math.pi / 2, limit=500)
    mean = (0 + 2 * math.log(a)) / 4 + angle_mean / 2
    square = (2 * math.log(a)) ** 2 / 4 + angle_square[0] * 2 / math.pi / 2
    law = log_square_sum(2, (a, 1.0))
    assert law.mean == pytest.approx(digamma(1) + math.log(2) + mean, abs=1e-11)
    assert law.variance == pytest.approx(polygamma(1, 1) + square - mean**2, rel=1e-8)


@pytest.mark.parametrize("n", [1, 5, 40])
def test_the_law_only_shifts_with_a_common_factor_and_knows_no_signs(n: int) -> None:
    law = log_square_sum(n, (0.2, 1.0))
    for slopes, shift in (((0.2 * 7, 7.0), math.log(49)), ((1.0, -0.2), 0.0), ((1e-60, 5e-60), math.log(25e-120))):
        other = log_square_sum(n, slopes)
        assert other.mean == pytest.approx(law.mean + shift, abs=1e-11)
        assert other.variance == pytest.approx(law.variance, rel=1e-10)


def test_a_slope_too_small_to_see_matters_only_where_all_units_are_off() -> None:
    tiny = 1e-30
    law, relu, whole = log_square_sum(3, (tiny, 1.0)), log_square_sum(3, RELU), log_square_sum(3)
    off = whole.mean + 2 * math.log(tiny)
    assert law.mean == pytest.approx(7 / 8 * relu.mean + off / 8, rel=1e-11)
    squares = 7 / 8 * (relu.variance + relu.mean**2) + (whole.variance + off**2) / 8
    assert law.variance == pytest.approx(squares - law.mean**2, rel=1e-10)


@pytest.mark.parametrize("n", [300, 10_000])
def test_large_layers_fluctuate_as_the_expansion_in_one_over_n_says(n: int) -> None:
    relu = log_square_sum(n, RELU)
    assert (relu.mean - math.log(n / 2)) * n == pytest.approx(-5 / 2, rel=10 / n)
    assert relu.variance * n == pytest.approx(5, rel=20 / n)
    for a in (0.1, 0.5):
        variance = 6 * (1 + a**4) / (1 + a**2) ** 2 - 1
        leaky = log_square_sum(n, (a, 1.0))
        assert leaky.variance * n == pytest.approx(variance, rel=20 / n)
        assert (leaky.mean - math.log(n * (1 + a**2) / 2)) * n == pytest.approx(-variance / 2, rel=20 / n)


@pytest.mark.parametrize(
    ("n", "linear", "relu"),
    [(10, 1.10885, 2.71994), (32, 1.03208, 2.17208), (100, 1.01008, 2.05149), (1000, 1.00100, 2.00501)],
)
def test_zero_drift_variances(n: int, linear: float, relu: float) -> None:
    assert math.exp(-layer_law(n, n, 1.0).mean) == pytest.approx(linear, abs=5e-6)
    assert math.exp(-layer_law(n, n, 1.0, RELU).mean) == pytest.approx(relu, abs=6e-6)
    assert layer_law(n, n, relu, RELU, backward=True).mean == pytest.approx(0, abs=3e-6)


def test_slopes_of_one_size_scale_a_layer_as_a_whole() -> None:
    for orthogonal in (False, True):
        law, steep = (layer_law(5, 7, 1.3, slopes, orthogonal=orthogonal) for slopes in (LINEAR, (3.0, -3.0)))
        assert steep == pytest.approx((law.mean + math.log(9), law.variance), abs=1e-12)


def test_at_width_2_a_linear_layer_loses_eulers_constant() -> None:
    assert layer_law(2, 2, 1.0).mean == pytest.approx(-0.5772156649015329, abs=1e-12)


@pytest.mark.parametrize(
    "slopes", [RELU, *(pytest.param(slopes, marks=pytest.mark.slow) for slopes in (LINEAR, (0.3, 1.0)))]
)
@pytest.mark.parametrize(("fan_in", "fan_out"), few([(4, 9), (9, 4), (5, 5)], 2))
@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_layers_are_their_law(
    slopes: tuple[float, float], fan_in: int, fan_out: int, orthogonal: bool, backward: bool
) -> None:
    """‖D W x‖² or ‖D Wᵀ δ‖² of drawn matrices, whose D is set by the signs of the units it belongs to."""
    networks, gain2 = 20_000, 1.7
    if orthogonal:
        w = math.sqrt(gain2) * haar(networks, fan_out, fan_in)
        sigma_w2 = gain2 * fan_in / max(fan_in, fan_out)
    else:
        w, sigma_w2 = math.sqrt(gain2 / fan_in) * normal(networks, fan_out, fan_in), gain2
    vector = normal(fan_out if backward else fan_in, seed=1)
    moved = (w.mT if backward else w) @ vector
    # The units below are on or off whatever W is; those above by the sign of what W gives them.
    decides = normal(*moved.shape, seed=2) if backward else moved
    moved = moved * torch.where(decides > 0, slopes[1], slopes[0])
    ratio = moved.square().sum(dim=1) / vector.square().sum()
    alive = ratio[ratio > 0]
    if slopes == RELU:
        share = 2.0 ** -(fan_in if backward else fan_out)
        assert abs(1 - len(alive) / networks - share) < 4.5 * math.sqrt(share / networks)
    else:
        assert len(alive) == networks
    assert_law(alive.log(), layer_law(fan_in, fan_out, sigma_w2, slopes, backward=backward, orthogonal=orthogonal))


@pytest.mark.parametrize("n", [2, 8, 100])
def test_square_orthogonal_layers(n: int) -> None:
    assert layer_law(n, n, 1.44, orthogonal=True) == pytest.approx((math.log(1.44), 0), abs=1e-11)
    law, mixture = layer_law(n, n, 2.0, RELU, orthogonal=True), binomial_mixture(n)
    assert law.mean == pytest.approx(math.log(2) + mixture.mean - digamma(n / 2) - math.log(2), abs=1e-11)
    assert law.variance == pytest.approx(mixture.variance - polygamma(1, n / 2), rel=1e-9, abs=1e-12)
    if n == 100:
        assert law.mean * n == pytest.approx(-3 / 2, rel=0.1)
        assert law.variance * n == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize("slopes", [RELU, pytest.param(LINEAR, marks=pytest.mark.slow)])
@pytest.mark.parametrize("orthogonal", [False, True])
def test_laws_of_layers_of_unequal_widths_add_up_both_ways(slopes: tuple[float, float], orthogonal: bool) -> None:
    networks, widths, gain2 = 10_000, [3, 8, 12, 6, 9, 4], 1.3
    x = normal(widths[0], 1, seed=1)
    a, z, weights = x.expand(networks, -1, -1), [], []
    forward = [0.0, 0.0]
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        draw = haar if orthogonal else normal
        w = draw(networks, fan_out, fan_in, seed=10 + layer) * math.sqrt(gain2 if orthogonal else gain2 / fan_in)
        weights.append(w)
        z.append(w @ a)
        a = z[-1] * torch.where(z[-1] > 0, slopes[1], slopes[0])
        last = layer == len(widths) - 2
        sigma_w2 = gain2 * fan_in / max(fan_in, fan_out) if orthogonal else gain2
        law = layer_law(fan_in, fan_out, sigma_w2, LINEAR if last else slopes, orthogonal=orthogonal)
        forward = [forward[0] + law.mean, forward[1] + law.variance]
    length = z[-1].square().sum(dim=(1, 2)) / x.square().sum()
    assert_law(length[length > 0].log(), LogMoments(*forward))

    delta = normal(networks, widths[-1], 1, seed=2)
    start = delta.square().sum(dim=(1, 2))
    backward = [0.0, 0.0]
    for layer in reversed(range(1, len(widths) - 1)):
        fan_in, fan_out = widths[layer], widths[layer + 1]
        delta = (weights[layer].mT @ delta) * torch.where(z[layer - 1] > 0, slopes[1], slopes[0])
        sigma_w2 = gain2 * fan_in / max(fan_in, fan_out) if orthogonal else gain2
        law = layer_law(fan_in, fan_out, sigma_w2, slopes, backward=True, orthogonal=orthogonal)
        backward = [backward[0] + law.mean, backward[1] + law.variance]
    length = delta.square().sum(dim=(1, 2)) / start
    assert_law(length[length > 0].log(), LogMoments(*backward))


def test_dead_networks_are_counted_over_every_pattern_of_signs() -> None:
    widths = [1, 3, 2]
    patterns = list(itertools.product([False, True], repeat=sum(widths)))
    dead = 0
    for pattern in patterns:
        units = iter(pattern)
        dead += any(sum(next(units) for _ in range(width)) == 0 for width in widths)
    assert dead_probability(widths) == pytest.approx(dead / len(patterns), rel=1e-14)


def test_dead_networks_are_that_frequent() -> None:
    networks, widths = 20_000, [4, 2, 3, 1, 2]
    a = normal(4, 1, seed=3).abs().expand(networks, -1, -1)
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        a = torch.relu(normal(networks, fan_out, fan_in, seed=layer) @ a)
    p = dead_probability(widths[1:])
    assert 0 < p < 1
    share = (a.flatten(1).sum(dim=1) == 0).double().mean().item()
    assert abs(share - p) < 4.5 * math.sqrt(p * (1 - p) / networks)


def test_a_bias_changes_nothing_in_how_many_die() -> None:
    # Not even where it outweighs all that comes from below.
    networks, widths = 20_000, [4, 2, 3, 1, 2]
    a = normal(4, 1, seed=3).expand(networks, -1, -1)
    is_dead = torch.zeros(networks, dtype=torch.bool)
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        bias = 10 * normal(networks, fan_out, 1, seed=50 + layer)
        a = torch.relu(normal(networks, fan_out, fan_in, seed=layer) @ a + bias)
        is_dead |= (a == 0).flatten(1).all(dim=1)
    p = dead_probability(widths[1:])
    assert abs(is_dead.double().mean().item() - p) < 4.5 * math.sqrt(p * (1 - p) / networks)


def test_tiny_and_certain_probabilities_of_death() -> None:
    assert dead_probability([100] * 150) == pytest.approx(150 * 2.0**-100, rel=1e-12)
    assert dead_probability([3], (1.0, 0.0)) == 1 / 8
    assert dead_probability([3, 3], (0.01, 1.0)) == 0
    assert dead_probability([1, 2], (0.0, 0.0)) == 1
    for widths in ([], [5000]):
        assert math.copysign(1, dead_probability(widths)) == 1
        assert dead_probability(widths) == 0


def exponents_by_qr(width: int, layers: int, sigma_w2: float) -> NDArray[np.float64]:
    """log of the stretch of each direction in every layer, of shape (layers, width)."""
    draws = np.random.default_rng(0).standard_normal((layers, width, width)) * math.sqrt(sigma_w2 / width)
    frame, found = np.eye(width), []
    for w in draws:
        frame, r = np.linalg.qr(w @ frame)
        found.append(np.log(np.abs(np.diag(r))))
    return np.array(found)


@pytest.mark.parametrize(("width", "sigma_w2"), few([(5, 2.5), (1, 1.0), (2, 1.0)]))
def test_lyapunov_spectrum_is_that_of_products_of_random_matrices(width: int, sigma_w2: float) -> None:
    layers = 4000
    exponents, variances = gaussian_lyapunov_exponents(width, sigma_w2)
    assert exponents.shape == variances.shape == (width,)
    assert (np.diff(exponents) < 0).all()
    found = exponents_by_qr(width, layers, sigma_w2)
    assert (np.abs(found.mean(axis=0) - exponents) < 4.5 * np.sqrt(variances / layers)).all()
    squares = (found - found.mean(axis=0)) ** 2
    assert (np.abs(squares.mean(axis=0) - variances) < 4.5 * squares.std(axis=0) / math.sqrt(layers)).all()


@pytest.mark.parametrize("sigma_w2", [1.0, 3.0])
def test_at_width_2_the_condition_number_doubles_with_each_layer(sigma_w2: float) -> None:
    exponents, _ = gaussian_lyapunov_exponents(2, sigma_w2)
    assert math.exp(exponents[0] - exponents[1]) == pytest.approx(2, rel=1e-13)
    assert exponents[0] == pytest.approx((math.log(sigma_w2) - 0.5772156649015329) / 2, rel=1e-12)


def test_the_largest_exponent_is_the_drift_of_a_single_vector() -> None:
    exponents, variances = gaussian_lyapunov_exponents(7, 1.9)
    law = layer_law(7, 7, 1.9)
    assert exponents[0] == pytest.approx(law.mean / 2, rel=1e-10)
    assert variances[0] == pytest.approx(law.variance / 4, rel=1e-9)


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda: log_square_sum(0), "count must be at least 1, got 0"),
        (lambda: log_square_sum(3, (0.0, 0.0)), r"slopes must be finite and not both 0, got \(0.0, 0.0\)"),
        (lambda: log_square_sum(3, (1.0, math.nan)), "slopes must be finite and not both 0"),
        (lambda: log_square_sum(3, (math.nan, 1.0)), "slopes must be finite and not both 0"),
        (lambda: log_square_sum(3, (1.0, math.inf)), "slopes must be finite and not both 0"),
        (lambda: layer_law(0, 3, 1.0), "widths must be at least 1, got 0 and 3"),
        (lambda: layer_law(3, 0, 1.0), "widths must be at least 1, got 3 and 0"),
        (lambda: layer_law(3, 3, 0.0), "sigma_w2 must be above 0 and finite, got 0.0"),
        (lambda: layer_law(3, 3, -1.0), "sigma_w2 must be above 0 and finite, got -1.0"),
        (lambda: layer_law(3, 3, math.nan), "sigma_w2 must be above 0 and finite, got nan"),
        (lambda: layer_law(3, 3, math.inf), "sigma_w2 must be above 0 and finite, got inf"),
        (lambda: dead_probability([3, 0]), r"widths must be at least 1, got \[3, 0\]"),
        (lambda: gaussian_lyapunov_exponents(0), "width must be at least 1, got 0"),
        (lambda: gaussian_lyapunov_exponents(3, 0), "sigma_w2 must be above 0, got 0"),
        (lambda: gaussian_lyapunov_exponents(3, -1), "sigma_w2 must be a variance, at least 0 and finite, got -1"),
    ],
)
def test_impossible_layers_are_refused(ask: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ask()
