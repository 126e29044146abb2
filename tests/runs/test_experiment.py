"""Whole runs: the verdicts that the project promises, and that observing changes nothing."""

import math
import re
import statistics
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from cases import few

from gradexp.choices import NORMALIZATIONS, RESIDUALS, ConfigError
from gradexp.config import Config, DataConfig, InitConfig, OptimizerConfig, RecordConfig
from gradexp.runs import live_results, stages
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.result import Result
from gradexp.runs.summary import summary
from gradexp.runs.verdict import run_verdict
from gradexp.theory import layer_law


def verdict_of(result: Result) -> tuple[str, str]:
    assert result.verdict is not None
    return result.verdict.gradient, result.verdict.training


@cache
def lesson(gain: float, depth: int, dtype: str) -> Result:
    options: dict[str, Any] = {"activation": "linear", "width": 2, "steps": 0, "depth": depth, "dtype": dtype}
    return run(Config(init=InitConfig("identity", gain=gain), data=DataConfig("ones"), **options))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"width": 48, "steps": 100, "record": RecordConfig(every=50)}, {}],
)
def test_default_run_is_stable_but_stuck_and_says_why(options: dict[str, Any]) -> None:
    result = run(Config(**options))
    assert verdict_of(result) == ("stable", "stuck")
    assert result.verdict is not None
    assert "try init=orthogonal activation=tanh" in result.verdict.text
    # The size of the last update, another reason, is a matter of rounding after 100 steps in 150 layers.
    assert result.initial is not None
    assert result.training is not None
    without_updates = run_verdict(result.config, result.initial, result.training.losses, None, math.log(10))
    assert "after 150 relu layers all inputs point the same way" in without_updates.text


@pytest.mark.slow
def test_the_cure_it_names_works() -> None:
    cure: dict[str, Any] = {"init": InitConfig("orthogonal"), "activation": "tanh"}
    result = run(Config(width=48, steps=50, record=RecordConfig(every=25), **cure))
    assert verdict_of(result) == ("stable", "trained")
    # 12 seeds gave 0.71 to 0.82, and without the cure 0.10 to 0.16.
    assert summary(result)["training"]["train_accuracy"] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "optimizer", "seeds"),
    [
        (120, OptimizerConfig("momentum", lr=0.005), 3),
        (400, OptimizerConfig("sgd", lr=0.01), 3),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_he_trains_thirty_layers(steps: int, optimizer: OptimizerConfig, seeds: int) -> None:
    options = {"depth": 30, "width": 64, "steps": steps, "optimizer": optimizer, "record": RecordConfig(every=steps)}
    results = run_stack([Config(seed=seed, **options) for seed in range(seeds)])
    assert {verdict_of(result) for result in results} == {("stable", "trained")}
    accuracies = [summary(result)["training"]["train_accuracy"] for result in results]
    # 24 seeds of the short training gave 0.28 to 0.57, and networks that do not train stay below 0.2.
    assert statistics.median(accuracies) > 0.25


@pytest.mark.slow
@pytest.mark.parametrize(
    "init",
    few([InitConfig("xavier"), InitConfig("torch_default"), InitConfig("normal", std=0.01)]),
    ids=lambda i: i.name,
)
def test_other_inits_leave_thirty_layers_at_chance(init: InitConfig) -> None:
    result = run(Config(depth=30, width=32, steps=60, init=init, record=RecordConfig(every=20)))
    assert verdict_of(result) == ("vanishing", "stuck")
    found = summary(result)
    # Ten classes: the largest holds 10.2 % of the digits, and a network may tell one or two of them apart by luck.
    assert found["training"]["train_accuracy"] < 0.25
    assert found["training"]["loss_last"] > 0.9 * math.log(10)
    # xavier's updates are small, those after std 0.01 are lost in float32's rounding.
    share = "" if init.name == "normal" else "changes the weights by only 10|"
    assert re.search(f"a step ({share}leaves the weights)", found["verdict"]["text"])


@pytest.mark.parametrize(
    ("gain", "depth", "digits", "dtype"),
    [
        (1.5, 10, 57.66503906, "float64"),
        (1.5, 150, 2.592321479488e26, "float32"),
        (0.5, 150, 7.006492e-46, "float32"),
    ],
)
def test_lesson_powers_of_one_and_a_half_and_of_a_half(gain: float, depth: int, digits: float, dtype: str) -> None:
    initial = lesson(gain, depth, dtype).initial
    assert initial is not None
    assert initial.profile("output")[-1] == pytest.approx(depth * math.log10(gain), abs=1e-9)
    assert 10 ** initial.profile("output")[-1] == pytest.approx(digits, rel=1e-6)


@pytest.mark.parametrize(("gain", "digits"), few([(1.1, 1.957438581e6), (0.9, 1.108820980e-7)]))
def test_lesson_powers_of_the_152_layer_case(gain: float, digits: float) -> None:
    initial = lesson(gain, 152, "float64").initial
    assert initial is not None
    assert 10 ** initial.profile("output")[-1] == pytest.approx(digits, rel=1e-9)


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_lesson_weight_gradients_are_the_same_in_every_layer(gain: float) -> None:
    initial = lesson(gain, 150, "float32").initial
    assert initial is not None
    profile = initial.profile("weight_grad")
    assert profile.max() - profile.min() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("depth", few([400, 1800, 4_000]))
def test_thousands_of_layers_are_exact_in_summary_and_profile(depth: int) -> None:
    """1.5^1750 is the first power beyond the range of float64."""
    result = lesson(1.5, depth, "float32")
    assert result.initial is not None
    assert result.prediction is not None
    layers, step = np.arange(1, depth + 1), math.log10(1.5)
    assert result.initial.profile("output") == pytest.approx(layers * step, abs=1e-9, rel=0)
    assert result.initial.profile("output_grad") == pytest.approx((depth - layers) * step, abs=1e-9, rel=0)
    assert result.prediction.log10_output == pytest.approx(layers * step, abs=1e-9, rel=0)
    assert result.prediction.log10_output_grad == pytest.approx((depth - layers) * step, abs=1e-9, rel=0)
    ratio = summary(result)["initial"]["log10_first_over_last"]
    assert ratio["output"] == pytest.approx(-(depth - 1) * step, abs=1e-9)
    assert ratio["output_grad"] == pytest.approx((depth - 1) * step, abs=1e-9)
    # 1.5^219 = 3.7e38 is the first power beyond float32's 3.4e38.
    assert result.initial.failing_layer("output", "float32", overflow=True) == 219


def small(sinks: Sequence[Any] = (), **options: Any) -> Result:
    return run(Config(**{"depth": 20, "width": 16, "steps": 8, "data": DataConfig("gaussian"), **options}), sinks)


@pytest.mark.slow
def test_recording_does_not_change_training() -> None:
    often, never = small(save_weights=True), small(save_weights=True, record=RecordConfig(every=10**9))
    assert often.weights is not None
    assert never.weights is not None
    assert all(torch.equal(often.weights[key], never.weights[key]) for key in often.weights)
    assert often.training == never.training


@pytest.mark.slow
def test_looking_at_a_training_while_it_goes_on_does_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = small(save_weights=True)
    monkeypatch.setattr(live_results, "_BETWEEN", 0.0)
    monkeypatch.setattr(live_results, "_SHARE", math.inf)
    watched = small(save_weights=True, record=RecordConfig(profile_steps=[0, 5], histograms=True))
    assert plain.weights is not None
    assert watched.weights is not None
    assert all(torch.equal(plain.weights[key], watched.weights[key]) for key in plain.weights)
    assert plain.training == watched.training
    assert plain.gradients is not None
    assert watched.gradients is not None
    for quantity, values in plain.gradients.log10.items():
        assert np.array_equal(values, watched.gradients.log10[quantity], equal_nan=True)


@pytest.mark.slow
def test_same_seed_same_run_and_another_seed_another() -> None:
    one, two, other = small(), small(), small(seed=1)
    assert one.training == two.training
    assert one.training != other.training


def test_dtype_changes_rounding_only() -> None:
    single, double = small(steps=0), small(steps=0, dtype="float64")
    assert single.initial is not None
    assert double.initial is not None
    difference = single.initial.log10["output_grad"] - double.initial.log10["output_grad"]
    # Weights rounded to 24 bits, through 20 layers.
    assert 0 < abs(difference).max() < 20 * 2**-24


def test_seeds_measures_the_networks_that_single_runs_have() -> None:
    stack = small(seeds=3, seed=5, steps=0)
    assert stack.initial is not None
    for index in range(3):
        alone = small(seed=5 + index, steps=0).initial
        assert alone is not None
        for quantity, values in alone.log10.items():
            # The same sums in another order.
            assert stack.initial.log10[quantity][0, index] == pytest.approx(values[0, 0], abs=1e-12)


def test_training_with_seeds_is_of_the_first_network() -> None:
    assert small(seeds=3).training == small().training


@pytest.mark.slow
@pytest.mark.parametrize("init", few(["lsuv", "he"]))
def test_large_stacks_are_measured_in_parts_which_changes_nothing(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small(seeds=5, seed=3, steps=2, init=InitConfig(init))
    size = 4 * sum((i + 1) * o for i, o in pairwise([64, *[16] * 19, 1]))  # bytes of one network
    sink = Recorder()
    for at_once in (1, 2):
        monkeypatch.setattr(stages, "_STACK", at_once * size)
        parts = small(seeds=5, seed=3, steps=2, init=InitConfig(init), sinks=[sink])
        assert parts.initial is not None
        assert whole.initial is not None
        assert parts.initial.seeds == [3, 4, 5, 6, 7]
        for quantity, values in whole.initial.log10.items():
            # The same sums in another order.
            assert parts.initial.log10[quantity] == pytest.approx(values, abs=1e-12)
        assert parts.initial.samples == pytest.approx(whole.initial.samples, abs=1e-12)
        assert parts.training == whole.training
        assert parts.building == whole.building
        assert [s for s in sink.stages if s != "progress"] == ["start", "built", "initial", "step", "end"]
        for activity in ("drawing weights", "profile at initialisation"):
            shares = [done / total for name, done, total in sink.progress if name == activity]
            assert shares == sorted(shares)
            assert shares[-1] == 1
        sink = Recorder()


def test_data_that_lsuv_cannot_scale_weights_by_are_a_mistake_of_the_options() -> None:
    with pytest.raises(ConfigError, match=r"^lsuv cannot scale layer 'layers\.0', whose outputs have variance 0$"):
        small(init=InitConfig("lsuv"), width=1, data=DataConfig("ones"))


@pytest.mark.parametrize(
    ("normalization", "residual"),
    few([*(("layer", name) for name in RESIDUALS[::-1]), *((name, "none") for name in NORMALIZATIONS)]),
)
def test_every_cure_runs_and_is_named(normalization: str, residual: str) -> None:
    result = small(normalization=normalization, residual=residual, activation="tanh", depth=6)
    assert result.status == "complete"
    assert result.training is not None
    assert result.training.diverged_at is None
    assert result.building is not None
    assert ("normalization=" in result.building) == (normalization != "none")
    assert (f"residual={residual}" in result.building) == (residual != "none")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"residual": "zero"}, {"residual": "depth"}, {"residual": "depth", "normalization": "layer"}],
    ids=str,
)
def test_skip_connections_let_a_deep_relu_network_train(options: dict[str, str]) -> None:
    """Without them the same run is stuck below 0.2 (and see the default run above); these reach 0.5 to 0.8."""
    rest: dict[str, Any] = {"record": RecordConfig(every=25), "optimizer": OptimizerConfig("sgd", lr=0.03)}
    result = run(Config(depth=60, steps=50, width=32, **rest, **options))  # type: ignore[arg-type]
    assert verdict_of(result) == ("stable", "trained")
    assert summary(result)["training"]["train_accuracy"] > 0.4


@pytest.mark.slow
def test_batch_normalisation_alone_makes_gradients_explode() -> None:
    """By π/(π - 1) per relu layer for a wide network and a large batch (Yang et al., 2019, arXiv:1902.08129)."""
    result = run(Config(depth=60, width=256, batch_size=256, steps=0, normalization="batch"))
    assert result.initial is not None
    assert result.initial.verdict().gradient == "exploding"
    # Seeds and finite sizes spread this by some hundredths: networks of width 1000 with batches of 128 gave
    # 0.369 to 0.388.
    assert result.initial.log_chi(first=5, last=55) == pytest.approx(math.log(math.pi / (math.pi - 1)), abs=0.04)


def test_a_run_leaves_the_process_as_it_was() -> None:
    torch.manual_seed(1)
    threads, dtype, state = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    small(threads=2, dtype="float64", depth=3, steps=1)
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == dtype
    assert torch.equal(torch.get_rng_state(), state)


class Recorder:
    """A sink that keeps the stages, and raises at one of them."""

    def __init__(self, raising: str = "", error: BaseException | None = None) -> None:
        self.stages: list[str] = []
        self.progress: list[tuple[str, int, int]] = []
        self.raising, self.error = raising, error
        self.closed = False

    def write(self, stage: str, result: Result) -> None:
        if stage not in self.stages:
            self.stages.append(stage)
        if stage == "progress":
            self.progress.append(result.progress)
        self.status = result.status
        if stage == self.raising and self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed = True


def test_sinks_see_every_stage_and_are_closed() -> None:
    sink = Recorder()
    run(Config(depth=2, width=3, steps=1, data=DataConfig("gaussian")), [sink])
    assert [s for s in sink.stages if s != "progress"] == ["start", "built", "initial", "step", "end"]
    assert sink.closed


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("x"), "failed")])
def test_sinks_get_the_end_of_a_run_that_breaks_off(error: BaseException, status: str) -> None:
    sink = Recorder("step", error)
    with pytest.raises(type(error)):
        run(Config(depth=2, width=3, steps=5, data=DataConfig("gaussian")), [sink])
    assert sink.stages[-1] == "end"
    assert sink.status == status
    assert sink.closed


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_measures_the_same_network() -> None:
    here, there = small(steps=0, device="cpu"), small(steps=0, device="cuda")
    assert here.initial is not None
    assert there.initial is not None
    for quantity, values in here.initial.log10.items():
        assert there.initial.log10[quantity] == pytest.approx(values, abs=1e-11)
    trained = small(device="cuda")
    assert trained.status == "complete"


def test_a_run_compares_its_networks_with_theory() -> None:
    result = small(activation="relu", seeds=32, steps=0)
    assert result.prediction is not None
    assert result.comparison is not None
    assert result.initial is not None
    assert result.verdict is not None
    # The exact law of 19 relu layers of 16 units, from a module that knows nothing of runs.
    law = layer_law(16, 16, 2.0, (0.0, 1.0), backward=True)
    assert result.prediction.log_chi == pytest.approx(law.mean, abs=1e-12)
    assert result.verdict.theory == result.comparison.verdict == "agrees"
    assert (result.initial.theory["log10_output_grad"] == result.prediction.log10_output_grad).all()
    assert next(result.initial.rows())["theory_log10_output"] == result.prediction.log10_output[0]


@pytest.mark.parametrize(
    "options",
    few(
        [
            {"init": InitConfig("mean_field", sigma_w2=1.7), "activation": "tanh", "sigma_b2": 0.2},
            {"activation": "relu", "widths": [60, 40, 80, 50]},
            {"init": InitConfig("torch_default"), "activation": "tanh", "bias": False},
            {"init": InitConfig("lsuv"), "activation": "tanh"},
            {"activation": "leaky_relu", "negative_slope": 0.4},
            {"activation": "tanh", "normalization": "layer", "residual": "depth"},
        ],
    ),
    ids=str,
)
def test_theory_knows_the_options_of_the_run(options: dict[str, Any]) -> None:
    result = small(
        **{"width": 64, "seeds": 24, "steps": 0, **options, **({"depth": 5} if "widths" in options else {})}
    )
    assert result.comparison is not None
    assert result.comparison.verdict == "agrees", result.comparison


@pytest.mark.slow
def test_clipping_changes_no_profile() -> None:
    plain, clipped = (small(optimizer=OptimizerConfig(clip_norm=clip)).initial for clip in (None, 1e-3))
    assert plain is not None
    assert clipped is not None
    assert (plain.log10["output_grad"] == clipped.log10["output_grad"]).all()
    assert (plain.theory["log10_output_grad"] == clipped.theory["log10_output_grad"]).all()
