"""Options: defaults, ranges and error texts."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gradexp import config as schema
from gradexp.choices import CONFIG_DIR, ConfigError
from gradexp.config import Config, DataConfig, InitConfig, OptimizerConfig, RecordConfig, VerdictConfig


def test_defaults_are_the_main_job() -> None:
    options = schema.as_dict(Config())
    main_job = {"depth": 150, "width": 128, "activation": "relu", "steps": 100, "batch_size": 64, "device": "auto"}
    assert main_job.items() <= options.items()
    assert options["init"] == {"name": "he", "gain": 1.0, "mode": "fan_in", "distribution": "normal"}
    assert options["optimizer"] == {
        "name": "sgd",
        "lr": 0.01,
        "weight_decay": 0.0,
        "clip_norm": None,
        "warmup": 0,
        "schedule": "constant",
    }
    assert options["data"] == {"name": "digits", "standardize": True}


def test_unset_options_take_the_default_of_their_choice() -> None:
    assert Config(init=InitConfig("normal")).init.std == 0.01
    assert Config(init=InitConfig("normal", std=0.5)).init.std == 0.5
    assert Config(optimizer=OptimizerConfig("adam")).optimizer.lr == 0.001


def test_widths_set_the_depth() -> None:
    assert Config(widths=[5, 7]).depth == 3
    assert Config(widths=[5, 7], depth=3).hidden_widths == [5, 7]
    assert Config(widths=[]).depth == 1
    assert Config(depth=3, width=4).hidden_widths == [4, 4]
    assert Config(depth=1).hidden_widths == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"width": -3}, "width must be at least 1, got -3"),
        (
            {"record": RecordConfig(profile_steps=[0, 100])},
            "record.profile_steps must be a list of steps from 0 to 99, got [0, 100]",
        ),
        (
            {"record": RecordConfig(every=5, profile_steps=[7])},
            "record.profile_steps must be a list of steps from 0 to 99, multiples of record.every=5, got [7]",
        ),
        (
            {"record": RecordConfig(profile_steps=[0]), "steps": 0},
            "record.profile_steps must be [] where steps=0, got [0]",
        ),
        ({"widths": [4, 0]}, "widths must be a list of numbers of at least 1, got [4, 0]"),
        ({"depth": 9, "widths": [4]}, "depth=9 contradicts widths, whose 1 hidden layers make depth 2"),
        ({"activation": "rleu"}, "activation must be one of linear, tanh, relu"),
        ({"normalization": "group"}, "normalization must be one of none, batch, layer, rms, got 'group'"),
        ({"affine": True}, "affine needs a normalization (batch, layer or rms), whose scale and shift they are"),
        ({"residual": "rezero"}, "residual must be one of none, plain, depth, zero, got 'rezero'"),
        ({"residual": "plain", "widths": [4, 5]}, "residual='plain' needs hidden layers of equal width, got [4, 5]"),
        (
            {"normalization": "batch", "batch_size": 1},
            "normalization='batch' needs batch_size of at least 2: a sample",
        ),
        ({"init": InitConfig("lsuv", iterations=0)}, "init.iterations must be at least 1, got 0"),
        ({"init": InitConfig("lsuv", tolerance=-1.0)}, "init.tolerance must be at least 0, got -1.0"),
        ({"loss": "hinge"}, "loss must be one of auto, cross_entropy, mse, got 'hinge'"),
        ({"dtype": "float8"}, "dtype must be one of float32, float64, float16, bfloat16, got 'float8'"),
        ({"precision": "amp"}, "precision must be one of full, amp_float16, amp_bfloat16, got 'amp'"),
        (
            {"precision": "amp_float16", "dtype": "bfloat16"},
            "precision=amp_float16 is for weights in float32, got dtype=bfloat16",
        ),
        ({"optimizer": OptimizerConfig(warmup=-1)}, "optimizer.warmup must be at least 0, got -1"),
        (
            {"optimizer": OptimizerConfig(schedule="step")},
            "optimizer.schedule must be one of constant, cosine, got 'step'",
        ),
        ({"device": "mps", "dtype": "float64"}, "device=mps has no float64; use dtype=float32"),
        ({"device": "gpu"}, "device must be auto, cpu, mps, cuda or cuda:N, got 'gpu'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"sigma_b2": -0.1}, "sigma_b2 must be at least 0, got -0.1"),
        ({"sigma_b2": 0.1, "bias": False}, "sigma_b2=0.1 needs bias=true"),
        ({"negative_slope": float("nan")}, "negative_slope must be a finite number, got nan"),
        ({"init": InitConfig("xaviar")}, "init must be one of he, xavier, lecun"),
        ({"init": InitConfig("identity", std=1.0)}, "init 'identity' has no option 'std'; it takes gain"),
        ({"init": InitConfig("he", mode="fan")}, "init.mode must be one of fan_in, fan_out, got 'fan'"),
        ({"init": InitConfig("he", distribution="cauchy")}, "init.distribution must be one of normal, uniform"),
        ({"init": InitConfig("normal", std=-1.0)}, "init.std must be at least 0, got -1.0"),
        ({"init": InitConfig("sparse", sparsity=1.0)}, "init.sparsity must be below 1, got 1.0"),
        (
            {"init": InitConfig("lyapunov"), "activation": "tanh"},
            "init 'lyapunov' is for activation linear, relu, leaky",
        ),
        (
            {"data": DataConfig("mnist")},
            "data must be one of digits, mnist5k, file, gaussian, ones, copy, got 'mnist'",
        ),
        ({"data": DataConfig("ones", path="x")}, "data 'ones' has no option 'path'; it takes samples"),
        (
            {"optimizer": OptimizerConfig("sgd", momentum=0.9)},
            "optimizer 'sgd' has no option 'momentum'; it takes lr",
        ),
        ({"optimizer": OptimizerConfig(lr=float("inf"))}, "optimizer.lr must be a finite number, got inf"),
        ({"optimizer": OptimizerConfig(clip_norm=0.0)}, "optimizer.clip_norm must be above 0, or null"),
        ({"record": RecordConfig(every=0)}, "record.every must be at least 1, got 0"),
        ({"verdict": VerdictConfig(decades=0.0)}, "verdict.decades must be above 0, got 0.0"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_what_is_allowed(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config(**options)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_every_preset_says_its_command_in_line_two() -> None:
    presets = sorted((CONFIG_DIR / "experiment").glob("*.yaml"))
    assert presets
    for path in presets:
        lines = path.read_text().splitlines()
        assert lines[0] == "# @package _global_"
        assert lines[1].startswith(f"# python -m gradexp.run experiment={path.stem}")


def test_every_option_has_a_help_text() -> None:
    from gradexp.cli.help import list_options

    found = {option.key: option.text for option in list_options()}
    expected = set()
    for entry in dataclasses.fields(Config):
        inner = dataclasses.fields(entry.type) if dataclasses.is_dataclass(entry.type) else None
        expected |= {f"{entry.name}.{e.name}" for e in inner} if inner else {entry.name}
    assert set(found) == expected
    assert all(found.values())


def test_config_folder_is_found_from_the_code_not_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CONFIG_DIR.is_absolute()
    assert (CONFIG_DIR / "config.yaml").is_file()
