import pytest
import torch
import torch.nn.functional as F
from findings import findings
from torch import nn

from gradexp.diagnosis.symmetry import has_equal_units


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def batch():
    return torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])


def constant(value):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def test_units_that_stay_alike_are_named():
    model = constant(0.05)
    (finding,) = findings(model, lambda y, _: (y[:, 0] - 1).square().mean(), batch(), "equal units")
    assert finding.modules == ("0", "2")
    assert finding.severity == 3
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(5):
        (model(batch()[0])[:, 0] - 1).square().mean().backward()
        optimizer.step()
    rows = model[0].weight  # which is what it says
    assert torch.allclose(rows, rows[:1].expand_as(rows))


def test_layers_that_a_loss_tells_apart_are_no_equal_units():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for value in (0.0, 0.5):
        nn.init.constant_(model[2].weight, value)
        nn.init.zeros_(model[2].bias)
        assert not findings(model, F.cross_entropy, batch(), "equal units")
    assert not has_equal_units(nn.Conv2d(4, 4, 3, groups=4))
    assert not has_equal_units(nn.Linear(6, 8))
    assert has_equal_units(constant(0.05)[0])


def test_copied_units_are_counted_and_stay_copies():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[2].weight.T):
            tensor[4:] = tensor[:4]
    (finding,) = findings(model, F.cross_entropy, batch())
    assert finding.text.startswith("units of '0' (8 units of 4 kinds) are copies")
    assert finding.severity == 2
    with torch.no_grad():  # other weights above tell the copies apart
        nn.init.normal_(model[2].weight)
    assert not findings(model, F.cross_entropy, batch())


def test_random_layers_embeddings_and_norms_have_no_copies():
    model = nn.Sequential(
        nn.Embedding(9, 4, sparse=True), nn.LayerNorm(4), nn.Conv1d(2, 4, 1), nn.Flatten(), nn.Linear(16, 3)
    )
    nn.init.ones_(model[0].weight)
    assert not findings(model, F.cross_entropy, (torch.tensor([[1, 2], [3, 4]]), torch.tensor([0, 1])), "equal units")
