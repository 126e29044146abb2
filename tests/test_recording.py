"""What is kept of a training while it goes on."""

from typing import Any

import numpy as np
import torch

from gradexp.config import Config, InitConfig, OptimizerConfig, RecordConfig
from gradexp.experiment import run, run_stack
from gradexp.result import Result


def config(**options: Any) -> Config:
    record = RecordConfig(histograms=True)
    return Config(**({"depth": 9, "width": 6, "steps": 20, "save_weights": True, "record": record} | options))


def first_layer(result: Result) -> np.ndarray:
    """z of layer 1 from the saved weights, for the inputs of the profile."""
    from gradexp.data import load

    assert result.weights is not None
    x = load(result.config.data, result.config.width).x_train[: result.config.batch_size].float()
    weight, bias = result.weights["layers.0.weight"][0], result.weights["layers.0.bias"].flatten()
    return torch.nn.functional.linear(x, weight, bias).numpy()


def test_outputs_are_those_of_the_weights_after_so_many_steps() -> None:
    result = run(config())
    step, outputs = result.outputs[-1]
    assert step == 20
    np.testing.assert_allclose(outputs[1], first_layer(result), rtol=1e-5, atol=1e-6)


def test_outputs_are_of_five_layers_ten_times_in_a_training_and_at_its_ends() -> None:
    assert [step for step, _ in run(config()).outputs] == [*range(0, 20, 2), 20]
    assert [step for step, _ in run(config(steps=3)).outputs] == [0, 1, 2, 3]
    assert [step for step, _ in run(config(steps=0)).outputs] == [0]
    for depth, layers in ((150, [1, 38, 75, 113, 150]), (5, [1, 2, 3, 4, 5]), (2, [1, 2]), (1, [1])):
        [(_, outputs)] = run(config(depth=depth, steps=0)).outputs
        assert list(outputs) == layers
        assert all(values.shape == (64, 10 if layer == depth else 6) for layer, values in outputs.items())


def test_each_run_of_a_stack_keeps_its_own_outputs() -> None:
    configs = [config(init=InitConfig(name)) for name in ("he", "xavier")]
    for alone, stacked in zip(map(run, configs), run_stack(configs), strict=True):
        assert [step for step, _ in alone.outputs] == [step for step, _ in stacked.outputs]
        for (_, one), (_, other) in zip(alone.outputs, stacked.outputs, strict=True):
            assert all(np.allclose(one[layer], other[layer], rtol=1e-4, atol=1e-6) for layer in one)


def test_a_network_that_has_diverged_is_not_looked_at_any_more() -> None:
    result = run(config(optimizer=OptimizerConfig(lr=1e30)))
    assert result.training is not None
    assert result.training.diverged_at is not None
    assert [step for step, _ in result.outputs] == [0]
