import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import initialize, measure

X, Y = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4


def chain(activation, depth=12, **draw):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(16, 16), activation())]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    for layer in model[::2] if draw else ():
        nn.init.normal_(layer.weight, **draw)
    return model


def worst(model):
    return measure(model, F.cross_entropy, (X, Y)).verdict().findings[0]


def test_weights_that_are_too_small_or_too_large_are_cured_by_the_scheme_that_is_named():
    for model, kind in ((chain(nn.Tanh, std=0.02), "vanishing"), (chain(nn.ReLU, std=1.0), "exploding")):
        finding = worst(model)
        assert finding.kind == kind
        assert finding.remedy.startswith("gradexp.initialize(model, ")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert worst(model) == finding  # it was tried on a copy
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        initialize(model, finding.remedy.split("'")[1], seed=0)
        assert measure(model, F.cross_entropy, (X, Y)).verdict().gradient == "stable"


def test_sigmoids_that_no_scheme_cures_are_replaced():
    model = chain(nn.Sigmoid)
    assert worst(model).remedy == "nn.ReLU() in place of nn.Sigmoid(), and gradexp.initialize(model, 'he')"
    cured = initialize(chain(nn.ReLU), "he", seed=0)
    assert measure(cured, F.cross_entropy, (X, Y)).verdict().gradient == "stable"


def test_a_remedy_that_could_not_be_tried_is_named_all_the_same():
    model = chain(nn.Tanh, std=0.02)
    finding = measure(model, lambda: F.cross_entropy(model(X), Y)).verdict().findings[0]
    assert (finding.kind, "skip connections" in finding.remedy) == ("vanishing", True)


def test_a_healthy_model_is_not_copied(monkeypatch):
    monkeypatch.setattr("gradexp.diagnosis.cures.initialize", None)
    history = measure(initialize(chain(nn.ReLU), "he", seed=0), F.cross_entropy, (X, Y))
    assert history.verdict().gradient == "stable"
    assert history.remedies == {}


def test_a_transformer_is_cured_by_weights_that_leave_its_attention_unsaturated():
    block = nn.TransformerEncoderLayer(16, nhead=2, dim_feedforward=32, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(block, num_layers=2, enable_nested_tensor=False), nn.Linear(16, 4))
    nn.init.normal_(model[1].weight, std=10)
    finding = measure(model, lambda z, y: F.cross_entropy(z.mean(1), y), (X[:, None], Y)).verdict().findings[0]
    assert finding.kind == "initial scale"
    assert finding.remedy.startswith("gradexp.initialize(model, 'xavier')")


class Residual(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(blocks)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.slow
def test_residual_branches_that_explode_are_scaled_at_their_ends():
    model = initialize(Residual(40), "he", seed=0)
    finding = worst(model)
    assert finding.kind == "exploding"
    assert finding.remedy == "gradexp.initialize(model, 'he', branch_ends='blocks.*.2')"
    initialize(model, "he", branch_ends="blocks.*.2", seed=0)
    assert measure(model, F.cross_entropy, (X, Y)).verdict().gradient == "stable"


def test_initialisations_that_did_not_help_are_not_named(monkeypatch):
    monkeypatch.setattr("gradexp.diagnosis.cures.initialize", lambda model, **options: model)
    finding = worst(chain(nn.ReLU, std=1.0))
    assert finding.kind == "exploding"
    assert finding.remedy.startswith("in residual blocks a norm in the branch")
