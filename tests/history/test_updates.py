"""The size of an optimizer's step over the size of what it changes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import GradientProbe
from gradexp.history.step import STATUSES, Step
from gradexp.history.updates import updates_findings

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def network(dtype=torch.float32):
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3)).to(dtype)


def found(model, optimizer, steps=2):
    x = X.to(next(model.parameters()).dtype)
    with GradientProbe(model, optimizer=optimizer) as probe:
        for step in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x).float(), Y).backward()
            probe.collect(step)
            optimizer.step()
    return updates_findings(probe.history.at(), probe.history.at(0))


def with_rate_of_middle(model, rate):
    others = [*model[0].parameters(), *model[4].parameters()]
    return [{"params": model[2].parameters(), "lr": rate}, {"params": others}]


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.Adam(p, lr=1e-3), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)]
)
def test_ordinary_steps_raise_no_alarm(optimizer):
    model = network()
    assert found(model, optimizer(model.parameters()), steps=10) == ()


def test_steps_that_are_far_too_small_are_told_with_their_share():
    model = network()
    (finding,) = found(model, torch.optim.Adam(model.parameters(), lr=1e-9))
    assert (finding.kind, finding.modules, finding.severity) == ("updates", ("0", "2", "4"), 2)
    assert " by 10^-" in finding.text
    assert " of their size, where about 10^-3 is usual" in finding.text


def test_a_recorded_step_has_the_findings_of_its_update():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-9)
    with GradientProbe(model, optimizer=optimizer) as probe:
        F.cross_entropy(model(X), Y).backward()
        probe.collect()
        assert probe.history.at().findings == ()  # the step is still to come
        optimizer.step()
    assert [finding.kind for finding in probe.history.at().findings] == ["updates"]


@pytest.mark.parametrize(
    ("rate", "remedy", "better"),
    [
        (1.0, "a learning rate about a thousandth as large", 1e-3),
        (1e-9, "a learning rate about 100,000 times as large; in a warm-up, wait for its end", 1e-4),
    ],
)
def test_a_learning_rate_that_suits_the_weights_is_named_by_its_factor(rate, remedy, better):
    model = network()
    (finding,) = found(model, torch.optim.Adam(model.parameters(), lr=rate))
    assert finding.remedy == remedy
    model = network()
    assert found(model, torch.optim.Adam(model.parameters(), lr=better)) == ()


def test_a_single_layer_with_a_rate_of_its_own_is_named():
    model = network()
    groups = with_rate_of_middle(model, 0.2)
    (finding,) = found(model, torch.optim.Adam(groups, lr=1e-3))
    assert (finding.modules, finding.severity) == (("2",), 1)
    assert finding.text.startswith("a step changes '2' by 10^")
    assert " of its size, " in finding.text
    assert finding.remedy.endswith(" as large for it")


def test_weights_that_begin_at_zero_may_grow_by_large_shares():
    model = network()
    nn.init.zeros_(model[2].weight)
    assert found(model, torch.optim.Adam(model.parameters(), lr=1e-3), steps=4) == ()


def test_steps_below_the_resolution_of_bfloat16_are_told():
    model = network(torch.bfloat16)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.copy_(torch.where(layer.weight < 0, -0.5, 0.5))
    finding = found(model, torch.optim.SGD(model.parameters(), lr=1e-5))[0]
    assert finding.severity == 3
    assert "does not change the weights of" in finding.text
    assert "bfloat16" in finding.text
    assert "torch.autocast" in finding.remedy


def test_a_learning_rate_of_zero_in_one_group_names_its_layer():
    model = network()
    groups = with_rate_of_middle(model, 0.0)
    (finding,) = found(model, torch.optim.SGD(groups, lr=0.1))
    assert (finding.modules, finding.severity) == (("2",), 2)


def test_without_an_optimizer_or_a_gradient_nothing_is_said():
    model = network()
    with GradientProbe(model) as probe:
        F.cross_entropy(model(X), Y).backward()
        probe.collect()
    assert updates_findings(probe.history.at()) == ()
    model[0].requires_grad_(False)
    assert found(model, torch.optim.Adam(model.parameters(), lr=1e-3)) == ()


def recorded(update, weight_grad):
    sizes = {"update": update, "weight_grad": weight_grad, "weight": 0.0}
    zero, ok = STATUSES.index("zero"), STATUSES.index("ok")
    status = {name: np.full((1, 1), zero if size == -np.inf else ok, np.int8) for name, size in sizes.items()}
    return Step("train", ["0"], {name: np.full((1, 1), size) for name, size in sizes.items()}, status)


@pytest.mark.parametrize("update", [-7.0, -np.inf])  # too small a step, and one that is rounded away
def test_steps_that_shrink_with_the_gradient_towards_a_minimum_raise_no_alarm(update):
    first = recorded(-2.0, 0.0)
    assert updates_findings(recorded(update, -5.0), first) == ()
    [finding] = updates_findings(recorded(update, -3.0), first)  # the gradient would do for a step of 10^-5
    assert finding.severity > 1
    assert updates_findings(recorded(update, -np.inf), first) == ()  # it has died, and Adam's steps run out
    [finding] = updates_findings(recorded(update, -5.0), recorded(-7.0, 0.0))  # they never were large enough
    assert finding.severity > 1


def test_a_regression_that_has_converged_is_calm():
    model = nn.Sequential(nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    target = torch.randn(64, 1)
    with GradientProbe(model, every=199, optimizer=optimizer) as probe:
        for step in range(200):
            optimizer.zero_grad()
            F.mse_loss(model(X), target).backward()
            probe.collect(step)
            optimizer.step()
    assert updates_findings(probe.history.at()) != ()
    assert probe.history.verdict().is_calm
