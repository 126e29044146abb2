"""Predictions against real networks measured by exact_profile, and against formulas worked out here by scipy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import few
from drawn import drawn
from scipy.integrate import quad
from torch import nn

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.history.history import History
from gradexp.theory import Prediction

NARROW, HIDDEN = ([50] + [width] * depth + [10] for width, depth in ((60, 24), (60, 12)))
UNEQUAL = [20, 40, 30, 60, 16, 24, 50, 32, 10]


def measured_and_predicted(
    init: str,
    activation: str,
    widths: list[int],
    networks: int = 100,
    *,
    sigma_b2: float | None = None,
    normalization: str = "none",
    residual: str = "none",
    batch: int = 4,
    **options: Any,
) -> tuple[History, Prediction]:
    x = torch.randn(batch, widths[0], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cures = {"normalization": normalization, "residual": residual}
    mlp = MLP(widths, activation, networks=networks, dtype=torch.float64, negative_slope=0.2, draw=False, **cures)
    given = {"sigma_b2": sigma_b2, "activation": activation, "negative_slope": 0.2}
    initialize(mlp, init, seed=100, **given, **({"inputs": x} if init == "lsuv" else {}), **options)
    measured = exact_profile(mlp, x, seeds=list(range(100, 100 + networks)))
    laws = theory.weight_laws(init, widths, **given, **options)
    return measured, theory.predict_layers(mlp.activation, laws, widths, x, **cures)


def standard_errors(measured: History, predicted: np.ndarray, quantity: str) -> np.ndarray:
    """Return (measured - predicted) of each layer over its standard error, or over rounding where that is 0."""
    log10 = measured.at().without_dead(quantity)
    error = log10.std(axis=0, ddof=1) / math.sqrt(len(log10))
    z: np.ndarray = (log10.mean(axis=0) - predicted) / np.maximum(error, 1e-12)
    return z


@pytest.mark.parametrize(
    ("activation", "init", "widths"),
    [
        ("linear", "he", UNEQUAL),
        ("relu", "orthogonal", UNEQUAL),
        pytest.param("leaky_relu", "he", UNEQUAL, marks=pytest.mark.slow),
        pytest.param("relu", "he", [20] + [32] * 30 + [10], marks=pytest.mark.slow),
    ],
)
def test_exact_laws_describe_every_layer_of_real_networks(activation: str, init: str, widths: list[int]) -> None:
    measured, predicted = measured_and_predicted(init, activation, widths, networks=200)
    assert predicted.valid
    assert predicted.tolerance == 0
    for quantity in ("output", "output_grad", "weight_grad"):
        z = standard_errors(measured, getattr(predicted, f"log10_{quantity}"), quantity)
        assert np.abs(z).max() < 4
    # 200 networks give a standard deviation to 5 %.
    alone = measured.samples[0, :, 0, 0]
    assert np.nanstd(alone, ddof=1) == pytest.approx(predicted.first_sd[0], rel=0.2, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("init", "activation", "options"),
    [
        ("mean_field", "tanh", {"sigma_w2": 2.5, "sigma_b2": 0.05}),
        pytest.param("orthogonal", "tanh", {"gain": 1.0}, marks=pytest.mark.slow),
        pytest.param("orthogonal", "tanh", {"gain": 1.5, "sigma_b2": 0.1}, marks=pytest.mark.slow),
        pytest.param("lecun", "selu", {}, marks=pytest.mark.slow),
        pytest.param("xavier", "sigmoid", {}, marks=pytest.mark.slow),
        pytest.param("mean_field", "erf", {"sigma_w2": 2.0, "sigma_b2": 0.1}, marks=pytest.mark.slow),
        pytest.param("mean_field", "relu", {"sigma_w2": 1.8, "sigma_b2": 0.1}, marks=pytest.mark.slow),
        pytest.param("mean_field", "silu", {"sigma_w2": 1.5, "sigma_b2": 0.3}, marks=pytest.mark.slow),
        pytest.param("torch_default", "tanh", {}, marks=pytest.mark.slow),
        pytest.param("he", "tanh", {"distribution": "uniform"}, marks=pytest.mark.slow),
        pytest.param("truncated_normal", "tanh", {}, marks=pytest.mark.slow),
        pytest.param("lsuv", "tanh", {}, marks=pytest.mark.slow),
    ],
)
def test_the_expansion_describes_every_layer_where_infinite_width_does_not(
    init: str, activation: str, options: dict[str, Any]
) -> None:
    sigma_b2 = options.get("sigma_b2")
    measured, predicted = measured_and_predicted(init, activation, NARROW, **options)
    assert predicted.valid, predicted.reason
    error = math.hypot(measured.log_chi_se(), predicted.tolerance)
    assert abs(measured.log_chi() - predicted.log_chi) < 4 * error
    # At gain 1 infinite width is right to 1e-4 already, and with torch's weights to 3 or 4 standard errors.
    if sigma_b2 or init not in ("orthogonal", "torch_default"):
        assert abs(measured.log_chi() - predicted.log_chi_mean_field) > 2 * error
    layers = np.arange(len(NARROW) - 2, -1, -1)
    z = standard_errors(measured, predicted.log10_output_grad, "output_grad")
    allowed = 4 + layers * predicted.tolerance / (2 * math.log(10)) * math.sqrt(100) / predicted.sd_output_grad[0]
    assert (np.abs(z) < allowed).all()
    assert np.nanstd(measured.samples[0, :, 0, 0]) == pytest.approx(predicted.sd_output_grad[0], rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_orthogonal_weights_between_unequal_widths_fix_lengths_in_part_only(normalization: str) -> None:
    widths = [100] + [20, 100] * 6 + [10]
    measured, predicted = measured_and_predicted(
        "orthogonal", "tanh", widths, networks=200, sigma_b2=0.1, gain=1.5, normalization=normalization
    )
    assert predicted.valid, predicted.reason
    error = math.hypot(measured.log_chi_se(), predicted.tolerance)
    assert abs(measured.log_chi() - predicted.log_chi) < 3.5 * error
    assert np.nanstd(measured.samples[0, :, 0, 0]) == pytest.approx(predicted.first_sd[0], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("normalization", "residual", "activation", "init"),
    [
        pytest.param("layer", "none", "tanh", "lecun", marks=pytest.mark.slow),
        pytest.param("layer", "none", "relu", "he", marks=pytest.mark.slow),
        pytest.param("layer", "none", "tanh", "orthogonal", marks=pytest.mark.slow),
        pytest.param("none", "plain", "relu", "he", marks=pytest.mark.slow),
        pytest.param("none", "plain", "tanh", "lecun", marks=pytest.mark.slow),
        pytest.param("none", "depth", "relu", "he", marks=pytest.mark.slow),
        pytest.param("none", "depth", "tanh", "lecun", marks=pytest.mark.slow),
        ("none", "zero", "tanh", "lecun"),
        pytest.param("layer", "depth", "relu", "he", marks=pytest.mark.slow),
    ],
)
def test_each_cure_has_its_own_prediction(normalization: str, residual: str, activation: str, init: str) -> None:
    measured, predicted = measured_and_predicted(
        init, activation, HIDDEN, normalization=normalization, residual=residual
    )
    assert predicted.valid, predicted.reason
    error = math.hypot(measured.log_chi_se(), predicted.tolerance)
    assert abs(measured.log_chi() - predicted.log_chi) < 4 * error
    assert np.nanstd(measured.samples[0, :, 0, 0]) == pytest.approx(predicted.sd_output_grad[0], rel=0.3)
    off = measured.at().without_dead("output").mean(axis=0) - predicted.log10_output
    se = measured.at().without_dead("output").std(axis=0, ddof=1) / 10  # of 100 networks
    # Lengths that orthogonal weights keep hardly scatter, so that order 1 / width² shows: up to 0.0024 in six draws.
    allowed = 5 * se + np.arange(len(off)) * predicted.tolerance / (2 * math.log(10)) + 15 / 60**2
    assert (np.abs(off) < allowed).all()


@pytest.mark.slow
@pytest.mark.parametrize("init", ["xavier"])
def test_batch_norm_explodes_whatever_the_initialisation(init: str) -> None:
    # Yang et al., 2019: π / (π - 1) per relu layer. The first layer has its own factor, so it is left out.
    measured, predicted = measured_and_predicted(
        init, "relu", [50] + [100] * 20 + [10], networks=24, normalization="batch", batch=64
    )
    expected = math.log(math.pi / (math.pi - 1))
    assert measured.log_chi(first=2, last=20) == pytest.approx(expected, abs=0.03)
    assert predicted.log_chi == pytest.approx(measured.log_chi(), abs=0.03)
    assert math.log(predicted.chi_1) == pytest.approx(expected, abs=1.5 / 64)  # of 64 samples


def averages(activation: Callable[[float], float], slope: Callable[[float], float], q: float) -> dict[str, float]:
    """Return Gaussian averages by scipy's adaptive quadrature."""

    def mean(f: Callable[[float], float]) -> float:
        density = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        return quad(lambda z: f(math.sqrt(q) * z) * density(z), -12, 12, epsabs=1e-14, epsrel=1e-13, limit=200)[0]

    return {
        "s2": mean(lambda u: activation(u) ** 2),
        "s4": mean(lambda u: activation(u) ** 4),
        "mu1": mean(lambda u: slope(u) ** 2),
        "mu2": mean(lambda u: slope(u) ** 4),
        "cross": mean(lambda u: (activation(u) * slope(u)) ** 2),
        "uff": mean(lambda u: u * activation(u) * slope(u)),
        "u2f2": mean(lambda u: (u * slope(u)) ** 2),
    }


def test_at_the_fixed_point_the_expansion_is_the_closed_formula() -> None:
    # The fixed-point form of the expansion, with every derivative a finite difference of scipy's averages.
    sw2, sb2, n = 2.5, 0.05, 10_000

    def tanh_averages(q: float) -> dict[str, float]:
        return averages(math.tanh, lambda u: 1 / math.cosh(u) ** 2, q)

    q, h = 1.0, 1e-3
    for _ in range(60):
        q = sw2 * tanh_averages(q)["s2"] + sb2
    low, here, high = (tanh_averages(q + d) for d in (-h, 0, h))
    v1 = sw2 * (high["s2"] - low["s2"]) / (2 * h)
    v2 = sw2 * (high["s2"] - 2 * here["s2"] + low["s2"]) / h**2
    logs = [math.log(a["mu1"]) for a in (low, here, high)]
    l1, l2 = (logs[2] - logs[0]) / (2 * h), (logs[2] - 2 * logs[1] + logs[0]) / h**2
    s2, mu1 = here["s2"], here["mu1"]
    chi = sw2 * mu1
    omega = 3 * here["mu2"] / mu1**2 - 1
    kappa = here["cross"] / (s2 * mu1)
    rho = sw2 * s2 / q
    a1, a2 = rho * here["uff"], rho**2 * here["u2f2"] + rho * sb2 * mu1
    r = (a2 - a1**2 / s2) / (s2 * (chi - (a1 / s2) ** 2))
    eta = sw2**2 * (here["s4"] - s2**2)
    variance = eta / (1 - v1**2)
    bias = v2 * variance / 2 / (1 - v1)
    c1 = -omega / 2 + kappa * (r - 1) + l1 * bias + l2 * variance / 2
    v = omega + 2 * l1 * sw2 * (here["cross"] - s2 * mu1) / (mu1 * (1 - v1)) + l1**2 * eta / (1 - v1) ** 2

    deep = theory.predict("tanh", sw2, sb2, width=n, depth=200)
    steps = -np.diff(deep.log10_output_grad) * 2 * math.log(10)
    assert (steps[100] - math.log(chi)) * n == pytest.approx(c1, rel=1e-4)
    variances = (2 * math.log(10) * deep.sd_output_grad) ** 2
    assert (variances[99] - variances[100]) * n == pytest.approx(v, rel=1e-4)


def test_a_vanishing_bias_leads_from_the_expansion_to_the_exact_law() -> None:
    n = 1000
    exact = theory.predict("relu", 2.0, 0.0, width=n, depth=50)
    expanded = theory.predict("relu", 2.0, 1e-13, width=n, depth=50)
    assert exact.tolerance == 0 < expanded.tolerance
    assert expanded.log_chi == pytest.approx(exact.log_chi, abs=10 / n**2)
    assert expanded.log_chi_sd == pytest.approx(exact.log_chi_sd, rel=10 / n)
    np.testing.assert_allclose(expanded.log10_output, exact.log10_output, atol=50 * 10 / n**2)
    np.testing.assert_allclose(expanded.log10_weight_grad, exact.log10_weight_grad, atol=50 * 10 / n**2)


def test_xavier_with_tanh_decays_like_one_over_depth() -> None:
    # From q¹ = 1: log ‖δ¹‖² / ‖δᴸ‖² is -4.225, -4.933, -5.344, -7.253, that is 0.708 / L.
    for depth, expected in ((50, -4.225), (150, -5.344)):
        wide = theory.predict("tanh", 1.0, 0.0, width=10_000, depth=depth, weights="orthogonal")
        assert wide.log_chi_mean_field * (depth - 1) == pytest.approx(expected, abs=2e-3)
        assert math.exp(wide.log_chi * (depth - 1)) * depth == pytest.approx(0.708, abs=0.03)


def test_where_no_formula_holds_there_are_no_numbers_but_a_reason() -> None:
    wild = theory.predict("gelu", 2.0, width=64, depth=40)
    assert not wild.valid
    assert wild.reason == "width 64 is too small for an expansion in 1 / width"
    assert wild.log_chi is None
    assert np.isnan(wild.log10_output_grad).all()
    assert wild.arrays == {}
    assert wild.log_chi_mean_field < 0  # infinite width is still known
    narrow = theory.predict("tanh", 2.5, 0.05, width=3, depth=50)
    assert not narrow.valid
    assert "width 3 is too small" in narrow.reason
    assert theory.predict("relu", 2.0, width=3, depth=50).valid  # exact at any width
    nothing = theory.predict("tanh", 0.0, width=10, depth=5)
    assert not nothing.valid
    assert nothing.reason == "sigma_w2 is 0: nothing gets through"


@pytest.mark.parametrize("activation", few(["tanh", "linear", "relu"]))
def test_a_scaled_identity_is_followed_unit_by_unit(activation: str) -> None:
    widths = [8, 12, 12, 12, 9, 12, 7]
    measured, predicted = measured_and_predicted("identity", activation, widths, networks=1000, gain=1.5)
    np.testing.assert_allclose(measured.profile("output"), predicted.log10_output, rtol=0, atol=1e-12)
    for quantity in ("output_grad", "weight_grad"):
        assert np.abs(standard_errors(measured, getattr(predicted, f"log10_{quantity}"), quantity)[:-1]).max() < 4
    alone = measured.samples[0, :, 0, 0]
    assert np.std(alone) == pytest.approx(predicted.first_sd[0], rel=0.12, abs=1e-6)


def test_scaled_identity_of_1_5_vanishes_with_tanh() -> None:
    # z = 1.5 tanh z at z* = 1.2878..., where tanh z* = 0.8585596366 and the factor is 1.5 (1 - tanh² z*).
    law = theory.weight_laws("identity", [2] * 61, gain=1.5)
    prediction = theory.predict_layers(
        theory.mean_field.as_activation("tanh"), law, [2] * 61, torch.ones(1, 2, dtype=torch.float64)
    )
    steps = -np.diff(prediction.log10_output_grad) * 2 * math.log(10)
    fixed = 1.5
    for _ in range(200):
        fixed = 1.5 * math.tanh(fixed)
    assert math.tanh(fixed) == pytest.approx(0.8585596366, abs=1e-10)
    assert steps[40] == pytest.approx(2 * math.log(1.5 * (1 - math.tanh(fixed) ** 2)), abs=1e-9)
    assert steps[40] == pytest.approx(-1.86122, abs=1e-5)
    assert prediction.log_chi_sd == pytest.approx(0, abs=1e-7)  # both units are alike


@pytest.mark.slow
def test_two_thousand_layers_of_half_the_identity_are_exact() -> None:
    depth = 2000  # 0.5**2000 is far below the range of float64
    laws = theory.weight_laws("identity", [2] * (depth + 1), gain=0.5)
    phi = theory.mean_field.as_activation("linear")
    prediction = theory.predict_layers(phi, laws, [2] * (depth + 1), torch.ones(1, 2, dtype=torch.float64))
    assert prediction.log10_output[-1] == pytest.approx(depth * math.log10(0.5), rel=1e-12)
    assert prediction.log10_output_grad[0] == pytest.approx((depth - 1) * math.log10(0.5), rel=1e-12)


def test_failing_layers_are_where_a_typical_element_leaves_the_format() -> None:
    prediction = theory.predict("sigmoid", 1.0, width=128, depth=150)
    layer = prediction.failing_layer("float32")
    # 17.9 per layer of ‖δ‖², starting with elements of about √(2 log n / n).
    per_layer = -prediction.log_chi / (2 * math.log(10))
    reach = 150 * math.log10(2) + 0.5 * math.log10(2 * math.log(128) / 128)
    assert layer == pytest.approx(150 - reach / per_layer, abs=1.5)
    assert prediction.failing_layer("float16") > prediction.failing_layer("bfloat16") >= layer
    assert theory.predict("relu", 4.0, width=128, depth=300).failing_layer("float16", overflow=True) > 200
    assert theory.predict("relu", 2.0, width=128, depth=50).failing_layer("float32") is None
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, got 'int8'"):
        prediction.failing_layer("int8")


def test_from_model_takes_scales_and_shifts_of_normalisers_only_where_they_start() -> None:
    mlp, plain = (MLP([20] * 9, "tanh", normalization="layer", affine=affine) for affine in (True, False))
    for each in (mlp, plain):
        initialize(each, "he", seed=0, report=lambda _: None)
    predicted, expected = (theory.from_model(each) for each in (mlp, plain))
    assert np.array_equal(predicted.log10_output_grad, expected.log10_output_grad)
    with torch.no_grad():
        mlp.norms[3].shift[0, 0] = 0.1
    with pytest.raises(ValueError, match="theory is of normalisers whose scale is 1 and whose shift is 0"):
        theory.from_model(mlp)


def test_from_model_predicts_the_user_s_own_chain() -> None:
    torch.manual_seed(3)
    layers = [layer for _ in range(40) for layer in (nn.Linear(200, 200), nn.Tanh())]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(200, 10)).double()
    x = torch.randn(16, 200, dtype=torch.float64, requires_grad=True)
    prediction = theory.from_model(model, x)
    assert prediction.valid
    assert prediction.sigma_w2 == pytest.approx(1 / 3, rel=0.02)
    assert prediction.widths == (200,) * 41 + (10,)
    # One network, one sample: the gradient of a random cotangent against its predicted mean and deviation.
    first, last = [], []
    hook = model[1].register_full_backward_hook(lambda _m, _i, out: first.append(out[0].norm(dim=1)))
    out = model(x)
    cotangent = torch.nn.functional.normalize(torch.randn_like(out), dim=1)
    out.backward(cotangent)
    hook.remove()
    last.append(cotangent.norm(dim=1))
    log10 = (first[0] / last[0]).log10()
    assert abs(log10[0].item() - prediction.log10_output_grad[0]) < 4 * prediction.sd_output_grad[0]
    assert prediction.log10_output_grad[0] < -9


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sigma_w2": -1.0}, "sigma_w2 must be a variance, at least 0 and finite, got -1.0"),
        ({"sigma_b2": math.nan}, "sigma_b2 must be a variance, at least 0 and finite, got nan"),
        ({"sigma_w2": "2"}, "sigma_w2 must be a variance, at least 0 and finite, got '2'"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"width": 2.5}, "width must be a whole number of at least 1, got 2.5"),
        ({"depth": "5"}, "depth must be a whole number of at least 1, got '5'"),
        ({"widths": [3]}, "widths must be at least two whole numbers of at least 1, got"),
        ({"widths": 7}, "widths must be at least two whole numbers of at least 1, got 7"),
        ({"activation": torch.log}, "activation must be finite for every z; log is not, between -3 and 3"),
        (
            {"activation": np.tanh},
            "activation must act on each element alone and always alike; tanh does",
        ),
        ({"activation": "leaky_relu", "negative_slope": math.nan}, "negative_slope must be finite, got nan"),
        ({"input_square": 0.0}, "input_square must be above 0 and finite, got 0.0"),
        ({"weights": "cauchy"}, "weights must be one of gaussian, uniform, orthogonal, got 'cauchy'"),
        ({"normalization": "group"}, "normalization must be one of none, batch, layer, rms, got 'group'"),
        ({"residual": "dense"}, "residual must be one of none, plain, depth, zero, got 'dense'"),
        ({"activation": nn.Softmax(-1)}, "activation must act on each element alone"),
        ({"activation": "tahn"}, "unknown activation 'tahn'"),
    ],
)
def test_bad_input_is_refused_in_one_line(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as error:
        theory.predict(**given)
    assert "\n" not in str(error.value)


def test_samples_of_different_length_are_averaged_and_zero_ones_left_out() -> None:
    phi = theory.mean_field.as_activation("tanh")
    laws, widths = [theory.WeightLaw(1.5, 0.1)] * 20, [40] * 21
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x *= torch.tensor([[0.1], [1.0], [5.0]], dtype=torch.float64)
    each = [theory.predict_layers(phi, laws, widths, row.unsqueeze(0)) for row in x]
    together = theory.predict_layers(phi, laws, widths, torch.cat([torch.zeros(1, 40, dtype=torch.float64), x]))
    for key in ("log10_output", "log10_output_grad", "log10_weight_grad"):
        mean = np.mean([getattr(one, key) for one in each], axis=0)
        np.testing.assert_allclose(getattr(together, key), mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(together.first_output_grad, each[0].log10_output_grad, rtol=1e-10, atol=1e-12)
    alone = theory.predict_layers(phi, laws, widths, torch.zeros(2, 40, dtype=torch.float64))
    assert not alone.valid
    assert alone.reason == "every input is exactly 0 or not finite"


def test_samples_that_die_in_a_scaled_identity_are_left_out_as_in_the_measurement() -> None:
    widths = [4] * 6
    x = torch.tensor([[1.0, -2.0, 3.0, 0.5], [-1.0, -1.0, -1.0, -1.0]], dtype=torch.float64)
    phi, laws = theory.mean_field.as_activation("relu"), theory.weight_laws("identity", widths)
    both, first = (theory.predict_layers(phi, laws, widths, rows) for rows in (x, x[:1]))
    np.testing.assert_allclose(both.log10_output_grad, first.log10_output_grad, rtol=0, atol=1e-14)
    assert np.isfinite(both.log10_output).all()
    dead = theory.predict_layers(phi, laws, widths, x[1:])
    assert (dead.valid, dead.reason) == (False, "every sample is exactly 0 in some layer")


def test_only_plain_relu_networks_die() -> None:
    assert theory.predict("relu", 2.0, width=3, depth=9).dead_probability == pytest.approx(1 - (7 / 8) ** 8)
    for cure in ({"normalization": "layer"}, {"residual": "plain"}):
        assert theory.predict("relu", 2.0, width=50, depth=9, **cure).dead_probability == 0


def test_narrow_relu_layers_die_with_biases_as_without() -> None:
    law = 1 - (1 - 2.0**-4) ** 24
    for given in ({"sigma_b2": 0.01}, {"weights": "orthogonal", "sigma_b2": 0.5}, {}):
        prediction = theory.predict("relu", 2.0, width=4, depth=25, **given)
        assert prediction.dead_probability == pytest.approx(law, rel=1e-12)
        assert "dead: in 79% of such networks every unit of some layer is off for an input" in repr(prediction)
    unequal = theory.predict("relu", 2.0, 0.1, widths=[9, 2, 3, 50, 1])
    assert unequal.dead_probability == pytest.approx(1 - (3 / 4) * (7 / 8), rel=1e-12)
    for alive in ("leaky_relu", "tanh", "gelu", "softplus"):
        assert theory.predict(alive, 2.0, 0.01, width=4, depth=5).dead_probability == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "depth"), [(4, 20), (6, 60), (8, 80)])
def test_that_many_networks_with_biases_die(width: int, depth: int) -> None:
    networks = 400
    mlp = MLP([20] + [width] * (depth - 1) + [10], "relu", networks=networks, dtype=torch.float64, draw=False)
    initialize(mlp, "he", seed=0, sigma_b2=0.01)
    x = torch.randn(1, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    first = exact_profile(mlp, x).samples[0, :, 0, 0]
    p = theory.predict("relu", 2.0, 0.01, widths=mlp.widths).dead_probability
    assert abs((~np.isfinite(first)).mean() - p) < 4 * math.sqrt(p * (1 - p) / networks)


@pytest.mark.slow
def test_hard_tanh_dies_where_every_unit_is_saturated() -> None:
    # About: the length is that of infinite width, q* of 4 = 4 E φ² at q with P(|u| > 1) = erfc(1 / √(2q)).
    prediction = theory.predict("hard_tanh", 8.0, width=6, depth=40)
    off = math.erfc(1 / math.sqrt(2 * prediction.q_star))
    assert prediction.dead_probability == pytest.approx(1 - (1 - off**6) ** 39, rel=0.05)
    mlp = MLP([6] * 41, "hard_tanh", networks=1000, dtype=torch.float64, draw=False)
    initialize(mlp, "mean_field", seed=0, sigma_w2=8.0)
    first = exact_profile(mlp, torch.ones(1, 6, dtype=torch.float64)).samples[0, :, 0, 0]
    assert (~np.isfinite(first)).mean() == pytest.approx(prediction.dead_probability, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "sigma_w2", "sigma_b2", "width", "depth"),
    [
        ("softplus", 1.0, 0.0, 32, 40),
        ("softplus", 1.0, 0.0, 128, 40),
        ("softplus", 0.8, 1.0, 32, 40),
        ("silu", 1.5, 0.3, 48, 40),
        ("silu", 1.8, 0.3, 128, 40),
        ("gelu", 1.0, 1.0, 32, 40),
        ("sigmoid", 1.0, 0.0, 32, 80),
        ("sigmoid", 9.0, 0.1, 32, 40),
        ("relu", 1.8, 0.1, 32, 40),
        ("tanh", 2.5, 0.05, 32, 40),
        ("selu", 1.0, 0.0, 64, 40),
        ("elu", 1.0, 0.1, 64, 40),
        ("softplus", 1 / 3, 0.01, 24, 80),
    ],
)
def test_the_tolerance_holds_over_activations_widths_and_depths(
    activation: str, sigma_w2: float, sigma_b2: float, width: int, depth: int
) -> None:
    networks = 1500
    _, gradient = drawn(theory.mean_field.as_activation(activation), width, depth, networks, sigma_w2, sigma_b2)
    log_chi = (gradient[:, 0] / (depth - 1)).numpy()
    predicted = theory.predict(activation, sigma_w2, sigma_b2, width, depth)
    assert predicted.valid, predicted.reason
    error = log_chi.std() / math.sqrt(networks)
    assert abs(log_chi.mean() - predicted.log_chi) < predicted.tolerance + 3.5 * error
    assert log_chi.std() == pytest.approx(predicted.log_chi_sd, rel=0.12)  # of which 1500 networks make 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "init", "residual"), [("relu", "he", "plain"), ("tanh", "lecun", "plain"), ("relu", "he", "depth")]
)
def test_in_a_stream_a_length_stays_what_it_is_and_every_layer_is_divided_by_it(
    activation: str, init: str, residual: str
) -> None:
    widths = [64] * 22
    measured, predicted = measured_and_predicted(
        init, activation, widths, networks=400, batch=1, normalization="layer", residual=residual
    )
    error = math.hypot(measured.log_chi_se(), predicted.tolerance)
    assert abs(measured.log_chi() - predicted.log_chi) < 3.5 * error
    assert np.std(measured.samples[0, :, 0, 0]) == pytest.approx(predicted.sd_output_grad[0], rel=0.11)


@pytest.mark.parametrize(
    ("init", "activation", "normalization", "expected"),
    [
        # E φ'² / E φ² at variance 1.
        pytest.param("lsuv", "tanh", "none", 1.177807, marks=pytest.mark.slow),
        pytest.param("xavier", "tanh", "layer", 1.177807, marks=pytest.mark.slow),
        pytest.param("lsuv", "sigmoid", "none", 0.152827, marks=pytest.mark.slow),
        pytest.param("he", "gelu", "layer", 1.0720, marks=pytest.mark.slow),
        pytest.param("xavier", "sigmoid", "none", 0.0557207, marks=pytest.mark.slow),
    ],
)
def test_what_cures_do_to_the_gradient_deep_inside(
    init: str, activation: str, normalization: str, expected: float
) -> None:
    widths = [30] + [200] * 30 + [10]
    measured, predicted = measured_and_predicted(init, activation, widths, networks=8, normalization=normalization)
    assert predicted.chi_1 == pytest.approx(expected, rel=1e-4)
    slope = measured.log_chi(first=8, last=30)
    error = measured.at().log_chi_se(first=8, last=30)
    # Of order 1 / width off its infinitely wide value: a few units at most.
    assert slope == pytest.approx(math.log(expected), abs=4 * error + 5 / 200)


@pytest.mark.parametrize(("activation", "sigma_w2"), [("relu", 2.0), ("linear", 1.0)])
def test_the_exact_law_is_not_claimed_for_weights_that_are_not_gaussian(activation: str, sigma_w2: float) -> None:
    narrow = theory.predict(activation, sigma_w2, width=10, depth=30, weights="uniform")
    assert not narrow.valid
    assert narrow.reason == "width 10 is too small for weights so far from Gaussian (excess kurtosis -1.2)"
    wide = theory.predict(activation, sigma_w2, width=60, depth=30, weights="uniform")
    assert wide.valid
    assert wide.tolerance > 0
    assert "exact" not in wide.reason
    sparse = theory.weight_laws("sparse", [128] * 20)
    assert not theory.predict_layers(
        theory.mean_field.as_activation(activation), sparse, [128] * 20, torch.ones(1, 128).double()
    ).valid


@pytest.mark.slow
def test_sparse_weights_of_a_wide_network_are_known_to_the_tolerance() -> None:
    widths = [50] + [100] * 30 + [10]
    measured, predicted = measured_and_predicted("sparse", "tanh", widths, gain=1.5, sparsity=0.8)
    assert predicted.valid
    error = math.hypot(measured.log_chi_se(), predicted.tolerance)
    assert abs(measured.log_chi() - predicted.log_chi) < 4 * error


def test_inputs_of_a_user_s_model_may_be_numpy_but_not_nan() -> None:
    chain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    x = np.random.default_rng(0).normal(size=(3, 4))
    assert theory.from_model(chain, x).sigma_w2 == theory.from_model(chain).sigma_w2
    with pytest.raises(ValueError, match="x must be finite, got inf or nan in it"):
        theory.from_model(chain, x * math.nan)


def test_a_constant_activation_lets_nothing_back() -> None:
    point = theory.MeanField(torch.ones_like, 2.0, 0.5)
    assert (point.q_star, point.chi_1) == (pytest.approx(2.5), 0)


@pytest.mark.parametrize(
    ("std", "residual", "depth"),
    [
        (1e-4, "none", 40),
        pytest.param(1e-4, "none", 120, marks=pytest.mark.slow),
        pytest.param(1e6, "plain", 60, marks=pytest.mark.slow),
        pytest.param(0.01, "none", 300, marks=pytest.mark.slow),
        pytest.param(1.0, "plain", 300, marks=pytest.mark.slow),
    ],
)
def test_lengths_may_leave_the_range_of_float64(std: float, residual: str, depth: int) -> None:
    activation = "silu" if residual == "plain" else "tanh"
    widths = [40] + [60] * (depth - 1) + [10]
    measured, predicted = measured_and_predicted("normal", activation, widths, 12, residual=residual, std=std)
    assert predicted.valid, predicted.reason
    assert abs(predicted.log10_output[-1]) > 100
    spread = np.sqrt(np.arange(1, depth + 1) * 5 / 60) / math.log(10)
    for quantity in ("output", "output_grad", "weight_grad"):
        off = np.abs(measured.profile(quantity) - getattr(predicted, f"log10_{quantity}"))
        allowed = (4 * spread / math.sqrt(12) + depth * predicted.tolerance) if quantity == "output" else None
        if allowed is not None:
            assert (off < allowed + 0.3).all()
        assert off.max() < 4 * predicted.sd_output_grad[0] + depth * predicted.tolerance + 0.3


def test_rms_normalisation_has_no_formula_and_no_numbers_of_a_plain_network():
    prediction = theory.predict("relu", sigma_w2=2.0, width=100, depth=20, normalization="rms")
    assert not prediction.valid
    assert prediction.reason == "there is no formula for rms normalisation"
    assert prediction.q_star is prediction.chi_1 is prediction.log_chi is None


def test_the_slope_between_two_layers_is_what_the_same_window_of_a_measurement_has() -> None:
    widths, networks = [60] * 13, 64
    prediction = theory.predict("tanh", 2.0, 0.1, widths=widths)
    mlp = initialize(MLP(widths, "tanh", networks=networks), "mean_field", sigma_w2=2.0, sigma_b2=0.1, seed=0)
    measured = exact_profile(mlp, torch.ones(1, 60))
    for window in ((1, 4), (4, 12), (None, 3), (2, None)):
        slope, error = measured.log_chi(*window), measured.log_chi_se(*window)
        assert slope is not None
        assert error is not None
        assert prediction.slope(*window) == pytest.approx(slope, abs=4 * error), window
    assert prediction.slope() == pytest.approx(prediction.log_chi, rel=1e-12)
    assert prediction.slope(3, 3) is None
    with pytest.raises(ValueError, match=r"^first and last must satisfy 1 <= first <= last <= 12, got 0, 4$"):
        prediction.slope(0, 4)
    assert theory.predict("tanh", 2.0, 0.1, width=2).slope(1, 5) is None  # no formula


def test_the_variance_of_the_whole_ratio_is_that_of_hanin_and_nica() -> None:
    # Trigamma(n / 2) for each layer of linear units; 5 / n of relu, to first order.
    linear, relu = (theory.predict(name, width=50, depth=31) for name in ("linear", "relu"))
    assert linear.ratio_variance == pytest.approx(
        30 * float(torch.special.polygamma(1, torch.tensor(25.0))), rel=1e-5
    )
    assert relu.ratio_variance == pytest.approx(30 * 5 / 50, rel=0.1)
    assert relu.ratio_variance == pytest.approx((30 * relu.log_chi_sd) ** 2)
    assert theory.predict("tanh", 2.0, 0.1, width=2).ratio_variance is None


@pytest.mark.parametrize("init", ["xavier", "torch_default", "orthogonal", "lyapunov", "lsuv", "normal", "identity"])
def test_a_scheme_by_its_name_is_its_law(init: str) -> None:
    widths, options = [30, 40, 50, 40, 10], {"std": 0.2} if init == "normal" else {}
    laws = theory.weight_laws(init, widths, activation="relu", **options)
    phi = theory.mean_field.as_activation("relu")
    x = torch.full((1, 30), math.sqrt(0.7), dtype=torch.float64)
    by_hand = theory.predict_layers(phi, laws, widths, x)
    by_name = [theory.predict("relu", init=init, widths=widths, input_square=0.7, **options)]
    by_name += [theory.predict_layers("relu", init, widths, 0.7)] if not options else []
    for prediction in by_name:
        assert prediction.laws == tuple(laws)
        np.testing.assert_array_equal(prediction.log10_output_grad, by_hand.log10_output_grad)
        np.testing.assert_array_equal(prediction.log10_output, by_hand.log10_output)


def test_schemes_and_variances_are_not_mixed() -> None:
    assert theory.predict("tanh", 1.7, 0.1, init="mean_field", width=60, depth=4).laws[0] == theory.WeightLaw(
        1.7, 0.1
    )
    for given, text in (
        ({"init": "he", "sigma_w2": 2.0}, "^init 'he' has no option 'sigma_w2'; it takes gain, mode, distribution$"),
        ({"init": "he", "weights": "uniform"}, "^weights='uniform' contradicts init='he', which says how"),
        ({"gain": 2.0}, "^gain: options are for a scheme, such as init='he'$"),
        ({"init": "hee"}, "^unknown init 'hee'; choose one of he, "),
        (
            {"init": "lyapunov", "activation": torch.sin},
            "^lyapunov needs activation linear, relu, leaky_relu, got",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            theory.predict(**given)
    widths = [3, 4, 2]
    for x, text in (
        (torch.ones(3), r"^x must have shape \(sample, 3\), got \(3,\)$"),
        (torch.ones(2, 4), r"^x must have shape \(sample, 3\), got \(2, 4\)$"),
        (0.0, r"^x must be inputs, or their mean square, above 0 and finite, got 0\.0$"),
    ):
        with pytest.raises(ValueError, match=text):
            theory.predict_layers("relu", "he", widths, x)
    with pytest.raises(ValueError, match=r"^laws must be 2, one for each layer of these widths, got 3$"):
        theory.predict_layers("relu", [theory.WeightLaw(2.0)] * 3, widths)


def test_where_no_formula_holds_infinite_width_still_has_a_profile_and_no_straight_line() -> None:
    """tanh at (1, 0): lengths shrink like a power of the layer, and so does the gradient."""
    prediction = theory.predict("tanh", width=2, depth=60)
    assert not prediction.valid
    q, logs = 1.0, [0.0]
    for _ in range(59):
        u, share = np.polynomial.hermite_e.hermegauss(80)
        share = share / share.sum()
        logs.append(logs[-1] + math.log(share @ np.cosh(math.sqrt(q) * u) ** -4.0))
        q = float(share @ np.tanh(math.sqrt(q) * u) ** 2)
    expected = (logs[-1] - np.array(logs)) / (2 * math.log(10))  # of layer l over the last
    np.testing.assert_allclose(prediction.mean_field_output_grad, expected, atol=1e-6)
    assert prediction.first_over_last == pytest.approx(expected[0], abs=1e-6)
    profile = theory.verdict.predicted_profile(prediction)
    assert profile is prediction.mean_field_output_grad
