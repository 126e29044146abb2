import dataclasses
import functools
import math
from typing import cast

import numpy as np
import pytest
import torch
from cases import few

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.history.history import History
from gradexp.networks.activations import as_activation
from gradexp.networks.mlp import StackedLinear
from gradexp.theory import MeanField, Prediction, compare, jacobian_moments

WIDTHS = [20] + [32] * 59 + [32]


def relu_stack(networks: int, seed: int = 0) -> tuple[MLP, torch.Tensor, Prediction]:
    mlp = MLP(WIDTHS, "relu", networks=networks, dtype=torch.float64, draw=False)
    initialize(mlp, "he", seed=seed)
    return mlp, inputs(), predicted()


def inputs() -> torch.Tensor:
    return torch.randn(3, WIDTHS[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@functools.cache
def predicted() -> Prediction:
    return theory.predict_layers(as_activation("relu"), theory.weight_laws("he", WIDTHS), WIDTHS, inputs())


def measured(mlp: MLP, x: torch.Tensor) -> History:
    return exact_profile(mlp, x, seeds=list(range(mlp.networks)))


@functools.cache
def measured_as_drawn() -> tuple[Prediction, History]:
    """Return the prediction and the measurement of 64 networks, made once for all tests that change neither."""
    mlp, x, prediction = relu_stack(64)
    return prediction, measured(mlp, x)


@pytest.mark.slow
def test_networks_drawn_as_theory_assumes_agree() -> None:
    prediction, history = measured_as_drawn()
    found = compare(prediction, history)
    assert found.verdict == "agrees"
    assert found.deviates_from_layer is None
    # The definition: the law is exact, so nothing but the standard error counts.
    expected = (history.log_chi() - prediction.log_chi) / history.log_chi_se()
    assert found.z == pytest.approx(expected, rel=1e-4)
    side = "above" if expected > 0 else "below"
    slope = f"mean {history.log_chi():+.3f}"
    assert found.text == f"agrees: {slope}, {abs(expected):.1f} standard errors {side} theory"


def test_a_wrong_layer_is_found_and_named() -> None:
    mlp, x, prediction = relu_stack(16)
    with torch.no_grad():
        cast("StackedLinear", mlp.layers[36]).weight.mul_(
            30
        )  # W of layer 37, through which layer 36 gets its gradient
    found = compare(prediction, measured(mlp, x))
    assert (found.verdict, found.deviates_from_layer) == ("deviates", 36)
    assert found.z > 5
    assert found.text.startswith("deviates from layer 36 on: mean +")


def test_a_slope_that_is_off_everywhere_deviates() -> None:
    mlp, x, prediction = relu_stack(16)
    with torch.no_grad():
        for layer in mlp.layers:
            cast("StackedLinear", layer).weight.mul_(1.1)
    found = compare(prediction, measured(mlp, x))
    assert found.verdict == "deviates"
    assert found.z > 10


def test_with_few_networks_the_first_sample_is_judged_by_its_own_spread() -> None:
    mlp, x, prediction = relu_stack(1, seed=3)
    history = measured(mlp, x)
    found = compare(prediction, history)
    log_ratio = history.samples[0, 0, 0, 0] - history.samples[0, 0, -1, 0]
    slope, side = 2 * math.log(10) * log_ratio / (history.depth - 1), "above" if found.z > 0 else "below"
    told = f": first sample {slope:+.3f}, {abs(found.z):.1f} standard deviations {side} theory"
    assert found.text.endswith(told)  # the number that is compared, not the mean over samples
    assert found.z == pytest.approx((log_ratio - prediction.first_output_grad[0]) / prediction.first_sd[0], rel=1e-4)
    # Over many networks these z are about standard normal.
    prediction, history = measured_as_drawn()
    alone = history.samples[0, :, 0, 0]
    z = (alone - prediction.first_output_grad[0]) / prediction.first_sd[0]
    assert abs(np.nanmean(z)) < 4 / math.sqrt(64)
    assert np.nanstd(z) == pytest.approx(1, abs=4.5 / math.sqrt(2 * 64))


@pytest.mark.parametrize(("gain", "equal"), [(0.5, "1e-12"), (1.5, "1e-12")])
def test_of_an_exact_law_it_is_said_how_equal_both_are(gain: float, equal: str) -> None:
    mlp = MLP([2] * 41, "linear", bias=False, dtype=torch.float64, draw=False)
    initialize(mlp, "identity", seed=0, gain=gain)
    x = torch.ones(2, 2, dtype=torch.float64)
    laws = theory.weight_laws("identity", [2] * 41, gain=gain)
    found = compare(theory.predict_layers(as_activation("linear"), laws, [2] * 41, x), measured(mlp, x))
    assert found.text == f"agrees: exact, and equal to {equal}"
    assert "standard" not in found.text


def test_seven_networks_count_as_few_and_eight_as_many() -> None:
    for networks, many in ((7, False), (8, True)):
        mlp, x, prediction = relu_stack(networks)
        history = measured(mlp, x)
        by_scatter = (history.log_chi() - prediction.log_chi) / history.log_chi_se()
        assert (abs(compare(prediction, history).z - by_scatter) < 1e-3) == many


def test_the_tolerance_of_a_prediction_widens_what_agrees() -> None:
    prediction, history = measured_as_drawn()
    off = dataclasses.replace(prediction, log10_output_grad=prediction.log10_output_grad + np.linspace(9, 0, 60))
    assert compare(off, history).verdict == "deviates"
    assert compare(dataclasses.replace(off, tolerance=0.7), history).verdict == "agrees"


def test_without_a_formula_the_reason_is_passed_on() -> None:
    mlp = MLP([16] * 41, "tanh", networks=8, dtype=torch.float64, draw=False)
    initialize(mlp, "lecun", seed=0)
    prediction = theory.predict("gelu", 2.0, width=16, depth=40)
    found = compare(prediction, measured(mlp, torch.ones(2, 16, dtype=torch.float64)))
    assert (found.verdict, found.z, found.deviates_from_layer) == ("unavailable", None, None)
    assert found.text == f"theory unavailable: {prediction.reason}"


def test_dead_networks_and_single_layers_have_nothing_to_compare() -> None:
    mlp = MLP([4, 1, 1, 1, 4], "relu", networks=9, dtype=torch.float64, draw=False)
    initialize(mlp, "identity", seed=0)
    with torch.no_grad():
        cast("StackedLinear", mlp.layers[1]).weight.neg_()
    x = torch.ones(2, 4, dtype=torch.float64)
    prediction = theory.predict("relu", 2.0, widths=[4, 1, 1, 1, 4])
    assert compare(prediction, measured(mlp, x)).text == (
        "theory unavailable: no sample has a gradient at every layer"
    )
    single = MLP([4, 4], "relu", networks=9, dtype=torch.float64)
    assert compare(theory.predict("relu", 2.0, widths=[4, 4]), measured(single, x)).verdict == "unavailable"
    with pytest.raises(ValueError, match="prediction has 1 layers, the measurement 4"):
        compare(theory.predict("relu", 2.0, widths=[4, 4]), measured(mlp, x))


@pytest.mark.parametrize(
    ("weights", "activation", "gain"),
    few(
        [
            ("lecun", "tanh", 1.2),
            ("orthogonal", "relu", math.sqrt(2)),
            ("lecun", "linear", 1.0),
            ("lecun", "relu", math.sqrt(2)),
            ("orthogonal", "linear", 1.0),
            ("orthogonal", "tanh", 1.2),
        ],
        2,
    ),
)
def test_jacobian_moments_of_real_networks(weights: str, activation: str, gain: float) -> None:
    # J of 5 factors D W, m_2 / m_1² by trace, against 1 + L(mu_2 / mu_1² - 1 - s_1).
    n, depth, networks = 100, 4, 40
    mlp = MLP([n] * (depth + 1), activation, networks=networks, dtype=torch.float64, draw=False)
    initialize(mlp, weights, seed=1, gain=gain)
    point = MeanField(activation, gain**2)
    a = torch.randn(networks, 1, n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a *= math.sqrt(point.q_star / gain**2)
    if activation == "tanh":  # so that the first layer has length q* too
        a = a / a.norm(dim=2, keepdim=True) * math.sqrt(n * point.q_star / gain**2)
    jacobian = torch.eye(n, dtype=torch.float64).expand(networks, n, n)
    for layer in mlp.layers:
        a, slope = mlp.activation.value_and_slope(layer(a))
        jacobian = slope.mT * (cast("StackedLinear", layer).weight @ jacobian)
    gram = jacobian @ jacobian.mT
    m1 = gram.diagonal(dim1=1, dim2=2).mean(dim=1)
    ratio = gram.square().sum(dim=(1, 2)) / n / m1.square()
    expected = jacobian_moments(point, depth, orthogonal=weights == "orthogonal")
    error = ratio.std().item() / math.sqrt(networks)
    # Finite width adds about depth² / n of the ratio's spread.
    assert abs(ratio.mean().item() - expected.ratio) < 4 * error + 2 * depth**2 / n
    spread = m1.log().std().item() / math.sqrt(networks)
    assert abs(m1.log().mean().item() - expected.log_m1) < 4 * spread + 6 * depth / n


def test_jacobian_moments_refuse_what_has_none() -> None:
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        jacobian_moments(MeanField("tanh", 1.5), 0)
    with pytest.raises(ValueError, match="lengths grow for ever at sigma_w2=3, sigma_b2=0: there is no fixed length"):
        jacobian_moments(MeanField("relu", 3.0), 2)
