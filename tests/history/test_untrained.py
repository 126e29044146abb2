"""Weights that take part in every step and get a gradient in none."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainings import classes, kinds, mlp, recorded

from gradexp import GradientProbe


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


class Encoded(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.head, self.cut = mlp(), cut

    def forward(self, x):
        with torch.set_grad_enabled(self.cut != "no_grad"):
            x = self.encoder(x)
        return self.head(x.detach() if self.cut == "detach" else x)


def cut(history, step=-1):
    return [finding for finding in history.at(step).findings if finding.kind == "cut"]


@pytest.mark.parametrize("how", ["no_grad", "detach"])
def test_an_encoder_without_a_graph_that_the_optimizer_holds_is_cut(how):
    model = Encoded(how)
    (finding,) = cut(recorded(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)))
    assert (finding.modules, finding.severity) == (("encoder",), 3)
    assert "encoder gets no gradient" in finding.text


def test_without_an_optimizer_it_is_only_worth_knowing():
    model = Encoded("no_grad")
    x, target = classes()
    with GradientProbe(model) as probe:
        for _ in range(3):
            F.cross_entropy(model(x), target).backward()
            probe.collect()
    assert [finding.severity for finding in cut(probe.history)] == [1]


@pytest.mark.parametrize("kind", ["whole", "frozen", "not in the optimizer"])
def test_encoders_that_are_trained_or_left_out_on_purpose_raise_no_alarm(kind):
    model = Encoded("" if kind == "whole" else "no_grad")
    if kind == "frozen":
        model.encoder.requires_grad_(False)
    trained = model.head.parameters() if kind == "not in the optimizer" else model.parameters()
    optimizer = torch.optim.Adam([p for p in trained if p.requires_grad], lr=1e-3)
    assert kinds(recorded(model, optimizer)) == []


class Taught(nn.Module):
    """A student and a teacher that follows it."""

    def __init__(self):
        super().__init__()
        self.student = mlp()
        self.teacher = copy.deepcopy(self.student)

    def forward(self, x):
        with torch.no_grad():
            aim = self.teacher(x)
        return self.student(x), aim

    def follow(self):
        with torch.no_grad():
            for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                own.lerp_(other, 0.1)


def taught(outputs, target):
    return F.cross_entropy(outputs[0], target) + F.mse_loss(*outputs)


@pytest.mark.parametrize("held", ["student", "both", "unknown"])
@pytest.mark.parametrize("follows", [True, False])
def test_teachers_and_target_networks_raise_no_alarm(held, follows):
    model = Taught()
    optimizer = torch.optim.Adam((model.student if held == "student" else model).parameters(), lr=1e-3)
    if held == "unknown":
        with GradientProbe(model) as probe:
            for _ in range(3):
                taught(model(classes()[0]), classes()[1]).backward()
                probe.collect()
        history = probe.history
    else:
        history = recorded(model, optimizer, taught, after_step=model.follow if follows else None)
    assert kinds(history, least=2) == []
    # A copy that has never changed though the optimizer holds it may be a target network that is copied now and then.
    assert kinds(history) == (["cut"] if held == "both" and not follows else [])


class Pooled(nn.Module):
    """A part that is called and whose output is not used, as BERT's pooler is without a task for it."""

    def __init__(self):
        super().__init__()
        self.body, self.pooler, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.tanh(self.body(x))
        self.pooler(x)
        return self.head(x)


def test_a_head_that_is_not_used_raises_no_alarm():
    model = Pooled()
    assert kinds(recorded(model, torch.optim.Adam(model.parameters(), lr=1e-3))) == []


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts, self.calls = nn.ModuleList(nn.Linear(16, 3) for _ in range(3)), 0
        self.never = nn.Linear(16, 3)

    def forward(self, x):
        self.calls += 1
        with torch.no_grad():
            self.experts[1](x)
        return self.experts[0 if self.calls % 4 else 1](x)


def test_experts_that_are_idle_or_reached_in_another_step_raise_no_alarm():
    model = Experts()
    assert kinds(recorded(model, torch.optim.Adam(model.parameters(), lr=1e-3), steps=6)) == []


def test_adversaries_whose_steps_take_turns_raise_no_alarm():
    model = nn.ModuleDict({"G": mlp(16), "D": mlp(1)})
    optimizers = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in model.values()]
    with GradientProbe(model, optimizer=optimizers) as probe:
        for step in range(6):
            model.zero_grad()
            fake = model["G"](torch.randn(32, 16)).detach()
            loss = F.softplus(model["D"](fake)).mean() + F.softplus(-model["D"](torch.randn(32, 16))).mean()
            loss.backward()
            probe.collect(step, loss)
            optimizers[1].step()
            model.zero_grad()
            F.softplus(-model["D"](model["G"](torch.randn(32, 16)))).mean().backward()
            optimizers[0].step()
    assert "cut" not in kinds(probe.history)
