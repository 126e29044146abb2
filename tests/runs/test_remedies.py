"""Every remedy is followed: the network it leads to is built, measured without theory, and trained."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import few

from gradexp import MLP, initialize
from gradexp.choices import INIT_OPTIONS, LYAPUNOV_ACTIVATIONS, RESIDUALS
from gradexp.cli.composing import compose
from gradexp.config import Config, InitConfig, OptimizerConfig, RecordConfig
from gradexp.predict.forecast import forecast
from gradexp.runs.command_line import command_with
from gradexp.runs.data import load
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.prediction import predict_run
from gradexp.runs.remedies import ALIGNED, output_cosine, problem, remedies
from gradexp.runs.result import Result
from gradexp.runs.stacks import stackable_groups

pytestmark = pytest.mark.usefixtures("on_one_thread")

PRESETS = [path.stem for path in sorted((Path(__file__).parents[2] / "configs" / "experiment").glob("*.yaml"))]


def follow(configs: Sequence[Config], steps: int = 100) -> list[Result]:
    """Run networks with remedies, those that can be stacked together, for the default 100 steps."""
    results: list[Result] = []
    for group in stackable_groups(configs):
        results += run_stack(
            [replace(configs[index], steps=steps, record=RecordConfig(every=100)) for index in group]
        )
    return results


def assert_cured(result: Result) -> None:
    """The gradient of the very network is stable, its outputs differ, and its loss falls."""
    assert result.initial is not None
    assert result.training is not None
    assert result.verdict is not None
    name = f"{result.config.activation} {result.config.additions} {result.config.init}"
    assert result.verdict.gradient == "stable", name
    assert result.initial.output_cosine is not None
    assert float(result.initial.output_cosine.mean()) < ALIGNED, name
    losses = result.training.losses
    assert result.training.diverged_at is None, name
    assert sum(losses[-10:]) / 10 < 0.9 * min(losses[0], math.log(10)), name


def cures(configs: Sequence[Config]) -> list[Config]:
    """Return the networks of all remedies that ``predict`` lists for some networks, each once."""
    data, known = load(configs[0].data, configs[0].width), {}

    def predict(config: Config) -> Any:
        key = repr(config)
        if key not in known:
            known[key] = predict_run(config, data.x_train[: config.batch_size], data.output_width)
        return known[key]

    found: list[Config] = []
    for config in configs:
        if problem(config, predict(config)):
            found += [cure.config for cure in remedies(config, predict) if cure.config not in found]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"depth": 60},
        {},
        {"init": InitConfig("xavier"), "residual": "plain", "depth": 60},
        {"activation": "sigmoid", "depth": 60},
        {"activation": "erf", "init": InitConfig("normal"), "depth": 60},
        {"normalization": "batch", "affine": True, "depth": 60},
    ],
)
def test_following_every_remedy_of_a_deep_network_cures_it(options: dict[str, Any]) -> None:
    found = cures([Config(**{"width": 32, **options})])
    assert found
    for result in follow(found):
        assert_cured(result)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "normalization"),
    [("relu", "none"), ("tanh", "none"), ("sigmoid", "none"), ("relu", "batch"), ("tanh", "layer")],
)
def test_following_every_remedy_cures_whatever_weights_and_skip_connections_there_were(
    activation: str, normalization: str
) -> None:
    known = [name for name in INIT_OPTIONS if name != "lyapunov" or activation in LYAPUNOV_ACTIVATIONS]
    inits = known if normalization == "none" else ["he", "xavier", "normal", "orthogonal"]
    pairs = [("none", init) for init in inits]
    pairs += [(residual, init) for residual in RESIDUALS[1:] for init in ("he", "xavier")]
    options: dict[str, Any] = {"depth": 60, "width": 32, "activation": activation, "normalization": normalization}
    found = cures([Config(residual=residual, init=InitConfig(init), **options) for residual, init in pairs])
    for result in follow(found):
        assert_cured(result)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_following_the_remedy_of_a_preset_cures_it(preset: str) -> None:
    jobs = [config for config in compose([f"experiment={preset}"]) if config.depth <= 200 and config.seed < 1]
    found: list[Config] = []
    for job in jobs:
        cure = next(iter(forecast(job).remedies), None)
        if cure is not None and cure.config.optimizer == job.optimizer and cure.config not in found:
            found.append(cure.config)
    for config in found[:2]:  # those of one preset are of a kind
        # A preset's own learning rate may be the trouble, and then has a remedy of its own.
        is_trained = config.optimizer == OptimizerConfig() and config.data.name == "digits"
        is_trained = is_trained and config.model.name == "mlp"  # an image takes minutes
        (result,) = follow([replace(config, width=min(config.width, 64))], steps=100 if is_trained else 0)
        assert result.verdict is not None
        assert result.verdict.gradient == "stable"
        if is_trained:
            assert_cured(result)


@pytest.mark.slow
def test_a_run_that_diverges_though_nothing_else_is_wrong_learns_at_the_rate_it_names() -> None:
    config = Config(depth=20, width=32, activation="tanh", init=InitConfig("orthogonal"), steps=60)
    failing = run(replace(config, activation="linear", optimizer=OptimizerConfig(lr=3.0)))
    assert failing.verdict is not None
    assert failing.verdict.training == "diverged"
    key, _, rate = failing.verdict.remedy.partition("=")
    assert key == "optimizer.lr"
    cured = run(replace(failing.config, optimizer=OptimizerConfig(lr=float(rate)), steps=100))
    assert cured.verdict is not None
    assert cured.verdict.training == "trained"


@pytest.mark.parametrize(
    ("activation", "normalization", "residual", "depth"),
    few(
        [
            ("elu", "none", "plain", 8),
            ("tanh", "layer", "none", 12),
            ("relu", "none", "none", 20),
            ("relu", "none", "depth", 60),
            ("gelu", "none", "depth", 50),
            ("softplus", "layer", "depth", 40),
        ],
    ),
)
def test_the_cosine_of_two_inputs_is_that_of_wide_networks(
    activation: str, normalization: str, residual: str, depth: int
) -> None:
    config = Config(
        activation=activation,
        normalization=normalization,
        residual=residual,
        depth=depth,
        width=128,
    )
    inputs = torch.randn(128, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.linalg.qr(inputs)[0].T * math.sqrt(128)  # orthogonal, of mean square 1
    architecture: dict[str, Any] = {"normalization": normalization, "residual": residual}
    mlp = MLP([128] * (depth + 1), activation, networks=32, dtype=torch.float64, **architecture)
    outputs = initialize(mlp, "he", seed=0)(x).detach()
    found = torch.cosine_similarity(outputs[:, 0], outputs[:, 1], dim=-1).mean().item()
    # Two vectors of 128 units have a cosine of 1 / sqrt(128) by chance, in the first layer and in the last.
    error = 4 * math.sqrt(2 / 128 / 32)
    assert output_cosine(config, predict_run(config, x, 128)) == pytest.approx(found, abs=error)


def test_how_alike_the_outputs_of_a_very_deep_relu_network_are_keeps_its_digits() -> None:
    config = Config(depth=1000)
    cosine = output_cosine(config, predict_run(config, torch.ones(1, 64, dtype=torch.float64), 10))
    assert cosine is not None
    # 9π² / 2l² in the limit; at 1,000 layers 0.97 of it.
    assert (1 - cosine) * 2 * 1000**2 / (9 * math.pi**2) == pytest.approx(0.97, abs=0.01)


def test_a_command_drops_what_the_remedy_replaces_and_keeps_all_else() -> None:
    typed = ["experiment=residual", "+init.std=1", "init=normal", "depth=30", "data.path=my file.npz"]
    assert command_with(typed, "init=he residual=depth") == (
        "python -m gradexp.run experiment=residual depth=30 'data.path=my file.npz' init=he residual=depth "
        "hydra.mode=RUN"
    )
    assert command_with([], "optimizer.lr=0.1") == "python -m gradexp.run optimizer.lr=0.1"
    lesson = command_with(["experiment=lesson", "init.gain=0.5"], "init.gain=1")  # which is one run by itself
    assert lesson == "python -m gradexp.run experiment=lesson init.gain=1"
    assert command_with(["experiment=mine"], "init=he").endswith(" hydra.mode=RUN")


def test_the_command_of_a_preset_that_sweeps_is_one_run() -> None:
    command = command_with(["experiment=residual", "depth=10", "seed=0"], "residual=depth")
    words = [word for word in command.split()[3:] if not word.startswith("hydra.")]
    assert words == ["experiment=residual", "depth=10", "seed=0", "residual=depth"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    few([{"depth": 40}, {"activation": "sigmoid", "depth": 30, "width": 32}, {"residual": "plain", "depth": 60}]),
)
def test_run_and_predict_name_the_same_remedy(options: dict[str, Any]) -> None:
    config = Config(**{"width": 16, "steps": 40, "record": RecordConfig(every=100), **options})
    verdict = run(config).verdict
    assert verdict is not None
    assert verdict.training != "trained"
    first = forecast(config).remedies[0].text
    assert verdict.remedy == first
    assert verdict.text.endswith(f"; try {first}")


def test_jobs_of_one_process_share_predictions_and_no_more_than_that() -> None:
    x = torch.randn(8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    config = Config(depth=5, width=16)
    first = predict_run(config, x, 10)
    assert predict_run(replace(config, seed=3, steps=7), x.clone(), 10) is first
    for other in (
        replace(config, depth=6),
        replace(config, init=InitConfig("xavier")),
        replace(config, residual="plain"),
    ):
        assert predict_run(other, x, 10) is not first
    assert predict_run(config, 2 * x, 10) is not first
    assert predict_run(config, x, 11) is not first
