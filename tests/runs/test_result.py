import dataclasses
import json
import math
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import numpy as np
import pytest
from pages import EVIL, Parsed

import gradexp
from gradexp.config import (
    Config,
    DataConfig,
    InitConfig,
    ModelConfig,
    OptimizerConfig,
    RecordConfig,
    VerdictConfig,
    as_dict,
)
from gradexp.history.history import History
from gradexp.history.verdict import Verdict
from gradexp.runs import summary as summary_module
from gradexp.runs.result import Result
from gradexp.runs.summary import config_hash, summary
from gradexp.runs.training import Training

FORMATS = ("float32", "float16", "bfloat16")

# design: exactly these keys, at every status
KEYS = {
    "schema": None,
    "gradexp": None,
    "torch": None,
    "python": None,
    "hydra": None,
    "device": None,
    "device_name": None,
    "threads": None,
    "status": None,
    "error": None,
    "started": None,
    "seconds": None,
    "seconds_training": None,
    "config": as_dict(Config()),
    "config_hash": None,
    "overrides": None,
    "seeds": None,
    "initial": {
        "log_chi": None,
        "log_chi_se": None,
        "depth_scale": None,
        "log10_first_over_last": dict.fromkeys(("output", "output_grad", "weight_grad")),
        "dead_fraction": None,
        "underflow_layer": dict.fromkeys(FORMATS),
        "overflow_layer": dict.fromkeys(FORMATS),
        "quantiles": dict.fromkeys(("0.05", "0.5", "0.95")),
    },
    "theory": {
        **dict.fromkeys(("valid", "reason", "sigma_w2", "sigma_b2", "q_star", "chi_1", "log_chi", "log_chi_sd", "z")),
        "deviates_from_layer": None,
    },
    "number_format": dict.fromkeys(("name", "expected", "measured")),
    "training": dict.fromkeys(
        (
            *("steps", "loss_first", "loss_last", "train_accuracy", "test_loss", "test_accuracy", "diverged_at"),
            *("skipped_steps", "guessing_loss", "guessing_accuracy"),
        )
    ),
    "verdict": dict.fromkeys(("gradient", "training", "theory", "text")),
}


def keys_of(content):
    """Return the nested keys, each group's as a dict."""
    return {key: keys_of(value) if isinstance(value, dict) else None for key, value in content.items()}


def numbers_in(content):
    for value in content.values() if isinstance(content, dict) else content:
        if isinstance(value, dict | list):
            yield from numbers_in(value)
        elif isinstance(value, int | float):
            yield value


def profile(rows, largest=None, dead=None):
    """Return an initial History; ``rows`` are log10 norms of the output gradient, one row per network."""
    rows = np.array(rows, float, ndmin=2)[None]
    networks, layers = rows.shape[1:]
    names = ("output", "output_grad", "weight_grad")
    return History(
        "init",
        [f"layers.{index}" for index in range(layers)],
        [0],
        list(range(networks)),
        {"output": -rows, "output_grad": rows, "weight_grad": 2 * rows},
        {name: np.zeros(rows.shape, np.int8) for name in names},
        {name: rows if largest is None else np.array(largest, float, ndmin=3) for name in names[:2]},
        np.zeros(networks) if dead is None else np.array(dead),
        np.zeros(networks),
    )


def complete(networks=1):
    rows = [[-4.0 - network, -2.0, 0.0] for network in range(networks)]
    training = Training([2.5, 1.5, 0.5], [0.1, 0.2, 0.9], [(0, 2.4, 0.1), (3, 0.6, 0.8)], None, 0.95)
    return Result(
        Config(depth=3, seed=7, seeds=networks, steps=3),
        overrides=["depth=3", "seed=7"],
        status="complete",
        device="cpu",
        device_name="a processor",
        threads=1,
        initial=profile(rows),
        training=training,
        guessing=2.3,
        guessing_accuracy=0.1,
        verdict=Verdict("vanishing", "trained", "unavailable", "one line"),
        seconds=2.5,
        seconds_by_part={"weights": 0.5, "training": 1.25},
    )


@pytest.mark.parametrize("result", [Result(Config()), complete(), complete(4)], ids=["running", "one", "four"])
def test_the_summary_always_has_exactly_the_designed_keys(result):
    content = summary(result)
    expected = {**KEYS, "config": as_dict(result.config)}
    assert keys_of(content) == keys_of(expected)
    assert list(content) == list(KEYS)


def test_a_summary_of_a_run_that_has_just_begun_knows_only_what_was_asked_for():
    result = Result(Config(depth=9, seed=3, seeds=2), ["depth=9"])
    content = summary(result)
    assert content["status"] == "running"
    assert content["schema"] == 1
    assert content["gradexp"] == gradexp.__version__
    assert content["torch"] == installed("torch")
    assert content["hydra"] == installed("hydra-core")
    assert content["overrides"] == ["depth=9"]
    assert content["seeds"] == [3, 4]
    assert content["config"] == as_dict(result.config)
    assert datetime.fromisoformat(content["started"]).utcoffset() == timedelta(0)
    for group in ("theory", "training", "verdict"):
        assert set(content[group].values()) == {None}
    assert content["initial"] == KEYS["initial"]
    for key in ("device", "device_name", "threads", "error", "seconds", "seconds_training"):
        assert content[key] is None


def test_a_complete_summary_holds_what_was_found():
    content = summary(complete())
    assert content["status"] == "complete"
    assert (content["device"], content["device_name"], content["threads"]) == ("cpu", "a processor", 1)
    assert (content["seconds"], content["seconds_training"]) == (2.5, 1.25)
    assert content["training"] == {
        "steps": 3,
        "skipped_steps": None,
        "loss_first": 2.5,
        "loss_last": 0.5,
        "train_accuracy": 0.95,
        "test_loss": 0.6,
        "test_accuracy": 0.8,
        "diverged_at": None,
        "guessing_loss": 2.3,
        "guessing_accuracy": 0.1,
    }
    assert content["verdict"] == {
        "gradient": "vanishing",
        "training": "trained",
        "theory": "unavailable",
        "text": "one line",
    }
    initial = content["initial"]
    slope = 2 * math.log(10) * -4 / 2  # natural log of the squared norm, over two steps between three layers
    assert initial["log_chi"] == pytest.approx(slope)
    assert initial["depth_scale"] == pytest.approx(-1 / slope)
    assert initial["log10_first_over_last"] == {"output": 4.0, "output_grad": -4.0, "weight_grad": -8.0}
    assert initial["dead_fraction"] == 0.0


def test_one_network_has_neither_standard_error_nor_quantiles():
    initial = summary(complete())["initial"]
    assert initial["log_chi_se"] is None
    assert initial["quantiles"] == {"0.05": None, "0.5": None, "0.95": None}


def test_several_networks_have_those_that_numpy_gives():
    initial = summary(complete(5))["initial"]
    slopes = np.array([math.log(10) * (-4.0 - network) for network in range(5)])
    assert initial["log_chi"] == pytest.approx(np.mean(slopes))
    assert initial["log_chi_se"] == pytest.approx(np.std(slopes, ddof=1) / math.sqrt(5))
    for q in (0.05, 0.5, 0.95):
        assert initial["quantiles"][str(q)] == pytest.approx(np.quantile(slopes, q))


def test_a_network_without_a_slope_is_left_out_of_the_statistics():
    result = complete()
    result.initial = profile([[-4.0, 0.0], [-6.0, 0.0], [math.nan, 0.0], [-9.0, 0.0]], dead=[0, 0.5, 0.5, 1.0])
    initial = summary(result)["initial"]
    slopes = np.array([-8.0, -12.0]) * math.log(10)
    assert initial["log_chi"] == pytest.approx(slopes.mean())
    assert initial["log_chi_se"] == pytest.approx(slopes.std(ddof=1) / math.sqrt(2))
    assert initial["quantiles"]["0.5"] == pytest.approx(slopes.mean())
    assert initial["dead_fraction"] == 0.5


def test_the_layers_where_number_formats_fail_are_those_of_the_output_gradient():
    result = complete()
    result.initial = profile([0.0] * 4, largest=[-50.0, -10.0, 1.0, 6.0])
    initial = summary(result)["initial"]
    assert initial["underflow_layer"] == {"float32": 1, "float16": 2, "bfloat16": 1}
    assert initial["overflow_layer"] == {"float32": None, "float16": 4, "bfloat16": None}


def broken():
    """Return a run in which everything that can be is nan or inf."""
    result = complete(2)
    nan = math.nan
    result.initial = profile([[nan, 0.0], [nan, nan]], largest=[[-math.inf, 0.0], [math.inf, 0.0]], dead=[nan, nan])
    result.training = Training([2.5, nan], [0.1, nan], [(0, math.inf, nan)], 1, None)
    result.seconds = math.inf
    return result


@pytest.mark.parametrize("result", [Result(Config()), complete(), complete(3), broken()])
def test_every_number_is_finite_and_json_can_hold_it(result):
    content = summary(result)
    assert all(math.isfinite(number) for number in numbers_in(content))
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_numbers_that_are_not_finite_are_null():
    content = summary(broken())
    training = content["training"]
    assert (training["loss_first"], training["loss_last"], training["diverged_at"]) == (2.5, None, 1)
    assert (training["test_loss"], training["test_accuracy"]) == (None, None)
    assert content["initial"]["log_chi"] is None
    assert content["initial"]["depth_scale"] is None
    assert content["initial"]["dead_fraction"] is None
    assert content["seconds"] is None


def test_a_flat_gradient_has_no_depth_scale():
    result = complete()
    result.initial = profile([1.0, 5.0, 1.0])
    initial = summary(result)["initial"]
    assert (initial["log_chi"], initial["depth_scale"]) == (0.0, None)


def test_a_training_that_was_interrupted_before_its_first_loss_is_known_by_its_zero_steps():
    training = summary(Result(Config(), training=Training()))["training"]
    assert training.pop("steps") == 0
    assert set(training.values()) == {None}


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(summary_module, "version", missing)
    assert summary(Result(Config()))["hydra"] is None


BASE = Config()


@pytest.mark.parametrize(
    "change",
    [{"device": "cpu"}, {"threads": 7}, {"quiet": True}, {"record": RecordConfig(every=5)}, {"objective": "log_chi"}],
    ids=str,
)
def test_the_hash_ignores_what_does_not_change_the_numbers(change):
    assert config_hash(dataclasses.replace(BASE, **change)) == config_hash(BASE)


OTHER = {
    "model": ModelConfig("cnn"),
    "depth": 149,
    "width": 127,
    "widths": [128] * 149,
    "activation": "tanh",
    "negative_slope": 0.02,
    "bias": False,
    "sigma_b2": 0.0,
    "seed": 1,
    "seeds": 2,
    "steps": 99,
    "batch_size": 63,
    "loss": "mse",
    "dtype": "float64",
    "save_weights": True,
    "init": InitConfig("xavier"),
    "data": DataConfig("ones"),
    "optimizer": OptimizerConfig("adam"),
    "verdict": VerdictConfig(2.0),
    "normalization": "layer",
    "residual": "depth",
    "dropout": 0.1,
    "precision": "amp_bfloat16",
    "affine": True,
}


def test_the_hash_changes_with_every_other_option():
    ignored = {"device", "threads", "quiet", "record", "objective", "log"}
    assert set(OTHER) == {entry.name for entry in dataclasses.fields(Config)} - ignored
    base = dataclasses.replace(BASE, normalization="rms")  # without one nothing is affine
    hashes = [config_hash(dataclasses.replace(base, **{key: value})) for key, value in OTHER.items()]
    assert len({config_hash(base), *hashes}) == 1 + len(OTHER)


@pytest.mark.parametrize(
    "change",
    [
        {"init": InitConfig(gain=2)},
        {"init": InitConfig(mode="fan_out")},
        {"data": DataConfig(standardize=False)},
        {"optimizer": OptimizerConfig(lr=0.5)},
        {"optimizer": OptimizerConfig(clip_norm=1.0)},
    ],
    ids=str,
)
def test_the_hash_changes_with_every_option_of_a_group(change):
    assert config_hash(dataclasses.replace(BASE, **change)) != config_hash(BASE)


def test_the_hash_is_of_resolved_options_and_of_the_version(monkeypatch):
    assert config_hash(Config(init=InitConfig("he", gain=1.0))) == config_hash(Config())
    before = config_hash(BASE)
    assert len(before) == 64
    monkeypatch.setattr(summary_module, "__version__", "99.0")
    assert config_hash(BASE) != before


def test_seeds_count_up_from_the_runs_own():
    assert Result(Config(seed=5)).seeds == [5]
    assert Result(Config(seed=5, seeds=3)).seeds == [5, 6, 7]


def small_history() -> History:
    values = np.array([[[-4.0, -2.0, 0.0]]])
    ok = np.zeros(values.shape, dtype=np.int8)
    names = ["layers.0", "layers.1", "layers.2"]
    return History("init", names, [0], [0], {"output_grad": values}, {"output_grad": ok})


def test_a_result_is_shown_in_words_and_as_html() -> None:
    verdict = Verdict("vanishing", "trained", "agrees", "vanishing: by 10^-4.0")
    training = Training([2.0, 1.0], train_accuracy=0.5, tests=[(1, 1.5, 0.25)])
    known = {"initial": small_history(), "training": training, "guessing": 2.3, "verdict": verdict}
    run = Result(Config(depth=3), status="complete", **known)
    assert repr(run).splitlines() == [
        "Result(he: 3 relu layers, complete)",
        "gradient: vanishing, training: trained, theory: agrees",
        "vanishing: by 10^-4.0",
        "loss 2.000 to 1.000 in 2 steps; accuracy 50% in training, 25% in test",
    ]
    page = Parsed(run._repr_html_())
    for text in ("↘ vanishing", "✓ trained", "he: 3 relu layers", "loss 2.000 to 1.000", "All 3 layers"):
        assert text in page.words
    assert page.tags.count("svg") == 2  # the profile, the loss


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_result_is_shown_at_every_stage(status: str) -> None:
    error = f"ValueError: {EVIL}" if status == "failed" else None
    bare = Result(Config(), status=status, error=error)
    for run in (bare, dataclasses.replace(bare, initial=small_history(), training=Training())):
        page = Parsed(run._repr_html_())
        assert status in page.words
        assert status in repr(run)
        assert (EVIL in page.words) == (status == "failed")
        assert not {"img", "script"} & set(page.tags)
        assert len(repr(run)) < 500
