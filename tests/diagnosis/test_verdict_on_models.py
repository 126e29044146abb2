"""The verdict on architectures of the field: none on healthy ones, the right place on broken ones."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn

from gradexp import initialize, measure
from gradexp.history.finding import Finding

FLOW = {"vanishing", "exploding", "vanishing over time", "exploding over time", "exploding activations", "dead"}


def mlp(widths, activation=nn.ReLU, init="he"):
    layers = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    model = nn.Sequential(*layers[:-1])
    return initialize(model, init, seed=0) if init else model


class Residual(nn.Module):
    def __init__(self, inside, scale=1.0):
        super().__init__()
        self.inside, self.scale = inside, scale

    def forward(self, x):
        return x + self.scale * self.inside(x)


class ConvBlock(nn.Module):
    def __init__(self, fan_in, fan_out, zero=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out)
        self.conv2, self.bn2 = nn.Conv2d(fan_out, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out)
        self.skip = nn.Conv2d(fan_in, fan_out, 1) if fan_in != fan_out else nn.Identity()
        if zero:
            nn.init.zeros_(self.bn2.weight)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.skip(x))


class Head(nn.Module):
    """A body, and a linear layer on the mean over all but the first and one other dimension."""

    def __init__(self, body, width, over, out=10):
        super().__init__()
        self.body, self.over, self.head = body, over, nn.Linear(width, out)

    def forward(self, x):
        return self.head(self.body(x).mean(self.over))


def resnet(zero=False):
    blocks = [ConvBlock(8, 8, zero), ConvBlock(8, 8, zero), ConvBlock(8, 16, zero), ConvBlock(16, 16, zero)]
    model = Head(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks), 16, (2, 3))
    return model, F.cross_entropy, (torch.randn(8, 3, 8, 8), torch.randint(10, (8,)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.downs = nn.ModuleList([self.pair(3, 8), self.pair(8, 16)])
        self.middle = self.pair(16, 32)
        self.ups = nn.ModuleList([self.pair(48, 16), self.pair(24, 8)])
        self.out = nn.Conv2d(8, 1, 1)

    def pair(self, fan_in, fan_out):
        convs = nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.Conv2d(fan_out, fan_out, 3, padding=1)
        return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU())

    def forward(self, x):
        skips = []
        for down in self.downs:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.middle(x)
        for up in self.ups:
            x = up(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], 1))
        return self.out(x)


def transformer(norm_first):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    body = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
    return Head(body, 16, 1), F.cross_entropy, (torch.randn(4, 5, 16), torch.randint(10, (4,)))


class Recurrent(nn.Module):
    def __init__(self, kind, layers=1, last=True):
        super().__init__()
        self.rnn, self.head, self.last = kind(4, 16, layers, batch_first=True), nn.Linear(16, 10), last

    def forward(self, x):
        outputs = self.rnn(x)[0]
        return self.head(outputs[:, -1] if self.last else outputs.flatten(0, 1))


def recurrent(kind, times, layers=1, last=True):
    batch = torch.randn(4, times, 4), torch.randint(10, (4 if last else 4 * times,))
    return Recurrent(kind, layers, last), F.cross_entropy, batch


class Loop(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell, nn.Linear(16, 10)

    def forward(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class LowRank(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Linear(base.in_features, 2, bias=False)
        self.lora_b = nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.lora_b.weight)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


def lora():
    model = mlp([16, *[32] * 5, 10])
    for index, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            model[index] = LowRank(layer)
    return classifier(model)


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.router = nn.LayerNorm(16), nn.Linear(16, 3)
        self.experts = nn.ModuleList([mlp([16, 32, 16], nn.GELU, None) for _ in range(3)])

    def forward(self, x):
        read = self.norm(x)
        shares = self.router(read).softmax(-1)
        return x + sum(shares[:, i : i + 1] * expert(read) for i, expert in enumerate(self.experts))


class Ode(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.slope, self.decode = nn.Linear(16, 8), mlp([8, 16, 8], nn.Tanh, None), nn.Linear(8, 10)

    def forward(self, x):
        x = self.encode(x)
        for _ in range(8):
            middle = x + 0.05 * self.slope(x)
            x = x + 0.1 * self.slope(middle)
        return self.decode(x)


def classifier(model, width=16):
    return model, F.cross_entropy, (torch.randn(32, width), torch.randint(10, (32,)))


def gan():
    model = nn.Sequential(mlp([8, 32, 32, 16]), mlp([16, 32, 32, 1]))
    return model, lambda logit: F.softplus(-logit).mean(), torch.randn(16, 8)


def scaled(scales):
    return nn.Sequential(nn.Linear(16, 16), *[Residual(nn.Linear(16, 16), s) for s in scales], nn.Linear(16, 10))


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.policy, self.value = mlp([16, 32, 32], nn.Tanh), nn.Linear(32, 10), nn.Linear(32, 1)
        nn.init.orthogonal_(self.policy.weight, 0.01)

    def forward(self, x):
        hidden = self.trunk(x).tanh()
        return self.policy(hidden), self.value(hidden)


HEALTHY = {
    "resnet": resnet,
    "resnet, last gains 0": lambda: resnet(zero=True),
    "u-net": lambda: (UNet(), F.mse_loss, (torch.randn(2, 3, 16, 16), torch.randn(2, 1, 16, 16))),
    "pre-norm": lambda: transformer(norm_first=True),
    "post-norm": lambda: transformer(norm_first=False),
    "lstm, last step": lambda: recurrent(nn.LSTM, 28, layers=2),
    "lstm, all steps": lambda: recurrent(nn.LSTM, 60, last=False),
    "loop over cells": lambda: (Loop(nn.LSTMCell(4, 16)), *recurrent(nn.LSTM, 20)[1:]),
    "lora": lora,
    "gan": gan,
    "neural ode": lambda: classifier(Ode()),
    "experts": lambda: classifier(nn.Sequential(*[Experts() for _ in range(3)], nn.Linear(16, 10))),
    "layer scale": lambda: classifier(scaled([1e-6] * 6)),
    "scales of all sizes": lambda: classifier(scaled([1e-2, 1e-7, 1.0, 1e-5, 1e-1, 1e-6])),
    "policy and value": lambda: (
        Policy(),
        lambda output, y: F.cross_entropy(output[0], y) * 1e-4 + output[1].square().mean(),
        classifier(None)[2],
    ),
    **{f"he, {depth}": lambda depth=depth: classifier(mlp([16, *[64] * (depth - 1), 10])) for depth in (3, 12, 150)},
}


def judged(case, steps=0):
    """Return the verdict after some steps of Adam."""
    model, loss_fn, batch = case
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss_fn(model(batch[0]), batch[1]) if isinstance(batch, tuple) else loss_fn(model(batch))).backward()
        optimizer.step()
    return measure(model, loss_fn, batch).verdict()


def alarms(verdict) -> list[Finding]:
    return [finding for finding in verdict.findings if finding.severity and finding.kind in FLOW]


@pytest.mark.parametrize("steps", few([0, 8]))
@pytest.mark.parametrize("name", few(HEALTHY, len(HEALTHY) - 1))
def test_a_healthy_model_raises_no_alarm(name, steps):
    torch.manual_seed(1)
    verdict = judged(HEALTHY[name](), steps)
    assert not alarms(verdict)
    assert verdict.gradient == "stable"


def test_the_order_of_calls_makes_no_difference():
    class Sum(nn.Module):
        def __init__(self, order):
            super().__init__()
            self.a, self.b, self.order = nn.Linear(8, 8), nn.Linear(8, 8), order

        def forward(self, x):
            parts = {name: getattr(self, name)(x) for name in self.order}
            return 1e-4 * parts["a"] + parts["b"]

    batch = torch.randn(4, 8), torch.randn(4, 8)
    assert {measure(Sum(order), F.mse_loss, batch).verdict().gradient for order in ("ab", "ba")} == {"stable"}


def test_a_tower_that_vanishes_is_found_beside_a_wide_part_that_does_not():
    class WideAndDeep(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.deep = nn.Linear(16, 10), mlp([16, *[32] * 9, 10], nn.Sigmoid, None)

        def forward(self, x):
            return self.wide(x) + self.deep(x)

    verdict = judged(classifier(WideAndDeep()))
    assert verdict.gradient == "vanishing"
    assert "from deep.18 to deep.0" in verdict.text


def test_a_saturated_layer_among_twelve_is_named():
    layers = []
    for index in range(12):
        linear = nn.Linear(16, 16)
        nn.init.orthogonal_(linear.weight)
        nn.init.constant_(linear.bias, 17.0 if index == 6 else 0.0)
        layers += [linear, nn.Sigmoid() if index == 6 else nn.Tanh()]
    verdict = judged(classifier(nn.Sequential(*layers, nn.Linear(16, 10))))
    assert verdict.gradient == "vanishing"
    assert any("between '12' and '14'" in finding.text for finding in verdict.findings)
    assert "12" in alarms(verdict)[0].modules
    assert verdict.text == "saturated: 100 % of the sigmoid's outputs after '12' lie where its slope is below 0.001"


def test_three_layers_that_multiply_by_seventeen_explode():
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
    for layer in model:
        nn.init.orthogonal_(layer.weight, 17.0)
    assert judged(classifier(model)).gradient == "exploding"


def test_a_residual_net_whose_outputs_grow_is_told_so_before_the_loss_explodes():
    torch.manual_seed(0)
    blocks = [Residual(mlp([32, 32, 32])) for _ in range(12)]
    verdict = judged(classifier(nn.Sequential(nn.Linear(16, 32), *blocks, nn.Linear(32, 10))))
    assert "exploding activations" in {finding.kind for finding in alarms(verdict)}


@pytest.mark.parametrize("kind", few([nn.RNN, nn.LSTM, nn.GRU]))
def test_a_recurrent_net_that_forgets_is_judged_over_time(kind):
    torch.manual_seed(0)
    model, loss_fn, batch = recurrent(kind, 150)
    history = measure(model, loss_fn, batch)
    verdict = history.verdict()
    assert verdict.gradient == "vanishing"
    ratio = history.over_time("rnn").first_over_last("output_grad")
    assert f"at rnn falls by 10^{ratio:+.1f} from step 150 back to step 1, " in verdict.text


@pytest.mark.slow
def test_a_loop_over_cells_that_forgets_is_judged_over_its_calls():
    torch.manual_seed(0)
    verdict = judged((Loop(nn.RNNCell(4, 16)), *recurrent(nn.RNN, 200)[1:]))
    assert verdict.gradient == "vanishing"
    assert verdict.text.startswith("vanishing over time: the gradient at ")


@pytest.mark.slow
def test_a_parametrized_net_is_judged_by_its_layers():
    torch.manual_seed(0)
    layers = []
    for _ in range(41):
        linear = nn.Linear(16, 16)
        nn.init.xavier_normal_(linear.weight)
        layers += [nn.utils.parametrizations.spectral_norm(linear), nn.ReLU()]
    assert judged(classifier(nn.Sequential(*layers))).gradient == "vanishing"
