"""Whether the loss falls."""

import numpy as np
import pytest
import torch
from trainings import classes, kinds, mlp, recorded


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def guessing(steps):
    """A training whose batches are noise, with nothing to learn."""
    model = mlp()
    noise = lambda: (torch.randn(256, 16), torch.randint(3, (256,)))  # noqa: E731
    optimizer = torch.optim.SGD([{"params": model.parameters(), "lr": 1e-2}])
    return recorded(model, optimizer, batch=noise, steps=steps)


def test_a_loss_that_rises_is_no_progress_and_honest_about_what_is_normal():
    history = guessing(30)
    history.loss = np.linspace(1.0, 1.2, 30)[:, None]
    (finding,) = history.at().findings
    assert (finding.kind, finding.severity) == ("no progress", 2)
    assert "1.03 in the first third of 30 recorded steps and 1.17 in the last" in finding.text
    assert "that is normal" in finding.text


def test_fewer_than_thirty_steps_or_no_loss_say_nothing():
    history = guessing(29)
    history.loss = np.linspace(1.0, 1.2, 29)[:, None]
    assert kinds(history) == []
    history = guessing(30)
    history.loss = None
    assert kinds(history) == []


def test_a_loss_that_falls_raises_no_alarm():
    model = mlp()
    assert kinds(recorded(model, torch.optim.Adam(model.parameters(), lr=1e-3), batch=classes, steps=40)) == []


def test_a_loss_that_fell_at_once_and_then_stays_has_converged():
    history = guessing(60)
    noise = np.random.default_rng(0).normal(scale=0.01, size=(60, 1))
    history.loss = 0.5 + noise + np.exp(-np.arange(60))[:, None]
    history.loss[40:] += 0.1  # such as by a stronger regularisation
    assert kinds(history) == []


def test_a_warm_up_is_waited_for():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-4, 1.0, total_iters=4000)
    history = recorded(model, optimizer, batch=classes, steps=36, after_step=warm_up.step)
    history.loss = np.linspace(1.0, 1.001, 36)[:, None]
    assert "no progress" not in kinds(history)
