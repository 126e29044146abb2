"""Values that cannot work, given to the Python interface: each is refused in a line that says what is allowed."""

import math

import pytest
import torch
from torch import nn

from gradexp import MLP, Config, GradientProbe, exact_profile, initialize, measure
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


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def probe(**options):
    return GradientProbe(network(), **options)


def test_one_name_is_as_good_as_a_list_of_one():
    assert probe(quantities="weight_grad").history.log10.keys() == {"weight_grad"}
    assert probe(select="2").history.names == ["2"]
    batch = (torch.ones(2, 3), torch.zeros(2, 1))
    history = measure(network(), nn.functional.mse_loss, batch, quantities="weight_grad")
    assert history.log10.keys() == {"weight_grad"}
    layers = network()
    before = layers[2].weight.detach().clone()
    initialize(layers, "he", skip="2")
    assert torch.equal(layers[2].weight, before)


def log(step, numbers):
    """Take what a probe hands on."""


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: probe(quantities=3), "quantities must be names of quantities, one or a list of them, got 3"),
        (lambda: probe(quantities=b"output"), "quantities must be names of quantities, .*, got b'output'"),
        (lambda: probe(quantities=["output", None]), "quantities must be names of quantities, .*, got None in it"),
        (lambda: probe(alarm="warn", alarm_on=3), "alarm_on must be kinds of findings, .*, got 3"),
        (lambda: probe(alarm="warn", alarm_on=[3]), "alarm_on must be kinds of findings, .*, got 3 in it"),
        (lambda: probe(select=0), "select must be patterns of names or a function of name and module, got a int"),
        (lambda: probe(log=log, log_layers=0), "layers must be patterns of names, one or a list of them, got 0"),
        (lambda: probe(log=log, log_layers=[b"0"]), "layers must be patterns of names, .*, got b'0' in it"),
        (lambda: probe(stats={"mean": 3}), "stats must map names to functions, got 'mean': 3"),
        (lambda: probe(stats={3: torch.mean}), "stats must map names to functions, got 3: .*"),
        (lambda: probe(seeds=0), "seeds must be a list of whole numbers, got 0"),
        (lambda: probe(seeds="0"), "seeds must be a list of whole numbers, got '0'"),
        (lambda: probe(seeds=[1.5]), r"seeds must be a list of whole numbers, got \[1.5\]"),
        (lambda: probe(optimizer=["sgd"]), "optimizer must be a torch.optim.Optimizer, got a str"),
        (
            lambda: exact_profile(MLP([3, 1]), torch.ones(2, 3), seeds="0"),
            "seeds must be a list of .*, got '0'",
        ),
        (lambda: initialize(network(), "he", skip=2), "skip must be names or patterns, one or a list of them, got 2"),
        (lambda: initialize(network(), "he", branch_ends=[2]), "branch_ends must be names or .*, got 2 in it"),
    ],
)
def test_a_list_of_the_wrong_kind_is_refused_in_a_line(make, text):
    with pytest.raises(TypeError, match=f"^{text}$"):
        make()


def test_there_is_a_seed_for_each_network():
    with pytest.raises(ValueError, match=r"^seeds must name 1 networks, got 2$"):
        probe(seeds=[0, 1])
