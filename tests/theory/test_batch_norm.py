"""Batch norm over any number of samples, against closed forms, vectors on a sphere and networks that are drawn."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import few

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.networks.activations import as_activation
from gradexp.theory.batch_norm import batch_averages


@pytest.mark.parametrize("batch", [4, 8, 32, 128])
def test_linear_layers_grow_by_a_rational_number(batch: int) -> None:
    # Of the gradient a share 1 - 1/(B-1) survives the projection, and E 1/χ²_(B-1) = 1/(B-3).
    averages = batch_averages(as_activation("linear"), batch)
    assert averages.inside / averages.centred == pytest.approx((batch - 2) / (batch - 3), rel=1e-12)
    top = (batch - 2) * (batch - 1) / (batch * (batch - 3))
    assert averages.top / averages.centred == pytest.approx(top, rel=1e-12)


def test_over_a_large_batch_relu_grows_by_pi_over_pi_less_1() -> None:
    # Yang et al., 2019, arXiv:1902.08129
    averages = batch_averages(as_activation("relu"), 10**6)
    assert averages.inside / averages.centred == pytest.approx(math.pi / (math.pi - 1), rel=1e-5)


@pytest.mark.parametrize(("activation", "batch"), few([("relu", 5), ("tanh", 8), ("softplus", 4)]))
def test_averages_are_those_over_vectors_of_mean_0_and_length_root_b(activation: str, batch: int) -> None:
    phi, draws = as_activation(activation), 100_000
    g = torch.randn(draws, batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = g - g.mean(dim=1, keepdim=True)
    t = math.sqrt(batch) * torch.nn.functional.normalize(t, dim=1)
    value, slope = phi.value_and_slope(t)
    averages = batch_averages(phi, batch)

    def assert_mean(found: torch.Tensor, expected: float) -> None:
        assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / math.sqrt(draws))

    assert_mean(value.square().mean(dim=1), averages.square)
    assert_mean(value.var(dim=1), averages.centred)
    ones = torch.ones(batch, batch, dtype=torch.float64) / batch
    eye = torch.eye(batch, dtype=torch.float64)
    back = (eye - ones - t.unsqueeze(2) * t.unsqueeze(1) / batch) * slope.unsqueeze(1)  # P D
    left = batch / (batch - 3) * (back @ (eye - ones)).square().sum(dim=(1, 2)) / (batch - 1)
    assert_mean(left, averages.inside)
    assert_mean(batch / (batch - 3) * back.square().sum(dim=(1, 2)) / batch, averages.top)
    # A sample's own gradient against those of the others.
    own, other = back[:, 0, 0].square(), back[:, 0, 1].square()
    mixing = (own.mean() - other.mean()) / (own.mean() + (batch - 1) * other.mean())
    assert averages.mixing == pytest.approx(float(mixing), abs=0.02)


@pytest.mark.parametrize("batch", few([5, 4, 8, 64]))
def test_the_mean_over_units_of_a_heavy_tailed_gradient_is_below_its_expectation(batch: int) -> None:
    source, count, draws = np.random.default_rng(0), 40, 20_000
    averages = batch_averages(as_activation("linear"), batch)  # of which one unit's share is χ²_(B-2) / χ²_(B-1)
    shares = source.chisquare(batch - 2, (draws, count)) / source.chisquare(batch - 1, (draws, count))
    log = np.log(shares.mean(axis=1) * (batch - 3) / (batch - 2))
    found = averages.log_mean(count)
    assert found.mean == pytest.approx(log.mean(), abs=4.5 * log.std() / math.sqrt(draws))
    assert found.variance == pytest.approx(log.var(), rel=0.06)


def test_the_batch_is_part_of_the_prediction() -> None:
    each = [theory.predict("linear", width=1000, depth=30, normalization="batch", batch=b).log_chi for b in (8, 128)]
    # First and last layer have factors of their own, and a finite width takes of order 1 / width.
    assert each == pytest.approx([math.log(6 / 5), math.log(126 / 125)], abs=0.01)


@pytest.mark.parametrize(
    ("batch", "words"),
    [(1, "1 sample: "), (2, "2 samples: "), (3, "3 samples: squared gradients have no finite mean")],
)
def test_over_three_samples_or_fewer_there_is_no_prediction(batch: int, words: str) -> None:
    prediction = theory.predict("relu", 2.0, width=100, depth=20, normalization="batch", batch=batch)
    assert not prediction.valid
    assert f"batch norm over {words}" in prediction.reason


@pytest.mark.parametrize("batch", [0, 2.5, "8"])
def test_a_batch_is_a_whole_number(batch: Any) -> None:
    with pytest.raises(ValueError, match=f"batch must be a whole number of at least 1, got {batch!r}"):
        theory.predict("relu", normalization="batch", batch=batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "batch", "width", "depth", "networks", "residual"),
    [
        ("linear", 4, 64, 31, 60, "none"),
        ("linear", 8, 128, 31, 20, "none"),
        ("relu", 4, 64, 31, 60, "none"),
        ("relu", 8, 64, 31, 60, "none"),
        ("relu", 32, 64, 31, 30, "none"),
        ("relu", 128, 64, 31, 12, "none"),
        ("tanh", 8, 64, 31, 60, "none"),
        ("tanh", 32, 64, 4, 60, "none"),
        ("tanh", 128, 64, 31, 12, "none"),
        ("gelu", 16, 64, 31, 30, "none"),
        ("sigmoid", 8, 64, 31, 60, "none"),
        ("relu", 8, 64, 21, 60, "plain"),
        ("tanh", 32, 64, 21, 30, "plain"),
        ("linear", 8, 64, 21, 60, "depth"),
    ],
)
def test_networks_grow_as_predicted_over_any_batch(
    activation: str, batch: int, width: int, depth: int, networks: int, residual: str
) -> None:
    widths = [width] * (depth + 1)
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    kind = {"normalization": "batch", "residual": residual}
    mlp = MLP(widths, activation, networks=networks, dtype=torch.float64, draw=False, **kind)
    initialize(mlp, "lecun", seed=40)
    history = exact_profile(mlp, x)
    measured = history.at()
    prediction = theory.predict_layers(mlp.activation, theory.weight_laws("lecun", widths), widths, x, **kind)
    assert prediction.valid, prediction.reason
    assert abs(measured.log_chi() - prediction.log_chi) < prediction.tolerance + 3 * measured.log_chi_se()
    # Of the first sample alone; n networks give a standard deviation to 1 / √2n.
    first = history.samples[0, :, 0, 0]
    assert np.std(first) == pytest.approx(prediction.sd_output_grad[0], rel=0.3 + 3 / math.sqrt(2 * networks))
    outputs = measured.without_dead("output").mean(axis=0) - prediction.log10_output
    assert np.abs(outputs[:-1]).max() < 4 / width + 0.05
