import math
import sys

import mpmath
import pytest
import torch
from cases import few
from torch import nn

from gradexp.networks import inits
from gradexp.networks.initialize import initialize
from gradexp.networks.inits import INITS, zero_drift_sigma_w2
from gradexp.numerics import seeds

# lsuv's second half needs data and has tests of its own.
DRAWN = [name for name in INITS if name != "lsuv"]
WIDE, CONV = (300, 500), (120, 50, 3, 5)


class FakeStack(nn.Module):
    """What ``initialize`` knows of a stacked layer: an integer, a weight and a bias."""

    def __init__(self, networks, fan_out, fan_in, bias=True, dtype=None):
        super().__init__()
        self.networks = networks
        self.weight = nn.Parameter(torch.full((networks, fan_out, fan_in), torch.nan, dtype=dtype))
        self.bias = nn.Parameter(torch.full((networks, fan_out), torch.nan, dtype=dtype)) if bias else None


def options_for(name):
    return {"activation": "relu"} if name == "lyapunov" else {}


def draw(name, shape, seed=0, **options):
    weight = torch.full(shape, torch.nan, dtype=torch.float64)
    returned = INITS[name].fill(weight, generator=seeds.generator(seed, "test"), **options_for(name) | options)
    assert returned is weight
    return weight


def fans(shape):
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def assert_mean_and_variance(weight, variance):
    """Check both within 5 standard errors: the law's sd / √N, and √((kurtosis - 1) / N) of the variance.

    No scheme tested here has a kurtosis above the normal one, 3.
    """
    n = weight.numel()
    assert abs(weight.mean()) < 5 * math.sqrt(variance / n)
    assert abs(weight.square().mean() / variance - 1) < 5 * math.sqrt(2 / n)


def assert_uniform(weight):
    """Mean fourth power over squared variance: 9/5 if uniform, 3 if normal; at these sizes known to 2 %."""
    assert weight.pow(4).mean() / weight.square().mean() ** 2 == pytest.approx(9 / 5, abs=0.1)
    assert weight.abs().max() <= math.sqrt(3 * weight.square().mean()) * 1.03


def assert_normal(weight):
    assert weight.pow(4).mean() / weight.square().mean() ** 2 == pytest.approx(3, abs=0.15)


# Variance of each weight as a function of fan_in and fan_out, and whether the law is uniform.
VARIANCES = {
    "he": ({}, lambda i, o: 2 / i, False),
    "he by fan_out": ({"mode": "fan_out"}, lambda i, o: 2 / o, False),
    "he uniform": ({"distribution": "uniform"}, lambda i, o: 2 / i, True),
    "xavier": ({}, lambda i, o: 2 / (i + o), False),
    "xavier uniform": ({"distribution": "uniform"}, lambda i, o: 2 / (i + o), True),
    "lecun": ({}, lambda i, o: 1 / i, False),
    "lecun uniform": ({"distribution": "uniform"}, lambda i, o: 1 / i, True),
    "normal": ({}, lambda i, o: 1e-4, False),
    "normal wide": ({"std": 0.3}, lambda i, o: 0.09, False),
    "uniform": ({}, lambda i, o: 1e-4, True),
    "uniform wide": ({"std": 0.3}, lambda i, o: 0.09, True),
    "torch_default": ({}, lambda i, o: 1 / (3 * i), True),
    "mean_field": ({}, lambda i, o: 1 / i, False),
    "mean_field chaotic": ({"sigma_w2": 2.5}, lambda i, o: 2.5 / i, False),
    "lyapunov": ({}, lambda i, o: zero_drift_sigma_w2(i, "relu") / i, False),
}


@pytest.mark.parametrize("shape", [WIDE, WIDE[::-1], CONV], ids=["wide", "tall", "conv"])
@pytest.mark.parametrize("gain", few([1.7, 1.0]))
@pytest.mark.parametrize("case", VARIANCES)
def test_weights_have_the_variance_of_the_formula(case, gain, shape):
    options, variance, uniform = VARIANCES[case]
    weight = draw(case.split()[0], shape, gain=gain, **options)
    assert_mean_and_variance(weight, gain**2 * variance(*fans(shape)))
    (assert_uniform if uniform else assert_normal)(weight)


@pytest.mark.parametrize("shape", [WIDE, CONV], ids=["wide", "conv"])
def test_truncated_normal_has_its_std_after_the_cut_and_none_beyond_two_before(shape):
    for options, std in (({}, math.sqrt(2 / fans(shape)[0])), ({"std": 3.0}, 3.0)):
        weight = draw("truncated_normal", shape, gain=1.5, **options)
        assert_mean_and_variance(weight, (1.5 * std) ** 2)
        cut = 2 * 1.5 * std / 0.879626
        assert 0.99 * cut < weight.abs().max() <= cut * (1 + 1e-6)  # the constant has 6 digits


def test_truncated_normal_without_correction_keeps_0773741_of_the_variance():
    weight = draw("truncated_normal", (1000, 1000), std=0.5, corrected=False)
    assert_mean_and_variance(weight, 0.773741 * 0.25)
    assert 0.999 < weight.abs().max() <= 1.0


def test_truncated_normal_has_the_distribution_function_of_a_cut_normal():
    weight = draw("truncated_normal", (500, 500), std=1.0, corrected=False)
    for x in (-1.5, -0.5, 0.7, 1.9):
        phi = math.erf(x / math.sqrt(2)) / math.erf(math.sqrt(2)) / 2 + 0.5
        error = math.sqrt(phi * (1 - phi) / weight.numel())  # of a share among N
        assert abs((weight < x).double().mean() - phi) < 5 * error


@pytest.mark.parametrize(
    ("shape", "sparsity", "zeros"),
    [
        ((40, 100), 0.9, 90),
        ((100, 40), 0.33, 14),  # 13.2 rounded up
        ((7, 100), 0.07, 7),  # 0.07 · 100 is 7.000000000000001 in float64
        ((5, 10), 0.0, 0),
        ((5, 10), 0.999, 9),  # never all
        ((5, 1), 0.9, 0),
        ((20, 6, 3, 2), 0.5, 18),
    ],
)
def test_sparse_sets_exactly_that_many_incoming_weights_of_each_unit_to_zero(shape, sparsity, zeros):
    weight = draw("sparse", shape, sparsity=sparsity)
    assert (weight.flatten(1) == 0).sum(dim=1).tolist() == [zeros] * shape[0]


@pytest.mark.parametrize("shape", [(400, 1000), (500, 40, 5, 5)], ids=["linear", "conv"])
def test_sparse_keeps_the_squared_outputs_and_draws_the_others_normal(shape):
    weight = draw("sparse", shape, gain=1.3, sparsity=0.8)
    kept = weight[weight != 0]
    assert_mean_and_variance(kept, 1.3**2 / (0.2 * fans(shape)[0]))
    assert_normal(kept)
    # So that each unit's incoming variances sum to gain².
    assert weight.square().sum() / shape[0] == pytest.approx(1.3**2, rel=5 * math.sqrt(2 / kept.numel()))


def test_sparse_takes_a_stated_std():
    weight = draw("sparse", (400, 1000), std=0.3, gain=2.0)
    assert_mean_and_variance(weight[weight != 0], 0.36)


def test_sparse_zeros_fall_on_every_place_equally_often():
    zeros_per_input = (draw("sparse", (4000, 20), sparsity=0.5) == 0).double().mean(dim=0)
    assert (zeros_per_input - 0.5).abs().max() < 5 * math.sqrt(0.25 / 4000)  # of a share among 4000


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (20, 6, 3, 2), (60, 6, 3, 2)])
def test_orthogonal_has_all_singular_values_equal_to_the_gain(shape):
    values = torch.linalg.svdvals(draw("orthogonal", shape, gain=1.3).flatten(1))
    torch.testing.assert_close(values, torch.full_like(values, 1.3), rtol=1e-12, atol=0)


def test_orthogonal_is_haar_distributed():
    matrices = torch.stack([draw("orthogonal", (3, 3), seed) for seed in range(2000)])
    # Under Haar E trace = 0 and E trace² = 1; QR without the sign fix gives neither. The variances are 2 and 1.
    traces = matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert abs(traces.mean()) < 5 * math.sqrt(1 / 2000)
    assert abs(traces.square().mean() - 1) < 5 * math.sqrt(2 / 2000)
    assert abs(torch.linalg.det(matrices).mean()) < 5 * math.sqrt(1 / 2000)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_identity_has_the_gain_on_the_main_diagonal(shape):
    assert torch.equal(draw("identity", shape, gain=1.5), 1.5 * torch.eye(*shape, dtype=torch.float64))


def test_identity_convolution_passes_each_channel_on():
    for layer, image in (
        (nn.Conv1d(3, 3, 3, padding=1), torch.randn(2, 3, 8)),
        (nn.Conv2d(3, 3, (3, 5), padding=(1, 2)), torch.randn(2, 3, 8, 9)),
        (nn.Conv3d(3, 3, 3, padding=1), torch.randn(2, 3, 4, 5, 6)),
    ):
        torch.testing.assert_close(initialize(layer, "identity", gain=2.0)(image), 2 * image)


def test_negative_gain_negates_the_weights():
    for name in INITS:
        torch.testing.assert_close(draw(name, (20, 30), gain=-1.5), -1.5 * draw(name, (20, 30)))


def test_schemes_fill_parameters_outside_no_grad():
    for name, scheme in INITS.items():
        parameter = nn.Parameter(torch.full((4, 3), torch.nan))
        assert scheme.fill(parameter, **options_for(name)) is parameter
        assert parameter.isfinite().all()
        assert parameter.requires_grad
        assert parameter.is_leaf


# exp(-m) with m from sums of digamma functions, computed independently of this code.
ZERO_DRIFT_TABLE = [
    (10, 1.10885, 2.71994),
    (32, 1.03208, 2.17208),
    (100, 1.01008, 2.05149),
    (1000, 1.00100, 2.00501),
]


@pytest.mark.parametrize(("width", "linear", "relu"), ZERO_DRIFT_TABLE)
def test_zero_drift_agrees_with_the_table_of_the_theory(width, linear, relu):
    assert zero_drift_sigma_w2(width, "linear") == pytest.approx(linear, abs=6e-6)  # 5 decimals given
    assert zero_drift_sigma_w2(width, "relu") == pytest.approx(relu, abs=6e-6)


@pytest.mark.parametrize("width", few([1, 2, 3, 10, 100, 1000, 10000], 6))
def test_zero_drift_agrees_with_sums_of_digamma_functions(width):
    # Linear: S is chi² with n degrees of freedom, E log S = log 2 + psi(n / 2). Relu: K of the n units are on,
    # K binomial. psi(k / 2) by its recurrence, the binomials by theirs, in 30 digits.
    with mpmath.workdps(30):
        psi = [None, mpmath.digamma(mpmath.mpf(1) / 2), mpmath.digamma(1)]
        psi += [None] * (width - 2)
        ways, total = mpmath.mpf(1), mpmath.mpf(0)
        for k in range(1, width + 1):
            if k > 2:
                psi[k] = psi[k - 2] + mpmath.mpf(2) / (k - 2)
            ways = ways * (width - k + 1) / k
            total += ways * psi[k]
        linear = float(width / mpmath.mpf(2) * mpmath.exp(-psi[width]))
        relu = float(width / mpmath.mpf(2) * mpmath.exp(-total / (mpmath.mpf(2) ** width - 1)))
    assert zero_drift_sigma_w2(width, "linear") == pytest.approx(linear, rel=2e-11)
    assert zero_drift_sigma_w2(width, "relu") == pytest.approx(relu, rel=2e-11)


@pytest.mark.parametrize("slope", [1e-8, 0.01, 0.3, -0.5, 1.0, 4.0, 1e6])
def test_zero_drift_of_leaky_relu_agrees_with_its_closed_forms_at_width_1_and_2(slope):
    # One unit: E log S = E log chi²_1 + log(a²) / 2. Two: E log of the radius squared, log 2 - gamma, plus the mean
    # over the angle: 2 log((1 + |a|) / 2) if one is on, and log(a²) if none is.
    a = abs(slope)
    one = -math.log(2) - float(mpmath.euler) + math.log(a)
    two = math.log(2) - float(mpmath.euler) + math.log(a) / 2 + math.log((1 + a) / 2)
    assert zero_drift_sigma_w2(1, "leaky_relu", slope) == pytest.approx(math.exp(-one), rel=1e-13)
    assert zero_drift_sigma_w2(2, "leaky_relu", slope) == pytest.approx(2 * math.exp(-two), rel=1e-13)


@pytest.mark.parametrize(("width", "slope"), few([(10, 0.3), (10000, 0.01), (10, 0.01), (1000, 0.2)]))
def test_zero_drift_of_leaky_relu_agrees_with_a_high_precision_integral(width, slope):
    # The integral over t in three parts, by mpmath's tanh-sinh rule and not by ours. Beyond t = 1e8 the
    # Laplace transform is below 1e-20 already at width 10, slope 0.01.
    with mpmath.workdps(20):
        a2 = mpmath.mpf(slope) ** 2

        def integrand(t):
            one_unit = ((1 + 2 * t) ** -0.5 + (1 + 2 * a2 * t) ** -0.5) / 2
            return (mpmath.exp(-t) - one_unit**width) / t

        edges = [0, *(mpmath.mpf(10) ** k for k in range(-6, 9))]
        log_s = float(mpmath.quad(integrand, edges))
    assert zero_drift_sigma_w2(width, "leaky_relu", slope) == pytest.approx(width * math.exp(-log_s), rel=1e-10)


@pytest.mark.parametrize(
    ("activation", "slope"), few([("leaky_relu", 0.3), ("relu", 0.0), ("leaky_relu", 0.01), ("linear", 1.0)])
)
def test_lyapunov_gradients_do_not_drift_from_layer_to_layer(activation, slope):
    # One layer's step back through drawn weights, for a gradient of which only the length matters: many draws of
    # phi' · Wᵀ delta, at a width where He's drift would be -0.29 per layer.
    n, draws = 10, 20000
    weight = draw("lyapunov", (n * draws, n), activation=activation, negative_slope=slope)
    on = torch.rand(draws, n, generator=seeds.generator(1, "test")) < 0.5
    delta = torch.randn(draws, 1, n, dtype=torch.float64, generator=seeds.generator(2, "test"))
    back = (delta @ weight.view(draws, n, n)).squeeze(1) * torch.where(on, 1.0, slope)
    alive = back.abs().amax(dim=1) > 0
    growth = (back.square().sum(dim=1) / delta.square().sum(dim=(1, 2))).log()[alive]
    assert abs(growth.mean()) < 4 * growth.std() / math.sqrt(len(growth))  # standard error of a mean
    assert growth.std() / math.sqrt(len(growth)) < 0.01  # so that a drift of He's size would be seen


def test_zero_drift_approaches_the_mean_field_value_at_large_width():
    assert zero_drift_sigma_w2(10**6, "relu") == pytest.approx(2 + 5e-6, abs=1e-8)  # 2 exp(5 / 2n)
    assert zero_drift_sigma_w2(10**6, "linear") == pytest.approx(1 + 1e-6, abs=1e-8)


def test_zero_drift_treats_special_slopes_as_the_activation_they_are():
    assert zero_drift_sigma_w2(7, "leaky_relu", 0.0) == zero_drift_sigma_w2(7, "relu")
    assert zero_drift_sigma_w2(7, "leaky_relu", 1.0) == zero_drift_sigma_w2(7, "linear")
    assert zero_drift_sigma_w2(7, "leaky_relu", -1.0) == zero_drift_sigma_w2(7, "linear")
    assert zero_drift_sigma_w2(7, "relu", 0.5) == zero_drift_sigma_w2(7, "relu")


def small_model(dtype=torch.float32):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, dtype=dtype),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 7, dtype=dtype),
        nn.Sequential(nn.ReLU(), nn.Linear(7, 2, bias=False, dtype=dtype)),
    )


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", DRAWN)
def test_initialize_fills_every_layer_in_order_from_one_generator(name):
    model = initialize(small_model(torch.float64), name, seed=3, sigma_b2=0.5, **options_for(name))
    weights, biases = seeds.generator(3, "weights"), seeds.generator(3, "biases")
    for layer in (model[0], model[3], model[4][1]):
        expected = torch.empty_like(layer.weight)
        INITS[name].fill(expected, generator=weights, **options_for(name))
        assert torch.equal(layer.weight, expected)
        if layer.bias is not None:
            noise = torch.empty_like(layer.bias).normal_(generator=biases)
            torch.testing.assert_close(layer.bias, math.sqrt(0.5) * noise)


@pytest.mark.parametrize("name", DRAWN)
def test_same_seed_gives_the_same_network_in_every_dtype(name):
    exact = initialize(small_model(torch.float64), name, seed=7, **options_for(name))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        rounded = initialize(small_model(dtype), name, seed=7, **options_for(name))
        for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
            assert b.dtype is dtype
            assert torch.equal(a.to(dtype), b)


def test_same_seed_gives_the_same_network_in_every_memory_format():
    plain = initialize(nn.Conv2d(3, 6, 3), "he", seed=0)
    last = initialize(nn.Conv2d(3, 6, 3).to(memory_format=torch.channels_last), "he", seed=0)
    assert torch.equal(plain.weight, last.weight)
    assert last.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", DRAWN)
def test_same_seed_gives_the_same_network_on_the_gpu(name):
    on_cpu = initialize(small_model(), name, seed=7, **options_for(name))
    on_gpu = initialize(small_model().cuda(), name, seed=7, **options_for(name))
    for a, b in zip(on_cpu.parameters(), on_gpu.parameters(), strict=True):
        assert b.is_cuda
        assert torch.equal(a, b.cpu())


@pytest.mark.parametrize("sigma_b2", [None, 0.3])
@pytest.mark.parametrize("name", DRAWN)
def test_network_e_of_a_stack_is_the_single_network_with_seed_plus_e(name, sigma_b2):
    stack = nn.Sequential(FakeStack(3, 8, 5), nn.ReLU(), FakeStack(3, 2, 8))
    initialize(stack, name, seed=5, sigma_b2=sigma_b2, **options_for(name))
    for e in range(3):
        single = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
        initialize(single, name, seed=5 + e, sigma_b2=sigma_b2, **options_for(name))
        for stacked, layer in ((stack[0], single[0]), (stack[2], single[2])):
            assert torch.equal(stacked.weight[e], layer.weight)
            assert torch.equal(stacked.bias[e], layer.bias)


def test_stack_without_biases_is_filled():
    stack = initialize(FakeStack(2, 4, 3, bias=False), "he", seed=0)
    assert stack.weight.isfinite().all()
    assert not torch.equal(stack.weight[0], stack.weight[1])


def test_modules_that_tell_networks_but_are_no_layer_are_left_alone():
    class Stacks(nn.Sequential):
        networks = 2

    class StackedNorm(nn.Module):
        networks = 2

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 4))

    model = initialize(Stacks(FakeStack(2, 4, 3), StackedNorm(), nn.LayerNorm(4)), "normal", seed=0)
    assert torch.equal(model[1].weight, torch.ones(2, 4))
    assert torch.equal(model[2].weight, torch.ones(4))


def test_biases_are_zero_unless_told_otherwise():
    for name in set(DRAWN) - {"torch_default"}:
        model = initialize(small_model(), name, seed=0, **options_for(name))
        assert not model[0].bias.any(), name
        assert not model[3].bias.any(), name


def test_sigma_b2_is_the_variance_of_the_biases():
    layer = initialize(nn.Linear(1, 100_000, dtype=torch.float64), "he", seed=0, sigma_b2=0.3)
    assert_mean_and_variance(layer.bias.detach(), 0.3)
    assert_normal(layer.bias.detach())
    assert not initialize(layer, "torch_default", seed=0, sigma_b2=0.0).bias.any()


def test_sigma_b2_does_not_change_the_weights():
    without = initialize(small_model(), "he", seed=4)
    with_biases = initialize(small_model(), "he", seed=4, sigma_b2=0.1)
    for layer in (0, 3):
        assert torch.equal(without[layer].weight, with_biases[layer].weight)
        assert with_biases[layer].bias.all()


def test_torch_default_has_the_weights_and_biases_that_torch_draws():
    for layer in (nn.Linear(64, 20_000), nn.Conv2d(4, 20_000, 4)):
        bound = 1 / math.sqrt(64)
        for _ in range(2):  # first as torch has drawn them, then as we do
            for parameter in (layer.weight, layer.bias):
                assert 0.999 * bound < parameter.abs().max() <= bound
                assert_mean_and_variance(parameter.double(), bound**2 / 3)
            initialize(layer, "torch_default", seed=0)
    assert not torch.equal(layer.weight.flatten()[:20_000], layer.bias)


def test_gain_of_torch_default_leaves_the_biases_alone():
    one, two = (initialize(nn.Linear(5, 4), "torch_default", seed=0, gain=gain) for gain in (1.0, 2.0))
    torch.testing.assert_close(two.weight, 2 * one.weight)
    assert torch.equal(one.bias, two.bias)


@pytest.mark.parametrize(("alias", "name"), [("glorot", "xavier"), ("kaiming", "he")])
def test_aliases_are_the_schemes_they_name(alias, name):
    a, b = (initialize(nn.Linear(5, 4), init, seed=0, distribution="uniform") for init in (alias, name))
    assert torch.equal(a.weight, b.weight)
    assert alias not in INITS


def test_lyapunov_gets_the_activation_and_its_slope():
    layer = initialize(
        nn.Linear(10, 3, dtype=torch.float64), "lyapunov", seed=0, activation="leaky_relu", negative_slope=0.4
    )
    expected = draw_like_layer(layer, zero_drift_sigma_w2(10, "leaky_relu", 0.4))
    torch.testing.assert_close(layer.weight, expected)
    by_function = initialize(nn.Linear(10, 3), inits.lyapunov_, seed=0, activation="linear")
    expected = draw_like_layer(layer, zero_drift_sigma_w2(10, "linear"))
    torch.testing.assert_close(by_function.weight, expected.float())


def draw_like_layer(layer, sigma_w2):
    noise = torch.empty(layer.weight.shape, dtype=torch.float64)
    return nn.Parameter(noise.normal_(generator=seeds.generator(0, "weights")) * math.sqrt(sigma_w2 / noise.shape[1]))


def test_function_from_outside_gets_the_generator_if_it_takes_one():
    a, b = (initialize(nn.Linear(5, 4), nn.init.xavier_normal_, seed=2, gain=3.0) for _ in range(2))
    assert torch.equal(a.weight, b.weight)
    expected = torch.empty(4, 5, dtype=torch.float64)
    nn.init.xavier_normal_(expected, gain=3.0, generator=seeds.generator(2, "weights"))
    assert torch.equal(a.weight, expected.float())


def test_function_from_outside_need_not_take_a_generator():
    stack = initialize(FakeStack(2, 4, 3), lambda weight, value: weight.fill_(value), seed=2, value=0.25)
    assert torch.equal(stack.weight, torch.full((2, 4, 3), 0.25))
    assert not initialize(nn.Linear(3, 3), torch.Tensor.zero_).weight.any()


def test_function_from_outside_sees_the_weights_it_changes():
    layer = nn.Linear(3, 4)
    before = layer.weight.detach().clone()
    initialize(layer, lambda weight: weight.mul_(2))
    assert torch.equal(layer.weight, 2 * before)


def test_seed_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    for name in DRAWN:
        initialize(small_model_without_draws(), name, seed=0, sigma_b2=1.0, **options_for(name))
        assert torch.equal(torch.get_rng_state(), before), name


def small_model_without_draws():
    return nn.Sequential(FakeStack(1, 8, 5), FakeStack(1, 3, 8))


def test_without_seed_the_global_random_numbers_are_used():
    def drawn():
        return state(initialize(small_model_without_draws(), "he", sigma_b2=1.0))

    torch.manual_seed(1)
    first, other = drawn(), drawn()
    torch.manual_seed(1)
    again = drawn()
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_initialize_returns_the_model_with_its_parameters_still_trainable():
    model = small_model()
    parameters = list(model.parameters())
    assert initialize(model, "he", seed=0) is model
    for before, after in zip(parameters, model.parameters(), strict=True):
        assert before is after
        assert after.requires_grad
        assert after.is_leaf


def test_progress_is_told_every_layer():
    calls = []
    initialize(small_model(), "he", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


CHOICES = (
    "he, xavier, lecun, orthogonal, delta_orthogonal, identity, normal, uniform, truncated_normal, sparse, "
    "torch_default, mean_field, lyapunov, lsuv, glorot, kaiming"
)


@pytest.mark.parametrize(
    ("init", "options", "text"),
    [
        ("xaviar", {}, f"unknown init 'xaviar'; choose one of {CHOICES}"),
        (3, {}, f"unknown init 3; choose one of {CHOICES}"),
        ("identity", {"std": 1.0}, "init 'identity' has no option 'std'; it takes gain"),
        ("kaiming", {"std": 1.0}, "init 'kaiming' has no option 'std'; it takes gain, mode, distribution"),
        ("he", {"distribution": "foo"}, "distribution must be one of normal, uniform, got 'foo'"),
        ("xavier", {"distribution": "foo"}, "distribution must be one of normal, uniform, got 'foo'"),
        ("he", {"mode": "x"}, "mode must be one of fan_in, fan_out, got 'x'"),
        ("sparse", {"sparsity": 1.0}, "sparsity must be at least 0 and below 1, got 1.0"),
        ("sparse", {"sparsity": -0.1}, "sparsity must be at least 0 and below 1, got -0.1"),
        ("mean_field", {"sigma_w2": -1.0}, "sigma_w2 must be at least 0, got -1.0"),
        ("he", {"sigma_b2": -1.0}, "sigma_b2 must be at least 0, got -1.0"),
        ("lsuv", {}, "lsuv needs data: pass a batch as inputs"),
        ("lsuv", {"std": 1.0}, "init 'lsuv' has no option 'std'; it takes gain, tolerance, iterations"),
        ("lyapunov", {}, "lyapunov needs activation linear, relu, leaky_relu, got None"),
        ("lyapunov", {"activation": "tanh"}, "lyapunov needs activation linear, relu, leaky_relu, got 'tanh'"),
        (
            "lyapunov",
            {"activation": "leaky_relu", "negative_slope": math.inf},
            "negative_slope must be 0, or 1e-100 to 1e100 in size, got inf",
        ),
    ],
)
def test_wrong_options_are_refused_before_any_weight_changes(init, options, text):
    model = small_model()
    before = state(model)
    with pytest.raises(ValueError, match=r".+") as error:
        initialize(model, init, seed=0, **options)
    assert str(error.value) == text
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(("model", "kind"), [(None, "NoneType"), ("he", "str"), (nn.Linear, "type")])
def test_only_a_model_is_initialised(model, kind):
    with pytest.raises(TypeError, match=f"^model must be an nn.Module, got a {kind}$"):
        initialize(model, "he")


@pytest.mark.parametrize("name", INITS)
@pytest.mark.parametrize("shape", [(3,), (), (3, 0)])
def test_weights_that_are_no_matrix_are_refused(name, shape):
    with pytest.raises(ValueError, match="must have at least two dimensions, none empty") as error:
        INITS[name].fill(torch.empty(shape), **options_for(name))
    assert str(error.value).endswith(f"got {shape}")


def test_zero_drift_refuses_a_width_below_one():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        zero_drift_sigma_w2(0, "relu")


def test_lazy_layers_are_refused():
    with pytest.raises(ValueError, match="layer '1' is lazy and has no shape yet; run the model once"):
        initialize(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)), "he")
    with pytest.raises(ValueError, match="the layer is lazy"):
        initialize(nn.LazyConv2d(3, 3), "he")


def test_lazy_layers_are_initialised_once_they_have_a_shape():
    layer = nn.LazyLinear(3)
    layer(torch.ones(1, 2))
    assert torch.equal(initialize(layer, "identity").weight, torch.eye(3, 2))


def test_models_without_layers_are_refused():
    with pytest.raises(ValueError, match=r"^Sequential has no weight to fill$"):
        initialize(nn.Sequential(nn.ReLU(), nn.LayerNorm(3)), "he")


@pytest.mark.parametrize("name", ["he", "lyapunov"])
def test_the_work_grows_no_faster_than_the_number_of_layers(name):
    def calls(layers):
        model, events = nn.Sequential(*(FakeStack(1, 2, 2) for _ in range(layers))), [0]

        def count(*_):
            events[0] += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            initialize(model, name, seed=0, **options_for(name))
        finally:
            sys.setprofile(before)
        return events[0]

    calls(2)  # computes once what all layers share
    fewer, more = calls(20), calls(200)
    assert more < 10.5 * fewer


def test_lsuv_draws_orthogonal_weights_before_it_scales_them():
    assert torch.equal(draw("lsuv", (30, 50), gain=1.3), draw("orthogonal", (30, 50), gain=1.3))
