"""Gradients that are exactly 0 since some step."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainings import losses, mlp, recorded

from gradexp import initialize


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def dead(history, step=-1):
    return [finding for finding in history.at(step).findings if finding.kind == "dead"]


def positive():
    x = torch.randn(64, 16).abs()
    return x, x.sum(1, keepdim=True)


def killed(batch):
    model = mlp(out=1)
    return model, recorded(model, torch.optim.SGD(model.parameters(), lr=20.0), F.l1_loss, batch, 12)


def test_units_that_a_step_has_killed_are_told_with_the_step_and_what_it_changed():
    _, history = killed(positive())
    (finding,) = dead(history)
    since = int(re.search(r"since step (\d+)", finding.text)[1])
    assert dead(history, since - 1) == []
    assert dead(history, since)
    assert "about 10^-3 is usual" in finding.text
    assert history.verdict().gradient == "dead"
    assert [found.kind for found in history.verdict().findings].count("dead") == 1


def test_the_remedy_trains_where_the_dead_model_does_not():
    batch = positive()
    model, history = killed(batch)
    times = int(re.search(r"a learning rate (\d+) times smaller", dead(history)[0].remedy)[1])
    slower = torch.optim.SGD(model.parameters(), lr=20.0 / times)
    still = losses(model, slower, F.l1_loss, batch, 20)
    assert "gradexp.initialize(model, 'he')" in dead(history)[0].remedy
    initialize(model, "he")
    again = losses(model, torch.optim.SGD(model.parameters(), lr=20.0 / times), F.l1_loss, batch, 60)
    assert again[-1] < 0.5 * again[0]
    assert again[-1] < still[-1]


def test_a_flat_function_after_the_last_layer_is_named():
    x = torch.randn(64, 16)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1), nn.ReLU())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    (finding,) = dead(recorded(model, optimizer, F.mse_loss, (x, -1 - x[:, :1].abs()), 80))
    assert finding.remedy.startswith("no ReLU")
    assert finding.modules[0] == "2"


def test_a_loss_of_exactly_zero_is_not_dead():
    x = torch.randn(64, 16)
    target = (x[:, :1] > 0).float() * 2 - 1
    model = mlp(out=1)
    hinge = recorded(
        model,
        torch.optim.Adam(model.parameters(), lr=1e-2),
        lambda y, t: F.relu(0.1 - y * t).mean(),
        (x, target),
        60,
    )
    assert hinge.loss[-1, 0] == 0
    assert dead(hinge) == []
