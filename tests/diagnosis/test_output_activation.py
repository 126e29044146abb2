"""An activation between the last layer and the loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(32) % 5
VALUES = X[:, :3]


def told(model, loss_fn, target):
    findings = measure(model, loss_fn, (X, target)).findings[0]
    return [finding for finding in findings if finding.kind == "activation on the output"]


class Functional(nn.Module):
    def __init__(self, function, outputs):
        super().__init__()
        self.function, self.out = function, nn.Linear(8, outputs)

    def forward(self, x):
        return self.function(self.out(x))


@pytest.mark.parametrize("function", [F.relu, F.softplus, F.gelu, F.silu, F.mish, F.elu, torch.tanh])
def test_an_activation_on_logits_is_told_with_the_layer_before(function):
    (found,) = told(Functional(function, 5), F.cross_entropy, LABELS)
    assert function.__name__ in found.text
    assert "after out: logits of cross entropy" in found.text
    assert found.modules == ("out",)
    binary = F.one_hot(LABELS, 5).float()
    assert len(told(Functional(function, 5), F.binary_cross_entropy_with_logits, binary)) == 1


def test_the_share_of_logits_without_a_gradient_is_right():
    torch.manual_seed(0)
    model = Functional(F.relu, 5)
    share = (model.out(X).double() <= 0).double().mean().item()
    (found,) = told(model, F.cross_entropy, LABELS)
    assert f"{100 * share:.0f} % are 0" in found.text


def test_the_remedy_for_a_module_is_a_call_that_works():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5), nn.ReLU())
    (found,) = told(model, F.cross_entropy, LABELS)
    exec(found.remedy, {"model": model, "torch": torch})
    assert isinstance(model[3], nn.Identity)
    assert told(model, F.cross_entropy, LABELS) == []


@pytest.mark.parametrize(
    ("function", "target"),
    [
        (F.relu, VALUES),
        (lambda z: z.clamp(max=0), VALUES),
        (F.relu6, VALUES),
        (F.softplus, -VALUES.abs()),
        (torch.sigmoid, 3 * VALUES),
        (torch.tanh, 3 * VALUES),
    ],
)
@pytest.mark.parametrize("loss_fn", [F.mse_loss, F.smooth_l1_loss, lambda a, b: ((a - b) ** 2).mean(), nn.L1Loss()])
def test_targets_beyond_the_range_of_the_output_are_told(function, target, loss_fn):
    (found,) = told(Functional(function, 3), loss_fn, target)
    assert "of the targets" in found.text
    assert told(nn.Linear(8, 3), loss_fn, target) == []


@pytest.mark.parametrize(
    ("function", "target"),
    [
        (F.relu, VALUES.abs()),
        (torch.sigmoid, VALUES.sigmoid()),
        (torch.tanh, VALUES.tanh()),
        (lambda z: F.softmax(z, -1), VALUES.softmax(-1)),
        (F.leaky_relu, VALUES),
    ],
)
def test_an_activation_whose_range_holds_the_targets_is_no_fault(function, target):
    assert told(Functional(function, 3), F.mse_loss, target) == []


def test_logits_that_are_scaled_after_a_tanh_are_no_fault():
    assert told(Functional(lambda z: 30 * torch.tanh(z / 30), 5), F.cross_entropy, LABELS) == []


def test_a_clamp_that_only_keeps_logits_finite_is_no_fault():
    assert told(Functional(lambda z: z.clamp(-50, 50), 5), F.cross_entropy, LABELS) == []
    assert len(told(Functional(lambda z: z.clamp(min=0), 5), F.cross_entropy, LABELS)) == 1


def test_a_squashing_twice_is_told_once():
    for function in (torch.sigmoid, lambda z: F.softmax(z, -1)):
        assert told(Functional(function, 5), F.cross_entropy, LABELS) == []
