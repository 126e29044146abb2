"""A loss that falls without bound."""

import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn
from trainings import classes, kinds, mlp, recorded


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def negative(loss_fn):
    return lambda output, target: -loss_fn(output, target)


def unbounded(history):
    return [finding for finding in history.at().findings if finding.kind == "unbounded loss"]


@pytest.mark.parametrize(
    "optimizer",
    few(
        [
            lambda p: torch.optim.SGD(p, lr=0.1),
            lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.9),
            lambda p: torch.optim.Adam(p, lr=3e-3),
        ]
    ),
    ids=["sgd", "momentum", "adam"],
)
def test_a_loss_with_the_wrong_sign_is_told_in_place_of_the_learning_rate(optimizer):
    model = mlp()
    history = recorded(model, optimizer(model.parameters()), negative(F.cross_entropy), steps=120)
    (finding,) = unbounded(history)
    assert "is its sign wrong?" in finding.text
    assert history.verdict().findings[0].kind == "unbounded loss"
    assert all("learning rate" not in f.text + f.remedy for f in history.verdict().findings if f.kind != "updates")
    assert all(f.remedy == "" for f in history.verdict().findings if f.kind in ("updates", "nonfinite"))


@pytest.mark.parametrize(
    ("losses", "growth", "is_told"),
    [
        ([-float(t**3) for t in range(31)], 1.2, True),
        ([-float(t**3) for t in range(31)], 1.0, False),  # nothing grows
        ([0.0] * 11 + [-100.0] * 10 + [-120.0] * 10, 1.2, False),  # ever more slowly
        ([300.0 - t * t for t in range(31)], 1.2, False),  # not to many times what it was
    ],
    ids=["unbounded", "outputs stay", "falls once", "from far above 0"],
)
def test_a_loss_is_unbounded_if_it_falls_ever_faster_and_far_while_outputs_grow(losses, growth, is_told):
    model, steps, given = nn.Linear(2, 2), iter(range(31)), iter(losses)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.ones(4, 2)
    history = recorded(
        model, optimizer, lambda y, _: 0 * y.sum() + next(given), lambda: (x * growth ** next(steps), x), steps=31
    )
    assert len(unbounded(history)) == is_told


def test_a_negative_mean_square_is_told_with_its_nan():
    model, x = mlp(out=1), torch.randn(64, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    history = recorded(model, optimizer, negative(F.mse_loss), (x, x[:, :1]), steps=40)
    assert not torch.isfinite(torch.tensor(history.loss[-1])).all()
    assert len(unbounded(history)) == 1
    assert "diverging" not in kinds(history)


@pytest.mark.slow
def test_a_log_density_and_a_similarity_fall_below_zero_with_bounds():
    def log_density(output, target):
        mean, log_sd = output[:, :1], output[:, 1:]
        return (0.5 * ((target - mean) / log_sd.exp()) ** 2 + log_sd).mean()

    x = torch.randn(64, 16)
    model = mlp(out=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = recorded(model, optimizer, log_density, (x, 0.01 * x[:, :1]), steps=150)
    assert history.loss[-1] < -1
    assert not any(f.kind == "unbounded loss" for step in range(150) for f in history.at(step).findings)
    model = mlp(out=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = recorded(model, optimizer, lambda o, t: -100 * F.cosine_similarity(o, t).mean(), (x, x), steps=60)
    assert not any(f.kind == "unbounded loss" for step in range(60) for f in history.at(step).findings)


@pytest.mark.slow
def test_the_log_density_of_many_dimensions_is_calm():
    """A scale for each of 64 dimensions of data that are much narrower than the standard normal."""
    model = nn.Sequential(nn.Linear(64, 64, bias=False))
    nn.init.eye_(model[0].weight)
    x = 0.03 * torch.randn(256, 64)

    def flow(output, _):
        return 0.5 * (output**2).sum(1).mean() - torch.linalg.slogdet(model[0].weight)[1]

    history = recorded(model, torch.optim.Adam(model.parameters(), lr=0.03), flow, (x, x), steps=120)
    assert history.loss[-1] < -20
    assert not any(f.kind == "unbounded loss" for step in range(120) for f in history.at(step).findings)


def test_the_right_sign_is_calm():
    model = mlp()
    history = recorded(model, torch.optim.Adam(model.parameters(), lr=3e-3), batch=classes(), steps=60)
    assert kinds(history, least=2) == []
