import copy

import pytest
import torch

from gradexp import MLP
from gradexp.networks import one_node
from gradexp.networks.activations import ACTIVATIONS
from gradexp.networks.one_node import OneNode


def models(activation="relu", bias=True, networks=2, dtype=torch.float64):
    torch.manual_seed(0)
    model = MLP([5, 7, 7, 3], activation, bias=bias, networks=networks, dtype=dtype)
    return model, copy.deepcopy(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [*ACTIVATIONS, torch.sin])
def test_the_written_out_passes_are_those_of_autograd(activation, bias):
    model, other = models(activation, bias)
    network = OneNode(other)
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    y = model(x)
    gradients = torch.autograd.grad(y.square().sum(), [*model.parameters()])
    written = network(x)
    written.square().sum().backward()
    torch.testing.assert_close(written, y)
    torch.testing.assert_close(network.gradients.all, [*gradients])
    with torch.no_grad():
        torch.testing.assert_close(network(x), y)


@pytest.mark.parametrize("rows", [64, 6])  # with 7 units, by 6 rows only 32 networks are whole vectors
@pytest.mark.parametrize("activation", [*ACTIVATIONS, torch.sin])
def test_a_few_networks_at_a_time_are_evaluated_to_the_same_bits(activation, rows, monkeypatch):
    network = OneNode(models(activation, networks=70, dtype=torch.float32)[1])
    x = torch.randn(70, rows, 5)
    written = network(x)
    for networks in (1, 2, 40, 99):
        monkeypatch.setattr(one_node, "_CACHED", networks * rows * 7)
        with torch.no_grad():
            assert torch.equal(network(x), written)


def test_two_backward_passes_add_up_until_gradients_are_set_to_none():
    model, other = models()
    network = OneNode(other)
    x, z = torch.randn(2, 2, 6, 5, dtype=torch.float64)
    gradients = torch.autograd.grad(model(x).square().sum() + model(z).sum(), [*model.parameters()])
    for _ in range(2):
        network(x).square().sum().backward()
        network(z).sum().backward()
        torch.testing.assert_close(network.gradients.all, [*gradients])
        assert network.parameter.grad is network.gradients.buffer
        network.parameter.grad = None


def test_what_an_optimizer_does_to_the_buffer_reaches_the_models_parameters():
    model, other = models(dtype=torch.float32)
    network = OneNode(other)
    x = torch.randn(2, 6, 5)
    optimizers = torch.optim.Adam(model.parameters()), torch.optim.Adam([network.parameter])
    for _ in range(3):
        for each, optimizer in zip((model, network), optimizers, strict=True):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close([*other.parameters()], [*model.parameters()], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other(x), network(x))


def test_a_watcher_sees_outputs_and_their_gradients_where_a_graph_is_made():
    class Seen:
        def __init__(self):
            self.outputs, self.gradients = [], []

        def see_output(self, z):
            self.outputs.append(z.detach().clone())

        def see_gradient(self, gradient):
            self.gradients.append(gradient.clone())

    model, other = models("gelu")
    network, x = OneNode(other), torch.randn(2, 6, 5, dtype=torch.float64)
    network.watcher = seen = Seen()
    with torch.no_grad():
        network(x)
    assert not seen.outputs
    network(x).square().sum().backward()
    outputs = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _args, z: outputs.append(z))
    gradients = torch.autograd.grad(model(x).square().sum(), outputs)
    torch.testing.assert_close(seen.outputs, [z.detach() for z in outputs])
    torch.testing.assert_close(seen.gradients, [*gradients][::-1])


@pytest.mark.parametrize("option", [{"normalization": "layer"}, {"residual": "plain"}, {"dropout": 0.1}])
def test_other_networks_are_refused(option):
    with pytest.raises(ValueError, match="only an MLP without normalization, residual and dropout"):
        OneNode(MLP([2, 3, 3, 2], **option))
