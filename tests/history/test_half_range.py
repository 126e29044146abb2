"""float16 that gives out, told from one pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trainings import classes, mlp

from gradexp import GradientProbe


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def found(model, factor, dtype=torch.float16):
    x, target = classes(256)
    with GradientProbe(model) as probe:
        with torch.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(model(x).float(), target) * factor
        loss.backward()
        probe.collect(0, loss)
    return [finding for finding in probe.history.at().findings if finding.kind == "number format"]


def test_a_loss_whose_gradient_float16_cannot_hold_is_told():
    (finding,) = found(mlp(), 1e-7)
    assert "from '4' down every gradient is exactly 0, though the loss is" in finding.text
    assert "GradScaler" in finding.remedy


@pytest.mark.parametrize(("factor", "dtype"), [(1e-7, torch.bfloat16), (1e-7 * 2**16, torch.float16)])
def test_what_the_remedy_says_helps(factor, dtype):
    assert found(mlp(), factor, dtype) == []


def test_an_ordinary_loss_in_float16_is_no_finding():
    assert found(mlp(), 1.0) == []


def test_gradients_that_give_out_half_way_name_the_first_row_without_one():
    model = nn.Sequential(*(layer for _ in range(12) for layer in (nn.Linear(16, 16), nn.ReLU())), nn.Linear(16, 3))
    with torch.no_grad():
        for layer in model[:-1:2]:
            layer.weight.mul_(0.3)
    (finding,) = found(model, 1e-2)
    assert "and above it 10^-" in finding.text


def test_an_output_that_is_flat_in_float16_is_not_the_format():
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3), nn.ReLU())
    nn.init.constant_(model[2].bias, -100.0)
    assert found(model, 1.0) == []


def test_a_dead_layer_in_float16_is_dead():
    model = mlp()
    nn.init.constant_(model[2].bias, -100.0)
    assert found(model, 1.0) == []
