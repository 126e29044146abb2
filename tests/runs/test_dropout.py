"""Dropout: its law, and that only training steps have it."""

from typing import Any

import pytest
import torch

from gradexp import MLP, exact_profile, initialize
from gradexp.choices import ConfigError
from gradexp.config import Config, InitConfig, RecordConfig
from gradexp.runs.experiment import run, run_stack

SMALL: dict[str, Any] = {"depth": 4, "width": 8, "steps": 4, "batch_size": 16}


def test_a_share_of_units_is_0_and_the_mean_stays() -> None:
    mlp = initialize(MLP([1000, 1000, 1000], "linear", bias=False, dropout=0.3, dtype=torch.float64), "identity")
    y = mlp(torch.ones(50, 1000, dtype=torch.float64))
    # 50,000 units, each 0 with probability 0.3 or else 1 / 0.7: five standard errors.
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 50_000) ** 0.5)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.7}
    assert torch.equal(mlp.eval()(torch.ones(2, 1000, dtype=torch.float64)), torch.ones(2, 1000, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"^dropout must be at least 0 and below 1, got 1$"):
        MLP([2, 2], dropout=1)


def test_the_gradient_passes_the_units_that_the_signal_passed() -> None:
    mlp = initialize(MLP([20, 20, 20], "linear", bias=False, dropout=0.5), "identity")
    x = torch.ones(3, 20, requires_grad=True)
    y = mlp(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y.detach())


def test_only_training_steps_have_it() -> None:
    plain, dropped = (run(Config(**SMALL, dropout=rate)) for rate in (0.0, 0.4))
    assert plain.initial is not None
    assert dropped.initial is not None
    assert (plain.initial.log10["output_grad"] == dropped.initial.log10["output_grad"]).all()
    assert plain.training is not None
    assert dropped.training is not None
    assert plain.training.tests[0] == dropped.training.tests[0]
    assert plain.training.losses[0] != dropped.training.losses[0]
    lsuv = [exact_profile_of(rate) for rate in (0.0, 0.4)]
    assert lsuv[0] == lsuv[1]


def exact_profile_of(dropout: float) -> float:
    result = run(Config(**SMALL | {"steps": 0}, init=InitConfig("lsuv"), dropout=dropout))
    assert result.initial is not None
    return float(result.initial.log10["output"][0, 0, -1])


def test_it_is_fixed_by_the_seed_alone_and_in_a_stack_and_whatever_is_recorded() -> None:
    def losses(**options: Any) -> list[float]:
        training = run(Config(**SMALL, dropout=0.4, **options)).training
        assert training is not None
        return training.losses

    first = losses(seed=0)
    torch.rand(3)  # moves torch's global generator
    assert losses(seed=0) == first
    assert losses(seed=0, record=RecordConfig(every=2, histograms=True)) == first
    assert losses(seed=1) != first
    stack = run_stack([Config(**SMALL, dropout=0.4, seed=seed) for seed in (1, 0)])
    assert stack[1].training is not None
    assert stack[1].training.losses == first


def test_a_rate_that_cannot_be_is_refused() -> None:
    for rate in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=rf"^dropout must be at least 0 and below 1, got {rate}$"):
            Config(dropout=rate)


def test_a_profile_of_a_network_in_training_mode_is_without_it() -> None:
    x = torch.ones(4, 5)
    profiles = [exact_profile(initialize(MLP([5, 6, 3], dropout=rate), "he", seed=0), x) for rate in (0.0, 0.5)]
    assert (profiles[0].log10["output"] == profiles[1].log10["output"]).all()
