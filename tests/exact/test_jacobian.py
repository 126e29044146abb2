import math

import mpmath
import numpy as np
import pytest
import torch
from cases import few
from scipy.special import digamma, polygamma

from gradexp.exact.jacobian import lyapunov_spectrum, singular_values, spectral_moments
from gradexp.networks.activations import ACTIVATIONS
from gradexp.networks.initialize import initialize
from gradexp.networks.mlp import MLP

LN10 = math.log(10)
KINDS = [("mean_field", "linear"), ("orthogonal", "linear"), ("mean_field", "relu"), ("orthogonal", "relu")]


# Thousands of tiny matrices: on a busy machine LAPACK's threads would wait for each other most of the time.
pytestmark = pytest.mark.usefixtures("on_one_thread")


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp_of(weights, phi="linear", biases=None):
    widths = [weights[0].shape[1], *(len(weight) for weight in weights)]
    mlp = MLP(widths, phi, bias=biases is not None, dtype=torch.float64)
    with torch.no_grad():
        for index, layer in enumerate(mlp.layers):
            layer.weight[0] = weights[index]
            if biases is not None:
                layer.bias[0] = biases[index]
    return mlp


def diagonal(*entries):
    return torch.diag(torch.tensor(entries, dtype=torch.float64))


def drawn_mlp(widths, phi, init, networks=1, bias=False, seed=0, **options):
    mlp = MLP(widths, phi, bias=bias, networks=networks, dtype=torch.float64)
    return initialize(mlp, init, seed=seed, **options)


def outputs_of(mlp, x):
    """z of each layer of each network, by torch's own forward; x at index 0."""
    outputs = [x.expand(mlp.networks, *x.shape)]
    with torch.no_grad():
        for index, layer in enumerate(mlp.layers):
            outputs.append(layer(mlp.activation(outputs[-1]) if index else outputs[-1]))
    return outputs


def differentiated(mlp, x, network, sample, first=1, last=None):
    """The Jacobian by torch.func."""
    last = mlp.depth if last is None else last
    alone = mlp.network(network)

    def between(z):
        for index in range(first, last):
            z = alone.layers[index](alone.activation(z) if index else z)
        return z

    start = outputs_of(mlp, x)[first][network, sample].reshape(1, 1, -1)
    return torch.func.jacrev(between)(start)[0, 0, :, 0, 0]


MP_SLOPES = {
    "linear": lambda z: 1,
    "leaky_relu": lambda z: 1 if z > 0 else mpmath.mpf(0.01),
    "tanh": lambda z: mpmath.sech(z) ** 2,
}


def mp_log10_singular_values(mlp, x, digits, first=1, phi="linear"):
    """The first sample's of the first network, from the product formed and decomposed with many digits."""
    with mpmath.workdps(digits):
        outputs = outputs_of(mlp, x)
        product = mpmath.eye(mlp.widths[first])
        for index in range(first, mlp.depth):
            if index:
                slopes = [float(MP_SLOPES[phi](mpmath.mpf(z))) for z in outputs[index][0, 0].tolist()]
                product = mpmath.diag(slopes) * product
            product = mpmath.matrix(mlp.layers[index].weight[0].tolist()) * product
        found = mpmath.svd_r(product, compute_uv=False)
        logs = [float(mpmath.log10(s)) if s else -math.inf for s in found]
        exact_to = logs[0] - 0.9 * digits
        return torch.tensor([log if log > exact_to else -math.inf for log in logs], dtype=torch.float64)


@pytest.mark.parametrize(
    ("width", "depth", "phi", "init", "options", "digits"),
    [
        pytest.param(2, 200, "linear", "mean_field", {}, 200, marks=pytest.mark.slow),
        pytest.param(3, 100, "tanh", "mean_field", {"sigma_w2": 1.5}, 150, marks=pytest.mark.slow),
        (4, 50, "leaky_relu", "he", {}, 250),
        (4, 20, "tanh", "mean_field", {"sigma_w2": 400.0}, 1000),
        pytest.param(5, 60, "linear", "orthogonal", {}, 50, marks=pytest.mark.slow),
        pytest.param(6, 20, "tanh", "mean_field", {"sigma_w2": 4e4}, 3000, marks=pytest.mark.slow),
        pytest.param(6, 150, "linear", "mean_field", {}, 250, marks=pytest.mark.slow),
        (6, 1, "linear", "mean_field", {}, 50),
    ],
)
def test_singular_values_match_mpmath(width, depth, phi, init, options, digits):
    mlp = drawn_mlp([width] * (depth + 2), phi, init, **options)
    x = drawn(1, width)
    found = singular_values(mlp, x)[0, 0]
    exact = mp_log10_singular_values(mlp, x, digits, phi=phi)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10 / LN10)


@pytest.mark.parametrize(
    ("phi", "first", "last"),
    [
        *few([(phi, 1, None) for phi in ACTIVATIONS], 3),
        ("relu", 0, None),
        ("tanh", 0, 1),
        ("relu", 2, 4),
        ("gelu", 1, 3),
    ],
)
def test_singular_values_match_those_of_the_differentiated_network(phi, first, last, device):
    mlp = drawn_mlp([5, 7, 4, 6, 3], phi, "he", networks=2, bias=True, sigma_b2=0.1)
    x = drawn(3, 5)
    found = singular_values(mlp.to(device), x.to(device), first=first, last=last).cpu()
    mlp.to("cpu")
    for network in range(2):
        for sample in range(3):
            expected = torch.linalg.svdvals(differentiated(mlp, x, network, sample, first, last))
            torch.testing.assert_close(10 ** found[network, sample], expected, rtol=1e-9, atol=1e-14)
            # svdvals leaves rounding where the rank is lower; here it is 0.
            assert (found[network, sample] == -torch.inf).equal(expected < 1e-12)


@pytest.mark.parametrize(("scale", "depth"), few([(1e-30, 20), (0.5, 150), (1.5, 150)]))
def test_scaled_identities_have_all_singular_values_alike(scale, depth):
    mlp = mlp_of([scale * torch.eye(2, dtype=torch.float64)] * depth)
    expected = torch.full((1, 2, 2), depth * math.log10(scale), dtype=torch.float64)
    torch.testing.assert_close(singular_values(mlp, drawn(2, 2), first=0), expected)
    natural = expected * LN10 / depth
    torch.testing.assert_close(lyapunov_spectrum(mlp, drawn(2, 2), first=0), natural)


@pytest.mark.parametrize("other", few([1e-6, 0.0]))
def test_small_singular_values_are_found_where_the_units_are_in_the_wrong_order(other):
    # The product is [[2^-100, c], [0, 2^100]] with c = other · (2^100 - 2^-100) / 1.5, and its determinant is 1.
    mlp = mlp_of([torch.tensor([[0.5, other], [0.0, 2.0]], dtype=torch.float64)] * 100)
    largest = 100 * math.log10(2) + 0.5 * math.log10(1 + (other / 1.5) ** 2)
    expected = torch.tensor([largest, -largest], dtype=torch.float64)
    torch.testing.assert_close(singular_values(mlp, drawn(1, 2), first=0)[0, 0], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("scale", "depth"), [(1.5, 30), (1e-25, 15)])
def test_units_of_slope_0_give_singular_values_of_exactly_0(scale, depth):
    mlp = mlp_of([scale * torch.eye(3, dtype=torch.float64)] * depth, "relu")
    found = singular_values(mlp, torch.tensor([[-1.0, 1.0, 2.0], [1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]]))
    one = (depth - 1) * math.log10(scale)
    expected = torch.tensor([[one, one, -torch.inf], [one, one, -torch.inf], [-torch.inf] * 3], dtype=torch.float64)
    torch.testing.assert_close(found[0], expected)


def test_a_unit_that_a_bias_turns_off_halfway_is_lost():
    biases = [torch.tensor([0.0, 0.0, -1e6 if layer == 10 else 0.0]) for layer in range(30)]
    found = singular_values(mlp_of([1.5 * torch.eye(3)] * 30, "relu", biases), torch.tensor([[-1.0, 1.0, 2.0]]))
    assert found[0, 0].tolist() == [pytest.approx(29 * math.log10(1.5)), -math.inf, -math.inf]


def test_a_product_in_an_unstable_order_gives_nan():
    # Unit 2 is off at layer 1 only. Forward, what is left is halved at each layer; but the way back doubles what
    # layer 1 then drops, and nothing of 0.5^n can be seen beside 2^n.
    biases = [torch.tensor([0.0, -1e3 if layer == 0 else 1.0]) for layer in range(40)]
    mlp = mlp_of([torch.tensor([[0.5, 0.1], [0.0, 2.0]])] * 40, "relu", biases)
    found = singular_values(mlp, torch.tensor([[1.0, 1.0]]))[0, 0]
    assert found[0].isnan()
    assert found[1] == -torch.inf


def test_relu_networks_have_no_more_singular_values_than_their_narrowest_layer_has_active_units():
    mlp = drawn_mlp([24] * 30, "relu", "he", networks=2)
    x = drawn(4, 24)
    active = torch.stack([(z > 0).sum(dim=-1) for z in outputs_of(mlp, x)[1:-1]]).amin(dim=0)
    found = singular_values(mlp, x)
    assert found.isfinite().sum(dim=-1).equal(active)
    assert not found.isnan().any()


def test_singular_values_that_are_0_but_for_rounding_are_nan():
    rank_two = drawn(4, 2) @ drawn(2, 4, seed=2)
    mlp = mlp_of([*drawn(10, 4, 4), rank_two, *drawn(10, 4, 4, seed=3)])
    found = singular_values(mlp, drawn(1, 4))[0, 0]
    exact = mp_log10_singular_values(mlp, drawn(1, 4), 100)
    torch.testing.assert_close(found[:2], exact[:2], rtol=1e-12, atol=1e-12)
    assert found[2:].isnan().all()


@pytest.mark.parametrize("depth", [5, 31])
def test_ones_are_not_taken_for_a_matrix_of_exactly_lower_rank(depth):
    # The rank of weights is known to rounding only, even where it happens to come out exactly.
    found = singular_values(mlp_of([torch.full((3, 3), 1 / 3, dtype=torch.float64)] * depth), drawn(1, 3))[0, 0]
    assert abs(found[0]) < 1e-14
    assert found[1:].isnan().all()


@pytest.mark.parametrize("bits", [40, 50])
def test_rounding_that_errs_alike_in_every_sweep_is_not_taken_for_agreement(bits):
    # The smaller eigenvalue of this symmetric matrix is about 2^-bits / 2; every QR decomposition of it finds the
    # same one, wrong by 7e-5 and 6e-2.
    weight = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 2.0**-bits]], dtype=torch.float64)
    found = singular_values(mlp_of([weight]), drawn(1, 2), first=0)[0, 0]
    assert abs(found[0] - math.log10(2)) < 1e-12
    assert found[1].isnan()


def test_a_weight_of_zeros_makes_everything_0():
    mlp = mlp_of([drawn(3, 3), torch.zeros(3, 3), drawn(3, 3)])
    assert (singular_values(mlp, drawn(1, 3)) == -torch.inf).all()
    assert (lyapunov_spectrum(mlp, drawn(1, 3)) == -torch.inf).all()
    moments = spectral_moments(mlp, drawn(1, 3))
    assert moments.log10_m1.item() == -math.inf
    assert moments.log10_m1_se.isnan()
    assert moments.ratio.isnan()
    assert moments.ratio_se.isnan()


@pytest.mark.slow
@pytest.mark.parametrize("decades", few([6, 12]))
def test_ill_conditioned_weights_give_right_singular_values_or_nan(decades):
    known = 0
    for case in range(8):
        random = torch.Generator().manual_seed(case)
        weights = []
        for _ in range(10):
            u, v = (torch.linalg.qr(torch.randn(3, 3, generator=random, dtype=torch.float64)).Q for _ in range(2))
            sizes = 10 ** (-decades * torch.rand(3, generator=random, dtype=torch.float64))
            weights.append(u * sizes @ v)
        mlp, x = mlp_of(weights), drawn(1, 3)
        found = singular_values(mlp, x, first=0)[0, 0]
        exact = mp_log10_singular_values(mlp, x, 350, first=0)
        assert (found - exact)[~found.isnan()].abs().max() * LN10 < 1e-5
        known += found.isfinite().sum().item()
    assert known >= 8  # at least the largest of each


def test_networks_of_a_stack_are_measured_as_each_alone():
    mlp = drawn_mlp([4] * 8, "tanh", "xavier", networks=3)
    x = drawn(2, 4)
    for e in range(3):
        alone = mlp.network(e)
        torch.testing.assert_close(singular_values(mlp, x)[e : e + 1], singular_values(alone, x), atol=1e-10, rtol=0)
        torch.testing.assert_close(lyapunov_spectrum(mlp, x)[e : e + 1], lyapunov_spectrum(alone, x))
        mine, own = spectral_moments(mlp, x), spectral_moments(alone, x, seeds=[e])
        for field in ("log10_m1", "log10_m1_se", "ratio", "ratio_se"):
            torch.testing.assert_close(getattr(mine, field)[e : e + 1], getattr(own, field))


def test_float32_weights_are_measured_in_float64_without_a_graph_or_a_change():
    mlp = drawn_mlp([4] * 6, "gelu", "he").float()
    before = [parameter.clone() for parameter in mlp.parameters()]
    double = MLP([4] * 6, "gelu", bias=False, dtype=torch.float64)
    double.load_state_dict(mlp.state_dict())
    x = drawn(2, 4).float()
    for measure in (singular_values, lyapunov_spectrum, lambda mlp, x: spectral_moments(mlp, x).ratio):
        found = measure(mlp, x)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        assert not measure(double, x).requires_grad
        torch.testing.assert_close(found, measure(double, x))
    assert all(map(torch.equal, before, mlp.parameters()))


def test_lyapunov_exponents_of_gaussian_products_follow_newmans_law():
    # Each log |R_kk| is that of an independent chi variable with n - k + 1 degrees of freedom, over sqrt(n).
    width, depth, networks = 6, 50, 100
    mlp = drawn_mlp([width] * (depth + 1), "linear", "mean_field", networks=networks)
    logs = lyapunov_spectrum(mlp, drawn(1, width), first=0, each_layer=True)[:, :, 0]
    halves = np.arange(width, 0, -1) / 2
    mean = torch.from_numpy(math.log(2 / width) + digamma(halves)) / 2
    variance = torch.from_numpy(polygamma(1, halves)) / 4
    fourth = torch.from_numpy(polygamma(3, halves)) / 16  # cumulant
    count = depth * networks
    assert ((logs.mean(dim=(0, 1)) - mean).abs() < 4.5 * (variance / count).sqrt()).all()
    assert ((logs.var(dim=(0, 1)) - variance).abs() < 4.5 * ((fourth + 2 * variance**2) / count).sqrt()).all()
    torch.testing.assert_close(
        logs.mean(dim=0), lyapunov_spectrum(mlp, drawn(1, width), first=0)[:, 0], rtol=1e-12, atol=1e-12
    )


def test_lyapunov_exponents_match_the_qr_decomposition_of_the_differentiated_network():
    # R_kk² = det of the first k columns' Gram matrix over that of the first k - 1; det J = product of all.
    mlp = drawn_mlp([4] * 6, "tanh", "he", networks=2)
    x = drawn(2, 4)
    found = 5 * lyapunov_spectrum(mlp, x, first=0, last=5)
    for network in range(2):
        for sample in range(2):
            determinant = torch.linalg.det(differentiated(mlp, x, network, sample, 0, 5))
            torch.testing.assert_close(found[network, sample].sum(), determinant.abs().log())


@pytest.mark.slow
@pytest.mark.parametrize("phi", ["tanh"])
def test_lyapunov_exponents_are_those_of_the_singular_values_in_the_limit_of_depth(phi):
    mlp = drawn_mlp([4] * 402, phi, "mean_field", sigma_w2=2.0)
    x = drawn(2, 4)
    exponents = lyapunov_spectrum(mlp, x)
    sizes = singular_values(mlp, x) * LN10 / 400
    torch.testing.assert_close(exponents.sum(dim=-1), sizes.sum(dim=-1), rtol=1e-10, atol=0)  # log |det J|
    assert (exponents - sizes).abs().max() < 0.016  # a few units over the depth
    half = lyapunov_spectrum(mlp, x, last=31) - singular_values(mlp, x, last=31) * LN10 / 30
    assert half.abs().max() > 3 * (exponents - sizes).abs().max()


def test_the_first_lyapunov_exponents_do_not_depend_on_how_many_are_taken():
    mlp = drawn_mlp([6, 8, 5, 8], "relu", "he", networks=2)
    x = drawn(3, 6)
    every = lyapunov_spectrum(mlp, x, first=0)
    assert every.shape == (2, 3, 5)
    torch.testing.assert_close(lyapunov_spectrum(mlp, x, first=0, count=2), every[..., :2])
    assert not torch.equal(lyapunov_spectrum(mlp, x, first=0, seed=1), every)


def test_relu_networks_have_as_many_lyapunov_exponents_as_singular_values():
    mlp = drawn_mlp([12] * 40, "relu", "he", networks=2)
    x = drawn(3, 12)
    assert lyapunov_spectrum(mlp, x).isfinite().equal(singular_values(mlp, x).isfinite())


def traces(matrix):
    a = matrix @ matrix.T
    n = len(a)
    return a.trace() / n, (a @ a).trace() / n


@pytest.mark.parametrize("phi", few(["tanh", "relu", "sigmoid"]))
def test_moments_match_traces_of_the_differentiated_network(phi):
    mlp = drawn_mlp([8, 12, 9, 12, 7], phi, "he", networks=2, bias=True, sigma_b2=0.1)
    x = drawn(3, 8)
    moments = spectral_moments(mlp, x, first=0, probes=4000)
    for network in range(2):
        for sample in range(3):
            m1, m2 = traces(differentiated(mlp, x, network, sample, 0))
            off = moments.log10_m1[network, sample] - m1.log10()
            assert off.abs() < 4.5 * moments.log10_m1_se[network, sample]
            off = moments.ratio[network, sample] - m2 / m1**2
            assert off.abs() < 4.5 * moments.ratio_se[network, sample]
            assert moments.ratio_se[network, sample] < 0.05 * m2 / m1**2


@pytest.mark.parametrize("depth", few([3, 12]))
def test_standard_errors_of_moments_are_the_spread_over_probes(depth):
    # 2000 copies of one network, each with probes of its own.
    mlp = drawn_mlp([20] * (depth + 1), "tanh", "mean_field", sigma_w2=1.5)
    x = drawn(1, 20)
    m1, m2 = traces(differentiated(mlp, x, 0, 0, 0))
    copies = MLP(mlp.widths, "tanh", bias=False, networks=2000, dtype=torch.float64)
    with torch.no_grad():
        for layer, own in zip(copies.layers, mlp.layers, strict=True):
            layer.weight.copy_(own.weight.expand_as(layer.weight))
    moments = spectral_moments(copies, x, first=0, probes=10)
    for value, se, truth in (
        (10**moments.log10_m1, moments.log10_m1_se * LN10 * 10**moments.log10_m1, m1),
        (moments.ratio, moments.ratio_se, m2 / m1**2),
    ):
        spread = value.std()
        # The delta method is right to about 1 / probes.
        assert abs(se.square().mean().sqrt() / spread - 1) < 0.15
        # Without its correction the ratio would be 0.5 too large at depth 12, 7 standard errors.
        assert abs(value.mean() - truth) < 4.5 * spread / math.sqrt(2000)


def test_moments_of_scaled_orthogonal_products_are_exact_at_any_depth():
    mlp = drawn_mlp([16] * 201, "linear", "orthogonal", gain=0.01)
    moments = spectral_moments(mlp, drawn(2, 16), first=0, probes=4)
    torch.testing.assert_close(moments.log10_m1, torch.full((1, 2), -800.0, dtype=torch.float64))
    torch.testing.assert_close(moments.ratio, torch.ones(1, 2, dtype=torch.float64))
    assert (moments.ratio_se < 1e-11).all()


def expected_moments(init, phi, width, layers):
    """E m_1² and E m_2 of J at a finite width, where the weights keep the mean square.

    A = J Jᵀ becomes W D A D Wᵀ. With Gaussian W of variance s / n

        E tr (W A Wᵀ)² = s² [(tr A)² / n + (1 + 1/n) tr A²],   E (tr W A Wᵀ)² = s² [(tr A)² + (2/n) tr A²]

    A is invariant under rotations, so E Σ A_ii² = (2 tr A² + (tr A)²) / (n + 2), and slopes of 0 or 1 with even odds
    (independent of |W|: Hanin & Nica, 2018) average tr (D A)² to [(tr A)² + Σ A_ii²] / 4, and likewise tr (D A)².
    """
    square, second = width**2, width  # (tr A)², tr A²
    scale = 2 if phi == "relu" else 1
    for _ in range(layers):
        if phi == "relu":
            diagonal_squares = (2 * second + square) / (width + 2)
            square, second = (square + diagonal_squares) / 4, (second + diagonal_squares) / 4
        if init == "mean_field":
            square, second = square + 2 * second / width, square / width + (1 + 1 / width) * second
        square, second = scale**2 * square, scale**2 * second
    return square / width**2, second / width


@pytest.mark.parametrize(("init", "phi"), KINDS)
def test_the_expected_moments_tend_to_those_of_free_probability(init, phi):
    # m_2 / m_1² = 1 + L (mu_2 / mu_1² - 1 - s_1): Pennington et al., 2017.
    square, second = expected_moments(init, phi, 10**8, 10)
    limit = 1 + 10 * ((1 if phi == "relu" else 0) + (1 if init == "mean_field" else 0))
    assert (square, second) == (pytest.approx(1, abs=1e-5), pytest.approx(limit, rel=1e-5))


@pytest.mark.parametrize(("init", "phi"), few(KINDS))
def test_moments_of_random_networks_have_the_expected_means(init, phi):
    width, layers, networks = 40, 4, 300
    options = {"gain": math.sqrt(2)} if phi == "relu" else {}
    mlp = drawn_mlp([width] * (layers + 2), phi, init, networks=networks, **options)
    moments = spectral_moments(mlp, drawn(1, width), probes=16)
    m1 = 10**moments.log10_m1
    m2 = moments.ratio * m1**2
    for value, expected in (
        (m1, 1.0),
        (m2, expected_moments(init, phi, width, layers)[1]),
    ):
        # 1e-12 where nothing is random; the bias of m_2 left by the probes is far below its standard error.
        assert abs(value.mean() - expected) < 4.5 * value.std() / math.sqrt(networks) + 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda mlp: singular_values(mlp, drawn(2, 3)),
            "x must have shape \\(batch, 4\\), got \\(2, 3\\)",
        ),
        (
            lambda mlp: singular_values(mlp, drawn(2, 4), first=2, last=2),
            "first must be below last, both from 0 to 3, got 2 and 2",
        ),
        (
            lambda mlp: lyapunov_spectrum(mlp, drawn(2, 4), last=4),
            "first must be below last, both from 0 to 3, got 1 and 4",
        ),
        (
            lambda mlp: lyapunov_spectrum(mlp, drawn(2, 4), count=3),
            "count must be from 1 to 2, the narrowest layer, got 3",
        ),
        (lambda mlp: spectral_moments(mlp, drawn(2, 4), probes=1), "probes must be at least 2, got 1"),
        (lambda mlp: spectral_moments(mlp, drawn(2, 4), seeds=[1, 2]), "seeds must name 1 networks, got 2"),
        (
            lambda mlp: singular_values(mlp, torch.tensor([[0, 0, 0, math.inf]])),
            "x and the weight of layer 1 must be finite, got nan or inf",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call(drawn_mlp([4, 5, 2, 3], "tanh", "he"))


def test_z_that_is_not_finite_is_named():
    mlp = drawn_mlp([2, 2, 2], lambda z: 1 / (z - z.detach()), "he")
    with pytest.raises(ValueError, match=r"^φ\(z\) and φ'\(z\) of layer 1 and the weight of layer 2 must be finite"):
        singular_values(mlp, drawn(1, 2))


@pytest.mark.parametrize(("cure", "value"), [("normalization", "layer"), ("residual", "plain")])
def test_cures_are_refused(cure, value):
    mlp = MLP([4] * 5, **{cure: value})
    with pytest.raises(ValueError, match=f"^{cure} must be 'none' for a Jacobian, got '{value}'$"):
        singular_values(mlp, drawn(1, 4))
