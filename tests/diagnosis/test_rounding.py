import re

import pytest
import torch
import torch.nn.functional as F
from cases import few
from findings import alarms, findings
from torch import nn

from gradexp import initialize

KIND = "rounding noise"


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def batch(dtype=torch.float32):
    return torch.randn(5, 6).to(dtype), torch.tensor([0, 1, 2, 0, 1])


def constant(value, dtype=torch.float32):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_that_cancel_are_noise_in_every_number_format(dtype):
    # Softmax less one-hot sums to 0, and equal weights add it up: below the last layer the gradient is exactly 0.
    # Of five samples some processors add up the rows without an error, of 16 none does.
    model, many = constant(0.05, dtype), (torch.randn(16, 6).to(dtype), torch.arange(16) % 3)
    (finding,) = findings(model, F.cross_entropy, many, KIND)
    assert finding.severity == 3
    assert finding.modules == ("0", "2")
    assert "all units of '0', '2', '4' are equal, and so cancel" in finding.text
    other = "float32" if dtype == torch.float64 else "float64"
    assert re.search(rf"\(at most 10\^-\S+ in {str(dtype)[6:]} and (10\^-\d\S+|exactly 0) in {other}\)", finding.text)
    initialize(model, "he", sigma_b2=0)  # as the remedy says
    assert not alarms(model, F.cross_entropy, many)


@pytest.mark.parametrize("dtype", few([torch.float32, torch.float64]))
def test_gradients_that_vanish_are_no_noise(dtype):
    sigmoids = [layer for _ in range(12) for layer in (nn.Linear(6, 6), nn.Sigmoid())]
    model = nn.Sequential(*sigmoids, nn.Linear(6, 3)).to(dtype)
    assert not findings(model, F.cross_entropy, batch(dtype))
    small = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        small[1].weight *= 1e-9
    assert "rounding noise" not in {finding.kind for finding in findings(small, F.cross_entropy, batch(dtype))}


def test_dropout_makes_no_noise():
    layers = [layer for _ in range(8) for layer in (nn.Linear(6, 6), nn.Dropout(), nn.Sigmoid())]
    assert not findings(nn.Sequential(*layers, nn.Linear(6, 3)), F.cross_entropy, batch())


def test_a_bias_below_batch_norm_and_that_of_keys_are_harmless():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    (finding,) = findings(model, F.cross_entropy, batch())
    assert (finding.kind, finding.severity) == (KIND, 0)
    assert "the gradient of 0.bias is 0 up to rounding" in finding.text


class Penalised(nn.Module):
    """A loss function that reads the weights of the model itself."""

    def __init__(self, model):
        super().__init__()
        self.read = lambda: sum(parameter.square().sum() for parameter in model.parameters())

    def forward(self, output, target):
        return 1e-7 * F.cross_entropy(output, target) + self.read()


def test_a_penalty_that_a_copy_of_the_model_lacks_is_no_noise():
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight *= 1e-8
    assert not findings(model, Penalised(model), batch())


def test_models_that_know_one_number_format_only_are_left_alone():
    class Stubborn(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float())

    model = Stubborn(*constant(0.05))
    assert not findings(model, F.cross_entropy, batch(), KIND)
