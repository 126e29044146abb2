"""Dead and saturated units: counted by hand on the model's own activations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradexp import initialize, measure

X = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


class Functions(nn.Module):
    """The activations are functions, which no module hook sees."""

    def __init__(self, function):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.function = function

    def forward(self, x):
        return self.head(self.function(self.second(self.function(self.first(x)))))


def modules(activation):
    return nn.Sequential(nn.Linear(16, 64), activation, nn.Linear(64, 64), activation, nn.Linear(64, 3))


def found(model, kind, batch=(X, Y), loss_fn=F.cross_entropy):
    findings = measure(model, loss_fn, batch).findings[0]
    return next((finding for finding in findings if finding.kind == kind), None)


def kill(layer, units):
    with torch.no_grad():
        layer.bias[:units] = -100


RECTIFIERS = [F.relu, F.relu6, F.gelu, F.silu, F.mish, F.hardswish, F.softplus, F.elu, lambda x: x.clamp(min=0)]


@pytest.mark.parametrize("function", [F.relu, lambda x: F.relu(x, inplace=True), *RECTIFIERS[1:]])
def test_dead_units_are_counted_for_functions_too(function):
    model = Functions(function)
    kill(model.second, 37)
    history = measure(model, F.cross_entropy, (X, Y))
    finding = next(finding for finding in history.findings[0] if finding.kind == "dead units")
    assert finding.text.startswith("37 of 64 units after second fire for none of 128 samples")
    assert (finding.modules, finding.severity) == (("second",), 2)
    assert history.stats["output.dead"][0, 0, :2].tolist() == [0, 37 / 64]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.Threshold(0.1, 0), nn.GELU()])
def test_dead_units_are_counted_for_modules(activation):
    model = modules(activation)
    kill(model[0], 40)
    assert found(model, "dead units").text.startswith("40 of 64 units after '0' fire for none of 128 samples")


def test_the_share_of_dead_units_is_that_of_channels_that_are_0_everywhere():
    model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 3))
    with torch.no_grad():
        model[1].bias[:20] = -100
    x = torch.randn(64, 1, 8, 8)
    history = measure(model, F.cross_entropy, (x, torch.randint(3, (64,))))
    by_hand = (model[2](model[1](model[0](x))).amax((0, 2, 3)) == 0).double().mean()
    assert history.stats["output.dead"][0, 0, 0] == by_hand == 20 / 32
    assert history.findings[0][0].text == "20 of 32 units after '0' fire for none of 64 samples"


def test_positions_count_as_samples_where_units_are_last():
    model, x = modules(nn.ReLU()), torch.randn(8, 20, 16)
    kill(model[2], 40)
    loss = lambda output, target: F.cross_entropy(output.flatten(0, 1), target.flatten())  # noqa: E731
    assert (
        "40 of 64 units after '2' fire for none of 160"
        in found(model, "dead units", (x, torch.randint(3, (8, 20))), loss).text
    )


def test_a_dead_layer_stops_training_and_is_revived_by_its_remedy():
    model = modules(nn.ReLU())
    kill(model[2], 64)
    finding = found(model, "dead layer")
    assert finding.text == "all 64 units after '2' fire for none of 128 samples: no gradient passes"
    assert (finding.modules, finding.severity) == (("2",), 3)
    assert "gradexp.initialize(model, 'he', sigma_b2=0)" in finding.remedy
    initialize(model, "he", sigma_b2=0)
    assert found(model, "dead layer") is None
    assert measure(model, F.cross_entropy, (X, Y)).verdict().is_calm


def test_leaky_units_in_place_of_dead_ones_pass_a_gradient():
    model = modules(nn.ReLU())
    kill(model[2], 64)
    model[3] = nn.LeakyReLU(0.1)
    history = measure(model, F.cross_entropy, (X, Y))
    assert not any(finding.kind.startswith("dead") for finding in history.findings[0])
    assert history.status["output_grad"].max() == 0


def test_steps_that_are_too_large_kill_units_and_a_tenth_of_it_does_not():
    for rate, kinds in ((10.0, {"dead units"}), (1.0, set())):
        torch.manual_seed(0)
        model = modules(nn.ReLU())
        for _ in range(3):
            model.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            torch.optim.SGD(model.parameters(), lr=rate).step()
        findings = measure(model, F.cross_entropy, (X, Y)).findings[0]
        assert {finding.kind for finding in findings if finding.kind.startswith("dead")} == kinds


def test_a_rectifier_at_the_output_that_never_fires_is_a_dead_layer():
    model = nn.Sequential(nn.Linear(16, 1), nn.ReLU())
    kill(model[0], 1)
    finding = found(model, "dead layer", (X, X[:, :1]), F.mse_loss)
    assert finding.text.startswith("the only unit after '0' never fires (128 samples)")
    assert (finding.severity, finding.remedy) == (3, "no activation after the last layer")
    assert found(model[:1], "dead layer", (X, X[:, :1]), F.mse_loss) is None


def test_a_dead_branch_beside_a_living_one_stops_nothing():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.inside, self.head = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x):
            x = self.stem(x)
            return self.head(x + F.relu(self.inside(x)))

    model = Branch()
    kill(model.inside, 16)
    finding = found(model, "dead layer")
    assert (finding.modules, finding.severity) == (("inside",), 2)


def test_layers_whose_weights_are_zero_are_told_so():
    model = modules(nn.ReLU())
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    assert found(model, "dead layer").text.endswith("; the weights of '2' are exactly 0")


def test_alike_or_few_samples_and_half_of_the_units_off_are_no_alarm():
    deep = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.ReLU())), nn.Linear(64, 3))
    initialize(deep, "he")
    alike = torch.randn(1, 64) + torch.randn(128, 64) / 100
    share = measure(deep, F.cross_entropy, (alike, Y)).stats["output.dead"][0, 0, :-1]
    assert share.min() > 0.3
    assert found(deep, "dead units", (alike, Y)) is None
    few = torch.randn(3, 64)
    assert found(deep, "dead units", (few, Y[:3])) is None


def test_units_that_fire_rarely_are_no_alarm_on_few_samples():
    """A sparse dictionary: each unit fires for one sample in a thousand."""
    model = nn.Sequential(nn.Linear(16, 4096), nn.ReLU(), nn.Linear(4096, 16))
    with torch.no_grad():
        model[0].weight.normal_()
        model[0].weight /= model[0].weight.norm(dim=1, keepdim=True)
        model[0].bias.fill_(-3.0)
    history = measure(model, F.mse_loss, (X, X))
    assert history.stats["output.dead"][0, 0, 0] > 0.5
    assert not [f for f in history.findings[0] if f.kind == "dead units"]


def test_zeros_of_dropout_padding_and_inputs_are_no_dead_units():
    model = nn.Sequential(nn.Linear(16, 64), nn.Dropout(0.9), nn.Linear(64, 3))
    x = X.clone()
    x[:, 4:] = 0
    findings = measure(model, F.cross_entropy, (x, Y)).findings[0]
    assert not any(finding.kind.startswith("dead") for finding in findings)


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
        (torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z))),
        (F.hardtanh, lambda z: (z.abs() < 1).double()),
        (F.hardsigmoid, lambda z: (z.abs() < 3).double()),
    ],
)
def test_the_saturated_share_is_where_the_slope_is_below_a_thousandth(function, slope):
    model = Functions(function).double()
    with torch.no_grad():
        model.second.weight *= 100
    history = measure(model, F.cross_entropy, (X.double(), Y))
    z = model.second(function(model.first(X.double())))
    by_hand = (slope(z) < 1e-3).double().mean().item()
    assert history.stats["output.saturated"][0, 0, 1] == pytest.approx(by_hand, abs=1e-12)
    finding = next(f for f in history.findings[0] if f.kind == "saturated")
    assert finding.modules == ("second",)
    assert finding.text.startswith(f"{100 * by_hand:.3g} % of the {function.__name__}'s outputs after second lie")
    initialize(model, "xavier")
    assert found(model.float(), "saturated") is None


def test_softsign_is_seen_as_a_module():
    model = modules(nn.Softsign())
    with torch.no_grad():
        model[2].weight *= 10_000
    assert found(model, "saturated").modules == ("2",)


def test_a_trained_classifier_may_be_sure_at_its_output():
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1), nn.Sigmoid())
    x = torch.randn(64, 16)
    with torch.no_grad():
        model[2].weight *= 40
    target = (model(x) > 0.5).float()
    findings = measure(model, F.binary_cross_entropy, (x, target)).findings[0]
    assert not [f for f in findings if f.kind == "saturated"]


def test_a_clamp_at_the_output_gets_no_loss_of_logits():
    model = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3), nn.Hardtanh(0, 1))
    nn.init.constant_(model[2].bias, 100.0)
    finding = found(model, "saturated", (X, torch.randn(128, 3)), F.mse_loss)
    assert finding.text == "100 % of the hardtanh's outputs after '2' lie where its slope is below 0.001"
    assert finding.remedy == ""


def test_layers_that_a_checkpoint_computes_anew_run_no_further_time():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head, self.runs = modules(nn.ReLU()), nn.Linear(3, 3), []

        def forward(self, x):
            def run(x):
                self.runs.append(x)
                return self.inside(x)

            return self.head(checkpoint(run, x, use_reentrant=False))

    model = Counted()
    measure(model, F.cross_entropy, (X, Y))
    assert len(model.runs) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_units_that_are_not_finite_are_not_called_dead(value):
    findings = measure(modules(nn.ReLU()), F.cross_entropy, (X * value, Y)).findings[0]
    assert not any(finding.kind.startswith("dead") for finding in findings)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_modules_which_take_no_hooks_are_measured():
    model = nn.Sequential(torch.jit.script(modules(nn.ReLU())), nn.Linear(3, 3))
    assert "1" in measure(model, F.cross_entropy, (X, Y)).names


def test_a_loss_without_a_batch_shows_its_units_too():
    model = Functions(F.relu)
    kill(model.second, 37)
    findings = measure(model, lambda: F.cross_entropy(model(X), Y)).findings[0]
    assert [finding.modules for finding in findings if finding.kind == "dead units"] == [("second",)]


def test_units_of_a_layer_that_is_called_twice_are_dead_only_if_they_are_in_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.head = nn.Linear(16, 64), nn.Linear(64, 3)

        def forward(self, x):
            return self.head(F.relu(self.shared(x)) + F.relu(self.shared(1000 * x)))

    model = Twice()
    kill(model.shared, 40)
    history = measure(model, F.cross_entropy, (X, Y))
    both = (model.shared(X).amax(0) <= 0) & (model.shared(1000 * X).amax(0) <= 0)
    assert history.stats["output.dead"][0, 0, :2].tolist() == [both.double().mean().item()] * 2
