"""Theory of convolutional networks against closed forms, quadrature of pairs, and simulated networks."""

import math

import numpy as np
import pytest
import torch

from gradexp.config import Config, InitConfig, ModelConfig
from gradexp.networks.activations import activation
from gradexp.runs.experiment import run
from gradexp.runs.image_theory import predict_cnn, predict_resnet
from gradexp.theory import MeanField
from gradexp.theory.convolution import Convolution, Nonlinearity, Units, _tables
from gradexp.theory.gaussian import pair_average
from gradexp.theory.weight_laws import WeightLaw


def images(samples=3, features=16):
    return torch.randn(samples, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def of(name, x=None, outputs=3, **options):
    config = Config(model=ModelConfig(name), **options)
    return {"cnn": predict_cnn, "resnet": predict_resnet}[name](config, images() if x is None else x, outputs)


@pytest.mark.parametrize(("name", "within"), [("relu", 8e-3), ("tanh", 1e-6)])
def test_tables_of_pairs_are_those_of_adaptive_quadrature(name, within):
    phi, tables = activation(name), _tables(activation(name), 0.8)
    product = pair_average(lambda a, b: phi(a) * phi(b), 0.8, 0.8, 0.0)
    for index in (2, 9, 12, 20):
        distance = 1 - math.cos(tables.angles[index])
        value = pair_average(lambda a, b: phi(a) * phi(b), 0.8, 0.8, distance, phi.kinks) / product
        assert tables.products[index] == pytest.approx(value, abs=within)
    if name == "relu":  # half the angle between two units is where exactly one is on
        np.testing.assert_allclose(tables.squared_slopes, 2 * (1 - tables.angles / math.pi), atol=within)


@pytest.mark.parametrize("circular", [True, False])
def test_averages_over_windows_are_those_of_a_convolution_of_ones(circular):
    convolution = Convolution(WeightLaw(2.0), 5, 4, 3, circular, is_delta=False)
    x = images()
    grid = x.view(3, 1, 4, 4)
    padded = torch.nn.functional.pad(grid, (1, 1, 1, 1), mode="circular" if circular else "constant")
    window = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(padded, window).flatten(1)
    torch.testing.assert_close(convolution.over_positions(x), expected)
    units = Units.of_images(x, convolution)
    patches = torch.nn.functional.unfold(padded, 3)
    covariance = 2 * torch.einsum("skp,skq->spq", patches, patches) / 9
    scale = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(units.q, scale)
    expected = covariance / (scale.unsqueeze(1) * scale.unsqueeze(2)).sqrt()
    torch.testing.assert_close(units.c, expected)
    assert Nonlinearity(activation("relu"), "none", 1.0)(units, keeps_lengths=False).square.shape == (3, 16)


def test_mean_field_of_a_cnn_deep_inside_is_that_of_the_mlp():
    options = {"activation": "tanh", "sigma_b2": 0.05, "init": InitConfig("mean_field", sigma_w2=2.5)}
    prediction = of("cnn", depth=30, width=400, **options)
    point = MeanField("tanh", 2.5, 0.05)
    assert prediction.chi_1 == pytest.approx(point.chi_1)
    steps = -2 * math.log(10) * np.diff(prediction.log10_output_grad)
    # 1 / width is left, and the correlations of positions.
    assert steps[15:25].mean() == pytest.approx(math.log(point.chi_1), abs=2 / 400)
    assert 10 ** (2 * prediction.log10_output[20]) == pytest.approx(point.q_star, rel=0.02)


def test_a_linear_delta_orthogonal_network_is_predicted_exactly():
    prediction = of("cnn", depth=30, width=8, activation="linear", init=InitConfig("delta_orthogonal", gain=1.1))
    np.testing.assert_allclose(prediction.log10_output_grad, np.arange(29, -1, -1) * math.log10(1.1), atol=1e-12)
    assert (prediction.log_chi_sd, prediction.tolerance) == (pytest.approx(0, abs=1e-12), 0)
    assert prediction.reason.startswith("exact")


@pytest.mark.parametrize(("residual", "factor"), [("plain", 2.0), ("depth", 1.1), ("zero", 1.0), ("fixup", 1.0)])
def test_blocks_of_he_weights_multiply_the_mean_square_by_their_own_factor(residual, factor):
    prediction = of("resnet", depth=22, width=4000, residual=residual)
    steps = -2 * math.log(10) * np.diff(prediction.log10_output_grad)[:-1]
    np.testing.assert_allclose(steps, math.log(factor), atol=2 / 4000)


def test_what_has_no_law_says_so():
    for options, reason in (
        ({"normalization": "batch", "batch_size": 8}, "batch norm of images takes variances over positions too"),
        ({"normalization": "rms"}, "there is no formula for rms"),
        ({"init": InitConfig("identity")}, "a scaled identity is no random matrix"),
        ({"init": InitConfig("lsuv")}, "there is no formula for LSUV"),
        ({"activation": "tanh", "width": 4, "normalization": "layer"}, "width 4 is too small"),
    ):
        found = of("cnn", **{"depth": 5, "width": 8, **options})
        assert not found.valid
        assert found.reason.startswith(reason)


CASES = [
    {"model": "cnn"},
    {"model": "cnn", "activation": "linear", "init": InitConfig("lecun")},
    {"model": "cnn", "activation": "tanh", "sigma_b2": 0.05, "init": InitConfig("mean_field", sigma_w2=1.76)},
    {"model": ModelConfig("cnn", padding="zeros")},
    {"model": "cnn", "normalization": "layer", "width": 48},
    {"model": "resnet", "residual": "none"},
    {"model": "resnet", "residual": "plain"},
    {"model": "resnet", "residual": "depth"},
    {"model": "resnet", "residual": "plain", "normalization": "layer", "width": 48},
    {"model": "resnet", "residual": "fixup"},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES)
def test_simulated_networks_agree_with_theory(options):
    networks = 12
    result = run(Config(**{"depth": 12, "width": 24, "steps": 0, "seeds": networks, "batch_size": 4, **options}))
    prediction = result.prediction
    assert prediction.valid
    # 12 networks: |z| of their mean beyond 4 has a probability of 2e-3 (Student), of less with the tolerance.
    assert abs(result.comparison.z) < 4
    measured = result.initial.samples[0, :, 0, 0].std(ddof=1)
    predicted = prediction.first_sd[0]
    # The standard deviation of 12 numbers is off by 21 %; three of those, and what the law neglects.
    assert 0.35 * predicted < measured < 2.2 * predicted
