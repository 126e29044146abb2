"""The optimizers of a run do what torch's own do."""

import pytest
import torch
from torch import nn

from gradexp.choices import OPTIMIZER_OPTIONS
from gradexp.config import Config, OptimizerConfig
from gradexp.runs.optimizers import build_optimizer, is_elementwise

THEIRS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.01, weight_decay=0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.001, weight_decay=0.1),
    "adamw": lambda weights: torch.optim.AdamW(weights, lr=0.001, weight_decay=0.1),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, lr=0.001, weight_decay=0.1),
}


def test_all_that_update_each_element_by_itself_are_compared() -> None:
    assert set(THEIRS) == {name for name in OPTIMIZER_OPTIONS if is_elementwise(OptimizerConfig(name))}


@pytest.mark.parametrize("name", THEIRS)
def test_updates_are_those_of_torch_bit_for_bit(name: str) -> None:
    options = Config(optimizer=OptimizerConfig(name, weight_decay=0.1)).optimizer
    weights = []
    for build in (THEIRS[name], lambda mine: build_optimizer(options, mine)):
        source = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.randn(5, 3, generator=source))
        optimizer = build([weight])
        for _ in range(4):
            (weight.square().sum() * torch.randn(5, 3, generator=source)).sum().backward()
            optimizer.step()
            assert weight.requires_grad
            optimizer.zero_grad()
            assert weight.grad is None
        weights.append(weight)
    assert torch.equal(*weights)
