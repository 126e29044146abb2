"""Values that cannot work, given to the Python interface: each is refused in a line that says what is allowed."""

import math

import pytest
import torch
from torch import nn

from gradexp import Config, initialize
from gradexp.choices import ConfigError
from gradexp.config import DataConfig, InitConfig, OptimizerConfig


@pytest.mark.parametrize(
    ("init", "options", "text"),
    [
        ("he", {"gain": math.nan}, "gain must be a finite number, got nan"),
        ("orthogonal", {"gain": math.inf}, "gain must be a finite number, got inf"),
        ("he", {"gain": "big"}, "gain must be a number, got 'big'"),
        ("normal", {"std": -1}, "std must be at least 0, got -1"),
        ("mean_field", {"sigma_w2": math.nan}, "sigma_w2 must be a finite number, got nan"),
        ("he", {"activation": "nope"}, "activation must be one of linear, tanh, .*, got 'nope'"),
        ("he", {"sigma_b2": math.inf}, "sigma_b2 must be at least 0, got inf"),
        ("he", {"sigma_b2": math.nan}, "sigma_b2 must be at least 0, got nan"),
        ("lsuv", {"tolerance": -1, "inputs": torch.ones(2, 3)}, "tolerance must be at least 0, got -1"),
    ],
)
def test_a_value_that_no_scheme_can_work_with_is_refused(init, options, text):
    layer = nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=f"^{text}$"):
        initialize(layer, init, **options)
    assert torch.equal(layer.weight, before)


def test_a_group_may_be_given_by_the_name_of_its_choice():
    short = Config(init="xavier", data="ones", optimizer="adam")
    assert short == Config(init=InitConfig("xavier"), data=DataConfig("ones"), optimizer=OptimizerConfig("adam"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"init": "hee"}, "init must be one of he, xavier, .*, got 'hee'"),
        ({"init": None}, "init must be an InitConfig, or the name of a choice, got None"),
        ({"init": DataConfig()}, r"init must be an InitConfig, or the name of a choice, got DataConfig\(.*\)"),
        ({"init": {"name": "he"}}, "init must be an InitConfig, or the name of a choice, got .*"),
        ({"record": None}, "record must be a RecordConfig, got None"),
        ({"depth": 2.5}, "depth must be a whole number, or None, got 2.5"),
        ({"depth": "10"}, "depth must be a whole number, or None, got '10'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"widths": 10}, "widths must be a list of whole numbers, or None, got 10"),
        ({"widths": [10.5]}, r"widths must be a list of whole numbers, or None, got \[10.5\]"),
        ({"bias": 1}, "bias must be True or False, got 1"),
        ({"sigma_b2": "0"}, "sigma_b2 must be a number, or None, got '0'"),
        ({"activation": 1}, "activation must be a text, or None, got 1"),
        ({"loss": None}, "loss must be a text, got None"),
        ({"device": torch.device("cpu")}, "device must be a text, got device.*"),
        ({"init": InitConfig("he", gain="1")}, "init.gain must be a number, or None, got '1'"),
        ({"seed": 10**22}, "seed must be at most 9223372036854775807, got 10000000000000000000000"),
        ({"device": "cuda:99999999999"}, "device must be auto, cpu, mps, cuda or cuda:N, got .*"),
        ({"seeds": 10**12}, "seeds must be at most 1000000, got 1000000000000"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(options, text):
    with pytest.raises(ConfigError, match=f"^{text}$"):
        Config(**options)


def test_whole_numbers_of_numpy_are_whole_numbers():
    np = pytest.importorskip("numpy")
    config = Config(depth=np.int64(5), widths=(np.int32(4),) * 4, sigma_b2=np.float64(0.5))
    assert (type(config.depth), config.widths, type(config.sigma_b2)) == (int, [4] * 4, float)
