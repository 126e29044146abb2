"""A softmax or sigmoid before a loss that has one inside."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 5


def kinds(model, loss_fn, target):
    return {f.kind: f for f in measure(model, loss_fn, (X, target)).findings[0] if f.kind.endswith("twice")}


@pytest.mark.parametrize("target", [Y, F.one_hot(Y, 5).float()])
def test_a_softmax_before_cross_entropy_is_told_with_the_least_loss(target):
    model = nn.Sequential(nn.Linear(8, 5), nn.Softmax(-1))
    found = kinds(model, F.cross_entropy, target)
    perfect = F.cross_entropy(F.one_hot(Y, 5).double(), Y).item()
    assert f"cannot fall below {perfect:.2f}" in found["softmax twice"].text
    assert perfect == pytest.approx(math.log(1 + 4 / math.e))
    assert kinds(model[:1], F.cross_entropy, target) == {}
    by_hand = lambda output, y: -output.log_softmax(-1)[torch.arange(16), Y].mean()  # noqa: E731
    assert f"{perfect:.2f}" in kinds(model, by_hand, target)["softmax twice"].text


def test_a_sigmoid_before_a_loss_of_logits_is_told():
    model, target = nn.Sequential(nn.Linear(8, 1), nn.Sigmoid()), (Y > 2).float()
    loss_fn = lambda output, y: F.binary_cross_entropy_with_logits(output.squeeze(1), y)  # noqa: E731
    assert set(kinds(model, loss_fn, target)) == {"sigmoid twice"}
    assert kinds(model[:1], loss_fn, target) == {}
    assert kinds(model, lambda output, y: F.binary_cross_entropy(output.squeeze(1), y), target) == {}


def test_attention_and_logarithms_of_a_softmax_are_right():
    model = nn.Sequential(nn.Linear(8, 5), nn.LogSoftmax(-1))
    assert kinds(model, F.nll_loss, Y) == {}
    assert kinds(model, F.cross_entropy, Y) == {}
