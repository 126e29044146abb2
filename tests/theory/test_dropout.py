"""Theory of networks in training mode with dropout, against closed forms and networks that are drawn."""

import math
from typing import Any

import pytest
import torch
from cases import few
from scipy.optimize import brentq
from scipy.special import digamma, polygamma
from scipy.stats import binom
from torch import Tensor

from gradexp import MLP, initialize, theory
from gradexp.config import Config, InitConfig
from gradexp.numerics.square_sum import log_square_sum
from gradexp.predict.forecast import forecast
from gradexp.predict.text import describe
from gradexp.theory import MeanField
from gradexp.theory.jacobian_moments import jacobian_moments


@pytest.mark.parametrize("n", [3, 40])
def test_relu_units_behind_dropout_are_a_binomial_mixture(n: int) -> None:
    keep = 0.7
    on = [(k, binom.pmf(k, n, keep / 2) / (1 - binom.pmf(0, n, keep / 2))) for k in range(1, n + 1)]
    mean = sum(share * (digamma(k / 2) + math.log(2)) for k, share in on)
    square = sum(share * ((digamma(k / 2) + math.log(2)) ** 2 + polygamma(1, k / 2)) for k, share in on)
    found = log_square_sum(n, (0.0, 1.0), keep)
    assert found.mean == pytest.approx(mean - 2 * math.log(keep), rel=1e-10)
    assert found.variance == pytest.approx(square - mean**2, rel=1e-9)
    assert theory.dead_probability([n, n], (0.0, 1.0), keep) == pytest.approx(1 - (1 - (1 - keep / 2) ** n) ** 2)
    assert theory.dead_probability([n], (1.0, 1.0), keep) == pytest.approx((1 - keep) ** n)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_lengths_and_gradients_are_those_of_larger_weights(name: str) -> None:
    sigma_b2 = 0.05 if name == "tanh" else 0.0
    dropped, larger = MeanField(name, 1.2, sigma_b2, dropout=0.4), MeanField(name, 2.0, sigma_b2)
    assert dropped.q_star == pytest.approx(larger.q_star, rel=1e-12)
    assert dropped.chi_1 == pytest.approx(larger.chi_1, rel=1e-12)
    assert dropped.xi_q == pytest.approx(larger.xi_q, rel=1e-9)
    critical = theory.critical_sigma_w2(name, sigma_b2)
    assert MeanField(name, 0.6 * critical, sigma_b2, dropout=0.4).chi_1 == pytest.approx(1, abs=1e-9)


def test_relu_inputs_that_are_dropped_apart_keep_a_share_of_cho_and_sauls_map() -> None:
    keep = 0.8

    def mapped(c: float) -> float:
        return keep * (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi

    point = MeanField("relu", 2 * keep, dropout=0.2)
    for c in (-1.0, 0.3, 1.0):
        assert point.correlation_map(c) == pytest.approx(mapped(c), abs=1e-10)
    fixed = brentq(lambda c: mapped(c) - c, 0, 1, xtol=1e-14)
    assert point.c_star == pytest.approx(fixed, abs=1e-10)
    # The slope of the map at c*: (π - acos c) / π, for inputs with masks of their own.
    assert point.xi_c == pytest.approx(-1 / math.log(keep * (math.pi - math.acos(fixed)) / math.pi), rel=1e-8)
    assert point.correlation_after(200, 1.0) == pytest.approx(fixed, abs=1e-5)
    # Without biases tanh's lengths go to 0 there, where it is a line.
    assert MeanField("tanh", 0.5, dropout=0.2).c_star == 0
    assert MeanField("tanh", 0.5, dropout=0.2).xi_c == pytest.approx(-1 / math.log(keep))


def test_dropout_stretches_the_jacobian_of_a_linear_network() -> None:
    # D has a share keep of 1 / keep: E D⁴ / (E D²)² = 1 / keep, and Gaussian weights add 1.
    point = MeanField("linear", 0.75, dropout=0.25)
    assert jacobian_moments(point, 10) == pytest.approx((0, 1 + 10 * (1 / 0.75)))


def log_ratios(mlp: MLP, x: Tensor) -> Tensor:
    """log ‖δ¹‖² - log ‖δᴸ‖² of each network, by autograd in training mode."""
    seen: list[Tensor] = []
    handle = mlp.layers[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    y = mlp(x)
    handle.remove()
    cotangent = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((y * cotangent).sum(), seen)
    return (gradient.square().sum((1, 2)) / cotangent.square().sum((1, 2))).log().detach()


@pytest.mark.parametrize(
    ("activation", "options"),
    few(
        [
            ("relu", {"sigma_w2": 1.6}),
            ("tanh", {"sigma_w2": 1.5, "sigma_b2": 0.1}),
            ("linear", {"sigma_w2": 1.0, "weights": "orthogonal"}),
            ("tanh", {"sigma_w2": 1.0, "normalization": "layer"}),
            ("relu", {"sigma_w2": 2.0, "residual": "plain"}),
        ],
        2,
    ),
)
def test_gradients_in_training_mode_are_as_predicted(activation: str, options: dict[str, Any]) -> None:
    width, depth, networks, dropout = 40, 9, 300, 0.3
    prediction = theory.predict(activation, width=width, depth=depth, dropout=dropout, **options)
    assert prediction.valid
    assert prediction.log_chi is not None
    architecture = {key: options[key] for key in ("normalization", "residual") if key in options}
    mlp = MLP(
        [width] * (depth + 1), activation, networks=networks, dtype=torch.float64, dropout=dropout, **architecture
    )
    torch.manual_seed(0)  # of the masks
    if options.get("weights") == "orthogonal":
        initialize(mlp, "orthogonal", seed=0)
    else:
        initialize(mlp, "mean_field", sigma_w2=options["sigma_w2"], sigma_b2=options.get("sigma_b2"), seed=0)
    found = log_ratios(mlp, torch.ones(1, width, dtype=torch.float64)) / (depth - 1)
    error = found.std().item() / math.sqrt(networks)
    # Four standard errors, and what the expansion leaves out.
    assert found.mean().item() == pytest.approx(prediction.log_chi, abs=4 * error + 2 * prediction.tolerance)
    assert prediction.log_chi_sd == pytest.approx(found.std().item(), rel=0.2)
    without = theory.predict(activation, width=width, depth=depth, **options)
    assert without.log_chi is not None
    assert prediction.log_chi - without.log_chi > 8 * error or "normalization" in options


def test_what_no_formula_covers_says_so_and_an_impossible_rate_is_refused() -> None:
    for init in ("identity", "lsuv"):
        prediction = theory.predict("tanh", init=init, width=20, depth=5, dropout=0.1)
        assert not prediction.valid
        assert "dropout" in prediction.reason
    for make in (lambda: theory.predict("relu", dropout=1.0), lambda: MeanField("relu", 2.0, dropout=1.0)):
        with pytest.raises(ValueError, match=r"^dropout must be at least 0 and below 1, got 1\.0$"):
            make()


@pytest.mark.slow
def test_a_forecast_tells_where_dropout_leads_the_gradient_in_training_mode() -> None:
    config = Config(depth=100, dropout=0.2, init=InitConfig("he"))
    found = forecast(config)
    assert found.verdict.gradient == "stable"
    assert found.in_training is not None
    # relu gains 1 / keep per layer in the squared norm.
    assert found.in_training.log_chi_mean_field == pytest.approx(-math.log(0.8))
    text = describe(found)
    assert "in training mode, with dropout=0.2, exploding: " in " ".join(text.split())
    assert f"init.gain={math.sqrt(0.8):.4g} takes back what dropout adds" in " ".join(text.split())
    critical = forecast(Config(depth=100, dropout=0.2, init=InitConfig("he", gain=math.sqrt(0.8))))
    assert critical.in_training is not None
    assert critical.in_training.log_chi_mean_field == pytest.approx(0)
    assert forecast(Config(depth=3)).in_training is None
