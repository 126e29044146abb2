import pytest
import torch
import torch.nn.functional as F
from findings import findings
from torch import nn

torch.manual_seed(0)
X, Y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
KIND = "zero by initialisation"


class Adapted(nn.Module):
    """A frozen layer with a correction of low rank."""

    def __init__(self, width, out):
        super().__init__()
        self.base = nn.Linear(width, out).requires_grad_(False)
        self.A, self.B = nn.Linear(width, 2, bias=False), nn.Linear(2, out, bias=False)
        nn.init.zeros_(self.B.weight)

    def forward(self, x):
        return self.base(x) + 2 * self.B(self.A(x))


class Scaled(nn.Module):
    """A branch with a gain of 0, of 0 dimensions."""

    def __init__(self, through=torch.clone):
        super().__init__()
        self.branch, self.gain = nn.Linear(6, 6), nn.Parameter(torch.zeros(()))
        self.through = through

    def forward(self, x):
        return x + self.through(self.gain) * self.branch(x).tanh()


class Block(nn.Module):
    """A residual block whose last norm has a gain of 0."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x):
        return x + self.norm2(self.two(self.norm1(self.one(x)).relu()))


def attention():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0)
    nn.init.zeros_(layer.self_attn.out_proj.weight)
    nn.init.zeros_(layer.linear2.weight)
    return layer


def chain(*zero, bias=True):
    """Return three layers, of which some have weights of 0."""
    layers = [
        nn.Linear(6, 6, bias=bias),
        nn.Tanh(),
        nn.Linear(6, 6, bias=bias),
        nn.Tanh(),
        nn.Linear(6, 3, bias=bias),
    ]
    for index in zero:
        nn.init.zeros_(layers[index].weight)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("model", "closed", "by"),
    [
        (nn.Sequential(Adapted(6, 6), nn.Tanh(), Adapted(6, 3)), "0.A, 2.A", "0.B, 2.B"),
        (nn.Sequential(nn.Linear(6, 6), Scaled(), nn.Linear(6, 3)), "1.branch", "'1'"),
        (nn.Sequential(nn.Linear(6, 6), Scaled(torch.tanh), nn.Linear(6, 3)), "1.branch", "'1'"),
        (nn.Sequential(nn.Linear(6, 6), attention(), nn.Linear(6, 3)), "1.self_attn, 1.linear1", None),
        (chain(4), "'0', '2'", "'4'"),
        (chain(2), "'0'", "'2'"),
        (chain(0, 2, 4), "'0', '2'", "'4'"),
    ],
)
def test_gradients_of_0_below_a_weight_of_0_are_explained_and_raise_no_alarm(model, closed, by):
    (finding,) = findings(model, F.cross_entropy, (X, Y), KIND)
    by = by or "1.self_attn.out_proj, 1.linear2"
    assert finding.severity == 0
    assert finding.text.startswith(f"the gradient of {closed} is 0 because the weights of {by} are exactly 0; ")
    assert finding.text.endswith("so measure again after one step")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    F.cross_entropy(model(X), Y).backward()
    optimizer.step()
    found = findings(model, F.cross_entropy, (X, Y), KIND)
    assert not [finding for finding in found if by in finding.text]


def test_blocks_with_gains_of_0_are_one_line():
    model = nn.Sequential(*[Block() for _ in range(20)], nn.Linear(6, 3))
    (finding,) = findings(model, F.cross_entropy, (X, Y), KIND)
    assert finding.severity == 0
    assert len(finding.modules) == 20
    assert "weights of 0.norm2, 1.norm2, 2.norm2, 3.norm2 and 16 more are exactly 0" in finding.text


@pytest.mark.parametrize("model", [chain(2, 4, bias=False), chain(0, 2, 4, bias=False)])
def test_layers_of_0_in_series_are_a_fault(model):
    (finding,) = findings(model, F.cross_entropy, (X, Y), KIND)
    assert finding.severity == 3
    assert finding.text.startswith("these weights never change: those of ")
    for _ in range(3):  # they do not train, as it says
        F.cross_entropy(model(X), Y).backward()
    assert not model[4].weight.grad.any()
    for index in (0, 2):
        nn.init.xavier_normal_(model[index].weight)
    assert all(each.severity == 0 for each in findings(model, F.cross_entropy, (X, Y), KIND))


def test_both_factors_of_0_are_a_fault():
    model = nn.Sequential(nn.Linear(6, 6), Adapted(6, 3))
    nn.init.zeros_(model[1].A.weight)
    (finding,) = findings(model, F.cross_entropy, (X, Y), KIND)
    assert finding.severity == 3
    assert finding.modules == ("1.A", "1.B")
    assert finding.text.endswith("those of 1.A, 1.B are exactly 0, and each keeps the gradient of the other at 0")


def test_biases_of_0_dead_units_and_padding_are_no_closed_branches():
    model = chain()
    for layer in (model[0], model[2], model[4]):
        nn.init.zeros_(layer.bias)
    assert not findings(model, F.cross_entropy, (X, Y))
    dead = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    nn.init.constant_(dead[0].bias, -100.0)
    nn.init.zeros_(dead[2].bias)
    assert not findings(dead, F.cross_entropy, (X, Y), KIND)
    words = nn.Sequential(nn.Embedding(9, 6, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))
    assert not findings(words, F.cross_entropy, (torch.tensor([[0, 0], [0, 0]]), Y[:2]), KIND)
