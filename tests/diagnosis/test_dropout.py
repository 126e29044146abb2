"""Dropout that drops nearly everything."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure

X = torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(1))
Y = torch.zeros(16, 6, 4)


def dropouts(model):
    return [finding for finding in measure(model, F.mse_loss, (X, Y)).findings[0] if finding.kind == "dropout"]


def test_a_rate_that_was_meant_as_the_share_to_keep_is_told_and_the_remedy_works():
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.99), nn.ReLU(), nn.Linear(64, 4))
    (found,) = dropouts(model)
    assert found.text.startswith("'1' drops 99 % of units")
    assert "scaled by 100" in found.text
    assert found.severity == 2
    exec(found.remedy.partition(":")[0], {"model": model})
    assert model[1].p == 0.01
    assert dropouts(model) == []


def test_a_rate_of_one_lets_nothing_through():
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(1), nn.Linear(64, 4))
    (found,) = dropouts(model)
    assert "drops 100 % of units: nothing comes through" in found.text
    exec(found.remedy.partition(":")[0], {"model": model})
    assert dropouts(model) == []


def test_several_are_told_as_one_with_the_highest_rate():
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.95), nn.Linear(64, 64), nn.Dropout(0.98), nn.Linear(64, 4))
    (found,) = dropouts(model)
    assert found.modules == ("3", "1")
    assert "up to 98 %" in found.text


def test_dropout_inside_recurrent_and_attention_modules_counts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 8, num_layers=2, dropout=0.95, batch_first=True)
            self.attn = nn.MultiheadAttention(8, 2, dropout=0.95, batch_first=True)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = self.lstm(x)[0]
            return self.head(x + self.attn(x, x, x)[0])

    (found,) = dropouts(Net())
    assert set(found.modules) == {"lstm", "attn"}


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_ordinary_rates_are_no_fault(rate):
    assert dropouts(nn.Sequential(nn.Linear(8, 64), nn.Dropout(rate), nn.Linear(64, 4))) == []


def test_dropout_in_evaluation_mode_is_no_fault():
    assert dropouts(nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.99), nn.Linear(64, 4)).eval()) == []


class Functional(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.fc1, self.fc2, self.rate = nn.Linear(8, 64), nn.Linear(64, 4), rate

    def forward(self, x):
        return self.fc2(F.dropout(torch.relu(self.fc1(x)), self.rate, self.training))


def test_a_function_that_drops_nearly_everything_is_told_by_the_layer_before():
    (found,) = dropouts(Functional(0.99))
    assert found.text.startswith(
        "F.dropout after fc1 drops 99 % of units: what is left of each sample is scaled by 100"
    )
    assert dropouts(Functional(0.01)) == []
    assert dropouts(Functional(0.5)) == []
    assert dropouts(Functional(0.99).eval()) == []


def test_weights_of_samples_are_no_dropout():
    class Weighted(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.fc, self.weights = nn.Linear(8, 4), weights

        def forward(self, x):
            return self.fc(x) * self.weights

    mask = torch.zeros(16, 1, 1)
    mask[3:9] = 100.0
    assert dropouts(Weighted(mask)) == []
    assert dropouts(Weighted(torch.linspace(0, 100, 16)[:, None, None])) == []
