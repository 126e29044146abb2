"""The variance after lsuv is measured by a pass of its own, layer by layer, without hooks."""

import copy

import pytest
import torch
from torch import nn

from gradexp import MLP, GradientProbe, initialize
from gradexp.networks.inits import lsuv_
from gradexp.networks.normalization import normalize
from gradexp.networks.rnn import RNN


def inputs(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def branches(mlp, x):
    """Return W a + b of each layer, shape (network, sample, unit)."""
    z, found = x.expand(mlp.networks, *x.shape), []
    for index, layer in enumerate(mlp.layers):
        a = mlp.activation(normalize(z, mlp.normalization)) if index else z
        bias = 0 if layer.bias is None else layer.bias.unsqueeze(1)
        found.append((a @ layer.weight.mT + bias).detach())
        z = z + layer.branch * found[-1] if mlp.has_skip(index) else found[-1]
    return found


def variances(mlp, x):
    return torch.stack([z.flatten(1).var(dim=1, correction=0) for z in branches(mlp, x)])


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("gain", [1.0, 0.5, -3.0])
def test_outputs_of_every_layer_have_the_standard_deviation_gain(activation, gain):
    mlp = MLP([20, *[30, 50, 40] * 10, 10], activation, networks=3, dtype=torch.float64)
    x = 7 * inputs(64, 20)
    initialize(mlp, "lsuv", seed=0, inputs=x, gain=gain)
    assert ((variances(mlp, x) / gain**2 - 1).abs() < 0.1).all()


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-6])
def test_weights_are_orthogonal_matrices_times_a_number_that_the_tolerance_allows_to_be_1(tolerance):
    mlp = MLP([32, 32, 32, 16], "tanh", dtype=torch.float64)
    x = inputs(64, 32)
    initialize(mlp, "lsuv", seed=0, inputs=x, tolerance=tolerance)
    plain = initialize(MLP([32, 32, 32, 16], "tanh", dtype=torch.float64), "orthogonal", seed=0)
    assert ((variances(mlp, x) - 1).abs() <= tolerance).all()
    for layer, other in zip(mlp.layers, plain.layers, strict=True):
        ratio = (layer.weight / other.weight).detach().flatten()
        torch.testing.assert_close(ratio, ratio[0].expand_as(ratio), rtol=1e-9, atol=0)
    # An orthogonal matrix keeps the standard normal batch as it is.
    assert torch.equal(mlp.layers[0].weight, plain.layers[0].weight) == (tolerance > 0.01)


def test_each_network_of_a_stack_is_scaled_by_itself():
    stack = initialize(MLP([20, 30, 30, 10], networks=3), "lsuv", seed=4, inputs=inputs(64, 20), tolerance=0.001)
    for index in range(3):
        alone = initialize(MLP([20, 30, 30, 10]), "lsuv", seed=4 + index, inputs=inputs(64, 20), tolerance=0.001)
        for mine, own in zip(stack.layers, alone.layers, strict=True):
            torch.testing.assert_close(mine.weight[index], own.weight[0], rtol=1e-6, atol=0)


def test_same_seed_gives_the_same_network_in_every_dtype():
    exact = initialize(MLP([20, 30, 30, 10], dtype=torch.float64), "lsuv", seed=0, inputs=inputs(64, 20))
    for dtype, eps in ((torch.float32, 2**-24), (torch.bfloat16, 2**-8)):
        rounded = initialize(MLP([20, 30, 30, 10], dtype=dtype), "lsuv", seed=0, inputs=inputs(64, 20))
        for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
            assert b.dtype is dtype
            torch.testing.assert_close(a, b.double(), rtol=1.01 * eps, atol=0)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device")
def test_same_seed_gives_the_same_network_on_the_gpu():
    here, there = (
        initialize(MLP([20, 30, 30, 10], dtype=torch.float64, device=device), "lsuv", seed=0, inputs=inputs(64, 20))
        for device in ("cpu", "cuda")
    )
    for a, b in zip(here.parameters(), there.parameters(), strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("residual", ["plain", "depth", "zero"])
@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_in_a_residual_network_each_branch_has_variance_1(normalization, residual):
    options = {"normalization": normalization, "residual": residual}
    mlp = MLP([20, *[30] * 6, 10], "tanh", networks=2, dtype=torch.float64, **options)
    x = inputs(64, 20)
    initialize(mlp, "lsuv", seed=0, inputs=x)
    if residual == "zero":
        assert not any(layer.branch.any() for layer in mlp.layers[1:-1])
        found = torch.stack([z.flatten(1).var(dim=1, correction=0) for z in zero_branches(mlp, x)])
    else:
        found = variances(mlp, x)
    assert ((found - 1).abs() < 0.1).all()


def zero_branches(mlp, x):
    first, *hidden, last = mlp.layers
    stream = first(x.expand(mlp.networks, *x.shape))
    a = mlp.activation(normalize(stream, mlp.normalization))
    return [stream.detach(), *(layer(a).detach() for layer in (*hidden, last))]


def test_biases_count_in_the_variance_but_only_weights_are_scaled():
    x = inputs(64, 20)
    mlp = initialize(MLP([20, 30, 30, 10], dtype=torch.float64), "lsuv", seed=0, sigma_b2=0.3, inputs=x)
    plain = initialize(MLP([20, 30, 30, 10], dtype=torch.float64), "orthogonal", seed=0, sigma_b2=0.3)
    assert ((variances(mlp, x) - 1).abs() < 0.1).all()
    for layer, other in zip(mlp.layers, plain.layers, strict=True):
        assert torch.equal(layer.bias, other.bias)
    without = initialize(MLP([20, 30, 10]), "lsuv", seed=0, inputs=x)
    assert not any(layer.bias.any() for layer in without.layers)


def test_the_number_of_divisions_is_limited():
    x = inputs(64, 20)
    first = [
        initialize(MLP([20, 30, 10]), "lsuv", seed=0, sigma_b2=9.0, inputs=x, iterations=n).layers[0].weight
        for n in (1, 2, 10)
    ]
    sizes = [weight.detach().norm().item() for weight in first]
    assert sizes[0] > 2 * sizes[1] > 100 * sizes[2] > 0  # a variance of 9 in the bias alone is out of reach


class Net(nn.Module):
    """Layers in another order than they are called in, one called twice, one never, with buffers and dropout."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(24, 4)
        self.twice = nn.Linear(24, 24)
        self.never = nn.Linear(3, 3)
        self.first = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, scale):
        x = self.dropout(torch.relu(self.norm(self.first(x)))).flatten(1)
        for _ in range(2):
            x = torch.relu(self.twice(scale * x))
        return self.last(input=x)


def test_any_module_is_scaled_in_the_order_of_calls_and_left_as_it_was_otherwise():
    torch.manual_seed(0)
    net, x = Net(), inputs(32, 3, 4, 4, dtype=torch.float32)
    before, state, parameters = copy.deepcopy(net.state_dict()), torch.get_rng_state(), list(net.parameters())
    net.last.eval()
    initialize(net, "lsuv", seed=0, inputs=(x, 5.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert not net.last.training
    assert all(mine is own for mine, own in zip(parameters, net.parameters(), strict=True))
    for key, value in before.items():
        assert torch.equal(net.state_dict()[key], value) == key.startswith("norm"), key
    assert not any(module._forward_hooks for module in net.modules())
    # The same pass, dropout included, with the variances of each layer's first call.
    found, twin = {}, copy.deepcopy(net).double()

    def see(name, output):
        found.setdefault(name, output.var(correction=0).item())

    for name in ("first", "twice", "last"):
        twin.get_submodule(name).register_forward_hook(lambda _m, _args, output, name=name: see(name, output))
    twin(x.double(), 5.0)
    assert list(found) == ["first", "twice", "last"]
    assert list(found.values()) == pytest.approx([1] * 3, abs=0.1)
    plain = initialize(nn.Linear(3, 3), "orthogonal", seed=0)
    assert net.never.weight.norm().item() == pytest.approx(plain.weight.norm().item(), rel=1e-6)


def test_a_weight_that_two_layers_share_is_scaled_once():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).double()
    net[2].weight = net[0].weight
    x = 5 * inputs(64, 8)
    initialize(net, "lsuv", seed=0, inputs=x)
    assert net[0](x).var(correction=0).item() == pytest.approx(1, abs=0.1)


def test_a_probe_that_is_attached_sees_nothing_of_it():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    with GradientProbe(net) as probe:
        initialize(net, lsuv_, seed=0, inputs=inputs(16, 8))
        net(inputs(16, 8, dtype=torch.float32)).sum().backward()
        probe.collect(0)
    assert probe.history.names == ["0", "2"]
    assert probe.history.profile("output")[0] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(("x", "found"), [(torch.zeros(5, 4), "0"), (torch.full((5, 4), torch.inf), "nan")])
def test_outputs_that_cannot_be_scaled_are_an_error_that_changes_nothing(x, found):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=f"^lsuv cannot scale layer '0', whose outputs have variance {found}$"):
        initialize(net, "lsuv", inputs=x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_lsuv_keeps_the_signal_of_a_relu_network_that_orthogonal_weights_let_vanish():
    x = inputs(64, 40)
    for scheme, vanishes in (("orthogonal", True), ("lsuv", False)):
        mlp = initialize(MLP([40] * 101, "relu", bias=False, dtype=torch.float64), scheme, seed=0, inputs=x)
        assert (mlp(x).std().item() < 1e-6) == vanishes


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_the_matrix_of_a_recurrence_is_scaled_at_the_first_state_and_without_the_inputs(cell):
    network = RNN(40, 3, depth=12, width=30, cell=cell, context=4).double()
    x = 3 * inputs(64, 40)
    initialize(network, "lsuv", seed=0, inputs=x, tolerance=1e-6, **network.rules)
    drives = [layer(x[:, :10]) for layer in network.inputs]
    if cell == "rnn":
        parts = [network.recurrence[0](torch.tanh(drives[0]))]
    else:
        h = (1 - drives[1].sigmoid()) * torch.tanh(drives[2])
        reset = (network.recurrence[0](h) + network.inputs[0](x[:, 10:20])).sigmoid()
        parts = [network.recurrence[0](h), network.recurrence[1](h), network.recurrence[2](reset * h)]
    assert [part.var(correction=0).item() for part in parts] == pytest.approx([1.0] * len(parts), abs=1e-5)
