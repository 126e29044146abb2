"""Softmax over the samples of a batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

X = torch.randn(24, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(24) % 5
SEQUENCES = torch.randn(24, 6, 8, generator=torch.Generator().manual_seed(2))


def told(model, loss_fn, batch):
    return [f for f in measure(model, loss_fn, batch).findings[0] if f.kind == "softmax over samples"]


class Ends(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(8, 5), function

    def forward(self, x):
        return self.function(self.fc(x))


def log_of(p, y):
    return F.nll_loss(p.log(), y)


@pytest.mark.parametrize("loss_fn", [F.cross_entropy, log_of])
def test_a_module_over_samples_is_told_and_the_remedy_works(loss_fn):
    model = nn.Sequential(nn.Linear(8, 5), nn.Softmax(dim=0))
    (found,) = told(model, loss_fn, (X, Y))
    assert found.text.startswith("1 (softmax) after 0 runs over dimension 0 of (24, 5), which are the 24 samples")
    exec(found.remedy, {"model": model})
    assert told(model, loss_fn, (X, Y)) == []
    alone, together = model(X[:1]), model(X)[:1]
    assert torch.allclose(alone, together)


@pytest.mark.parametrize("function", [lambda z: z.softmax(0), lambda z: F.log_softmax(z, 0), lambda z: z.softmax(-2)])
def test_a_function_over_samples_is_told(function):
    loss_fn = F.nll_loss
    (found,) = told(Ends(function), loss_fn, (X, Y))
    assert "the softmax in the model after fc runs over dimension 0" in found.text
    assert told(Ends(lambda z: z.log_softmax(1)), loss_fn, (X, Y)) == []


class Attends(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.q, self.k, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.function = function

    def forward(self, x):
        return self.head((self.function(self.q(x) @ self.k(x).mT) @ x).mean(1))


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_a_softmax_of_three_dimensions_without_dim_is_told():
    (found,) = told(Attends(F.softmax), F.cross_entropy, (SEQUENCES, Y))
    assert found.modules == ("q", "k")
    assert told(Attends(lambda z: z.softmax(-1)), F.cross_entropy, (SEQUENCES, Y)) == []


def test_losses_that_contrast_samples_are_no_fault():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x, y):
            return self.a(x) @ self.b(y).T

    def contrast(logits, target):
        return (
            F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target) - logits.log_softmax(0).diag().mean()
        )

    assert told(Pair(), contrast, ((X, X), torch.arange(24))) == []
    weighted = lambda output, y: (F.cross_entropy(output, y, reduction="none") * output.softmax(0)[:, 0]).sum()  # noqa: E731
    assert told(nn.Linear(8, 5), weighted, (X, Y)) == []


def test_pooling_over_the_instances_of_a_bag_is_no_fault():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.score, self.head = nn.Linear(8, 1), nn.Linear(8, 5)

        def forward(self, x):
            return self.head((self.score(x).softmax(0) * x).sum(0, keepdim=True))

    assert told(Bag(), F.cross_entropy, (X, torch.tensor([1]))) == []


def test_attention_over_time_that_comes_first_is_no_fault():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.score, self.head = nn.GRU(8, 8), nn.Linear(8, 1), nn.Linear(8, 5)

        def forward(self, x):
            states, _ = self.rnn(x)
            return self.head(states + (self.score(states).softmax(0) * states).sum(0)).movedim(2, 1)

    assert told(TimeFirst(), F.cross_entropy, (SEQUENCES, torch.zeros(24, 6, dtype=torch.long))) == []
