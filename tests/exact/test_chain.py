"""chain_profile against autograd, sample by sample, and far beyond the range of float64 against the MLP's profile."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from gradexp import MLP, exact_profile, initialize
from gradexp.exact.chain import chain_profile
from gradexp.networks.activations import activation
from gradexp.networks.chain import Chain, Step, scaling_of
from gradexp.networks.cnn import CNN
from gradexp.networks.normalization import normalize


class Plain(Chain):
    """An MLP as a chain."""

    def __init__(self, widths, name, normalization="none"):
        super().__init__()
        self.phi = activation(name)
        self.normalization = normalization
        self.scaling = scaling_of(name, self.phi, normalization)
        self.mixes_samples = normalization == "batch"
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(widths))

    def unrolled(self, x):
        def layer(index):
            def run(z):
                return self.layers[index](self.phi(normalize(z, self.normalization)) if index else z)

            return run

        return x, [Step(f"layers.{index}", layer(index)) for index in range(len(self.layers))]


def alike(mlp):
    """Return the chain with the weights of an MLP."""
    name = next(key for key in ("relu", "tanh", "linear", "softplus") if activation(key) is mlp.activation)
    chain = Plain(mlp.widths, name, mlp.normalization).double()
    for layer, own in zip(chain.layers, mlp.layers, strict=True):
        layer.weight.data, layer.bias.data = own.weight.data[0].double(), own.bias.data[0].double()
    return chain


@pytest.mark.parametrize(
    ("name", "gain", "normalization", "depth"),
    [
        ("relu", 1e9, "none", 50),
        ("linear", 1e-9, "none", 50),
        ("tanh", 1e-9, "none", 50),
        ("softplus", 1.0, "none", 10),
        ("relu", 1.0, "layer", 10),
        ("tanh", 1.0, "batch", 10),  # more layers would make the last digits large
    ],
)
def test_a_chain_of_linear_layers_has_the_profile_of_the_mlp_at_any_depth(name, gain, normalization, depth):
    mlp = MLP([6, *[8] * (depth - 1), 3], name, normalization=normalization, dtype=torch.float64)
    initialize(mlp, "orthogonal", seed=1, gain=gain)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, expected = chain_profile(alike(mlp), x, seed=0), exact_profile(mlp, x)
    same = partial(torch.testing.assert_close, equal_nan=True)
    for quantity in expected.log10:
        torch.testing.assert_close(
            found.log10[quantity], expected.log10[quantity], rtol=1e-11, atol=1e-10, equal_nan=True
        )
        assert (found.status[quantity] == expected.status[quantity]).all()
        if quantity in expected.largest_log10:
            torch.testing.assert_close(
                found.largest_log10[quantity], expected.largest_log10[quantity], equal_nan=True
            )
    same(found.output_cosine, expected.output_cosine)
    same(found.samples, expected.samples)
    assert found.names == expected.names


@pytest.mark.parametrize(("name", "sigma_b2"), [("relu", None), ("tanh", 0.1)])
def test_the_profile_of_convolutions_is_that_of_autograd_sample_by_sample(name, sigma_b2):
    network = CNN(16, 3, depth=4, width=5, activation=name).double()
    initialize(network, "he", seed=0, sigma_b2=sigma_b2)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    profile = chain_profile(network, x, c)
    logs = {"output": [], "output_grad": [], "weight_grad": []}
    for sample, cotangent in zip(x, c, strict=True):
        h, steps = network.unrolled(sample.unsqueeze(0))
        states = [h := step.run(h) for step in steps]
        value = (h * cotangent).sum()
        layers = [*network.convolutions, network.readout]
        logs["output"].append([state.detach().square().mean().sqrt().log10() for state in states])
        gradients = torch.autograd.grad(value, states, retain_graph=True)
        logs["output_grad"].append([gradient.norm().log10() for gradient in gradients])
        gradients = torch.autograd.grad(value, [layer.weight for layer in layers])
        logs["weight_grad"].append([gradient.norm().log10() for gradient in gradients])
    for quantity, rows in logs.items():
        expected = torch.tensor(rows, dtype=torch.float64).mean(0)
        torch.testing.assert_close(torch.from_numpy(profile.profile(quantity)), expected, rtol=1e-12, atol=1e-12)
    assert profile.names == ["convolutions.0", "convolutions.1", "convolutions.2", "readout"]


def test_the_network_is_not_changed_and_keeps_its_hooks():
    network = CNN(16, 3, depth=3, width=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    chain_profile(network, torch.ones(2, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_cotangent_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"cotangent must have shape \(2, 3\), got \(2, 4\)"):
        chain_profile(CNN(16, 3, depth=2, width=2), torch.ones(2, 16), torch.ones(2, 4))
