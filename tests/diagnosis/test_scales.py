"""The scale of inputs, predictions and targets; every remedy is followed and cures."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import initialize, measure
from gradexp.history.sentences import number

X = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def network(activation=nn.ReLU, outputs=3):
    hidden = nn.Linear(16, 64), activation(), nn.Linear(64, 64), activation()
    return nn.Sequential(*hidden, nn.Linear(64, outputs))


def found(model, loss_fn, batch):
    return {finding.kind: finding for finding in measure(model, loss_fn, batch).findings[0] if finding.severity > 0}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
@pytest.mark.parametrize("loss_fn", [F.cross_entropy, lambda o, y: F.cross_entropy(o, F.one_hot(y, 3).float())])
def test_large_weights_make_a_loss_far_above_guessing_and_he_cures_it(activation, loss_fn):
    model = network(activation)
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=3)
    before = loss_fn(model(X), Y).item()
    finding = found(model, loss_fn, (X, Y))["initial scale"]
    assert finding.text.startswith("cross entropy is ")
    assert float(finding.text.split()[3].strip(",;").replace(",", "")) == pytest.approx(before, rel=0.01)
    assert "guessing evenly costs 1.1" in finding.text
    first, second = finding.remedy.split("; if that is not enough, ")
    assert first == "gradexp.initialize(model, 'he')"
    exec(second, {"model": model})
    assert "initial scale" not in found(model, loss_fn, (X, Y))
    initialize(model, "he")
    assert found(model, loss_fn, (X, Y)) == {}


@pytest.mark.slow
def test_branches_that_add_up_are_cured_at_the_last_layer():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))

        def forward(self, x):
            return x + self.inside(x)

    model = nn.Sequential(*(Branch() for _ in range(12)), nn.Linear(16, 3))
    initialize(model, "he")
    finding = found(model, F.cross_entropy, (X, Y))["initial scale"]
    assert finding.modules == ("12",)
    exec(finding.remedy.split("if that is not enough, ")[1], {"model": model})
    assert "initial scale" not in found(model, F.cross_entropy, (X, Y))


def test_a_feature_far_from_zero_is_cured_feature_by_feature():
    x = X.clone()
    x[:, 0] += 2020
    finding = found(network(), F.cross_entropy, (x, Y))["input scale"]
    assert finding.remedy == "x = (x - x.mean(0)) / (x.std(0) + 1e-8)"
    assert found(network(), F.cross_entropy, ((x - x.mean(0)) / (x.std(0) + 1e-8), Y)) == {}


def test_binary_losses_and_squared_errors_far_above_guessing_are_told():
    model = network(outputs=1)
    with torch.no_grad():
        model[4].weight *= 1000
    target = (X[:, :1] > 0).float()
    for loss_fn, text in (
        (F.binary_cross_entropy_with_logits, "binary cross entropy is "),
        (F.mse_loss, "squared error is "),
    ):
        assert found(model, loss_fn, (X, target))["initial scale"].text.startswith(text)


def test_raw_pixels_are_told_by_the_layer_that_gets_them():
    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.conv, self.head, self.scale = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 3), scale

        def forward(self, x):
            return self.head(F.relu(self.conv(x * self.scale)).flatten(1))

    x = torch.randint(256, (32, 3, 8, 8)).float()
    y = torch.randint(3, (32,))
    finding = found(Scaled(1), F.cross_entropy, (x, y))["input scale"]
    assert finding.modules == ("conv",)
    assert (
        finding.text
        == f"the inputs of conv have mean {x.mean():.3g} and standard deviation {x.std():.3g} (0 and 1 are usual)"
    )
    assert finding.remedy == "x = (x - x.mean()) / x.std()"
    assert found(Scaled(1), F.cross_entropy, ((x - x.mean()) / x.std(), y)) == {}
    assert found(Scaled(1 / 255), F.cross_entropy, (x, y)) == {}


def test_features_of_very_different_sizes_are_told():
    x = X * torch.logspace(-3, 6, 16)
    finding = found(network(), F.cross_entropy, (x, Y))["input scale"]
    assert "features with standard deviations from 0.00107 to 1.22e+06" in finding.text
    assert finding.remedy == "x = (x - x.mean(0)) / (x.std(0) + 1e-8)"
    assert found(network(), F.cross_entropy, ((x - x.mean(0)) / (x.std(0) + 1e-8), Y)) == {}


def test_inputs_that_a_normalisation_scales_are_no_alarm():
    model = nn.Sequential(nn.BatchNorm1d(16), network())
    assert found(model, F.cross_entropy, (1e6 * X, Y)) == {}


def test_a_model_that_has_learned_gets_along_with_its_inputs():
    model = network()
    with torch.no_grad():
        model[0].weight /= 100
    x = 100 * X
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), Y).backward()
        optimizer.step()
    assert found(model, F.cross_entropy, (x, Y)) == {}


@pytest.mark.parametrize("loss_fn", [F.mse_loss, F.l1_loss, F.huber_loss])
def test_targets_of_a_million_are_told_and_standardised_ones_are_not(loss_fn):
    y = 1e6 + 1e5 * X[:, :1]
    finding = found(network(outputs=1), loss_fn, (X, y))["target scale"]
    assert (
        f"targets have mean {number(y.mean())} and standard deviation {number(y.std(correction=0))}" in finding.text
    )
    assert finding.remedy == "y = (y - y.mean()) / y.std()"
    assert found(network(outputs=1), loss_fn, (X, (y - y.mean()) / y.std())) == {}


def test_tiny_targets_are_told():
    y = 1e-4 * X[:, :1]
    finding = found(network(outputs=1), F.mse_loss, (X, y))["initial scale"]
    assert finding.remedy == "y = (y - y.mean()) / y.std()"


def test_residuals_whose_target_is_zero_are_no_alarm():
    assert found(network(outputs=1), F.mse_loss, (X, torch.zeros(64, 1))) == {}
