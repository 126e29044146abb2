"""Inputs that are not finite, or become so: they are shown, never averaged away."""

import numpy as np
import pytest
import torch

from gradexp import MLP, Config, exact_profile, initialize
from gradexp.choices import ConfigError
from gradexp.config import DataConfig
from gradexp.history.step import STATUSES
from gradexp.numerics.seeds import generator
from gradexp.runs.data import load
from gradexp.runs.experiment import run


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_sample_of_many_that_is_not_finite_shows(activation, value):
    mlp = initialize(MLP([4, 4, 4, 3], activation=activation), "he", seed=0)
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    assert exact_profile(mlp, x).verdict().gradient == "stable"
    x[5, 2] = value
    history = exact_profile(mlp, x)
    assert STATUSES[history.status["output"][0, 0, 0]] == "nonfinite"
    verdict = history.verdict()
    assert verdict.gradient == "exploding"
    assert verdict.text == "exploding: layer 1 outputs inf or nan; look at the inputs"


def saved(folder, x):
    path = folder / "data.npz"
    np.savez(path, x=x, y=np.arange(len(x)) % 2)
    return str(path)


def test_the_largest_numbers_are_standardised_as_any_others(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (40, 3))
    plain = load(DataConfig("file", path=saved(tmp_path, x)), 1)
    huge = load(DataConfig("file", path=saved(tmp_path, x * 2.0**1023)), 1)
    assert huge.x_train.numpy() == pytest.approx(plain.x_train.numpy(), rel=1e-12)
    assert huge.x_test.numpy() == pytest.approx(plain.x_test.numpy(), rel=1e-12)


def test_a_test_part_beyond_all_proportion_is_refused(tmp_path):
    x = np.random.default_rng(0).uniform(-1, 1, (10, 1)) * 1e-300
    in_the_test_part = torch.randperm(10, generator=generator(0, "split"))[0]
    x[in_the_test_part] = 1e300
    with pytest.raises(ConfigError, match="a feature of the test part is out of all proportion"):
        load(DataConfig("file", path=saved(tmp_path, x)), 1)


def test_inputs_at_the_end_of_the_range_run(tmp_path):
    x = np.where(np.arange(80).reshape(20, 4) % 3, 1e308, -1e308)
    result = run(Config(depth=4, width=4, steps=2, batch_size=4, data=DataConfig("file", path=saved(tmp_path, x))))
    assert result.verdict.gradient == "stable"
    assert result.training.diverged_at is None
