import pytest
import torch
import torch.nn.functional as F
from findings import findings
from torch import nn

from gradexp import GradientProbe, measure

torch.manual_seed(0)
X, Y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])


def model():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1)


def test_what_the_optimizer_does_not_hold_is_named():
    net = model()
    (finding,) = findings(net, F.cross_entropy, (X, Y), optimizer=sgd(net[4].parameters()))
    assert finding.text == "'0', '2' are not in the optimizer and never change"
    assert (finding.kind, finding.severity) == ("cut", 3)


def test_layers_that_were_replaced_after_the_optimizer_was_made_are_named():
    net = model()
    optimizer = sgd(net.parameters())
    net[4] = nn.Linear(8, 3)
    (finding,) = findings(net, F.cross_entropy, (X, Y), optimizer=optimizer)
    assert finding.text == (
        "'4' is not in the optimizer and never changes; it holds 2 tensors that are not in the model"
    )
    optimizer.add_param_group({"params": net[4].parameters()})
    assert not findings(net, F.cross_entropy, (X, Y), optimizer=optimizer)


def test_frozen_layers_and_several_optimizers_raise_no_alarm():
    net = model()
    assert not findings(
        net, F.cross_entropy, (X, Y), optimizer=[sgd(net[:3].parameters()), sgd(net[3:].parameters())]
    )
    net[0].requires_grad_(False)
    found = findings(net, F.cross_entropy, (X, Y), optimizer=sgd(net[1:].parameters()))
    assert [finding.kind for finding in found] == ["frozen"]


def test_the_probe_says_so_in_its_history():
    net = model()
    optimizer = sgd(net[4].parameters())
    with GradientProbe(net, optimizer=optimizer) as probe:
        for _ in range(2):
            F.cross_entropy(net(X), Y).backward()
            probe.collect()
            optimizer.step()
            optimizer.zero_grad()
    (finding,) = probe.history.at(0).findings
    assert finding.modules == ("0", "2")
    assert "'0', '2' are not in the optimizer" in finding.text


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got a float"):
        measure(model(), F.cross_entropy, (X, Y), optimizer=0.1)
