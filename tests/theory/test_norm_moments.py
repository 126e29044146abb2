"""Moments of squared norms against closed forms, sums over all patterns and networks that are drawn."""

import math
from itertools import product

import pytest
import torch

from gradexp import MLP, exact_profile, initialize
from gradexp.theory import WeightLaw, log_norm_moment, weight_laws


def test_with_hes_variance_the_mean_is_kept_and_the_second_moment_is_that_of_hanin_and_nica() -> None:
    widths = [10, 20, 30, 25, 7]
    assert log_norm_moment("relu", "he", widths) == pytest.approx(0, abs=1e-12)
    expected = sum(math.log1p(5 / n) for n in widths[1:-1])
    assert log_norm_moment("relu", "he", widths, 2) == pytest.approx(expected, rel=1e-12)
    # Of linear units χ²: E (χ²_n)ᵏ = n (n + 2) (n + 4) ...
    third = sum(math.log(n * (n + 2) * (n + 4) / n**3) for n in widths[1:-1])
    assert log_norm_moment("linear", [WeightLaw(1.0)] * 4, widths, 3) == pytest.approx(third, rel=1e-12)
    # Ten thousand layers do not overflow.
    deep = log_norm_moment("relu", [WeightLaw(4.0)] * 10_000, [50] * 10_001)
    assert deep == pytest.approx(9999 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_moment_is_the_mean_over_all_patterns_of_units(dropout: float) -> None:
    """Given which slope each unit has, Σ s² g² has moments by its cumulants 2^(k-1) (k-1)! Σ s²ᵏ."""
    keep, slope, n = 1 - dropout, 0.3, 3
    choices = [(keep / 2, slope / keep), (keep / 2, 1 / keep), (1 - keep, 0.0)]
    expected = 0.0
    for units in product(choices, repeat=n):
        share = math.prod(odds for odds, _ in units)
        k1, k2, k3 = (2 ** (k - 1) * math.factorial(k - 1) * sum(s ** (2 * k) for _, s in units) for k in (1, 2, 3))
        expected += share * (k3 + 3 * k2 * k1 + k1**3)
    law = WeightLaw(1.7)
    found = log_norm_moment(lambda z: torch.where(z > 0, z, slope * z), [law] * 2, [5, n, 4], 3, dropout=dropout)
    assert math.exp(found) == pytest.approx(expected * (1.7 / n) ** 3, rel=1e-12)


def test_orthogonal_weights_keep_lengths_in_every_moment() -> None:
    assert log_norm_moment("linear", "orthogonal", [8] * 5, 4) == pytest.approx(0, abs=1e-12)
    # The share of a vector of length 1 in 6 dimensions that 2 of them hold: Beta(1, 2), E x² = 1 / 6, times gain⁴.
    narrow = [WeightLaw(1.0), WeightLaw(3.0 * 2 / 6, orthogonal=True)]
    assert math.exp(log_norm_moment("linear", narrow, [4, 2, 6], 2)) == pytest.approx(9 / 6)


@pytest.mark.slow
@pytest.mark.parametrize("backward", [True, False])
def test_moments_are_those_of_drawn_networks(backward: bool) -> None:
    widths, networks = [12, 16, 10, 14, 6], 4000
    mlp = initialize(MLP(widths, "relu", bias=False, networks=networks), "xavier", seed=0)
    x = torch.ones(1, 12, dtype=torch.float64)
    profile = exact_profile(mlp, x)
    log10 = profile.log10["output_grad" if backward else "output"][0]
    ratio = 2 * (log10[:, 0] if backward else log10[:, -1] + math.log10(6 / 12) / 2)
    values = torch.from_numpy(10.0**ratio).nan_to_num(0.0)
    for order in (1, 2):
        powers = values**order
        error = powers.std().item() / math.sqrt(networks)
        expected = math.exp(log_norm_moment("relu", "xavier", widths, order, backward=backward))
        assert powers.mean().item() == pytest.approx(expected, abs=4.5 * error)


def test_what_has_no_exact_moments_is_refused() -> None:
    widths = [4, 5, 3]
    for phi, laws, order, text in (
        ("tanh", "he", 1, "^moments are known for linear, relu and leaky_relu only$"),
        ("relu", "torch_default", 1, "^moments are known for Gaussian or orthogonal weights without biases only$"),
        ("relu", weight_laws("he", widths, distribution="uniform"), 2, "^moments are known for Gaussian"),
        ("relu", "he", 0, "^order must be a whole number of at least 1, got 0$"),
        ("relu", [WeightLaw(1.0)], 1, "^laws must be 2, one for each layer of these widths, got 1$"),
    ):
        with pytest.raises(ValueError, match=text):
            log_norm_moment(phi, laws, widths, order)
    assert log_norm_moment("relu", weight_laws("he", widths, distribution="uniform"), widths) == pytest.approx(0)
    assert log_norm_moment("relu", [WeightLaw(0.0)] * 2, widths) == -math.inf
