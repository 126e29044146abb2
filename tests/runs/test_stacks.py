import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import MUON, few

from gradexp.config import Config, InitConfig, OptimizerConfig, RecordConfig
from gradexp.runs import stacks
from gradexp.runs.experiment import deliver, run, run_stack
from gradexp.runs.result import Result

MOMENTUM = OptimizerConfig("momentum")


def jobs(**options: Any) -> list[Config]:
    """Jobs of one stack: other initialisations and seeds, and biases in the last."""
    base = Config(**{"depth": 10, "width": 16, "batch_size": 32, "steps": 6, **options})
    made = [replace(base, init=InitConfig(name), seed=seed) for name, seed in (("he", 0), ("orthogonal", 3))]
    return [*made, replace(base, init=InitConfig("xavier"), sigma_b2=0.05)]


def losses(result: Result) -> np.ndarray[Any, Any]:
    assert result.training is not None
    return np.array(result.training.losses)


@pytest.mark.parametrize("dtype", few(["float32", "float64"]))
def test_weights_and_batches_are_those_of_runs_alone_bit_for_bit(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradexp.runs import stages

    drawn: list[list[list[int]]] = []
    batches = stages.batches

    def watched(*arguments: Any) -> Any:
        rows: list[list[int]] = []
        drawn.append(rows)
        for batch in batches(*arguments):
            rows.append(batch.tolist())
            yield batch

    monkeypatch.setattr(stages, "batches", watched)
    he, orthogonal, xavier = jobs(dtype=dtype, save_weights=True, optimizer=OptimizerConfig("sgd", lr=0.0))
    # Networks of neighbouring seeds are drawn at once.
    at_start = [he, orthogonal, replace(orthogonal, seed=orthogonal.seed + 1), xavier]
    together = run_stack(at_start)
    in_stack, drawn[:] = list(drawn), []
    for index, (config, stacked) in enumerate(zip(at_start, together, strict=True)):
        alone = run(config)
        assert stacked.weights is not None
        assert alone.weights is not None
        assert stacked.weights.keys() == alone.weights.keys()
        assert all(torch.equal(stacked.weights[name], own) for name, own in alone.weights.items())
        assert in_stack[index] == drawn[index]


@pytest.mark.parametrize(
    ("options", "tolerance"),
    few(
        [
            ({"dtype": "float32"}, 1e-5),
            (
                {"loss": "mse", "widths": [9, 20, 7], "depth": 4, "optimizer": OptimizerConfig("rmsprop", lr=1e-4)},
                1e-12,
            ),
            ({"normalization": "batch", "depth": 4, "optimizer": MOMENTUM}, 1e-12),
            ({}, 1e-12),
            ({"activation": "tanh", "depth": 16, "optimizer": OptimizerConfig("adam", clip_norm=0.5)}, 1e-12),
            ({"normalization": "layer", "affine": True, "depth": 4, "optimizer": OptimizerConfig(MUON)}, 1e-12),
            ({"normalization": "batch", "residual": "zero", "optimizer": MOMENTUM}, 1e-12),
        ],
        2,
    ),
)
def test_initial_numbers_and_the_first_loss_are_those_of_runs_alone(
    options: dict[str, Any], tolerance: float
) -> None:
    configs = jobs(**({"dtype": "float64", "steps": 3} | options))
    for config, stacked in zip(configs, run_stack(configs), strict=True):
        alone = run(config)
        assert stacked.initial is not None
        assert alone.initial is not None
        for quantity, log10 in alone.initial.log10.items():
            assert stacked.initial.log10[quantity] == pytest.approx(log10, abs=tolerance, nan_ok=True)
        assert losses(stacked)[0] == pytest.approx(losses(alone)[0], rel=tolerance)
        assert stacked.comparison is not None
        assert alone.comparison is not None
        if alone.comparison.z is not None:
            assert stacked.comparison.z == pytest.approx(alone.comparison.z, rel=1e-9)
        assert replace(stacked.comparison, z=alone.comparison.z) == alone.comparison
        assert stacked.building == alone.building
        assert stacked.gradients is not None
        assert alone.gradients is not None
        assert stacked.gradients.seeds == alone.gradients.seeds == [config.seed]
        for quantity, log10 in alone.gradients.log10.items():
            assert stacked.gradients.log10[quantity].shape == log10.shape
            assert np.array_equal(stacked.gradients.status[quantity], alone.gradients.status[quantity])
            # Of the first step; later ones also show how far rounding has grown.
            assert stacked.gradients.log10[quantity][0] == pytest.approx(log10[0], abs=10 * tolerance, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("steps", few([5, 50]))
def test_a_stable_network_stays_the_same_for_fifty_steps(steps: int) -> None:
    configs = jobs(dtype="float64", steps=steps)
    for config, stacked in zip(configs, run_stack(configs), strict=True):
        alone = run(config)
        assert losses(stacked) == pytest.approx(losses(alone), rel=1e-9)
        assert stacked.training is not None
        assert alone.training is not None
        assert stacked.training.train_accuracy == alone.training.train_accuracy
        assert stacked.verdict == alone.verdict


@pytest.mark.slow
def test_where_rounding_grows_a_stack_drifts_no_further_than_rounded_weights_make_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the chaotic phase of tanh networks every difference grows from layer to layer, also that of another order of
    # sums. How much is measured in float64, where it does not depend on the processor's own roundings.
    base = Config(depth=20, width=16, batch_size=32, steps=8, activation="tanh", init=InitConfig("normal", std=0.45))
    configs = [replace(base, seed=seed) for seed in (0, 3)]
    stacked = [losses(result) for result in run_stack(configs)]
    alone = [losses(run(config)) for config in configs]
    in_float64 = [replace(config, dtype="float64") for config in configs]
    exact = [losses(run(config)) for config in in_float64]

    from gradexp.runs import models

    initialize = models.initialize

    def rounded(model: Any, *arguments: Any, **options: Any) -> Any:
        initialize(model, *arguments, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.float())
        return model

    monkeypatch.setattr(models, "initialize", rounded)
    effect = largest_difference([losses(run(config)) for config in in_float64], exact)
    assert effect > 10 * torch.finfo(torch.float32).eps  # the rounding itself is half of that eps at most
    # Of that order (measured 0.4 to 0.8 of it), whatever a processor rounds on its way through layers and steps.
    assert largest_difference(alone, exact) < 10 * effect
    assert largest_difference(stacked, alone) < 10 * effect


def largest_difference(ours: Sequence[np.ndarray[Any, Any]], theirs: Sequence[np.ndarray[Any, Any]]) -> float:
    return float(max(np.abs(one / other - 1).max() for one, other in zip(ours, theirs, strict=True)))


@pytest.mark.slow
def test_a_diverged_member_is_frozen_at_its_step_and_touches_no_other() -> None:
    healthy = jobs(save_weights=True, steps=8)
    ill = replace(healthy[0], init=InitConfig("normal", std=40.0), optimizer=replace(healthy[0].optimizer))
    without = run_stack(healthy)
    *with_it, diverged = run_stack([*healthy, ill])
    for one, other in zip(without, with_it, strict=True):
        assert losses(one).tolist() == losses(other).tolist()
        assert one.weights is not None
        assert other.weights is not None
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    alone = run(ill)
    assert diverged.training is not None
    assert alone.training is not None
    assert diverged.training.diverged_at is not None
    assert diverged.training.diverged_at == alone.training.diverged_at < 7
    assert diverged.verdict == alone.verdict
    assert len(losses(diverged)) == len(losses(alone))
    assert [step for step, *_ in diverged.training.tests] == [step for step, *_ in alone.training.tests]
    assert diverged.gradients is not None
    assert alone.gradients is not None
    assert diverged.gradients.steps == alone.gradients.steps
    assert diverged.weights is not None
    assert alone.weights is not None
    for name, own in alone.weights.items():
        assert torch.allclose(diverged.weights[name], own, rtol=1e-5, equal_nan=True)
        assert torch.equal(diverged.weights[name].isfinite(), own.isfinite())


@pytest.mark.slow
def test_training_stops_when_all_have_diverged() -> None:
    ill = Config(depth=5, width=8, batch_size=8, steps=50, init=InitConfig("normal", std=1e6))
    stages: list[str] = []

    class Steps:
        def write(self, stage: str, _result: Result) -> None:
            stages.append(stage)

        def close(self) -> None:
            pass

    results = run_stack([ill, replace(ill, seed=1)], [Steps()])
    assert all(result.status == "complete" for result in results)
    assert all(result.training is not None and result.training.diverged_at is not None for result in results)
    assert stages.count("step") < 50


@pytest.mark.slow
def test_runs_that_measure_several_seeds_can_be_stacked_too() -> None:
    base = Config(depth=6, width=8, batch_size=16, steps=3, seeds=3)
    configs = [base, replace(base, init=InitConfig("lecun"), seed=5)]
    for config, stacked in zip(configs, run_stack(configs), strict=True):
        alone = run(config)
        assert stacked.initial is not None
        assert alone.initial is not None
        assert stacked.initial.seeds == alone.initial.seeds == list(range(config.seed, config.seed + 3))
        for quantity, log10 in alone.initial.log10.items():
            assert stacked.initial.log10[quantity] == pytest.approx(log10, abs=1e-12)
        assert losses(stacked) == pytest.approx(losses(alone), rel=1e-5)


def test_only_jobs_that_share_their_operations_share_a_stack() -> None:
    base = Config(depth=5, width=8)
    configs: list[Config | None] = [
        base,
        replace(base, optimizer=OptimizerConfig("sgd", lr=0.5)),
        replace(base, init=InitConfig("normal", std=0.3), seed=4, sigma_b2=0.1),
        None,
        replace(base, depth=6),
        replace(base, seed=9),
        None,
        replace(base, record=RecordConfig(every=7)),
    ]
    assert stacks.stackable_groups(configs) == [[0, 2, 5], [1], [3], [4], [6], [7]]
    assert stacks.stackable_groups(configs, ["A=1"] * 5 + ["A=2"] * 3) == [[0, 2], [1], [3], [4], [5], [6], [7]]


def test_chunks_are_of_about_equal_size_and_hold_each_job_once() -> None:
    config = Config(depth=5, width=8)
    for most in (1, 3, 7, 64):
        parts = stacks.chunks(range(20), config, most)
        assert list(itertools.chain(*parts)) == list(range(20))
        sizes = [len(part) for part in parts]
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1


def test_members_fit_into_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(depth=150, width=128, batch_size=32, steps=0)
    monkeypatch.setattr(stacks, "free_memory", lambda: 1 << 40)
    assert stacks.stack_size(config) == 65536 // (32 * 128)
    assert stacks.stack_size(replace(config, width=16)) == 64
    assert stacks.stack_size(replace(config, width=1024)) == 8
    weights = 64 * 128 + 148 * 128 * 128 + 128 * 10
    monkeypatch.setattr(stacks, "free_memory", lambda: 4 * 5 * weights * 4)
    assert 1 <= stacks.stack_size(config) <= 4
    monkeypatch.setattr(stacks, "free_memory", lambda: 0)
    assert stacks.stack_size(config) == 1


def test_what_a_stack_found_reaches_the_sinks_of_each_run_in_order() -> None:
    config = jobs()[0]
    (result,) = run_stack([config])
    stages: list[tuple[str, str]] = []

    class Stages:
        def write(self, stage: str, result: Result) -> None:
            stages.append((stage, result.status))

        def close(self) -> None:
            stages.append(("close", ""))

    deliver(result, [Stages()], ["seed=0"])
    # Complete only when the last file is written, since a resume skips what says so.
    assert stages == [
        *((stage, "running") for stage in ("start", "built", "initial")),
        ("end", "complete"),
        ("close", ""),
    ]
    assert result.overrides == ["seed=0"]


def test_a_result_is_taken_by_the_job_with_its_options_only() -> None:
    result = Result(Config(depth=5))
    assert stacks.take(Config(depth=5)) is None
    with stacks.handing_over(result):
        assert stacks.take(Config(depth=5)) is result
        assert stacks.take(Config(depth=6)) is None
    assert stacks.take(Config(depth=5)) is None


def test_an_interrupted_stack_leaves_what_it_has_in_the_callers_list() -> None:
    class Impatient:
        def write(self, stage: str, result: Result) -> None:
            if stage == "step" and result.training is not None and len(result.training.losses) == 3:
                raise KeyboardInterrupt

        def close(self) -> None:
            pass

    results: list[Result] = []
    with pytest.raises(KeyboardInterrupt):
        run_stack(jobs(), [Impatient()], results)
    assert [result.status for result in results] == ["interrupted"] * 3
    assert all(len(losses(result)) == 3 and result.gradients.steps == [0, 1, 2] for result in results)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_a_stack_on_cuda_trains_as_on_the_cpu() -> None:
    configs = jobs(dtype="float64")
    there = run_stack([replace(config, device="cuda") for config in configs])
    for stacked, alone in zip(there, run_stack(configs), strict=True):
        assert losses(stacked) == pytest.approx(losses(alone), rel=1e-9)
    assert stacks.stack_size(replace(configs[0], device="cuda")) > 64
