"""Layers that compute their weight: parametrizations, and the hooks and masks that came before them."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from gradexp import GradientProbe, measure
from gradexp.history.step import STATUSES


class LowRank(nn.Module):
    """A trained sum of a weight and a product of two thin matrices, as adapters are written by parametrization."""

    def __init__(self, fan_out, fan_in, rank=2):
        super().__init__()
        self.a = nn.Parameter(torch.randn(rank, fan_in))
        self.b = nn.Parameter(torch.randn(fan_out, rank))

    def forward(self, weight):
        return weight + self.b @ self.a


class Circulant(nn.Module):
    """A matrix made of a vector."""

    def forward(self, vector):
        return torch.stack([vector.roll(shift) for shift in range(len(vector))])

    def right_inverse(self, weight):
        return weight[0].clone()


def low_rank(layer):
    parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))
    layer.parametrizations.weight.original.requires_grad_(False)
    return layer


def circulant(layer):
    parametrize.register_parametrization(layer, "weight", Circulant(), unsafe=True)
    return layer


def by_hooks(function):
    def make(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return function(layer)

    return make


KINDS = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "low rank": low_rank,
    "circulant": circulant,
    "weight norm by hooks": by_hooks(torch.nn.utils.weight_norm),
    "spectral norm by hooks": by_hooks(torch.nn.utils.spectral_norm),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
}


def network(kind):
    torch.manual_seed(0)
    layers = [KINDS[kind](nn.Linear(5, 5)) for _ in range(3)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Tanh(), layers[2], nn.Linear(5, 2)).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(2, (6,), generator=generator)


def reference(kind):
    """Return log10 of sizes by plain autograd: outputs, their gradients, those of trained tensors, and weights."""
    twin = network(kind)
    layers, outputs = [twin[0], twin[2], twin[4], twin[5]], []
    hooks = [layer.register_forward_hook(lambda _layer, _args, output: outputs.append(output)) for layer in layers]
    x, y = batch()
    loss = F.cross_entropy(twin(x), y)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, outputs, retain_graph=True)
    loss.backward()
    trained = [[p.grad for n, p in layer.named_parameters() if "bias" not in n] for layer in layers]
    unit, nothing = torch.eye(5).double(), torch.zeros(5).double()
    weights = [layer.eval()(unit) - layer(nothing) for layer in layers]  # what the layer multiplies its input by

    def size(tensors):
        return (
            torch.cat([tensor.detach().flatten() for tensor in tensors if tensor is not None]).norm().log10().item()
        )

    return {
        "output": [size([output]) - 0.5 * torch.tensor(output.numel()).log10().item() for output in outputs],
        "output_grad": [size([gradient]) for gradient in gradients],
        "weight_grad": [size(gradients) for gradients in trained],
        "weight": [size([weight]) for weight in weights],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_has_the_row_with_its_trained_tensors_and_the_weight_it_computes_with(kind):
    model, (x, y) = network(kind), batch()
    expected = reference(kind)
    with GradientProbe(model, quantities=(*expected,)) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect()
    history = probe.history
    assert history.names == ["0", "2", "4", "5"]
    for quantity, values in expected.items():
        assert history.profile(quantity) == pytest.approx(values, abs=1e-6), quantity
        assert (history.status[quantity] == STATUSES.index("ok")).all()


def test_the_update_is_that_of_the_trained_tensors():
    model, (x, y) = network("weight norm"), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = [p.detach().clone() for p in model[0].parametrizations.parameters()]
    with GradientProbe(model, optimizer=optimizer) as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect()
        optimizer.step()
    after = list(model[0].parametrizations.parameters())
    change = torch.cat([(b - a).flatten() for a, b in zip(before, after, strict=True)]).norm().log10().item()
    assert probe.history.profile("update")[0] == pytest.approx(change, abs=1e-9)


@pytest.mark.parametrize("kind", ["spectral norm", "orthogonal"])
def test_observing_changes_nothing_not_even_the_state_of_a_power_iteration(kind):
    def trained(watched):
        model, (x, y) = network(kind), batch()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probe = GradientProbe(model, optimizer=optimizer)
        if watched:
            probe.attach()
        for _ in range(3):
            F.cross_entropy(model(x), y).backward()
            if watched:
                probe.collect()
            optimizer.step()
            optimizer.zero_grad()
        probe.remove()
        hooks = sum(len(module._forward_hooks) for module in model.modules())
        return hooks, model.state_dict()

    (hooks, state), (hooks_left, watched) = trained(False), trained(True)
    assert hooks == hooks_left
    assert all(torch.equal(a, b) for a, b in zip(state.values(), watched.values(), strict=True))


def test_a_weight_that_was_computed_before_the_step_is_missed():
    model, (x, y) = network("orthogonal"), batch()
    with parametrize.cached():
        model(x)
        with GradientProbe(model, quantities=["weight"]) as probe:
            F.cross_entropy(model(x), y).backward()
            probe.collect()
    assert [STATUSES[code] for code in probe.history.status["weight"][0, 0]] == ["hook_missed"] * 3 + ["ok"]


@pytest.mark.slow
def test_the_verdict_on_spectral_norm_is_about_the_layers():
    # 41 layers with He's weights, divided by their largest singular value, about 2 sqrt(2): 40 times the drop by it.
    torch.manual_seed(0)
    layers = []
    for _ in range(40):
        layer = nn.Linear(16, 16, bias=False)
        nn.init.kaiming_normal_(layer.weight)
        layers += [parametrizations.spectral_norm(layer), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(16, 4)).double()
    x = torch.randn(8, 16, dtype=torch.float64)
    outputs, hidden = [], x
    for module in copy.deepcopy(model):
        hidden = module(hidden)
        if isinstance(module, nn.Linear):
            outputs.append(hidden)
    gradients = torch.autograd.grad(hidden.square().mean(), outputs)
    expected = (gradients[0].norm() / gradients[-1].norm()).log10().item()
    history = measure(model, lambda y: y.square().mean(), x)
    assert history.names[:2] == ["0", "2"]
    assert expected < -5
    assert history.first_over_last("output_grad") == pytest.approx(expected, abs=1e-9)
    assert history.verdict().gradient == "vanishing"


def test_a_spectrally_normalised_critic_is_recorded_layer_by_layer():
    torch.manual_seed(0)
    normed = parametrizations.spectral_norm
    critic = nn.Sequential(
        normed(nn.Conv2d(1, 4, 3, stride=2)), nn.LeakyReLU(0.2), nn.Flatten(), normed(nn.Linear(36, 1))
    )
    generator = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    twin = copy.deepcopy(critic).double()
    z, real = torch.randn(4, 3), torch.randn(4, 1, 8, 8)
    with GradientProbe(critic, optimizer=optimizer) as probe:
        fake = generator(z).detach()
        loss = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(fake)).mean()
        loss.backward()
        probe.collect()
        optimizer.step()
    outputs = {name: [] for name in ("0", "3")}
    for name in outputs:
        twin[int(name)].register_forward_hook(lambda m, a, output, name=name: outputs[name].append(output))
    loss = F.relu(1 - twin(real.double())).mean() + F.relu(1 + twin(fake.double())).mean()
    expected = [torch.cat(torch.autograd.grad(loss, own, retain_graph=True)).norm() for own in outputs.values()]
    assert probe.history.names == ["0", "3"]
    assert probe.history.profile("output_grad") == pytest.approx([e.log10().item() for e in expected], abs=1e-5)


def test_the_computing_modules_can_still_be_selected():
    model, (x, y) = network("low rank"), batch()
    with GradientProbe(model, select="0.**") as probe:
        F.cross_entropy(model(x), y).backward()
        probe.collect()
    assert "0.parametrizations.weight" in probe.history.names
    assert "0.parametrizations.weight.0" in probe.history.names
