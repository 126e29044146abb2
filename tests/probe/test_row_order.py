"""Rows stand in the order of the forward pass, whatever is called first, and when."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from gradexp import GradientProbe
from gradexp.probe.order import merged


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (["ab", "ab"], "ab"),
        (["ac", "abc"], "abc"),  # a layer that the first step dropped
        (["ad", "abd", "acd"], "abcd"),
        (["bd", "abcde"], "abcde"),
        (["b", "a"], "ab"),  # experts
        (["ac", "bd"], "abcd"),
        (["ba", "bca"], "bca"),  # called in another order than the model has them
        (["ca", "cba", "cda"], "cbda"),
        (["", "ba"], "ba"),
    ],
)
def test_a_row_comes_after_the_one_that_was_called_before_it(steps, expected):
    order = []
    for calls in steps:
        order = merged(order, list(calls), "abcde".index)
    assert "".join(order) == expected


class LayerDrop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])

    def forward(self, x, dropped):
        for number, layer in enumerate(self.layers):
            if number not in dropped:
                x = layer(x).tanh()
        return x


def test_a_layer_that_is_first_called_in_a_later_step_has_its_place():
    model = LayerDrop()
    with GradientProbe(model) as probe:
        for step, dropped in enumerate([{0, 2}, {1, 2}, {0}]):
            model(torch.ones(2, 4), dropped).sum().backward()
            probe.collect(step)
            model.zero_grad()
    assert probe.history.names == ["layers.0", "layers.1", "layers.2", "layers.3"]
    called = [["layers.1", "layers.3"], ["layers.0", "layers.3"], ["layers.1", "layers.2", "layers.3"]]
    for step, names in enumerate(called):
        numbers = probe.history.log10["output"][step, 0]
        assert [name for name, x in zip(probe.history.names, numbers, strict=True) if x == x] == names


def test_more_calls_of_a_module_in_a_later_step_stand_where_they_were_called():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x, times):
            for _ in range(times):
                x = self.cell(x).tanh()
            return self.head(x)

    model = Loop()
    with GradientProbe(model) as probe:
        for step in range(3):
            model(torch.ones(2, 4), step + 1).sum().backward()
            probe.collect(step)
    history = probe.history
    rows = list(zip(history.names, history.calls, strict=True))
    assert rows == [
        ("cell", 0),
        ("cell", 1),
        ("cell", 2),
        ("head", 0),
    ]


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")
@pytest.mark.parametrize("inside", [True, False])
def test_a_reentrant_checkpoint_does_not_turn_the_rows_around(inside):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))

        def forward(self, x):
            return checkpoint_sequential(self.layers, 3, x, use_reentrant=True)

    model, x = Whole(), torch.ones(2, 4, requires_grad=True)
    with GradientProbe(model) as probe:
        output = model(x) if inside else checkpoint_sequential(model.layers, 3, x, use_reentrant=True)
        output.square().sum().backward()
        probe.collect(0)
    assert probe.history.names == [f"layers.{number}" for number in range(6)]
