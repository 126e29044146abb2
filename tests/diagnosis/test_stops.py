import pytest
import torch
import torch.nn.functional as F
from findings import findings
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

torch.manual_seed(0)
X, Y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
ONE = torch.tensor([[0.0], [1.0], [0.0], [1.0], [1.0]])


def chain(outputs, *after):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs), *after)


class Attention(nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.fused = fused

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.fused:
            with sdpa_kernel(SDPBackend.MATH):  # fused kernels leave rounding noise, another finding
                return F.scaled_dot_product_attention(q, k, v)
        return (q @ k.transpose(1, 2)).softmax(2) @ v


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.main, self.extra = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        h = self.trunk(x)
        return self.main(h), self.extra(h)


@pytest.mark.parametrize(
    ("model", "loss_fn", "batch", "modules", "why", "severity"),
    [
        (chain(1, nn.Softmax(1)), F.mse_loss, (X, ONE), ("0", "2"), "softmax over one element", 3),
        (chain(1), F.cross_entropy, (X, 0 * Y), ("0", "2"), "softmax over one element", 3),
        (
            chain(1),
            lambda y, t: F.mse_loss((y + 50).clamp(0, 1), t),
            (X, ONE),
            ("0", "2"),
            "a clamp whose input is",
            3,
        ),
        (chain(3), lambda y, t: 0 * F.cross_entropy(y, t), (X, Y), ("0", "2"), "a product with 0", 3),
        (Attention(False), lambda y: y.square().sum(), X[:, None], ("q", "k"), "softmax over one element", 1),
        (Attention(True), lambda y: y.square().sum(), X[:, None], ("q", "k"), "softmax over one element", 1),
        (
            Heads(),
            lambda y, t: F.cross_entropy(y[0], t) + 0.0 * F.cross_entropy(y[1], t),
            (X, Y),
            ("extra",),
            "a product with 0",
            1,
        ),
    ],
)
def test_the_operation_at_which_a_gradient_ends_is_named(model, loss_fn, batch, modules, why, severity):
    (finding,) = findings(model, loss_fn, batch, "cut")
    assert finding.modules == modules
    assert f"of exactly 0: it is stopped by {why}" in finding.text
    assert finding.severity == severity


def test_what_the_remedy_says_trains():
    assert not findings(chain(1), F.binary_cross_entropy_with_logits, (X, ONE))
    assert not findings(chain(2), F.cross_entropy, (X, ONE[:, 0].long()))
    assert not findings(chain(1), lambda y, t: F.mse_loss(y.tanh(), t), (X, ONE))


@pytest.mark.slow
def test_gradients_that_underflow_and_closed_branches_end_at_no_operation():
    deep = nn.Sequential(*[layer for _ in range(60) for layer in (nn.Linear(6, 6), nn.Sigmoid())], nn.Linear(6, 3))
    assert "cut" not in {finding.kind for finding in findings(deep, F.cross_entropy, (X, Y))}

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.gain = nn.Linear(6, 6), nn.Parameter(torch.zeros(6))

        def forward(self, x):
            return x + self.gain * self.f(x)

    assert not findings(nn.Sequential(nn.Linear(6, 6), Gated(), nn.Linear(6, 3)), F.cross_entropy, (X, Y), "cut")


class Segmenter(nn.Module):
    def __init__(self, channels, activation):
        super().__init__()
        self.body, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, channels, 1)
        self.activation = activation

    def forward(self, x):
        return self.activation(self.out(self.body(x).relu()))


def test_softmax_over_a_single_channel_names_the_layer_and_what_trains():
    x = torch.randn(4, 1, 6, 6)
    y = (x > 0).float()
    (finding,) = findings(Segmenter(1, lambda z: z.softmax(1)), F.mse_loss, (x, y), "cut")
    assert "stopped by softmax over one element, the output of out, which is always 1" in finding.text
    assert finding.remedy.startswith("torch.sigmoid in place of softmax")
    assert "two outputs" in finding.remedy
    assert not findings(Segmenter(1, torch.sigmoid), F.mse_loss, (x, y), "cut")
    assert not findings(Segmenter(2, lambda z: z.softmax(1)[:, 1:]), F.mse_loss, (x, y), "cut")


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6), (5, 2, 3, 6)])
def test_softmax_over_the_last_of_any_dimensions_names_the_layer(shape):
    x = torch.randn(shape)
    (finding,) = findings(chain(1, nn.Softmax(-1)), lambda y: (y - 2).square().sum(), x, "cut")
    assert "softmax over one element, the output of '2', which" in finding.text
    assert finding.remedy.startswith("torch.sigmoid in place of softmax")


def test_attention_over_one_key_gets_no_advice_for_outputs():
    (finding,) = findings(Attention(False), lambda y: y.square().sum(), X[:, None], "cut")
    assert "torch.sigmoid" not in finding.remedy
