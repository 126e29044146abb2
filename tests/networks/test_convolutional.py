"""Plain and residual convolutional networks: what they compute, what they refuse, and their own initialisation."""

import math

import pytest
import torch
from torch.nn import functional as F

from gradexp import initialize
from gradexp.networks.cnn import CNN
from gradexp.networks.normalization import normalize_images
from gradexp.networks.resnet import ResNet


def images(batch=3, features=16):
    return torch.randn(batch, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_a_cnn_is_a_chain_of_convolutions_with_a_linear_readout(padding):
    network = CNN(48, 3, depth=3, width=5, padding=padding, activation="tanh", normalization="layer").double()
    initialize(network, "lecun", seed=0, sigma_b2=0.1)
    x = images(features=48)
    h = x.view(3, 3, 4, 4)
    for index, layer in enumerate(network.convolutions):
        if index:
            h = F.layer_norm(h, h.shape[1:], eps=0).tanh()
        if padding == "circular":
            h = F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), layer.weight, layer.bias)
        else:
            h = F.conv2d(h, layer.weight, layer.bias, padding=1)
    expected = network.readout(F.layer_norm(h, h.shape[1:], eps=0).tanh().flatten(1))
    torch.testing.assert_close(network(x), expected)


def test_batch_norm_of_images_is_that_of_torch():
    z = images(features=4 * 9).view(3, 4, 3, 3)
    expected = F.batch_norm(z, None, None, training=True, eps=1e-30)
    torch.testing.assert_close(normalize_images(z, "batch"), expected)


@pytest.mark.parametrize(("residual", "factor"), [("plain", 1.0), ("depth", 0.5), ("none", None), ("zero", 0.0)])
def test_a_residual_network_adds_branches_of_two_convolutions(residual, factor):
    network = initialize(ResNet(16, 3, depth=10, width=4, residual=residual).double(), "he", seed=0)

    def convolved(layer, h):
        return F.conv2d(F.pad(h, (1, 1, 1, 1), mode="circular"), layer.weight, layer.bias)

    x = images()
    h = convolved(network.stem, x.view(3, 1, 4, 4))
    for block in network.blocks:
        branch = convolved(block.last, convolved(block.first, h.relu()).relu())
        h = branch if factor is None else h + factor * branch
    torch.testing.assert_close(network(x), network.readout(h.relu().flatten(1)))


def test_fixup_starts_as_the_identity_with_scaled_first_convolutions():
    network = ResNet(16, 3, depth=10, width=8, residual="fixup").double()
    initialize(network, "he", seed=0, **network.rules)
    assert not any(block.last.weight.any() for block in network.blocks)
    drawn = torch.stack([block.first.weight for block in network.blocks])
    # 2304 numbers: their mean square has a relative standard deviation of 3 %.
    torch.testing.assert_close(drawn.square().mean() * 72, torch.tensor(2 / 4.0).double(), rtol=0.12, atol=0)
    x = images()
    h = network.stem(x.view(3, 1, 4, 4))
    torch.testing.assert_close(network(x), network.readout(h.relu().flatten(1)))
    shapes = {tuple(value.shape) for name, value in network.named_parameters() if ".shifts." in name}
    assert shapes == {()}
    assert sum(".shifts." in name for name, _ in network.named_parameters()) == 4 * 4


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: CNN(16, 3, depth=3, width=2, kernel=2), "kernel must be odd and at most 4, .* got 2"),
        (lambda: CNN(16, 3, depth=3, width=2, kernel=5), "kernel must be odd and at most 4, .* got 5"),
        (lambda: CNN(16, 3, depth=3, width=2, padding="same"), "padding must be one of circular, zeros, got 'same'"),
        (lambda: CNN(17, 3, depth=3, width=2), "images are .* got 17 features"),
        (lambda: CNN(16, 3, depth=0, width=2), "depth must be at least 1, got 0"),
        (lambda: ResNet(16, 3, depth=151, width=2), "depth must be even, .*: 150 or 152, got 151"),
        (lambda: ResNet(16, 3, depth=1, width=2), "depth must be even, .*: 2, got 1"),
        (lambda: ResNet(16, 3, depth=4, width=2, residual="rezero"), "residual must be one of none, .*'rezero'"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(build, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        build()


@pytest.mark.parametrize("shape", [(6, 6), (8, 3, 3, 3), (3, 8, 3, 3), (5, 5, 3)])
def test_delta_orthogonal_is_orthogonal_at_the_centre_and_0_elsewhere(shape):
    weight = initialize(_layer(shape), "delta_orthogonal", seed=0, gain=1.5).weight.detach()
    centre = weight[(..., *[size // 2 for size in shape[2:]])]
    smaller = min(shape[:2])
    gram = centre @ centre.mT if shape[0] == smaller else centre.mT @ centre
    torch.testing.assert_close(gram, 2.25 * torch.eye(smaller, dtype=torch.float64))
    assert int(weight.count_nonzero()) == shape[0] * shape[1]


def _layer(shape):
    kinds = {2: torch.nn.Linear, 3: torch.nn.Conv1d, 4: torch.nn.Conv2d}
    return kinds[len(shape)](shape[1], shape[0], *shape[2:3]).double()


def test_a_linear_delta_orthogonal_network_keeps_every_length_at_any_depth():
    network = CNN(48, 3, depth=60, width=4, activation="linear").double()
    initialize(network, "delta_orthogonal", seed=0)
    x = images(features=48).requires_grad_()
    h, steps = network.unrolled(x)
    for step in steps[:-1]:
        h = step.run(h)
    torch.testing.assert_close(h.flatten(1).norm(dim=1), x.norm(dim=1))
    cotangent = torch.randn(h.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    below = steps[0].run(network.unrolled(x)[0]).detach().requires_grad_()
    h = below
    for step in steps[1:-1]:
        h = step.run(h)
    (gradient,) = torch.autograd.grad((h * cotangent).sum(), below)
    torch.testing.assert_close(gradient.flatten(1).norm(dim=1), cotangent.flatten(1).norm(dim=1))
    assert math.isclose(float(network.readout.weight.detach().square().sum()), 3, rel_tol=1e-9)
