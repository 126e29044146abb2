"""What is kept of a training while it goes on."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from gradexp.config import Config, InitConfig, OptimizerConfig, RecordConfig
from gradexp.runs.data import load
from gradexp.runs.experiment import run, run_stack
from gradexp.runs.live_results import distribution
from gradexp.runs.result import Distribution, Result


def config(**options: Any) -> Config:
    record = RecordConfig(histograms=True)
    return Config(**({"depth": 9, "width": 6, "steps": 20, "save_weights": True, "record": record} | options))


@cache
def trained() -> Result:
    return run(config())


def outputs_of(result: Result, depth: int) -> np.ndarray:
    """z of a layer from the saved weights, for the inputs of the profile."""
    assert result.weights is not None
    z = load(result.config.data, result.config.width).x_train[: result.config.batch_size].double()
    for layer in range(depth):
        weight, bias = (result.weights[f"layers.{layer}.{name}"].double() for name in ("weight", "bias"))
        z = torch.nn.functional.linear(z if layer == 0 else torch.relu(z), weight[0], bias.flatten())
    return z.numpy()


def same(one: Distribution, other: Distribution) -> bool:
    return np.allclose(one.edges, other.edges, rtol=1e-4, atol=1e-6) and math.isclose(
        one.squares, other.squares, rel_tol=1e-4
    )


@pytest.mark.slow
def test_outputs_are_those_of_the_weights_after_so_many_steps() -> None:
    seen = dict(trained().outputs)
    for steps in (0, 6):
        shorter = run(config(steps=steps))
        for layer in (1, 5, 9):
            z = outputs_of(shorter, layer)
            own = seen[steps][layer]
            assert (own.edges[0], own.edges[-1]) == pytest.approx((z.min(), z.max()), rel=1e-4)
            assert own.total == pytest.approx(z.sum(), rel=1e-4, abs=1e-3)
            assert own.squares == pytest.approx((z**2).sum(), rel=1e-4)
            below = own.counts[: len(own.counts) // 2].sum()
            assert below == pytest.approx((z < (z.min() + z.max()) / 2).sum(), abs=1)
    assert not same(seen[0][5], seen[20][5])


@pytest.mark.slow
def test_outputs_are_of_five_layers_ten_times_in_a_training_and_at_its_beginning() -> None:
    assert [step for step, _ in trained().outputs] == [*range(0, 20, 2), 20]
    assert [step for step, _ in run(config(steps=19)).outputs] == [0, 2, 4, 6, 8, 10, 11, 13, 15, 17, 19]
    assert [step for step, _ in run(config(steps=3)).outputs] == [0, 1, 2, 3]
    assert [step for step, _ in run(config(steps=0)).outputs] == [0]
    for depth, layers in ((150, [1, 38, 76, 113, 150]), (5, [1, 2, 3, 4, 5]), (2, [1, 2]), (1, [1])):
        [(_, outputs)] = run(config(depth=depth, steps=0)).outputs
        assert list(outputs) == layers
        for layer, own in outputs.items():
            assert own.counts.sum() == 64 * (10 if layer == depth else 6)


@pytest.mark.slow
def test_each_run_of_a_stack_keeps_its_own_outputs() -> None:
    configs = [config(init=InitConfig(name), steps=4) for name in ("he", "xavier")]
    for alone, stacked in zip(map(run, configs), run_stack(configs), strict=True):
        assert [step for step, _ in alone.outputs] == [step for step, _ in stacked.outputs]
        for (_, one), (_, other) in zip(alone.outputs, stacked.outputs, strict=True):
            assert all(same(one[layer], other[layer]) for layer in one)


def test_a_network_that_has_diverged_is_not_looked_at_any_more() -> None:
    result = run(config(optimizer=OptimizerConfig(lr=1e30)))
    assert result.training is not None
    assert result.training.diverged_at is not None
    assert [step for step, _ in result.outputs] == [0]


@pytest.mark.parametrize(
    ("values", "edges", "counts"),
    [
        ([0.0, 0.0], (-0.5, 0.5), {20: 2}),
        ([math.nan, 0.0, 4.0, math.inf], (0.0, 4.0), {0: 1, 39: 1}),
        ([0.0, 0.15, 1.0, 4.0], (0.0, 4.0), {0: 1, 1: 1, 10: 1, 39: 1}),
        ([0.0, 5e-324], (0.0, 5e-324), {}),  # nothing is between them
        ([1e300, -1e300], (-1e300, 1e300), {0: 1, 39: 1}),
        ([1.7e308, -1.7e308], (-1.7e308, 1.7e308), {0: 1, 39: 1}),
    ],
)
def test_a_distribution_of_any_numbers(
    values: list[float], edges: tuple[float, float], counts: dict[int, int]
) -> None:
    found = distribution(np.array(values))
    assert found is not None
    assert (found.edges[0], found.edges[-1]) == edges
    assert found.counts.sum() == np.isfinite(values).sum()
    assert not counts or {index: count for index, count in enumerate(found.counts) if count} == counts


def test_nothing_finite_has_no_distribution() -> None:
    assert distribution(np.array([math.nan, math.inf])) is None
