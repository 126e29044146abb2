"""The law of a length followed from layer to layer, against exact laws, the expansion and networks that are drawn."""

import math

import numpy as np
import pytest
import torch
from cases import few
from drawn import drawn

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.networks.activations import as_activation
from gradexp.theory.expansion import expand
from gradexp.theory.length_law import follow_lengths
from gradexp.theory.network import Network
from gradexp.theory.profile import Profile, exact

ONE = torch.ones(1, dtype=torch.float64)


def both(
    activation: str, sigma_w2: float, sigma_b2: float, width: int, depth: int
) -> tuple[Network, Profile, Profile]:
    laws, widths = [theory.WeightLaw(sigma_w2, sigma_b2)] * depth, [width] * (depth + 1)
    network = Network(as_activation(activation), laws, widths)
    expansion = expand(network, ONE)
    followed = follow_lengths(network, ONE, expansion)
    assert followed is not None
    return network, expansion, followed


def test_lengths_of_linear_networks_have_their_exact_law() -> None:
    network, _, followed = both("linear", 1.0, 0.0, width=20, depth=30)
    law = exact(network, ONE)
    np.testing.assert_allclose(followed.output, law.output, atol=1e-3)
    np.testing.assert_allclose(followed.inputs, law.inputs, atol=1e-3)
    # The way back is of first order: ψ(n/2) + log(2/n) is -1/n - 1/3n² - ...
    np.testing.assert_allclose(followed.output_grad, law.output_grad, atol=30 / (3 * 20**2) + 1e-3)
    np.testing.assert_allclose(followed.variance, law.variance, rtol=3 / 20)


@pytest.mark.parametrize(
    ("activation", "sigma_w2", "sigma_b2"), few([("tanh", 2.5, 0.05), ("sigmoid", 1.0, 0.1), ("softplus", 1.0, 0.0)])
)
def test_in_wide_networks_it_is_the_expansion(activation: str, sigma_w2: float, sigma_b2: float) -> None:
    width, depth = 1000, 12
    _, expansion, followed = both(activation, sigma_w2, sigma_b2, width, depth)
    for key in ("output", "inputs", "output_grad"):
        np.testing.assert_allclose(getattr(followed, key), getattr(expansion, key), atol=5 * depth / width**2)
    np.testing.assert_allclose(followed.variance, expansion.variance, rtol=10 / width, atol=1e-9)


def test_where_lengths_fall_like_a_power_first_order_is_not_enough() -> None:
    # tanh(z) = z - a z³ with a = 1/3: K' = K χ²/n (1 - 6 a K), so that log K is a random walk with a drift, and
    # 1 / K an exponential of it, summed. Drawn here as such, for small K.
    width, depth, start, networks = 32, 60, 0.02, 20_000
    source = np.random.default_rng(0)
    log_k, log_grad = np.full(networks, math.log(start)), np.zeros(networks)
    for _ in range(depth - 1):
        k = np.exp(log_k)
        log_grad += np.log1p(-2 * k + 7 * k**2)
        log_k += np.log(source.chisquare(width, networks) / width) + np.log1p(-2 * k + 17 / 3 * k**2)
    laws, widths = [theory.WeightLaw(1.0)] * depth, [width] * (depth + 1)
    network = Network(as_activation("tanh"), laws, widths)
    expansion = expand(network, start * ONE)
    followed = follow_lengths(network, start * ONE, expansion)
    assert followed is not None
    scatter = -1 / width - 1 / (3 * width**2)  # of the last layer's units
    error = log_k.std() / math.sqrt(networks)
    assert float(followed.output[-1, 0]) == pytest.approx(log_k.mean() + scatter, abs=4 * error + 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "sigma_w2", "width", "depth", "networks"),
    [
        ("tanh", 1.0, 64, 80, 1500),
        ("tanh", 1.0, 128, 60, 1500),
        ("tanh", 1.0, 1000, 40, 300),
        ("erf", math.pi / 4, 64, 80, 2000),
        ("softsign", 1.0, 64, 60, 2000),
        ("hard_tanh", 1.0, 64, 60, 2000),
    ],
)
def test_odd_activations_on_the_critical_point_have_line_and_band(
    activation: str, sigma_w2: float, width: int, depth: int, networks: int
) -> None:
    part = max(1, networks * width * depth // 10_000_000)  # drawn in parts that fit memory
    phi = as_activation(activation)
    parts = [drawn(phi, width, depth, networks // part, sigma_w2, seed=seed) for seed in range(part)]
    output, gradient = (torch.cat(kind) for kind in zip(*parts, strict=True))
    prediction = theory.predict(activation, sigma_w2, width=width, depth=depth)
    assert prediction.valid, prediction.reason
    log_chi = gradient[:, 0] / (depth - 1)
    error = float(log_chi.std()) / math.sqrt(len(log_chi))
    assert abs(float(log_chi.mean()) - prediction.log_chi) < prediction.tolerance + 3 * error
    assert float(log_chi.std()) == pytest.approx(prediction.log_chi_sd, rel=0.1)
    if width < 1000:
        assert abs(float(log_chi.mean()) - prediction.log_chi_mean_field) > 10 * error
    # Every layer, forward and back, as log10 of amplitudes.
    for drawn_log, predicted in ((output, prediction.log10_output), (gradient, prediction.log10_output_grad)):
        log10 = (drawn_log / (2 * math.log(10))).numpy()
        allowed = 4.5 * log10.std(axis=0) / math.sqrt(len(log10)) + prediction.tolerance * depth / (2 * math.log(10))
        assert (np.abs(log10.mean(axis=0) - predicted) < allowed + 1e-9).all()


@pytest.mark.slow
def test_networks_whose_weights_are_drawn_agree_too() -> None:
    widths, networks = [30] + [48] * 40 + [10], 400
    x = torch.randn(1, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mlp = MLP(widths, "tanh", networks=networks, dtype=torch.float64, draw=False)
    initialize(mlp, "lecun", seed=7)
    measured = exact_profile(mlp, x).at()
    prediction = theory.predict_layers(mlp.activation, theory.weight_laws("lecun", widths), widths, x)
    assert prediction.reason == "to first order in 1 / width, with the whole law of lengths"
    assert abs(measured.log_chi() - prediction.log_chi) < prediction.tolerance + 4 * measured.log_chi_se()


def test_lengths_that_go_too_far_for_a_grid_and_weights_that_keep_them_are_left_to_the_expansion() -> None:
    far = theory.predict("gelu", 1.0, width=128, depth=150)
    assert not far.valid
    assert "lengths differ between networks" in far.reason
    orthogonal = theory.predict("tanh", 1.0, width=12, depth=40, weights="orthogonal")
    assert orthogonal.reason == "to first order in 1 / width"
