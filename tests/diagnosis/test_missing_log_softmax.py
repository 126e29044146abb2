"""nll_loss of what are no log-probabilities."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(16) % 5


def told(model, loss_fn, target=Y, x=X):
    return [f for f in measure(model, loss_fn, (x, target)).findings[0] if f.kind == "missing log softmax"]


def test_logits_are_told_with_what_their_exponentials_sum_to():
    model = nn.Linear(8, 5)
    (found,) = told(model, F.nll_loss)
    sums = sorted(math.fsum(map(math.exp, row)) for row in model(X).tolist())
    told_sum = found.text.rpartition("sum to ")[2].partition(",")[0]
    assert float(told_sum) == pytest.approx(sums[7], rel=0.01)
    assert told(model, F.cross_entropy) == []


def test_the_loss_of_logits_falls_without_end():
    output = torch.zeros(16, 5, requires_grad=True)
    values = [F.nll_loss(output + scale * F.one_hot(Y, 5), Y).item() for scale in (0, 10, 1000)]
    assert values == [0, -10, -1000]


def test_probabilities_are_told_as_what_they_are():
    model = nn.Sequential(nn.Linear(8, 5), nn.Softmax(-1))
    (found,) = told(model, nn.NLLLoss())
    assert "gets probabilities, the result of a softmax" in found.text
    assert told(nn.Sequential(model[0], nn.LogSoftmax(-1)), nn.NLLLoss()) == []


@pytest.mark.parametrize("loss_fn", [lambda z, y: F.nll_loss(z.softmax(1).log(), y), F.cross_entropy])
def test_log_probabilities_are_no_fault(loss_fn):
    assert told(nn.Linear(8, 5), loss_fn) == []


def test_pictures_have_their_classes_in_the_second_dimension():
    model, x, y = nn.Conv2d(3, 5, 1), torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.long)
    assert len(told(model, F.nll_loss, y, x)) == 1
    assert told(model, F.cross_entropy, y, x) == []


def test_parts_of_a_distribution_are_no_fault():
    assert told(nn.Linear(8, 9), lambda z, y: F.nll_loss(z.log_softmax(1)[:, :5], y)) == []
