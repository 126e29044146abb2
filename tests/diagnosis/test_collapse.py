"""From which module on samples look alike: cosines by torch, pair by pair."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn

from gradexp import initialize, measure
from gradexp.diagnosis.alike import mean_cosine

X = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(32) % 3


@pytest.fixture(autouse=True)
def _same_random_numbers_every_time():
    torch.manual_seed(0)


def found(model, batch=(X, Y), loss_fn=F.cross_entropy):
    return next((f for f in measure(model, loss_fn, batch).findings[0] if f.kind.startswith("inputs")), None)


def deep(depth, *, norm=False, activation=nn.ReLU):
    layers = [(nn.Linear(64, 64), *([nn.BatchNorm1d(64)] if norm else []), activation()) for _ in range(depth)]
    return nn.Sequential(*itertools.chain(*layers), nn.Linear(64, 3))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_mean_cosine_is_that_of_all_pairs(scale):
    x = torch.randn(9, 5, dtype=torch.float64)
    by_hand = [F.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(x, 2)]
    assert mean_cosine(x * scale).item() == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-12)


def test_a_row_has_the_cosine_of_its_output():
    model = deep(3)
    history = measure(model, F.cross_entropy, (X, Y))
    by_hand = mean_cosine(model[:3](X).detach()).item()
    assert history.stats["output.cosine"][0, 0, 1] == pytest.approx(by_hand, abs=1e-6)


def test_deep_networks_whose_signal_dies_under_their_biases_are_told_and_he_cures_them():
    model = deep(12)
    finding = found(model)
    cosines = [mean_cosine(model[: 2 * layer + 1](X).detach()).item() for layer in range(12)]
    first = next(layer for layer in range(12) if all(cosine > 0.99 for cosine in cosines[layer:]))
    assert (finding.kind, finding.severity) == ("inputs collapse", 2)
    assert finding.modules == tuple(str(2 * layer) for layer in range(first, 12))
    assert finding.text == (
        f"from '{2 * first}' on all 32 samples look alike: mean cosine {cosines[first]:.4f} there, "
        f"{cosines[-1]:.4f} at '22'; {mean_cosine(X).item():.2f} for the inputs"
    )
    assert "nn.BatchNorm1d(width) before each activation" in finding.remedy
    initialize(model, "he")
    assert found(model) is None


def test_embeddings_that_are_all_alike_are_told():
    class Embed(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.project = nn.Linear(64, 32), nn.Linear(32, 32)

        def forward(self, x):
            return self.project(torch.tanh(self.encode(x)) + 10)

    x = torch.eye(32, 64) - 1e-3  # whose mean cosine is below 0 by a hair
    finding = found(Embed(), x, lambda z: z.square().mean())
    assert (finding.kind, finding.modules) == ("inputs collapse", ("project",))
    assert " there; 0.00 for the inputs" in finding.text  # which has no "at project", and no -0.00


@pytest.mark.slow
def test_convolutions_that_collapse_get_a_norm_of_their_own():
    def convolutions(norm):
        layers = [(nn.Conv2d(1, 16, 3, padding=1), nn.Sigmoid())]
        layers += [(nn.Conv2d(16, 16, 3, padding=1), nn.Sigmoid()) for _ in range(8)]
        if norm:
            layers = [(conv, nn.BatchNorm2d(16), activation) for conv, activation in layers]
        return nn.Sequential(*itertools.chain(*layers), nn.Flatten(), nn.Linear(16 * 64, 3))

    batch = torch.randn(32, 1, 8, 8), Y
    assert found(convolutions(False), batch).remedy.startswith("nn.BatchNorm2d(channels) before each activation")
    assert found(convolutions(True), batch) is None


@pytest.mark.parametrize("model", [lambda: deep(4), lambda: deep(12, norm=True), lambda: deep(8, activation=nn.Tanh)])
def test_ordinary_networks_do_not_collapse(model):
    assert found(model()) is None


@pytest.mark.slow
@pytest.mark.parametrize("activation", few([nn.Sigmoid, nn.ReLU, nn.Tanh, nn.GELU]))
def test_normalisation_cures_a_deep_network(activation):
    assert found(deep(30, activation=activation)).severity == 2
    assert found(deep(30, norm=True, activation=activation)) is None


def test_a_batch_that_repeats_one_sample_is_told_so():
    finding = found(deep(12), (X[:1].repeat(32, 1), Y))
    assert (finding.kind, finding.severity) == ("inputs alike", 1)
    assert finding.text.startswith("all 32 inputs are alike: their mean cosine is 1")
    assert "e-" not in finding.text or " up to " in finding.text
    tokens = torch.randint(50, (1, 12)).repeat(32, 1)
    model = nn.Sequential(nn.Embedding(50, 32), nn.Flatten(), nn.Linear(12 * 32, 32), nn.ReLU(), nn.Linear(32, 3))
    assert found(model, (tokens, Y)).text == "all 32 inputs are alike: their mean cosine is 1"
    assert found(model, (torch.randint(50, (32, 12)), Y)) is None


def test_positive_inputs_that_differ_little_are_no_collapse():
    assert found(deep(2), (5 + X / 10, Y)) is None


def test_large_biases_of_units_that_never_fire_are_no_collapse():
    model = deep(2)
    with torch.no_grad():
        model[2].bias[:20] = -100
    assert measure(model, F.cross_entropy, (X, Y)).stats["output.cosine"][0, 0, 1] > 0.99
    assert found(model) is None


def test_logits_may_be_alike():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 100))
    with torch.no_grad():
        model[2].bias.normal_().mul_(100)
    assert found(model) is None


def test_steps_in_time_along_the_first_dimension_are_no_samples():
    class Series(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift, self.head = nn.Linear(1, 64), nn.Linear(64, 3)

        def forward(self, x):  # (time, sample, feature)
            return self.head(self.lift(x).mean(0))

    assert found(Series(), (torch.randn(7, 32, 1), Y)) is None


def test_labels_may_be_flat_where_inputs_have_samples_and_positions():
    model, x = deep(12), torch.randn(8, 5, 64)
    loss_fn = lambda output, y: F.cross_entropy(output.flatten(0, 1), y)  # noqa: E731
    history = measure(model, loss_fn, (x, torch.arange(40) % 3))
    by_hand = mean_cosine(model[0](x).detach().flatten(1)).item()
    assert history.stats["output.cosine"][0, 0, 0] == pytest.approx(by_hand, abs=1e-6)


class Branches(nn.Module):
    """Blocks x + f(x) whose last layer gives little but its bias, as in diffusion transformers and Fixup."""

    def __init__(self, std=0.0, outputs=1, head="layer", bias=1.0):
        super().__init__()
        self.lift = nn.Linear(64, 64)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(4)
        )
        for block in self.blocks:
            nn.init.normal_(block[3].weight, std=std)
            block[3].bias.data *= bias
        self.head = nn.Linear(64, outputs) if head == "layer" else None
        self.weight = nn.Parameter(torch.randn(64, outputs) / 8) if head == "parameter" else None

    def forward(self, x):
        x = self.lift(x)
        for block in self.blocks:
            x = x + block(x)
        if self.head is not None:
            return self.head(x)
        return x if self.weight is None else x @ self.weight


@pytest.mark.parametrize("std", few([0.0, 1e-3, 1e-4], 2))
@pytest.mark.parametrize("outputs", few([1, 64, 2]))
@pytest.mark.parametrize("head", ["layer", "parameter", "none"])
def test_branches_that_begin_closed_are_no_collapse_since_the_skip_carries_the_samples(std, outputs, head):
    outputs = 64 if head == "none" else outputs
    assert found(Branches(std, outputs, head), (X, torch.randn(32, outputs)), F.mse_loss) is None


def test_a_head_of_zeros_does_not_make_closed_branches_a_collapse():
    for outputs, loss_fn, y in ((4, F.cross_entropy, Y), (2, F.mse_loss, torch.randn(32, 2))):
        model = Branches(outputs=outputs)
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        assert found(model, (X, y), loss_fn) is None


def test_branches_that_drown_what_the_skip_carries_are_a_collapse():
    assert found(Branches(bias=1e4), (X, torch.randn(32, 1)), F.mse_loss).severity == 2


@pytest.mark.parametrize("outputs", few([1, 2]))
def test_noise_of_a_dropout_before_the_head_does_not_hide_a_collapse(outputs):
    model = deep(30)
    model[-1] = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, outputs))
    assert found(model, (X, torch.randn(32, outputs)), F.mse_loss).severity == 2
    assert (
        found(
            nn.Sequential(deep(3), nn.Dropout(0.5), nn.Linear(3, outputs)), (X, torch.randn(32, outputs)), F.mse_loss
        )
        is None
    )
