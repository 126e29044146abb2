import math
import re
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from cases import few
from torch import nn

from gradexp import choices
from gradexp.config import Config
from gradexp.networks.activations import ACTIVATIONS, Activation, activation, as_activation
from gradexp.networks.initialize import initialize
from gradexp.networks.mlp import MLP, StackedLinear

MP = {
    "linear": lambda z: z,
    "tanh": mpmath.tanh,
    "relu": lambda z: max(z, 0),
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "leaky_relu": lambda z: z if z > 0 else mpmath.mpf(0.01) * z,
    "hard_tanh": lambda z: max(-1, min(1, z)),
    "erf": mpmath.erf,
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "selu": lambda z: (
        mpmath.mpf("1.0507009873554804934193349852946")
        * (z if z > 0 else mpmath.mpf("1.6732632423543772848170429916717") * mpmath.expm1(z))
    ),
    "gelu": lambda z: z * mpmath.ncdf(z),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "softplus": lambda z: mpmath.log1p(mpmath.exp(z)),
    "softsign": lambda z: z / (1 + abs(z)),
}
MODULES = {
    "linear": nn.Identity(),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "sigmoid": nn.Sigmoid(),
    "leaky_relu": nn.LeakyReLU(),
    "hard_tanh": nn.Hardtanh(),
    "elu": nn.ELU(),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
    "softsign": nn.Softsign(),
}


class Erf(nn.Module):
    def forward(self, z):
        return torch.erf(z)


MODULES["erf"] = Erf()


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def inputs(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def random_mlp(*args, scale=2.0, **options):
    """Draw weights and biases of a few times the default size, so that activations leave their linear part."""
    torch.manual_seed(0)
    mlp = MLP(*args, **options, dtype=torch.float64)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.mul_(scale)
    return mlp


def as_sequential(mlp, name):
    """Build the same network from torch's own modules."""
    modules = []
    for layer in mlp.layers:
        fan_out, fan_in = layer.weight.shape[1:]
        linear = nn.Linear(fan_in, fan_out, bias=layer.bias is not None, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(layer.weight[0])
            if layer.bias is not None:
                linear.bias.copy_(layer.bias[0])
        modules += [linear, MODULES[name]]
    return nn.Sequential(*modules[:-1])


def slope_by_differences(phi, z, side=0):
    """Differentiate with 60 digits, so that neither cancellation nor the step shows."""
    with mpmath.workdps(60):
        h = mpmath.mpf(10) ** -25
        z = mpmath.mpf(z)
        low, high = (z - h, z + h) if side == 0 else sorted((z, z + side * h))
        return float((phi(high) - phi(low)) / (high - low))


def test_every_activation_of_the_config_exists():
    assert tuple(ACTIVATIONS) == choices.ACTIVATIONS
    assert set(ACTIVATIONS) == set(MP) == set(MODULES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_its_formula(name):
    z = [-30.0, -5.0, -1.3, -1e-3, -1e-20, -1e-200, 0.0, 1e-200, 1e-20, 1e-3, 0.4, 1.3, 5.0, 15.0]
    with mpmath.workdps(40):
        exact = [float(MP[name](mpmath.mpf(v))) for v in z]
    # torch's own 1 + erf and softplus are good to about 1e-16 of the larger scale 1, not of a small value.
    assert activation(name)(float64(*z)).tolist() == pytest.approx(exact, rel=1e-14, abs=1e-14)
    if name in ("elu", "selu") and activation(name)(float64(-1e-20)) == 0:
        return  # torch 2.6 computes exp(z) - 1, which is 0 for tiny z
    tiny = slice(4, 9)
    assert activation(name)(float64(*z))[tiny].tolist() == pytest.approx(exact[tiny], rel=1e-15, abs=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_at_zero_are_the_one_sided_derivatives(name):
    expected = (slope_by_differences(MP[name], 0, -1), slope_by_differences(MP[name], 0, +1))
    assert activation(name).slopes_at_zero == pytest.approx(expected, rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_at_infinity_are_the_limits_of_phi_over_z(name):
    far = mpmath.mpf(2) ** 500  # where exact_profile changes to the line
    with mpmath.workdps(60):
        expected = (float(MP[name](-far) / -far), float(MP[name](far) / far))
    assert activation(name).slopes_at_infinity == pytest.approx(expected, rel=1e-14, abs=1e-100)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope_agree_with_autograd(name):
    z = torch.cat([inputs(200) * 2, float64(0.0, -1.0, 1.0)])
    leaf = z.clone().requires_grad_()
    value = activation(name)(leaf)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    with torch.no_grad():
        got_value, got_slope = activation(name).value_and_slope(z)
    assert torch.equal(got_value, value.detach())
    torch.testing.assert_close(got_slope, slope, rtol=1e-11, atol=1e-15)
    assert not got_value.requires_grad
    assert not got_slope.requires_grad
    assert not z.requires_grad


SATURATED = [
    *few([("tanh", z) for z in (-100.0, 350.0, -30.0, -19.5, 19.5, 30.0, 100.0)], 2),
    *few([("sigmoid", z) for z in (-700.0, 700.0, -100.0, -30.0, 30.0, 50.0, 100.0)], 2),
    *few([("softsign", z) for z in (-1e100, 1e20, -1e8, 1e8)], 2),
    *few([("gelu", z) for z in (-6.0, 6.0, -35.0, -20.0, -10.0, 20.0)], 2),
    *few([("silu", z) for z in (-700.0, 40.0, -40.0)], 2),
    *few([("elu", z) for z in (-700.0, -40.0)], 1),
    *few([("selu", z) for z in (-700.0, -40.0)], 1),
    *few([("softplus", z) for z in (-700.0, -40.0)], 1),
    *few([("erf", z) for z in (-6.0, -20.0, 6.0, 20.0)], 1),
]


@pytest.mark.parametrize(("name", "z"), SATURATED)
def test_slope_keeps_its_digits_where_the_activation_saturates(name, z):
    _, slope = activation(name).value_and_slope(float64(z))
    with mpmath.workdps(1000):  # sigmoid(700) is 1 - 1e-304
        expected = float(mpmath.diff(MP[name], mpmath.mpf(z), h=mpmath.mpf(10) ** -450, relative=False))
    assert slope.item() == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope_are_finite_at_the_edge_of_the_ordinary_range(name):
    for z in (2.0**500, -(2.0**500), 2.0**-500, -(2.0**-500)):
        value, slope = activation(name).value_and_slope(float64(z))
        assert value.isfinite().all()
        assert slope.isfinite().all()


@pytest.mark.parametrize("slope", [0.2, -0.5, 1.0, 0.0])
def test_negative_slope_is_that_of_leaky_relu(slope):
    phi = activation("leaky_relu", negative_slope=slope)
    value, derivative = phi.value_and_slope(float64(-2.0, 3.0))
    assert value.tolist() == pytest.approx([-2 * slope, 3.0])
    assert derivative.tolist() == [slope, 1.0]
    assert phi.slopes_at_zero == phi.slopes_at_infinity == (slope, 1.0)
    mlp = random_mlp([3, 4, 2], "leaky_relu", negative_slope=slope)
    x = inputs(5, 3)
    first, last = mlp.layers
    z = x @ first.weight[0].mT + first.bias[0]
    expected = torch.where(z > 0, z, slope * z) @ last.weight[0].mT + last.bias[0]
    torch.testing.assert_close(mlp(x), expected, rtol=1e-12, atol=0)


def test_unknown_activation_is_named_with_the_choices():
    message = r"^unknown activation 'rulu'; choose one of linear, tanh, relu, .*, softsign, swish$"
    with pytest.raises(ValueError, match=message):
        activation("rulu")
    with pytest.raises(ValueError, match=message):
        MLP([2, 2], "rulu")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_equals_a_sequence_of_torch_layers(name, bias):
    mlp = random_mlp([5, 8, 3, 6, 4], name, bias)
    plain = as_sequential(mlp, name)
    x, cotangent = inputs(7, 5), inputs(7, 4)
    torch.testing.assert_close(mlp(x), plain(x), rtol=1e-12, atol=1e-15)
    mine = torch.autograd.grad((mlp(x) * cotangent).sum(), list(mlp.parameters()))
    theirs = torch.autograd.grad((plain(x) * cotangent).sum(), list(plain.parameters()))
    assert len(mine) == len(theirs) == 4 * (1 + bias)
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours[0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_member_of_a_stack_equals_itself_alone(name):
    stack = random_mlp([4, 6, 5, 2], name, networks=3)
    x = inputs(9, 4)
    together = stack(x)
    assert together.shape == (3, 9, 2)
    assert not torch.equal(together[0], together[1])
    grads = torch.autograd.grad(together.square().sum(), list(stack.parameters()))
    for index in range(3):
        alone = stack.network(index)
        torch.testing.assert_close(alone(x), together[index], rtol=1e-12, atol=1e-15)
        own = torch.autograd.grad(alone(x).square().sum(), list(alone.parameters()))
        for mine, theirs in zip(grads, own, strict=True):
            torch.testing.assert_close(mine[index], theirs[0], rtol=1e-12, atol=1e-14)


def test_each_network_of_a_stack_can_have_inputs_of_its_own():
    stack = random_mlp([4, 6, 2], "tanh", networks=3)
    x = inputs(3, 9, 4)
    y = stack(x)
    assert y.shape == (3, 9, 2)
    for index in range(3):
        torch.testing.assert_close(y[index], stack.network(index)(x[index]), rtol=1e-12, atol=0)
    assert random_mlp([4, 2])(x[:1]).shape == (1, 9, 2)


def test_depth_one_is_a_linear_map_without_activation():
    mlp = random_mlp([3, 2], "relu")
    x = inputs(6, 3)
    assert mlp.depth == 1
    expected = F.linear(x, mlp.layers[0].weight[0], mlp.layers[0].bias[0])
    torch.testing.assert_close(mlp(x), expected, rtol=1e-14, atol=1e-15)
    assert (mlp(x) < 0).any()


def test_one_network_of_a_stack_is_a_copy():
    stack = random_mlp([3, 4, 2], "leaky_relu", bias=False, networks=2, negative_slope=0.3)
    alone = stack.network(1)
    assert (alone.networks, alone.widths, alone.activation) == (1, (3, 4, 2), stack.activation)
    assert all(layer.bias is None for layer in alone.layers)
    assert alone.layers[0].weight.dtype == torch.float64
    assert torch.equal(stack.network(-1).layers[1].weight, alone.layers[1].weight)
    before = stack.layers[0].weight[1].clone()
    nn.init.zeros_(alone.layers[0].weight)
    assert torch.equal(stack.layers[0].weight[1], before)
    with pytest.raises(IndexError):
        stack.network(2)


def test_taking_one_network_draws_no_random_numbers():
    stack = random_mlp([3, 4, 2], networks=2)
    state = torch.get_rng_state()
    stack.network(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_default_parameters_are_uniform_within_one_over_root_fan_in():
    torch.manual_seed(0)
    layer = StackedLinear(2, 100, 300)
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= 0.1
        # sd of a mean of squares of U(-a, a): sqrt(4/45) a² / sqrt(N); five of them
        tolerance = 5 * math.sqrt(4 / 45) * 0.01 / math.sqrt(parameter.numel())
        assert parameter.square().mean().item() == pytest.approx(0.01 / 3, abs=tolerance)


def test_depth_counts_weight_matrices_and_a_layer_shows_its_sizes():
    mlp = MLP([3, 4, 2], networks=5, bias=False)
    assert mlp.depth == 2
    assert "networks=5, fan_in=4, fan_out=2, bias=False" in repr(mlp)


def test_dtype_and_device_reach_every_parameter():
    mlp = MLP([3, 4, 2], dtype=torch.bfloat16, device="meta")
    assert {(p.dtype, p.device.type) for p in mlp.parameters()} == {(torch.bfloat16, "meta")}


def test_an_activation_from_outside_is_used_as_it_is():
    square = Activation(torch.square, (0, 0), (-math.inf, math.inf))
    mlp = random_mlp([2, 3, 1], square)
    x = inputs(4, 2)
    first, last = mlp.layers
    hidden = F.linear(x, first.weight[0], first.bias[0]).square()
    torch.testing.assert_close(mlp(x), F.linear(hidden, last.weight[0], last.bias[0]))
    assert square.value_and_slope(float64(3.0))[1].item() == 6


@pytest.mark.parametrize("widths", [[], [3], [3, 0], [0, 3], [3, -1, 2]])
def test_impossible_widths_are_refused(widths):
    with pytest.raises(ValueError, match=r"^widths must be at least two numbers of at least 1, got \["):
        MLP(widths)


def test_a_stack_of_no_networks_is_refused():
    with pytest.raises(ValueError, match=r"^networks must be at least 1, got 0$"):
        MLP([2, 2], networks=0)


def test_weights_are_drawn_as_linear_draws_them_unless_told_not_to():
    state = torch.get_rng_state()
    MLP([16, 8, 4], draw=False)
    assert torch.equal(torch.get_rng_state(), state)
    for layer in MLP([16, 8, 4]).layers:
        bound = layer.weight.shape[-1] ** -0.5
        assert 0.5 * bound < max(layer.weight.abs().max(), layer.bias.abs().max()) <= bound
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("function", "at_zero", "at_infinity"),
    [
        (nn.ReLU(inplace=True), (0, 1), (0, 1)),
        (nn.Tanh(), (1, 1), (0, 0)),
        (torch.sin, (1, 1), (0, 0)),
        (lambda z: torch.where(z < 0, 0.3 * z, 2 * z), (0.3, 2), (0.3, 2)),
    ],
)
def test_any_elementwise_function_is_an_activation(
    function: Any, at_zero: tuple[float, float], at_infinity: tuple[float, float]
) -> None:
    made = as_activation(function, kinks=[1, 0])
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    before = z.clone()
    torch.testing.assert_close(made(z), function(z.clone()), rtol=0, atol=0)
    torch.testing.assert_close(z, before, rtol=0, atol=0)
    assert made.slopes_at_zero == pytest.approx(at_zero)
    assert made.slopes_at_infinity == pytest.approx(at_infinity)
    assert made.kinks == (0, 1)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (
            nn.Softmax(-1),
            ValueError,
            "activation must act on each element alone and always alike; Softmax does not",
        ),
        (nn.Dropout(), ValueError, "Dropout does not"),
        (lambda z: z.mean(), ValueError, "<lambda> does not"),
        (3, TypeError, "activation must be a name, an Activation or a function, got int"),
        ("tahn", ValueError, "unknown activation 'tahn'; choose one of linear, tanh"),
    ],
)
def test_what_is_no_activation_is_refused(given: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        as_activation(given)
    with pytest.raises(ValueError, match="kinks are for a function"):
        as_activation("relu", kinks=[0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_kinks_are_where_a_derivative_jumps(name: str) -> None:
    phi, h = ACTIVATIONS[name], 1e-3
    grid = torch.arange(-2, 2.0001, 0.25, dtype=torch.float64)

    def second(z: torch.Tensor) -> torch.Tensor:  # divided difference of the slope, from one side
        return (phi.value_and_slope(z + h)[1] - phi.value_and_slope(z)[1]) / h

    jumps = (second(grid + 1e-9) - second(grid - h - 1e-9)).abs() > 0.05
    jumps |= (phi.value_and_slope(grid + 1e-9)[1] - phi.value_and_slope(grid - 1e-9)[1]).abs() > 0.05
    assert grid[jumps].tolist() == list(phi.kinks)


# ---- cures: normalisation and skip connections

CURES = [(n, r) for n in choices.NORMALIZATIONS for r in choices.RESIDUALS]


AFFINE = [("batch", "none"), ("layer", "zero"), ("rms", "plain")]


def give_branches(mlp):
    """Let learnable branches, scales and shifts be somewhere else than where they start."""
    with torch.no_grad():
        for parameter in () if mlp.norms is None else mlp.norms.parameters():
            parameter.add_(inputs(*parameter.shape))
        for layer in mlp.layers:
            if isinstance(layer.branch, nn.Parameter):
                layer.branch.copy_(torch.linspace(0.3, -0.7, mlp.networks))


def by_formula(mlp, x, network):
    """Compute zˡ of one network from the formulas, with torch's own normalisation."""
    norms = {
        "none": lambda z: z,
        "batch": lambda z: F.batch_norm(z, None, None, training=True, eps=1e-300),
        "layer": lambda z: F.layer_norm(z, z.shape[-1:], eps=0.0),
        "rms": lambda z: z / z.square().mean(-1, keepdim=True).sqrt(),
    }
    factors = {"plain": 1.0, "depth": 1 / math.sqrt(mlp.depth)}
    outputs = []
    for index, layer in enumerate(mlp.layers):
        a = norms[mlp.normalization](outputs[-1]) if index else x
        if index and mlp.norms is not None:
            norm = mlp.norms[index - 1]
            a = a * norm.scale[network] + (0 if norm.shift is None else norm.shift[network])
        a = mlp.activation(a) if index else x
        z = F.linear(a, layer.weight[network], None if layer.bias is None else layer.bias[network])
        if mlp.residual != "none" and 0 < index < mlp.depth - 1:
            factor = layer.branch[network] if mlp.residual == "zero" else factors[mlp.residual]
            z = outputs[-1] + factor * z
        outputs.append(z)
    return outputs


@pytest.mark.parametrize("bias", few([True, False]))
@pytest.mark.parametrize(
    ("normalization", "residual", "affine"), [*((*cures, False) for cures in CURES), *((*a, True) for a in AFFINE)]
)
def test_the_cures_are_their_formulas(normalization, residual, affine, bias):
    cures = {"normalization": normalization, "residual": residual, "affine": affine}
    mlp = random_mlp([5, 8, 8, 8, 3], "tanh", bias, networks=3, **cures)
    give_branches(mlp)
    x, cotangent = inputs(7, 5), inputs(3, 7, 3)
    mine = torch.autograd.grad((mlp(x) * cotangent).sum(), list(mlp.parameters()))
    expected = torch.stack([by_formula(mlp, x, network)[-1] for network in range(3)])
    torch.testing.assert_close(mlp(x), expected, rtol=1e-11, atol=1e-13)
    theirs = torch.autograd.grad((expected * cotangent).sum(), list(mlp.parameters()))
    for ours, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("normalization", "residual", "affine"), [*((*cures, False) for cures in CURES), *((*a, True) for a in AFFINE)]
)
def test_a_network_with_cures_equals_itself_alone(normalization, residual, affine):
    cures = {"normalization": normalization, "residual": residual, "affine": affine}
    stack = random_mlp([4, 6, 6, 6, 2], "relu", networks=3, **cures)
    give_branches(stack)
    alone = stack.network(1)
    assert (alone.normalization, alone.residual) == (normalization, residual)
    assert alone.state_dict().keys() == stack.state_dict().keys()
    x = inputs(9, 4)
    torch.testing.assert_close(alone(x), stack(x)[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(random_mlp([4, 6, 2]).network(0)(x), random_mlp([4, 6, 2])(x), rtol=0, atol=0)


def test_a_learnable_branch_starts_at_0_so_that_the_stream_is_the_first_layers_output():
    mlp = random_mlp([4, 6, 6, 6, 2], "tanh", networks=2, residual="zero")
    branches = [layer.branch for layer in mlp.layers]
    assert [isinstance(branch, nn.Parameter) for branch in branches] == [False, True, True, False]
    assert all(branch.shape == (2,) and not branch.any() for branch in branches[1:3])
    mlp.layers[1].branch.data.fill_(3.0)
    mlp.layers[1].reset_parameters()
    assert not mlp.layers[1].branch.any()
    x = inputs(5, 4)
    first, last = mlp.layers[0], mlp.layers[-1]
    shallow = last(torch.tanh(first(x.expand(2, -1, -1))))
    torch.testing.assert_close(mlp(x), shallow, rtol=1e-14, atol=1e-15)
    initialize(mlp, "he", seed=0)
    assert not mlp.layers[1].branch.any()


def test_a_learnable_branch_is_part_of_the_state():
    mlp = random_mlp([4, 6, 6, 2], "tanh", networks=2, residual="zero")
    give_branches(mlp)
    other = MLP([4, 6, 6, 2], "tanh", networks=2, residual="zero", dtype=torch.float64)
    other.load_state_dict(mlp.state_dict())
    assert torch.equal(other(inputs(5, 4)), mlp(inputs(5, 4)))
    assert "layers.1.branch" in mlp.state_dict()


@pytest.mark.parametrize("widths", [[4, 2], [4, 6, 2]])
@pytest.mark.parametrize("residual", choices.RESIDUALS)
def test_without_two_hidden_layers_there_is_nothing_to_skip(widths, residual):
    plain, mlp = random_mlp(widths, "tanh"), random_mlp(widths, "tanh", residual=residual)
    assert torch.equal(mlp(inputs(5, 4)), plain(inputs(5, 4)))
    assert not any(mlp.has_skip(index) for index in range(mlp.depth))


@pytest.mark.parametrize("normalization", ["batch", "layer"])
def test_with_normalisation_the_scale_of_hidden_weights_does_not_matter(normalization):
    mlp = random_mlp([4, 6, 6, 6, 2], "relu", bias=False, normalization=normalization)
    x = inputs(9, 4)
    before = mlp(x)
    with torch.no_grad():
        for layer, factor in zip(mlp.layers, (1e-30, 1e30, 1e-100, 1), strict=False):
            layer.weight.mul_(factor)
    torch.testing.assert_close(mlp(x), before, rtol=1e-12, atol=1e-14)


def test_evaluation_takes_the_statistics_of_its_own_batch():
    mlp = random_mlp([4, 6, 2], "relu", normalization="batch")
    x = inputs(9, 4)
    assert torch.equal(mlp.train()(x), mlp.eval()(x))
    torch.testing.assert_close(mlp(x[:3]), by_formula(mlp, x[:3], 0)[-1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("normalization", ["batch", "layer", "rms"])
def test_an_affine_normaliser_starts_as_the_one_without_parameters(normalization):
    widths = [4, 6, 6, 2]
    mlp, plain = (
        MLP(widths, networks=2, dtype=torch.float64, normalization=normalization, affine=affine)
        for affine in (True, False)
    )
    for each in (mlp, plain):
        initialize(each, "he", seed=0, report=lambda _: None)
    assert torch.equal(mlp(inputs(5, 4)), plain(inputs(5, 4)))
    of_norms = {name: tuple(p.shape) for name, p in mlp.named_parameters() if name.startswith("norms.0")}
    shift = {} if normalization == "rms" else {"norms.0.shift": (2, 6)}
    assert of_norms == {"norms.0.scale": (2, 6)} | shift


def test_initialize_leaves_the_parameters_of_normalisers_without_a_warning():
    accounts = []
    mlp = random_mlp([4, 6, 6, 2], "relu", networks=2, normalization="layer", affine=True)
    initialize(mlp, "he", seed=0, report=accounts.append)
    assert not accounts[0].warning
    assert accounts[0].left["norms.1.scale"] == "of a normalisation"


def test_repr_names_the_cures():
    assert "=none" not in repr(MLP([2, 3, 3, 1]))
    assert "normalization=layer, residual=depth" in repr(MLP([2, 3, 3, 1], normalization="layer", residual="depth"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"affine": True}, "affine needs a normalization (batch, layer or rms), whose scale and shift they are"),
        ({"normalization": "group"}, "normalization must be one of none, batch, layer, rms, got 'group'"),
        ({"residual": "rezero"}, "residual must be one of none, plain, depth, zero, got 'rezero'"),
        ({"residual": "plain"}, "residual='plain' needs hidden layers of equal width, got [3, 4]"),
    ],
)
def test_impossible_cures_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        MLP([2, 3, 4, 1], **options)
    with pytest.raises(choices.ConfigError, match=re.escape(text)):
        Config(widths=[3, 4], **options)
