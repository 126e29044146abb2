import copy

import pytest
import torch
from torch import nn

from gradexp import GradientProbe, measure
from gradexp.probe.untouched import untouched


class Momentum(nn.Module):
    """As a teacher that follows its student."""

    def __init__(self, new_tensor):
        super().__init__()
        self.student, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
        self.new_tensor = new_tensor

    def forward(self, x):
        for mine, its in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            if self.new_tensor:
                mine.data = 0.9 * mine.data + 0.1 * its.data
            else:
                mine.data.mul_(0.9).add_(its.data, alpha=0.1)
        return self.student(x) - self.teacher(x)


class SetByData(nn.Module):
    """As a layer that sets its scale by the first batch."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale, self.is_set = nn.Linear(3, 2), nn.Parameter(torch.ones(2, 1)), False

    def forward(self, x):
        y = self.layer(x)
        if not self.is_set:
            self.scale.data.div_(y.detach().std())
            self.is_set = True
        return y * self.scale[:, 0]


class Remembers(nn.Module):
    """As a recurrent cell with a state, a counter, and buffers that appear with the first batch."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls, self.state, self.last = nn.Linear(3, 2), 0, torch.zeros(2), None
        self.states = (self.state,)
        self.register_buffer("mean", None)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.count = self.count + 1
        y = self.layer(x) + self.state
        self.state, self.last, self.mean = y[-1].detach(), y, y.detach().mean(0)
        self.states = (self.state, self.state)
        return y


class Renormed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4, max_norm=0.1)

    def forward(self, x):
        return self.embedding(x.argmax(-1))


MODELS = {
    "momentum": lambda: Momentum(False),
    "momentum, new tensors": lambda: Momentum(True),
    "set by data": SetByData,
    "remembers": Remembers,
    "embedding with max_norm": Renormed,
}
_HOOKS = vars(nn.Module()).keys() - {"training"}


def kept(model):
    """Return everything that a model is."""
    tensors = {
        name: (id(x), x.data_ptr(), x.detach().clone()) for name, x in model.state_dict(keep_vars=True).items()
    }
    return tensors, [{k: v for k, v in vars(m).items() if k not in _HOOKS} for m in model.modules()]


def assert_same(now, before):
    assert now[0].keys() == before[0].keys()
    for name, (own, place, value) in before[0].items():
        assert now[0][name][:2] == (own, place)
        assert torch.equal(now[0][name][2], value)
    for mine, its in zip(now[1], before[1], strict=True):
        assert mine.keys() == its.keys()
        assert all(mine[name] is its[name] for name in its)


@pytest.mark.parametrize("name", MODELS)
def test_a_measurement_leaves_a_model_that_changes_itself_as_it_was(name):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(5, 3)
    assert_same(kept(model), before := kept(model))
    measure(model, lambda y: y.square().sum(), x)
    assert_same(kept(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_looking_for_nan_again_in_a_training_leaves_a_model_that_changes_itself_alone(name):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(5, 3)
    twin = copy.deepcopy(model)
    told = []
    with GradientProbe(model, alarm=told.append, alarm_on="nonfinite") as probe:
        (model(x).sum() * torch.tensor(float("nan"))).backward()
        probe.collect()
    twin(x)
    assert len(told) == 1
    for mine, its in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(mine, its)
    assert getattr(model, "calls", None) == getattr(twin, "calls", None)


def test_lazy_modules_stay_what_they_become():
    model = nn.Sequential(nn.LazyLinear(2), nn.LazyBatchNorm1d())
    with untouched(model):
        expected = model(torch.ones(3, 4))
    assert torch.equal(model(torch.ones(3, 4)), expected)


def test_weights_and_buffers_with_nan_stay_so():
    model = nn.BatchNorm1d(2)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
        model.running_mean.fill_(torch.nan)
    with untouched(model):
        model(torch.ones(3, 2))
    assert model.weight.isnan().all()
    assert model.running_mean.isnan().all()
