import math
import warnings

import mpmath
import pytest
import torch
from cases import few

from gradexp.choices import NORMALIZATIONS, RESIDUALS
from gradexp.exact import profile as propagate
from gradexp.exact.profile import exact_profile
from gradexp.history.step import STATUSES
from gradexp.networks.activations import ACTIVATIONS, activation
from gradexp.networks.initialize import initialize
from gradexp.networks.mlp import MLP
from gradexp.networks.normalization import normalize
from gradexp.numerics import seeds

QUANTITIES = ("output", "output_grad", "weight_grad")
OFF_ZERO = ("sigmoid", "softplus")
UNBOUNDED = ("gelu", "silu", "elu", "selu", "softplus", "relu", "leaky_relu")
BOUNDED = ("tanh", "sigmoid", "hard_tanh", "erf", "softsign")
LN10 = math.log(10)

_SELU = mpmath.mpf("1.0507009873554804934193349852946")
_SELU_ALPHA = mpmath.mpf("1.6732632423543772848170429916717")


def _normal_cdf(z):
    return mpmath.ncdf(z) if abs(z) < 1e6 else mpmath.mpf(z > 0)  # mpmath's own overflows far out


MP = {
    "linear": lambda z: z,
    "relu": lambda z: max(z, 0),
    "leaky_relu": lambda z: z if z > 0 else mpmath.mpf(0.01) * z,
    "tanh": mpmath.tanh,
    "erf": mpmath.erf,
    "hard_tanh": lambda z: max(-1, min(1, z)),
    "softsign": lambda z: z / (1 + abs(z)),
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "softplus": lambda z: z if z > 20 else mpmath.log1p(mpmath.exp(z)),  # as torch defines it
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "gelu": lambda z: z * _normal_cdf(z),
    "elu": lambda z: z if z > 0 else mpmath.expm1(z),
    "selu": lambda z: _SELU * (z if z > 0 else _SELU_ALPHA * mpmath.expm1(z)),
}
MP_SLOPES = {
    "linear": lambda z: 1,
    "relu": lambda z: int(z > 0),
    "leaky_relu": lambda z: 1 if z > 0 else mpmath.mpf(0.01),
    "tanh": lambda z: mpmath.sech(z) ** 2,
    "erf": lambda z: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-z * z),
    "hard_tanh": lambda z: int(abs(z) < 1),
    "softsign": lambda z: 1 / (1 + abs(z)) ** 2,
    "sigmoid": lambda z: MP["sigmoid"](z) * MP["sigmoid"](-z),
    "softplus": lambda z: 1 if z > 20 else MP["sigmoid"](z),
    "silu": lambda z: MP["sigmoid"](z) * (1 + z * MP["sigmoid"](-z)),
    "gelu": lambda z: _normal_cdf(z) + z * mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi),
    "elu": lambda z: 1 if z > 0 else mpmath.exp(z),
    "selu": lambda z: _SELU * (1 if z > 0 else _SELU_ALPHA * mpmath.exp(z)),
}


def ones(batch, width):
    return torch.ones(batch, width, dtype=torch.float64)


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def identity_mlp(scale, depth, phi="linear", width=2, dtype=torch.float64, device=None, **options):
    mlp = MLP([width] * (depth + 1), phi, bias=False, dtype=dtype, device=device, **options)
    with torch.no_grad():
        for layer in mlp.layers:
            layer.weight.copy_(scale * torch.eye(width, dtype=torch.float64))
    return mlp


def diagonal_mlp(phi, weights, biases=None):
    """Make one chain per column: ``weights`` and ``biases`` have shape (layer, unit)."""
    width = len(weights[0])
    mlp = MLP([width] * (len(weights) + 1), phi, bias=biases is not None, dtype=torch.float64)
    with torch.no_grad():
        for index, layer in enumerate(mlp.layers):
            layer.weight.copy_(torch.diag(torch.tensor(weights[index], dtype=torch.float64)))
            if biases is not None:
                layer.bias.copy_(torch.tensor(biases[index], dtype=torch.float64))
    return mlp


def random_mlp(*args, scale=2.0, dtype=torch.float64, device=None, **options):
    torch.manual_seed(0)
    mlp = MLP(*args, **options, dtype=torch.float64)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.mul_(scale)
    return mlp.to(device, dtype)


def by_autograd(mlp, x, cotangent):
    """Differentiate l_b of every single sample by autograd in float64, whole weight gradients included."""
    logs = {quantity: torch.zeros(mlp.networks, len(x), mlp.depth) for quantity in QUANTITIES}
    logs = {quantity: values.double() for quantity, values in logs.items()}
    for n in range(mlp.networks):
        for b in range(len(x)):
            weights = [layer.weight[n].detach().double().requires_grad_() for layer in mlp.layers]
            a, outputs = x[b].double(), []
            for index, layer in enumerate(mlp.layers):
                a = mlp.activation(a) if index else a
                a = weights[index] @ a
                if layer.bias is not None:
                    a = a + layer.bias[n].detach().double()
                outputs.append(a)
            loss = (cotangent[n, b] * a).sum()
            grads = torch.autograd.grad(loss, [*outputs, *weights])
            for index, z in enumerate(outputs):
                logs["output"][n, b, index] = z.detach().square().mean().sqrt().log10()
                logs["output_grad"][n, b, index] = grads[index].norm().log10()
                logs["weight_grad"][n, b, index] = grads[mlp.depth + index].norm().log10()
    return {quantity: values.mean(dim=1) for quantity, values in logs.items()}


def by_mpmath(mlp, x, cotangent, name):
    """Do the same for the first network and a single sample with any exponent, φ' in closed form."""
    with mpmath.workdps(60):
        phi, slope = MP[name], MP_SLOPES[name]

        def log10_norm(values, count=1):
            squares = mpmath.fsum(v * v for v in values)
            return float(mpmath.log10(squares / count) / 2) if squares else -math.inf

        weights = [[[mpmath.mpf(v) for v in row] for row in layer.weight[0].tolist()] for layer in mlp.layers]
        a, inputs, outputs = [mpmath.mpf(v) for v in x[0].tolist()], [], []
        for index, layer in enumerate(mlp.layers):
            a = [phi(v) for v in a] if index else a
            inputs.append(a)
            bias = layer.bias[0].tolist() if layer.bias is not None else [0] * len(weights[index])
            a = [
                mpmath.fsum(w * v for w, v in zip(row, a, strict=True)) + b
                for row, b in zip(weights[index], bias, strict=True)
            ]
            outputs.append(a)
        delta = [mpmath.mpf(v) for v in cotangent[0].tolist()]
        logs = {quantity: [0.0] * mlp.depth for quantity in QUANTITIES}
        for index in reversed(range(mlp.depth)):
            logs["output"][index] = log10_norm(outputs[index], len(outputs[index]))
            logs["output_grad"][index] = log10_norm(delta)
            logs["weight_grad"][index] = log10_norm([d * v for d in delta for v in inputs[index]])
            if index:
                columns = zip(*weights[index], strict=True)
                back = [mpmath.fsum(w * d for w, d in zip(column, delta, strict=True)) for column in columns]
                delta = [slope(z) * d for z, d in zip(outputs[index - 1], back, strict=True)]
        return logs


def assert_profile(history, expected, rel=1e-12, abs=1e-10):  # noqa: A002
    for quantity in QUANTITIES:
        assert history.profile(quantity).tolist() == pytest.approx(expected[quantity], rel=rel, abs=abs), quantity


def statuses(history, quantity, network=0):
    return [STATUSES[code] for code in history.status[quantity][0, network]]


# ---- against autograd, where float64 is enough


@pytest.mark.parametrize(
    ("name", "bias"), [*((name, True) for name in ACTIVATIONS), ("relu", False), ("gelu", False)]
)
def test_profile_equals_autograd(name, bias, device):
    mlp = random_mlp([5, 14, 9, 11, 4], name, bias, networks=2)
    x, cotangent = drawn(4, 5), drawn(2, 4, 4)
    expected = by_autograd(mlp, x, cotangent)
    assert all(values.isfinite().all() for values in expected.values())  # no sample is dead
    history = exact_profile(mlp.to(device), x.to(device), cotangent.to(device))
    for quantity, values in expected.items():
        assert history.log10[quantity].shape == (1, 2, 4)
        torch.testing.assert_close(torch.from_numpy(history.log10[quantity][0]), values, rtol=0, atol=1e-12)
        assert not history.status[quantity].any()
    assert history.dead_fraction.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_profile_is_float64_on_the_weights_as_they_are_stored(dtype):
    mlp = random_mlp([5, 8, 8, 4], "tanh", dtype=dtype)
    x, cotangent = drawn(3, 5).float(), drawn(1, 3, 4)
    expected = by_autograd(mlp, x, cotangent)
    for quantity, values in expected.items():
        got = torch.from_numpy(exact_profile(mlp, x, cotangent[0]).log10[quantity][0])
        torch.testing.assert_close(got, values, rtol=0, atol=1e-12)


def test_a_member_of_a_stack_has_the_profile_it_has_alone():
    stack = random_mlp([4, 9, 7, 3], "silu", networks=3)
    x = drawn(6, 4)
    together = exact_profile(stack, x, seeds=[7, 8, 9])
    assert together.seeds == [7, 8, 9]
    for index in range(3):
        alone = exact_profile(stack.network(index), x, seeds=[7 + index])
        for quantity in QUANTITIES:
            assert together.log10[quantity][0, index] == pytest.approx(alone.log10[quantity][0, 0], abs=1e-12)
        assert together.output_cosine[index] == pytest.approx(alone.output_cosine[0], abs=1e-12)


def test_a_cotangent_without_networks_serves_all_of_them():
    stack = random_mlp([4, 9, 3], "tanh", networks=3)
    x, cotangent = drawn(6, 4), drawn(6, 3)
    shared = exact_profile(stack, x, cotangent)
    repeated = exact_profile(stack, x, cotangent.expand(3, -1, -1))
    assert shared.log10["output_grad"].tolist() == repeated.log10["output_grad"].tolist()


def test_the_cotangent_is_used_as_it_is():
    mlp = random_mlp([3, 4, 2], "linear", bias=False)
    x, cotangent = drawn(1, 3), drawn(1, 2)
    once, scaled = exact_profile(mlp, x, cotangent), exact_profile(mlp, x, cotangent * 1e-300)
    for quantity in ("output_grad", "weight_grad"):
        difference = scaled.profile(quantity) - once.profile(quantity)
        assert difference.tolist() == pytest.approx([-300] * 2, abs=1e-12)
    expected = math.log10(math.hypot(*cotangent[0].tolist()))
    assert once.profile("output_grad")[-1] == pytest.approx(expected, abs=1e-14)


def test_the_default_cotangent_is_a_fixed_direction_of_length_one():
    mlp = random_mlp([3, 5, 4], "tanh", networks=2)
    x = drawn(1, 3).expand(6, -1)
    history = exact_profile(mlp, x, seeds=[3, 4])
    assert history.log10["output_grad"][0, :, -1] == pytest.approx([0, 0], abs=1e-15)
    assert exact_profile(mlp, x, seeds=[3, 4]).log10["output_grad"].tolist() == history.log10["output_grad"].tolist()
    raw = torch.stack(
        [torch.randn(6, 4, generator=seeds.generator(s, "cotangent"), dtype=torch.float64) for s in (3, 4)]
    )
    unit = raw / raw.square().sum(dim=2, keepdim=True).sqrt()
    expected = by_autograd(mlp, x, unit)["output_grad"].numpy()
    assert history.log10["output_grad"][0] == pytest.approx(expected, abs=1e-12)
    # Different samples and seeds point elsewhere.
    flat = unit.flatten(0, 1)
    assert (flat @ flat.T - torch.eye(12)).abs().max() < 0.999
    assert exact_profile(mlp, x, seeds=[3, 5]).log10["output_grad"][0, 1, 0] != history.log10["output_grad"][0, 1, 0]


def test_the_default_seeds_are_0_1_and_so_on():
    mlp = random_mlp([3, 5, 4], "tanh", networks=2)
    default, explicit = exact_profile(mlp, drawn(2, 3)), exact_profile(mlp, drawn(2, 3), seeds=[0, 1])
    assert default.seeds == [0, 1]
    assert default.log10["output_grad"].tolist() == explicit.log10["output_grad"].tolist()


# ---- the lesson


@pytest.mark.parametrize(("scale", "depth"), [(1.5, 1), (0.5, 2), (1.5, 150), (0.9, 150)])
def test_a_scaled_identity_multiplies_by_its_scale_in_every_layer(scale, depth):
    assert_multiplies_by(scale, depth)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.5, 1.1])
def test_thousands_of_layers_are_not_too_many(scale):
    """0.5**1200 is below the range of float64, 1.1**8000 above. 10,000 layers: see test_experiment.py."""
    assert_multiplies_by(scale, 1200 if scale < 1 else 8000)


def assert_multiplies_by(scale, depth):
    history = exact_profile(identity_mlp(scale, depth), ones(1, 2), cotangent=ones(1, 2) / math.sqrt(2))
    log_scale = float(mpmath.log10(mpmath.mpf(scale)))
    layers = range(1, depth + 1)
    forward = [layer * log_scale for layer in layers]
    assert history.profile("output").tolist() == pytest.approx(forward, abs=1e-9, rel=0)
    backward = [(depth - layer) * log_scale for layer in layers]
    assert history.profile("output_grad").tolist() == pytest.approx(backward, abs=1e-9, rel=0)
    if depth > 1:
        assert history.log_chi() == pytest.approx(2 * math.log(scale), rel=1e-11)


@pytest.mark.parametrize(
    ("scale", "layer", "value"),
    few(
        [
            (1.5, 3, 3.375),
            (0.5, 50, 8.881784197e-16),
            (0.9, 152, 1.108820980e-7),
            (1.5, 149, 1.728214319659e26),
            (1.5, 150, 2.592321479488e26),
            (0.5, 150, 7.006492321625e-46),
            (1.1, 152, 1.957438581e6),
        ],
        3,
    ),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_numbers_of_the_lesson_come_out(scale, layer, value, dtype, device):
    """1.5 and 0.5 are exact in float32; 1.1 and 0.9 are not and are off by up to 4e-8 per layer."""
    mlp = identity_mlp(scale, layer, dtype=dtype, device=device)
    history = exact_profile(mlp, torch.ones(1, 2))
    exact = dtype == torch.float64 or scale in (1.5, 0.5)
    assert 10 ** history.profile("output")[-1] == pytest.approx(value, rel=1e-9 if exact else 4e-8 * layer)


@pytest.mark.parametrize("scale", [1.5, 0.5])
@pytest.mark.parametrize("dtype", few([torch.float64, torch.float32]))
def test_every_weight_gradient_of_a_scaled_identity_is_the_same(scale, dtype):
    """The lesson's "early layers learn almost nothing" is false in its own example."""
    history = exact_profile(identity_mlp(scale, 150, dtype=dtype), torch.ones(3, 2))
    expected = 149 * math.log10(scale) + math.log10(math.sqrt(2))
    assert history.profile("weight_grad").tolist() == pytest.approx([expected] * 150, abs=1e-9, rel=0)
    assert history.first_over_last("weight_grad") == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", ["linear", "relu", "leaky_relu"])
def test_the_product_of_weight_and_weight_gradient_is_the_same_in_every_layer(name):
    """Euler's theorem; for one unit per layer the product of the norms is |<W, dL/dW>|."""
    torch.manual_seed(0)
    weights = torch.rand(60, 1, dtype=torch.float64) * 10 ** torch.linspace(-40, 40, 60, dtype=torch.float64)[:, None]
    history = exact_profile(diagonal_mlp(name, weights.tolist()), ones(1, 1))
    products = history.profile("weight_grad") + weights[:, 0].log10().numpy()
    assert products.tolist() == pytest.approx([products[-1]] * 60, abs=1e-10, rel=0)


def test_an_exploding_identity_with_tanh_vanishes():
    """The fixed point x = tanh(1.5 x) loses the factor 1.5 (1 - x²) per layer (theory: slope -1.86122)."""
    with mpmath.workdps(30):
        fixed = mpmath.findroot(lambda x: mpmath.tanh(1.5 * x) - x, 0.86)
        expected = float(2 * mpmath.log(1.5 * (1 - fixed**2)))
    assert expected == pytest.approx(-1.86122, abs=5e-6)
    history = exact_profile(identity_mlp(1.5, 150, "tanh"), ones(1, 2))
    assert history.log_chi(first=50) == pytest.approx(expected, abs=1e-6)
    assert history.log_chi(first=50, last=140) == pytest.approx(expected, rel=1e-9)
    assert history.verdict().gradient == "vanishing"


# ---- beyond float64


@pytest.mark.parametrize(("scale", "depth"), few([(1e-300, 5), (1e-4, 200)]))
def test_a_tanh_net_that_underflows_float64_is_the_linear_one(scale, depth):
    x, cotangent = 1e-10 * drawn(3, 4), drawn(3, 4)
    tanh = exact_profile(identity_mlp(scale, depth, "tanh", width=4), x, cotangent)
    linear = exact_profile(identity_mlp(scale, depth, "linear", width=4), x, cotangent)
    assert linear.profile("output")[-1] < -700
    for quantity in QUANTITIES:
        assert tanh.profile(quantity).tolist() == pytest.approx(linear.profile(quantity).tolist(), abs=1e-9)
    assert tanh.dead_fraction.tolist() == [0]


@pytest.mark.parametrize(
    "name", ["tanh", "erf", "softsign", "gelu", "silu", "selu", "elu", "hard_tanh", "leaky_relu"]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_tiny_signals_follow_the_slope_at_zero(name, sign):
    mlp = diagonal_mlp(name, [[sign * 1e-200]] + [[1e-200]] * 4)
    x, cotangent = ones(1, 1), ones(1, 1)
    expected = by_mpmath(mlp, x, cotangent, name)
    assert expected["output"][-1] < -990
    assert_profile(exact_profile(mlp, x, cotangent), expected)


@pytest.mark.parametrize("name", ["tanh", "selu", "gelu", *OFF_ZERO])
def test_a_bias_brings_a_tiny_signal_back_to_ordinary_size(name):
    weights = [
        [1e-300, 2e-290],
        [1e-180, 1e-200],
        [1e-180, 1e-190],
        [2, -0.7],
        [1.5, 1.2],
        [1e-135, 1e-160],
        [0.3, 2],
    ]
    biases = [[0, 0], [0, 0], [1e-250, -1e-260], [0, 0.8], [1e-170, -0.3], [0, 1e-290], [0, 0]]
    mlp = diagonal_mlp(name, weights, biases)
    x, cotangent = 1e-150 * ones(1, 2), torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    assert_profile(exact_profile(mlp, x, cotangent), by_mpmath(mlp, x, cotangent, name))


@pytest.mark.parametrize("name", OFF_ZERO)
def test_tiny_weights_do_not_kill_an_activation_that_is_not_0_at_0(name):
    mlp = diagonal_mlp(name, [[1e-200, -1e-250]] * 6)
    x, cotangent = ones(1, 2), torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    expected = by_mpmath(mlp, x, cotangent, name)
    assert expected["output"][-1] > -201
    assert expected["output_grad"][0] < -1000
    assert_profile(exact_profile(mlp, x, cotangent), expected)


@pytest.mark.parametrize("name", UNBOUNDED)
@pytest.mark.parametrize("units", [2])
def test_unbounded_activations_may_explode_beyond_float64(name, units):
    """With two units the signal is positive in one and negative in the other."""
    mlp = diagonal_mlp(name, [[1.0] * units, *[[1e120] * units] * 6, [1e-300] * units, [1e-250] * units])
    if units == 2:
        with torch.no_grad():
            for layer in mlp.layers[1:]:
                layer.weight.copy_(layer.weight.max() * torch.tensor([[1.0, 0.25], [-0.5, 1.0]], dtype=torch.float64))
    x, cotangent = ones(1, units), ones(1, units)
    expected = by_mpmath(mlp, x, cotangent, name)
    assert max(expected["output"]) > 600
    assert_profile(exact_profile(mlp, x, cotangent), expected)


@pytest.mark.parametrize("name", ["leaky_relu", "elu", "selu"])
def test_a_single_negative_unit_goes_on_at_any_size(name):
    """The slope of elu and selu is e^(-1e120) there, far below float64, so that only outputs are compared."""
    mlp = diagonal_mlp(name, [[-1.0], *[[1e120]] * 6, [1e-300], [1e-250]])
    expected = by_mpmath(mlp, ones(1, 1), ones(1, 1), name)
    history = exact_profile(mlp, ones(1, 1), ones(1, 1))
    assert history.profile("output").tolist() == pytest.approx(expected["output"], abs=1e-10)
    if name == "leaky_relu":
        assert_profile(history, expected)


@pytest.mark.parametrize("name", [*BOUNDED, "selu", "elu"])
@pytest.mark.parametrize("huge", [2.0**1020, -(2.0**600)])
def test_a_huge_unit_that_saturates_still_counts_beside_an_ordinary_one(name, huge):
    """Only outputs: the saturated unit's own slope is far below float64."""
    mlp = diagonal_mlp(name, [[huge, 0.5], [1.0, 1.0]])
    history = exact_profile(mlp, ones(1, 2), ones(1, 2))
    with mpmath.workdps(60):
        a, b = MP[name](mpmath.mpf(huge)), MP[name](mpmath.mpf(0.5))
        expected = float(mpmath.log10((a * a + b * b) / 2) / 2)
    assert history.profile("output")[-1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weights", [(1e150, 1e200, 1e300), (1e-150, 1e-200, 1e-300)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_of_a_signal_and_a_weight_may_leave_float64(weights, bias):
    biases = [[1e-30]] * 3 if bias else None
    mlp = diagonal_mlp("linear", [[w] for w in weights], biases)
    expected = by_mpmath(mlp, ones(1, 1), ones(1, 1), "linear")
    assert_profile(exact_profile(mlp, ones(1, 1), ones(1, 1)), expected)


def test_samples_of_very_different_sizes_do_not_disturb_each_other(device):
    mlp = random_mlp([4, 6, 6, 6, 3], "tanh", bias=False, device=device)
    x, cotangent = drawn(3, 4), drawn(3, 3)
    x[1] *= 1e-290
    cotangent[1] *= 1e-290
    cotangent[2] *= 1e290
    together = exact_profile(mlp, x, cotangent)
    alone = [exact_profile(mlp, x[b : b + 1], cotangent[b : b + 1]) for b in range(3)]
    for quantity in QUANTITIES:
        expected = sum(history.profile(quantity) for history in alone) / 3
        assert together.profile(quantity).tolist() == pytest.approx(expected.tolist(), abs=1e-10)


@pytest.mark.parametrize("name", few(["leaky_relu", "linear", "relu"]))
def test_scaling_a_weight_of_a_homogeneous_net_shifts_its_profile(name, device):
    """With exponents carried this must hold beyond float64 too: 60 layers times 1e±30."""
    plain = random_mlp([4, *[8] * 60, 3], name, bias=False)
    x, cotangent = drawn(3, 4), drawn(3, 3)
    base = exact_profile(plain, x, cotangent)
    assert base.dead_fraction.tolist() == [0]
    for exponent in (-100, 100):
        mlp = plain.network(0).to(device)
        with torch.no_grad():
            for layer in mlp.layers:
                layer.weight.mul_(2.0**exponent)
        scaled = exact_profile(mlp, x, cotangent)
        shift = exponent * math.log10(2)
        output = [v + shift * (i + 1) for i, v in enumerate(base.profile("output"))]
        gradient = [v + shift * (60 - i) for i, v in enumerate(base.profile("output_grad"))]
        weight = [v + shift * 60 for v in base.profile("weight_grad")]
        expected = dict(zip(QUANTITIES, (output, gradient, weight), strict=True))
        assert_profile(scaled, expected, rel=1e-11)


# ---- samples that die, weights that are not finite


def test_a_dead_layer_is_reported_and_has_no_slope():
    mlp = random_mlp([3, 4, 4, 4, 2], "relu", bias=False)
    with torch.no_grad():
        mlp.layers[1].weight.abs_().neg_()  # z² <= 0 everywhere, so a² and z³ are 0
    x = drawn(5, 3)
    history = exact_profile(mlp, x, cotangent=ones(5, 2))
    assert history.dead_fraction.tolist() == [1]
    assert history.log_chi() is None
    assert history.depth_scale() is None
    assert statuses(history, "output") == ["ok", "ok", "zero", "zero"]
    assert statuses(history, "output_grad") == ["zero", "zero", "zero", "ok"]
    assert statuses(history, "weight_grad") == ["zero", "zero", "zero", "zero"]
    assert history.verdict().gradient == "dead"
    assert "layer 3 outputs 0 for every sample" in history.verdict().text
    assert math.isnan(history.profile("output")[2])
    with torch.no_grad():
        expected = (x @ mlp.layers[0].weight[0].mT).square().mean(dim=1).sqrt().log10().mean().item()
    assert history.profile("output")[0] == pytest.approx(expected, abs=1e-12)


def test_samples_that_die_are_left_out_at_every_layer():
    mlp = diagonal_mlp("relu", [[1.0, 2.0], [0.5, 3.0], [2.0, 1.0]])
    x = torch.tensor([[1.0, 2.0], [-1.0, -5.0], [3.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    cotangent = drawn(4, 2)
    alive = [0, 2]
    history = exact_profile(mlp, x, cotangent)
    assert history.dead_fraction.tolist() == [0.5]
    survivors = exact_profile(mlp, x[alive], cotangent[alive])
    assert_profile(history, {quantity: survivors.profile(quantity).tolist() for quantity in QUANTITIES}, abs=1e-14)
    assert history.output_cosine.tolist() == pytest.approx(survivors.output_cosine.tolist(), abs=1e-14)
    expected = sum(math.log10(math.hypot(*row) / math.sqrt(2)) for row in ([1.0, 4.0], [3.0, -2.0])) / 2
    assert history.profile("output")[0] == pytest.approx(expected, abs=1e-14)


def test_a_sample_whose_gradient_alone_dies_is_left_out_too():
    """All units are negative at layer 1, and the bias of layer 2 carries the output on."""
    mlp = diagonal_mlp("relu", [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [1.0, 2.0]])
    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float64)
    history = exact_profile(mlp, x, ones(2, 2))
    assert history.dead_fraction.tolist() == [0.5]
    assert history.profile("output")[1] == pytest.approx(math.log10(math.hypot(2, 4) / math.sqrt(2)), abs=1e-14)


def test_one_dead_network_leaves_the_others_of_a_stack_alone():
    stack = random_mlp([3, 6, 6, 2], "relu", bias=False, networks=2)
    with torch.no_grad():
        stack.layers[1].weight[1] = 0
    x = 10 + drawn(4, 3)
    history = exact_profile(stack, x)
    alone = exact_profile(stack.network(0), x)
    assert history.dead_fraction.tolist() == [0, 1]
    assert history.log_chi() == pytest.approx(alone.log_chi(), rel=1e-12)
    assert math.isnan(history.at().log_chi_per_network()[1])
    assert statuses(history, "output", 1) == ["ok", "zero", "zero"]


def test_a_weight_gradient_that_is_0_beside_living_signals_is_zero():
    """The living sample's input is 0; the other's output is, so that its weight gradient does not count."""
    mlp = diagonal_mlp("relu", [[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [0.0, 0.0]])
    with torch.no_grad():
        mlp.layers[1].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    history = exact_profile(mlp, x, ones(2, 2))
    assert history.dead_fraction.tolist() == [0.5]
    assert statuses(history, "output") == ["ok", "ok"]
    assert statuses(history, "weight_grad") == ["zero", "ok"]


@pytest.mark.parametrize(
    ("name", "value", "bias"),
    [
        ("linear", math.inf, False),
        ("leaky_relu", math.nan, True),
        ("selu", -math.inf, True),
        ("gelu", math.inf, True),
        ("softsign", math.nan, False),
    ],
)
def test_weights_that_are_not_finite_are_a_status_and_no_exception(name, value, bias):
    mlp = random_mlp([3, 4, 4, 4, 2], name, bias, networks=2)
    with torch.no_grad():
        mlp.layers[1].weight[0, 0, 0] = value
    x = drawn(5, 3)
    history = exact_profile(mlp, x)
    assert statuses(history, "output")[:2] == ["ok", "nonfinite"]
    if name in ("linear", "leaky_relu"):
        assert statuses(history, "output")[2:] == ["nonfinite"] * 2
    assert statuses(history, "output_grad")[0] == "nonfinite"
    assert math.isnan(history.at().log_chi_per_network()[0])
    assert statuses(history, "output", 1) == statuses(history, "output_grad", 1) == ["ok"] * 4
    assert history.dead_fraction.tolist() == [0, 0]
    alone = exact_profile(mlp.network(1), x, seeds=[1])
    assert history.log_chi() == pytest.approx(alone.log_chi(), rel=1e-11)


def test_an_infinite_bias_is_not_finite():
    mlp = diagonal_mlp("relu", [[1.0, 1.0]] * 3, [[0.0, 0.0], [math.inf, 0.0], [0.0, 0.0]])
    assert statuses(exact_profile(mlp, ones(1, 2)), "output") == ["ok", "nonfinite", "nonfinite"]


# ---- one call, many networks; what a call leaves alone


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_working_through_a_stack_in_parts_changes_nothing(monkeypatch, at_once):
    stack = random_mlp([4, 9, 7, 3], "gelu", networks=5)
    x = drawn(6, 4)
    calls, whole = [], exact_profile(stack, x)
    monkeypatch.setattr(propagate, "_MEMORY", at_once * 8 * 6 * (4 + 9 + 7 + 3))
    parts = exact_profile(stack, x, progress=lambda done, total: calls.append((done, total)))
    for quantity in QUANTITIES:
        assert parts.log10[quantity] == pytest.approx(whole.log10[quantity], abs=1e-13)
        assert parts.status[quantity].tolist() == whole.status[quantity].tolist()
    assert parts.output_cosine == pytest.approx(whole.output_cosine, abs=1e-13)
    assert parts.dead_fraction.shape == (5,)
    total = 2 * 3 * math.ceil(5 / at_once)
    assert calls == [(done, total) for done in range(1, total + 1)]


def test_several_threads_measure_the_same_numbers_and_are_as_many_afterwards(monkeypatch):
    stack, x = random_mlp([4, 9, 7, 3], "gelu", networks=5), drawn(6, 4)
    monkeypatch.setattr(propagate, "_MEMORY", 2 * 8 * 6 * (4 + 9 + 7 + 3))
    before, calls, found = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(exact_profile(stack, x, progress=lambda done, total: calls.append((done, total))))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert calls == [(done, 18) for done in range(1, 19)] * 3
    for history in found[1:]:
        for quantity in QUANTITIES:
            assert history.log10[quantity].tolist() == found[0].log10[quantity].tolist()


def test_an_error_in_another_thread_arrives(monkeypatch):
    monkeypatch.setattr(propagate, "_MEMORY", 1)

    def interrupt(done, _total):
        if done == 3:
            raise KeyboardInterrupt

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            exact_profile(random_mlp([4, 9, 3], networks=5), drawn(6, 4), progress=interrupt)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_measuring_changes_neither_the_model_nor_the_random_numbers():
    mlp = random_mlp([4, 9, 3], "tanh", dtype=torch.float32)
    x, cotangent = drawn(6, 4).requires_grad_(), drawn(6, 3)
    before = {key: value.clone() for key, value in mlp.state_dict().items()}
    x_before, cotangent_before, state = x.detach().clone(), cotangent.clone(), torch.get_rng_state()
    exact_profile(mlp, x)
    exact_profile(mlp, x, cotangent)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in mlp.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in mlp.parameters())
    assert x.grad is None
    assert torch.equal(x, x_before)
    assert torch.equal(cotangent, cotangent_before)


def test_layers_are_named_as_in_the_model():
    mlp = MLP([2, 3, 4, 1])
    history = exact_profile(mlp, torch.ones(1, 2))
    assert (history.phase, history.steps, history.seeds) == ("init", [0], [0])
    assert [type(mlp.get_submodule(name)).__name__ for name in history.names] == ["StackedLinear"] * 3


def test_the_profile_serves_an_activation_from_outside():
    mlp = random_mlp([3, 5, 2], activation("leaky_relu", 0.3))
    x, cotangent = drawn(3, 3), drawn(1, 3, 2)
    expected = by_autograd(mlp, x, cotangent)["output_grad"][0].tolist()
    assert exact_profile(mlp, x, cotangent).profile("output_grad").tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (0, 3), (1, 2, 3)])
def test_inputs_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"^x must have shape \(batch, 3\), got \("):
        exact_profile(MLP([3, 2]), torch.ones(shape))


@pytest.mark.parametrize("shape", [(2,), (5, 3), (4, 2), (3, 5, 2), (2, 4, 2)])
def test_cotangents_of_a_wrong_shape_are_refused(shape):
    message = r"^cotangent must have shape \(5, 2\) or \(2, 5, 2\), got \("
    with pytest.raises(ValueError, match=message):
        exact_profile(MLP([3, 2], networks=2), torch.ones(5, 3), torch.ones(shape))


def test_every_network_needs_a_seed():
    with pytest.raises(ValueError, match=r"^seeds must name 2 networks, got 1$"):
        exact_profile(MLP([3, 2], networks=2), torch.ones(5, 3), seeds=[0])


# ---- where a smaller format would fail


def layers_that_fail(scale, depth, dtype, fails):
    """Run the chain in the format itself, forward and backward."""
    mlp = identity_mlp(scale, depth, dtype=dtype)
    outputs = [torch.ones(1, 1, 2, dtype=dtype)]
    for layer in mlp.layers:
        outputs.append(layer(outputs[-1]))
    forward = [layer for layer in range(1, depth + 1) if fails(outputs[layer])]
    for z in outputs[1:]:
        z.retain_grad()
    outputs[-1].backward(torch.ones(1, 1, 2, dtype=dtype))
    backward = [layer for layer in range(1, depth + 1) if fails(outputs[layer].grad)]
    return min(forward, default=None), max(backward, default=None)


@pytest.mark.parametrize(
    ("name", "scale"),
    few(
        [
            ("float32", 0.5),
            ("float16", 2.0),
            ("float32", 1.5),
            ("float16", 0.25),
            ("bfloat16", 2.0),
            ("bfloat16", 0.5),
        ],
        2,
    ),
)
def test_the_failing_layer_is_where_the_format_itself_fails(name, scale):
    """Powers of two round nowhere; powers of 1.5 do, but in float32 they come near no boundary."""
    depth, dtype = 250 if scale == 1.5 else 160, getattr(torch, name)
    history = exact_profile(identity_mlp(scale, depth), ones(3, 2), cotangent=ones(3, 2))
    for overflow in (False, True):
        output, gradient = layers_that_fail(
            scale, depth, dtype, lambda t, o=overflow: (t.isinf() if o else t == 0).all()
        )
        assert history.failing_layer("output", name, overflow) == output
        assert history.failing_layer("output_grad", name, overflow) == gradient
        assert (output is None) == (gradient is None) == (overflow != (scale > 1))
    assert history.failing_layer("output", "float64", overflow=False) is None
    assert history.failing_layer("output", "float64", overflow=True) is None


def test_one_half_to_the_150th_is_the_first_to_be_0_in_float32():
    history = exact_profile(identity_mlp(0.5, 160, dtype=torch.float32), torch.ones(1, 2), torch.ones(1, 2))
    assert history.failing_layer("output", "float32", overflow=False) == 150
    assert history.failing_layer("output_grad", "float32", overflow=False) == 10


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_the_failing_layer_is_right_to_the_last_bit(name):
    """A tie at either end of the range rounds out of it. (torch rounds float64 to half by way of float32.)"""
    info = torch.finfo(getattr(torch, name))
    least = torch.tensor(info.smallest_normal * info.eps, dtype=torch.float64)
    ties = {False: least.item() / 2, True: info.max + info.max * info.eps / (4 - 2 * info.eps)}
    for overflow, tie in ties.items():
        for value in (tie, tie * 1.001, tie * 0.999):
            history = exact_profile(diagonal_mlp("linear", [[value]]), ones(1, 1), ones(1, 1))
            rounded = torch.tensor(value, dtype=torch.float64).to(getattr(torch, name))
            fails = bool(rounded.isinf() if overflow else rounded == 0)
            assert history.failing_layer("output", name, overflow) == (1 if fails else None), value


def test_the_failing_layer_follows_the_largest_element_of_any_sample():
    mlp = diagonal_mlp("linear", [[1.0, 1e-10]] * 6)
    x = torch.tensor([[1e-30, 1.0], [1e-40, 1.0]], dtype=torch.float64)
    history = exact_profile(mlp, x, ones(2, 2))
    assert history.failing_layer("output", "float32", overflow=False) is None
    only_second = exact_profile(mlp, x[1:] * torch.tensor([0.0, 1.0]), ones(1, 2))
    assert only_second.failing_layer("output", "float32", overflow=False) == 5


# ---- whether the outputs still tell samples apart


def test_output_cosine_is_the_mean_over_pairs():
    stack = random_mlp([4, 9, 7, 3], "tanh", networks=2)
    x = drawn(6, 4)
    y = stack(x).detach()
    for n in range(2):
        cosines = [
            torch.nn.functional.cosine_similarity(y[n, i], y[n, j], dim=0).item() for i in range(6) for j in range(i)
        ]
        got = exact_profile(stack, x).output_cosine[n]
        assert got == pytest.approx(sum(cosines) / len(cosines), abs=1e-13)


def test_output_cosine_needs_no_ordinary_size():
    x = drawn(4, 3)
    history = exact_profile(identity_mlp(1e-200, 5, width=3), x)
    unit = x / x.square().sum(dim=1, keepdim=True).sqrt()
    pairs = (unit @ unit.T).triu(1)
    assert history.output_cosine.tolist() == pytest.approx([pairs.sum().item() / 6], abs=1e-13)


def test_one_sample_has_no_output_cosine_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = exact_profile(random_mlp([3, 4, 2], "tanh", networks=2), drawn(1, 3))
    assert [math.isnan(v) for v in history.output_cosine] == [True, True]
    assert history.log_chi() is not None


# ---- cures: normalisation and skip connections

CURES = [(n, r) for n in NORMALIZATIONS for r in RESIDUALS]


def cured(*args, branch=(0.6, -0.3), **options):
    mlp = random_mlp(*args, **options)
    with torch.no_grad():
        for layer in mlp.layers:
            if isinstance(layer.branch, torch.nn.Parameter):
                layer.branch.copy_(torch.tensor(branch[: mlp.networks]))
        for index, parameter in enumerate(() if mlp.norms is None else mlp.norms.parameters()):
            parameter.add_(drawn(*parameter.shape, seed=index + 1))
    return mlp


def by_autograd_with_cures(mlp, x, cotangent):
    """Differentiate the sum of all l_b; each sample has a copy of the weights, so that its share is known."""
    logs = {quantity: torch.zeros(mlp.networks, len(x), mlp.depth).double() for quantity in QUANTITIES}
    factors = {"plain": 1.0, "depth": 1 / math.sqrt(mlp.depth)}
    for n in range(mlp.networks):
        weights = [layer.weight[n].detach().expand(len(x), -1, -1).clone().requires_grad_() for layer in mlp.layers]
        outputs = []
        for index, layer in enumerate(mlp.layers):
            a = x
            if index:
                a = outputs[-1]
                if mlp.normalization != "none":
                    dim = {"batch": 0, "layer": 1, "rms": 1}[mlp.normalization]
                    a = a if mlp.normalization == "rms" else a - a.mean(dim, keepdim=True)
                    a = a / a.square().mean(dim, keepdim=True).sqrt()
                if mlp.norms is not None:
                    norm = mlp.norms[index - 1]
                    a = a * norm.scale[n].detach() + (0 if norm.shift is None else norm.shift[n].detach())
                a = mlp.activation(a)
            z = torch.einsum("boi,bi->bo", weights[index], a)
            if layer.bias is not None:
                z = z + layer.bias[n].detach()
            if mlp.residual != "none" and 0 < index < mlp.depth - 1:
                z = outputs[-1] + (layer.branch[n].detach() if mlp.residual == "zero" else factors[mlp.residual]) * z
            outputs.append(z)
        grads = torch.autograd.grad((cotangent[n] * outputs[-1]).sum(), [*outputs, *weights])
        for index, z in enumerate(outputs):
            logs["output"][n, :, index] = z.detach().square().mean(1).sqrt().log10()
            logs["output_grad"][n, :, index] = grads[index].norm(dim=1).log10()
            logs["weight_grad"][n, :, index] = grads[mlp.depth + index].flatten(1).norm(dim=1).log10()
    return logs


@pytest.mark.parametrize("name", ["tanh", "relu"])
@pytest.mark.parametrize(
    ("normalization", "residual", "affine"),
    [*((*cures, False) for cures in CURES), ("batch", "plain", True), ("layer", "none", True), ("rms", "zero", True)],
)
def test_the_profile_with_cures_equals_autograd(normalization, residual, affine, name, device):
    options = {"normalization": normalization, "residual": residual, "affine": affine}
    mlp = cured([5, *[14] * 4, 4], name, bias=name == "tanh", networks=2, **options)
    x, cotangent = drawn(6, 5), drawn(2, 6, 4)
    expected = by_autograd_with_cures(mlp, x, cotangent)
    assert all(values.isfinite().all() for values in expected.values())  # no sample is dead
    history = exact_profile(mlp.to(device), x.to(device), cotangent.to(device))
    for quantity, values in expected.items():
        got = torch.from_numpy(history.log10[quantity][0])
        torch.testing.assert_close(got, values.mean(dim=1), rtol=0, atol=1e-12)
        assert not history.status[quantity].any()
    assert history.samples.shape == (1, 2, 5, 1)
    first = torch.from_numpy(history.samples[0, :, :, 0])
    torch.testing.assert_close(first, expected["output_grad"][:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalization", ["layer", "rms"])
def test_a_unit_that_is_on_alone_in_front_of_a_normaliser_has_no_gradient(normalization):
    """What it says is a length, which the normaliser takes out: no rounding errors are shown in place of 0."""
    mlp = MLP([2, 3, 3, 2], "relu", normalization=normalization, dtype=torch.float64)
    initialize(mlp, "he", seed=0)
    with torch.no_grad():
        mlp.layers[0].weight.copy_(torch.tensor([[3.0, 0.5], [-1.0, 2.0], [-1.5, -0.5]]))
    x, cotangent = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64), ones(2, 2)  # one unit on, and two

    def output(z):
        """Return the output for a z of the first layer."""
        a = torch.relu(normalize(z, normalization))
        return mlp.layers[2](torch.relu(normalize(mlp.layers[1](a), normalization)))

    z = mlp.layers[0](x.unsqueeze(0))
    further = z + torch.tensor([0.1, 0.0, 0.0], dtype=torch.float64)
    change = (output(further) - output(z)).abs().amax(dim=2)[0]
    assert change[0] < 1e-15 < 1e-3 < change[1]

    alone, both = (exact_profile(mlp, x[which], cotangent[which]) for which in (slice(0, 1), slice(0, 2)))
    assert [statuses(alone, "output_grad"), statuses(alone, "output")] == [["zero", "ok", "ok"], ["ok"] * 3]
    assert both.dead_fraction.tolist() == [0.5]
    with torch.no_grad():
        mlp.layers[1].bias.fill_(0.25)  # beside which the unit turns what comes out
    expected = by_autograd_with_cures(mlp, x[:1], cotangent[None, :1])["output_grad"].mean(dim=1)
    got = torch.from_numpy(exact_profile(mlp, x[:1], cotangent[:1]).log10["output_grad"][0])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("normalization", "residual"),
    few(sorted(CURES, key=lambda cures: cures not in (("layer", "zero"), ("batch", "plain"))), 2),
)
def test_a_network_with_cures_has_the_profile_it_has_alone(normalization, residual, monkeypatch):
    stack = cured([4, *[8] * 5, 3], "tanh", networks=2, normalization=normalization, residual=residual)
    x = drawn(6, 4)
    together = exact_profile(stack, x)
    monkeypatch.setattr(propagate, "_MEMORY", 1)
    parts = exact_profile(stack, x)
    for index in range(2):
        alone = exact_profile(stack.network(index), x, seeds=[index])
        for quantity in QUANTITIES:
            for history in (together, parts):
                assert history.log10[quantity][0, index] == pytest.approx(alone.log10[quantity][0, 0], abs=1e-12)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_branch_of_factor_0_has_no_weight_gradient_but_lets_the_signal_by(normalization):
    mlp = random_mlp([4, *[8] * 4, 3], "relu", residual="zero", normalization=normalization)
    history = exact_profile(mlp, drawn(6, 4))
    assert statuses(history, "weight_grad") == ["ok", "zero", "zero", "zero", "ok"]
    assert statuses(history, "output") == statuses(history, "output_grad") == ["ok"] * 5
    assert history.dead_fraction.tolist() == [0]
    assert history.profile("output")[:4].tolist() == [history.profile("output")[0]] * 4
    assert history.profile("output_grad")[:4].tolist() == pytest.approx([history.profile("output_grad")[0]] * 4)
    assert math.isnan(history.profile("weight_grad")[1])


@pytest.mark.parametrize(
    ("name", "normalization", "scale"),
    few(
        [
            ("tanh", "batch", 2.0**600),
            ("tanh", "layer", 2.0**-600),
            ("relu", "batch", 2.0**-600),
            ("relu", "layer", 2.0**10),
        ],
        2,
    ),
)
def test_the_scale_of_normalised_weights_shifts_the_profile(name, normalization, scale):
    """Powers of two round nowhere, so that 40 chaotic layers may be compared."""
    mlp = random_mlp([5, *[12] * 40, 3], name, bias=False, normalization=normalization)
    x, cotangent = drawn(6, 5), drawn(6, 3)
    base = exact_profile(mlp, x, cotangent)
    assert base.dead_fraction.tolist() == [0]
    with torch.no_grad():
        for layer in mlp.layers[:-1]:
            layer.weight.mul_(scale)
    history, shift = exact_profile(mlp, x, cotangent), math.log10(scale)
    hidden = slice(0, -1)
    for quantity, sign in (("output", 1), ("output_grad", -1), ("weight_grad", -1)):
        expected = base.profile(quantity)[hidden] + sign * shift
        assert history.profile(quantity)[hidden].tolist() == pytest.approx(expected.tolist(), abs=1e-9)
        assert history.profile(quantity)[-1] == pytest.approx(base.profile(quantity)[-1], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu"])
def test_a_residual_network_may_explode_beyond_float64(name):
    """With W = 15 I and a positive stream every block multiplies it by 16, and the gradient too."""
    depth, own, block = 270, math.log10(15), math.log10(16)
    mlp = identity_mlp(15.0, depth, name, residual="plain")
    history = exact_profile(mlp, ones(1, 2), ones(1, 2) / math.sqrt(2))
    output = [own + layer * block for layer in range(depth - 1)] + [2 * own + (depth - 2) * block]
    gradient = [own + (depth - 2 - layer) * block for layer in range(depth - 1)] + [0.0]
    weight = [a + b + math.log10(2) / 2 for a, b in zip(gradient, [0.0, *output[:-1]], strict=True)]
    assert_profile(history, dict(zip(QUANTITIES, (output, gradient, weight), strict=True)))
    assert history.failing_layer("output", "float64", overflow=True) == 257


@pytest.mark.slow
def test_he_with_skip_connections_doubles_the_square_in_every_block():
    """E‖z‖² doubles per block; the typical network of width n stays below that by about 5/2n (Jensen)."""
    torch.manual_seed(0)
    mlp = MLP([32] * 301, "relu", bias=False, residual="plain", networks=8, dtype=torch.float64)
    with torch.no_grad():
        for layer in mlp.layers:
            layer.weight.normal_(std=math.sqrt(2 / 32))
    history = exact_profile(mlp, drawn(2, 32))
    assert history.profile("output")[-1] > 30
    # Two draws of 8 networks gave 0.013 and 0.020 more, each with a standard error of 0.009.
    assert history.log_chi(first=2, last=299) == pytest.approx(math.log(2) - 5 / 64, abs=0.06)
    assert history.dead_fraction.tolist() == [0] * 8


@pytest.mark.parametrize("normalization", few(["batch", "layer"]))
def test_normalised_residual_networks_agree_with_high_precision_at_extreme_sizes(normalization):
    """Weights of 1e-200 and 1e200 in turn: stream and branch differ by hundreds of decades, both ways."""
    sizes = [1e-200, 1e200, 1.0, 1e-250, 1e280, 1e-3]
    mlp = random_mlp([3, *[4] * 5, 2], "tanh", normalization=normalization, residual="depth")
    with torch.no_grad():
        for layer, size in zip(mlp.layers, sizes, strict=True):
            layer.weight.mul_(size)
            layer.bias.mul_(size)
    x, cotangent = drawn(3, 3), drawn(3, 2)
    expected = by_mpmath_with_cures(mlp, x, cotangent)
    assert min(expected["output_grad"]) < -200 or max(expected["output_grad"]) > 200
    assert_profile(exact_profile(mlp, x, cotangent), expected)


def by_mpmath_with_cures(mlp, x, cotangent):
    """Differentiate the sum of all l_b of a tanh network by the chain rule, in 700 digits.

    J_N is the plain derivative of (z - mean) / std, written as a matrix.
    """
    with mpmath.workdps(700):
        matrix = lambda t: mpmath.matrix(t.detach().tolist())  # noqa: E731
        batch, factor = len(x), 1 / mpmath.sqrt(mlp.depth)

        def normalized(v):
            n = len(v)
            mean = mpmath.fsum(v) / n
            std = mpmath.sqrt(mpmath.fsum((e - mean) ** 2 for e in v) / n)
            unit = [(e - mean) / std for e in v]
            return unit, [
                [((i == j) - mpmath.mpf(1) / n - unit[i] * unit[j] / n) / std for j in range(n)] for i in range(n)
            ]

        def over(z, function):
            """Apply a function of a vector to each row (layer) or column (batch)."""
            z = z if mlp.normalization == "layer" else z.T
            results = [function(list(z[i, :]), i) for i in range(z.rows)]
            out = mpmath.matrix(results)
            return out if mlp.normalization == "layer" else out.T

        z, tape, inputs, outputs = None, [], [], []
        for index, layer in enumerate(mlp.layers):
            a = matrix(x)
            if index:
                lines = z if mlp.normalization == "layer" else z.T
                jacobians = [normalized(list(lines[i, :]))[1] for i in range(lines.rows)]
                normal = over(z, lambda v, i: normalized(v)[0])
                a, slope = normal.apply(mpmath.tanh), normal.apply(lambda v: mpmath.sech(v) ** 2)
                tape.append((slope, jacobians))
            branch = a * matrix(layer.weight[0]).T + mpmath.ones(batch, 1) * matrix(layer.bias[0]).T
            skip = 0 < index < mlp.depth - 1
            inputs.append(a * factor if skip else a)
            z = z + factor * branch if skip else branch
            outputs.append(z)
        delta, logs = matrix(cotangent), {quantity: [0.0] * mlp.depth for quantity in QUANTITIES}

        def log10_norms(m):
            return [mpmath.log10(mpmath.norm(m[b, :], 2)) for b in range(batch)]

        for index in reversed(range(mlp.depth)):
            rms = -mpmath.log10(outputs[index].cols) / 2
            gradient, given = log10_norms(delta), log10_norms(inputs[index])
            logs["output"][index] = float(mpmath.fsum(log10_norms(outputs[index])) / batch + rms)
            logs["output_grad"][index] = float(mpmath.fsum(gradient) / batch)
            logs["weight_grad"][index] = float(mpmath.fsum([*gradient, *given]) / batch)
            if index:
                slope, jacobians = tape[index - 1]
                back = delta * matrix(mlp.layers[index].weight[0])
                back = mpmath.matrix([[back[i, j] * slope[i, j] for j in range(back.cols)] for i in range(batch)])
                back = over(back, lambda v, i, j=jacobians: list((mpmath.matrix([v]) * mpmath.matrix(j[i]))[0, :]))
                delta = delta + factor * back if 0 < index < mlp.depth - 1 else back
        return logs


def test_the_first_samples_gradient_is_recorded_unless_it_is_dead():
    mlp = diagonal_mlp("relu", [[1.0, 2.0], [0.5, 3.0], [2.0, 1.0]])
    x = torch.tensor([[1.0, 2.0], [-1.0, -5.0]], dtype=torch.float64)
    history = exact_profile(mlp, x, ones(2, 2))
    expected = exact_profile(mlp, x[:1], ones(1, 2)).profile("output_grad")
    assert history.samples[0, 0, :, 0].tolist() == pytest.approx(expected.tolist(), abs=1e-14)
    assert all(math.isnan(v) for v in exact_profile(mlp, x.flip(0), ones(2, 2)).samples.flatten())


# ---- cosines and products at every layer; other models; networks that are made in parts


def test_cosines_between_samples_are_those_of_every_layer():
    mlp, x = random_mlp([4, 9, 7, 3], "tanh", networks=2), drawn(5, 4)
    found = exact_profile(mlp, x).stats["output.cosine"]
    z, expected = x.expand(2, 5, 4), []
    with torch.no_grad():
        for index, layer in enumerate(mlp.layers):
            z = layer(mlp.activation(z) if index else z)
            pairs = torch.nn.functional.cosine_similarity(z.unsqueeze(1), z.unsqueeze(2), dim=3)
            expected.append((pairs.sum((1, 2)) - 5) / 20)
    assert found[0] == pytest.approx(torch.stack(expected, dim=1).numpy(), abs=1e-12)
    assert "output.cosine" not in exact_profile(mlp, x[:1]).stats


@pytest.mark.parametrize("options", [{}, {"residual": "depth"}, {"normalization": "layer"}])
def test_products_of_weights_and_their_gradients_are_those_of_autograd(options):
    mlp, x, cotangent = random_mlp([4, 6, 6, 6, 3], "gelu", networks=2, **options), drawn(3, 4), drawn(2, 3, 3)
    history = exact_profile(mlp, x, cotangent, products=True)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for b in range(3):
        loss = (mlp(x[b : b + 1]) * cotangent[:, b : b + 1]).sum()
        weights = [layer.weight for layer in mlp.layers]
        for index, (w, g) in enumerate(zip(weights, torch.autograd.grad(loss, weights), strict=True)):
            expected[:, index] += (w * g).sum((1, 2)).abs().log10().detach() / 3
    assert history.stats["weight_grad.product"][0] == pytest.approx(expected.numpy(), abs=1e-10)
    plain = exact_profile(mlp, x, cotangent)
    assert "weight_grad.product" not in plain.stats
    assert plain.log10["output_grad"].tolist() == history.log10["output_grad"].tolist()


def test_the_product_is_conserved_from_layer_to_layer_at_any_size():
    mlp = random_mlp([8] * 120, "leaky_relu", bias=False, scale=1e-9)
    products = exact_profile(mlp, drawn(1, 8), products=True).stats["weight_grad.product"][0, 0]
    assert products[0] < -1000
    assert products == pytest.approx([products[0]] * 119, abs=1e-8)
    linear = exact_profile(identity_mlp(1e-9, 120), ones(1, 2), products=True).stats["weight_grad.product"][0, 0]
    assert linear == pytest.approx([linear[0]] * 120, abs=1e-9)
    assert linear[0] < -1070


def test_a_chain_of_linear_layers_is_measured_as_the_mlp_that_it_is():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 6, bias=False), torch.nn.Tanh()]
    model = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Dropout(0.5), torch.nn.Linear(6, 3))
    x, cotangent = drawn(5, 4), drawn(5, 3)
    history = exact_profile(model, x, cotangent)
    assert history.names == ["1", "3", "6"]
    a, outputs = x, []
    for layer in (layers[0], layers[2], model[6]):
        bias = 0 if layer.bias is None else layer.bias.double()
        outputs.append((torch.tanh(a) if outputs else a) @ layer.weight.double().T + bias)
        a = outputs[-1]
    grads = torch.autograd.grad((a * cotangent).sum(), outputs)
    expected = [grad.norm(dim=1).log10().mean().item() for grad in grads]
    assert history.profile("output_grad").tolist() == pytest.approx(expected, abs=1e-12)
    saturated = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Tanh(), torch.nn.Linear(1, 1))
    for parameter in saturated.parameters():
        parameter.data.fill_(30.0)
    # As the built-in tanh: autograd's slope is exactly 0 at z = 60, right is 4 exp(-120).
    found = exact_profile(saturated, ones(1, 1), ones(1, 1)).profile("output_grad")[0]
    assert found == pytest.approx(math.log10(30 * 4) - 120 / math.log(10), abs=1e-10)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3)), r"'0' \(Conv2d\) does not fit"),
        (torch.nn.LSTM(3, 3), "exact_profile reads nn.Sequential chains and gradexp.MLP, got LSTM"),
        (torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)), "3 outputs is followed by one with 2"),
    ],
)
def test_other_models_are_refused_in_one_line_that_names_measure(model, text):
    with pytest.raises(ValueError, match=text + ".*; gradexp.measure takes any model$"):
        exact_profile(model, ones(1, 3))


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_networks_that_are_made_in_parts_are_those_of_one_stack(monkeypatch, at_once):
    parts, calls = [], []

    def make(seeds):
        parts.append(list(seeds))
        return initialize(MLP([4, 9, 3], "tanh", networks=len(seeds)), "he", seed=seeds[0])

    monkeypatch.setattr(propagate, "_DRAWN", at_once * 4 * (4 * 9 + 9 + 9 * 3 + 3))
    x = drawn(6, 4)
    found = exact_profile(make, x, seeds=range(5, 13), products=True, progress=lambda *done: calls.append(done))
    whole = exact_profile(make(range(5, 13)), x, seeds=range(5, 13), products=True)
    assert found.seeds == whole.seeds == list(range(5, 13))
    assert [seed for part in parts[:-1] for seed in part] == found.seeds
    assert max(map(len, parts[:-1])) == min(at_once, 7)
    assert calls[-1] == (8, 8)
    for quantity in QUANTITIES:
        assert found.log10[quantity] == pytest.approx(whole.log10[quantity], abs=1e-12)
    for name in whole.stats:
        assert found.stats[name] == pytest.approx(whole.stats[name], abs=1e-10)
    assert exact_profile(make, x, seeds=3).seeds == [0, 1, 2]


def test_a_function_must_be_told_how_many_networks_and_make_as_many():
    x = drawn(2, 4)
    for make, count, text in (
        (lambda _seeds: MLP([4, 3]), None, "^seeds must say how many networks the function is to make$"),
        (lambda _seeds: MLP([4, 3]), 0, "^seeds must name at least one network$"),
        (
            lambda _seeds: MLP([4, 3], networks=2),
            3,
            "must return an MLP of 1 networks .*got 2 networks$",
        ),
        (lambda _seeds: None, 3, "got a NoneType$"),
    ):
        with pytest.raises(ValueError, match=text):
            exact_profile(make, x, seeds=count)
