"""What theory says of the weights of each scheme, against weights drawn with it."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor, nn

from gradexp.choices import INIT_OPTIONS
from gradexp.networks.initialize import initialize
from gradexp.networks.inits import INITS, Scheme, he_
from gradexp.networks.mlp import MLP
from gradexp.theory.finite_width import layer_law
from gradexp.theory.from_model import read_weights
from gradexp.theory.weight_laws import UnknownLawError, WeightLaw, weight_laws

WIDTHS = [300, 200, 500]
LAWS = {name for name, scheme in INITS.items() if scheme.law is not None}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("he", {}),
    ("he", {"gain": 0.7, "mode": "fan_out"}),
    ("he", {"distribution": "uniform", "gain": 1.5}),
    ("he", {"mode": "fan_out", "distribution": "uniform"}),
    ("kaiming", {"gain": -2.0}),
    ("xavier", {}),
    ("xavier", {"gain": 5 / 3}),
    ("glorot", {"distribution": "uniform", "gain": 0.4}),
    ("lecun", {}),
    ("lecun", {"distribution": "uniform", "gain": 3.0}),
    ("normal", {}),
    ("normal", {"std": 0.3, "gain": 2.0}),
    ("uniform", {}),
    ("uniform", {"std": 0.3, "gain": 2.0}),
    ("truncated_normal", {}),
    ("truncated_normal", {"corrected": False}),
    ("truncated_normal", {"std": 0.2, "gain": 1.5}),
    ("truncated_normal", {"std": 0.2, "gain": 1.5, "corrected": False}),
    ("sparse", {}),
    ("sparse", {"sparsity": 0.0}),
    ("sparse", {"sparsity": 0.5, "gain": 1.4}),
    ("sparse", {"sparsity": 0.93, "std": 0.2, "gain": 1.4}),
    ("torch_default", {}),
    ("torch_default", {"gain": 2.0}),
    ("mean_field", {}),
    ("mean_field", {"sigma_w2": 2.5, "gain": 1.3}),
    ("lyapunov", {"activation": "relu"}),
    ("lyapunov", {"activation": "leaky_relu", "negative_slope": 0.3, "gain": 1.2}),
    ("lyapunov", {"activation": "linear"}),
]


def draw(init: str, fan_in: int, fan_out: int, **options: Any) -> nn.Linear:
    return initialize(nn.Linear(fan_in, fan_out, dtype=torch.float64), init, seed=0, **options)


def assert_mean_square(sample: Tensor, expected: float) -> None:
    squares = sample.flatten().square()
    assert abs(squares.mean().item() - expected) < 4.5 * squares.std().item() / math.sqrt(len(squares)) + 1e-15


def excess_kurtosis(weight: Tensor) -> tuple[float, float]:
    """Return it, and its standard error: of E W⁴ / (E W²)², to first order in both averages."""
    squares = weight.flatten().square()
    variance, fourth = squares.mean(), squares.square().mean()
    change = squares.square() / variance**2 - 2 * fourth / variance**3 * squares
    return (fourth / variance**2 - 3).item(), change.std().item() / math.sqrt(len(squares))


@pytest.mark.parametrize(("init", "options"), CASES)
def test_drawn_weights_have_the_variance_and_kurtosis_of_their_law(init: str, options: dict[str, Any]) -> None:
    laws = weight_laws(init, WIDTHS, **options)
    assert len(laws) == 2
    for fan_in, fan_out, law in zip(WIDTHS, WIDTHS[1:], laws, strict=False):
        weight = draw(init, fan_in, fan_out, **options).weight.detach()
        assert_mean_square(weight, law.sigma_w2 / fan_in)
        kurtosis, error = excess_kurtosis(weight)
        assert abs(kurtosis - law.kurtosis) < 5 * error
        assert not law.orthogonal
        assert law.diagonal is None
        assert law.scaled_to is None


def test_every_law_and_option_has_a_case_here() -> None:
    by_name = {"kaiming": "he", "glorot": "xavier"}
    tried = {by_name.get(init, init) for init, _ in CASES} | {"orthogonal", "delta_orthogonal", "identity", "lsuv"}
    assert tried == LAWS
    for name, own in INIT_OPTIONS.items():
        if name in ("orthogonal", "delta_orthogonal", "identity", "lsuv"):
            continue
        given = {option for init, options in CASES if by_name.get(init, init) == name for option in options}
        assert set(own) <= given


@pytest.mark.parametrize(
    ("init", "options", "expected"),
    [
        ("he", {}, 2.0),
        ("he", {"mode": "fan_out", "gain": 3.0}, 2 * 9 * 300 / 200),
        ("xavier", {"gain": 5 / 3}, 25 / 9 * 2 * 300 / 500),
        ("lecun", {"gain": 0.75}, 9 / 16),
        ("normal", {"std": 0.1}, 3.0),
        ("uniform", {"std": 0.1, "gain": 2.0}, 12.0),
        ("truncated_normal", {}, 2.0),
        ("truncated_normal", {"corrected": False}, 2 * 0.773741),
        ("truncated_normal", {"std": 0.1}, 3.0),
        ("sparse", {}, 1.0),
        ("sparse", {"std": 0.1, "sparsity": 0.9}, 30 * 0.01),
        ("sparse", {"std": 0.1, "sparsity": 0.999}, 0.01),  # one weight is always kept
        ("torch_default", {"gain": 1.5}, 0.75),
        ("mean_field", {"sigma_w2": 1.7, "gain": 2.0}, 6.8),
        ("orthogonal", {"gain": 1.5}, 2.25),
        ("identity", {"gain": 1.5}, 2.25),
    ],
)
def test_sigma_w2_is_its_formula(init: str, options: dict[str, Any], expected: float) -> None:
    (law,) = weight_laws(init, [300, 200], **options)
    assert law.sigma_w2 == pytest.approx(expected, rel=1e-6)


def test_excess_kurtosis_is_that_of_the_distribution() -> None:
    assert weight_laws("he", [9, 9], distribution="uniform")[0].kurtosis == pytest.approx(9 / 5 - 3)
    assert weight_laws("uniform", [9, 9])[0].kurtosis == pytest.approx(-1.2)
    assert weight_laws("torch_default", [9, 9])[0].kurtosis == pytest.approx(-1.2)
    cut = float(truncnorm(-2, 2).stats("k"))
    for corrected in (True, False):
        law = weight_laws("truncated_normal", [9, 9], corrected=corrected)[0]
        assert law.kurtosis == pytest.approx(cut, rel=1e-10)
    uncorrected = weight_laws("truncated_normal", [9, 9], std=1 / 3, corrected=False)[0]
    assert uncorrected.sigma_w2 == pytest.approx(float(truncnorm(-2, 2).var()), rel=1e-12)
    assert weight_laws("sparse", [100, 9], sparsity=0.75)[0].kurtosis == pytest.approx(3 * 4 - 3)
    assert weight_laws("he", [9, 9])[0].kurtosis == 0


@pytest.mark.parametrize("init", ["orthogonal", "delta_orthogonal", "identity"])
@pytest.mark.parametrize(("fan_in", "fan_out"), [(40, 40), (30, 50), (50, 30)])
def test_orthogonal_and_identity_matrices_have_the_mean_square_of_their_law(
    init: str, fan_in: int, fan_out: int
) -> None:
    (law,) = weight_laws(init, [fan_in, fan_out], gain=-1.5)
    weight = draw(init, fan_in, fan_out, gain=-1.5).weight
    assert law.sigma_w2 == pytest.approx(fan_in * weight.square().mean().item(), rel=1e-12)
    assert law.orthogonal == (init != "identity")
    assert law.diagonal == (-1.5 if init == "identity" else None)
    # An isometry of the smaller space: all singular values are the gain.
    gain2 = law.sigma_w2 * max(fan_in, fan_out) / fan_in
    assert torch.linalg.svdvals(weight).square().tolist() == pytest.approx([gain2] * min(fan_in, fan_out), rel=1e-9)


def test_lyapunov_takes_out_the_drift_of_each_layer_going_back() -> None:
    for activation, slopes in (("linear", (1.0, 1.0)), ("relu", (0.0, 1.0)), ("leaky_relu", (0.2, 1.0))):
        laws = weight_laws("lyapunov", [8, 30, 5], activation=activation, negative_slope=0.2)
        for fan_in, fan_out, law in zip((8, 30), (30, 5), laws, strict=True):
            drift = layer_law(fan_in, fan_out, law.sigma_w2, slopes, backward=True).mean
            assert drift == pytest.approx(0, abs=1e-9)
    scaled = weight_laws("lyapunov", [8, 30], activation="relu", gain=3.0)[0].sigma_w2
    assert scaled == pytest.approx(9 * weight_laws("lyapunov", [8, 30], activation="relu")[0].sigma_w2)


def test_lsuv_scales_outputs_to_the_square_of_the_gain() -> None:
    laws = weight_laws("lsuv", [20, 40, 30], gain=2.0, tolerance=0.02, iterations=5)
    assert [law.scaled_to for law in laws] == [4.0, 4.0]
    assert [law.tolerance for law in laws] == [0.02, 0.02]
    assert all(law.orthogonal for law in laws)
    assert [law.tolerance for law in weight_laws("lsuv", [20, 40, 30])] == [0.1, 0.1]
    x = torch.randn(500, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mlp = MLP([20, 40, 30], "tanh", dtype=torch.float64)
    initialize(mlp, "lsuv", seed=0, inputs=x, gain=2.0, tolerance=0.02)
    assert mlp(x).var().item() == pytest.approx(laws[1].scaled_to, rel=0.02)


def test_biases_are_drawn_with_the_variance_of_their_law() -> None:
    torch.manual_seed(0)
    own = weight_laws("torch_default", [300, 4_000], gain=2.0)[0]
    assert own.sigma_b2 == pytest.approx(1 / 900)
    for layer in (draw("torch_default", 300, 4_000, gain=2.0), nn.Linear(300, 4_000)):
        assert_mean_square(layer.bias.detach(), own.sigma_b2)
    assert [law.sigma_b2 for law in weight_laws("torch_default", [12, 48, 3])] == pytest.approx([1 / 36, 1 / 144])
    for init in LAWS:
        options = {"activation": "relu"} if init == "lyapunov" else {}
        given = weight_laws(init, [12, 48, 3], sigma_b2=0.3, **options)
        assert [law.sigma_b2 for law in given] == [0.3, 0.3]
        if init != "torch_default":
            assert [law.sigma_b2 for law in weight_laws(init, [12, 48, 3], **options)] == [0, 0]
    assert_mean_square(draw("he", 3, 4_000, sigma_b2=0.3).bias.detach(), 0.3)
    assert weight_laws("torch_default", [12, 3], sigma_b2=0.0)[0].sigma_b2 == 0
    assert weight_laws("torch_default", [12, 3], bias=False)[0].sigma_b2 == 0


def test_a_variance_of_biases_that_are_not_there_is_refused() -> None:
    assert weight_laws("he", [12, 3], bias=False, sigma_b2=0.0)[0].sigma_b2 == 0
    with pytest.raises(ValueError, match=r"^sigma_b2=0\.1 needs biases, got bias=False$"):
        weight_laws("he", [12, 3], bias=False, sigma_b2=0.1)
    x = torch.ones(2, 3)
    for init, options in (("he", {}), ("lsuv", {"inputs": x})):
        bare = MLP([3, 3, 3], bias=False)
        before = [parameter.clone() for parameter in bare.parameters()]
        with pytest.raises(ValueError, match=r"^sigma_b2=0\.3 needs biases, and no layer of the model has one"):
            initialize(bare, init, sigma_b2=0.3, **options)
        assert all(torch.equal(*pair) for pair in zip(before, bare.parameters(), strict=True))
        initialize(bare, init, sigma_b2=0.0, **options)
    with pytest.raises(ValueError, match="needs biases"):  # there are some, and they are to be left
        initialize(MLP([3, 3, 3]), "he", sigma_b2=0.3, skip="layers.*.bias")


@pytest.mark.parametrize(
    ("init", "options", "text"),
    [
        ("xaviar", {}, "^unknown init 'xaviar'; choose one of he, xavier, lecun, "),
        ("identity", {"std": 1.0}, "^init 'identity' has no option 'std'; it takes gain$"),
        ("kaiming", {"std": 1.0}, "^init 'kaiming' has no option 'std'; it takes gain, mode, distribution$"),
        ("he", {"mode": "fan_up"}, "^mode must be one of fan_in, fan_out, got 'fan_up'$"),
        ("xavier", {"distribution": "cauchy"}, "^distribution must be one of normal, uniform, got 'cauchy'$"),
        ("sparse", {"sparsity": 1.0}, r"^sparsity must be at least 0 and below 1, got 1\.0$"),
        ("sparse", {"sparsity": -0.1}, r"^sparsity must be at least 0 and below 1, got -0\.1$"),
        ("mean_field", {"sigma_w2": -1.0}, "^sigma_w2 must be a variance, at least 0 and finite, got -1"),
        ("normal", {"std": math.nan}, "^sigma_w2 must be a variance, at least 0 and finite, got nan$"),
        ("he", {"sigma_b2": -1.0}, "^sigma_b2 must be a variance, at least 0 and finite, got -1"),
        ("lyapunov", {}, "^lyapunov needs activation linear, relu, leaky_relu, got None$"),
        ("lyapunov", {"activation": "tanh"}, "^lyapunov needs activation linear, relu, leaky_relu, got 'tanh'$"),
    ],
)
def test_what_no_scheme_can_draw_is_refused(init: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        weight_laws(init, [8, 4], **options)


def test_a_scheme_without_a_law_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INITS, "he", Scheme(he_))
    with pytest.raises(UnknownLawError, match=r"^no law is known for init 'kaiming'$"):
        weight_laws("kaiming", [8, 4])


@pytest.mark.parametrize("widths", [[], [8], [8, 0], [-3, 8]])
def test_impossible_widths_are_refused(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="widths must be at least two numbers of at least 1, got"):
        weight_laws("he", widths)


def test_a_law_holds_variances_only() -> None:
    with pytest.raises(ValueError, match="sigma_w2 must be a variance, at least 0 and finite, got -1"):
        WeightLaw(-1.0)
    with pytest.raises(ValueError, match="sigma_b2 must be a variance, at least 0 and finite, got inf"):
        WeightLaw(1.0, math.inf)


# Reading models.


def linear(fan_in: int, fan_out: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias)


def test_a_chain_is_read_through_nesting_flatten_and_identity() -> None:
    first, second, third = linear(6, 8), linear(8, 5, bias=False), linear(5, 3)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(first, nn.Identity(), nn.Sequential(nn.Tanh(), nn.Identity())),
        second,
        nn.Tanh(),
        third,
        nn.Softmax(dim=1),
    )
    laws, widths, activation = read_weights(model)
    assert widths == [6, 8, 5, 3]
    assert isinstance(activation, nn.Tanh)
    assert len(laws) == 3
    for law, layer in zip(laws, (first, second, third), strict=True):
        w = layer.weight.detach().double()
        assert law.sigma_w2 == pytest.approx(layer.in_features * (w**2).mean().item(), rel=1e-12)
        bias2 = 0.0 if layer.bias is None else (layer.bias.detach().double() ** 2).mean().item()
        assert law.sigma_b2 == pytest.approx(bias2, rel=1e-12)
        assert law.kurtosis == pytest.approx(((w**4).mean() / (w**2).mean() ** 2).item() - 3, rel=1e-12)
        assert (law.orthogonal, law.diagonal, law.scaled_to) == (False, None, None)


def test_linear_layers_without_an_activation_between_are_a_linear_network() -> None:
    assert isinstance(read_weights(nn.Sequential(linear(3, 4), linear(4, 2)))[2], nn.Identity)
    assert read_weights(linear(3, 4))[1:] == ([3, 4], None)
    assert read_weights(nn.Sequential(linear(3, 4), nn.ReLU()))[1:] == ([3, 4], None)


def test_an_mlp_is_read_with_its_own_activation() -> None:
    mlp = MLP([6, 8, 3], "gelu", dtype=torch.float64)
    laws, widths, activation = read_weights(mlp)
    assert widths == [6, 8, 3]
    assert activation is mlp.activation
    assert laws[0].sigma_w2 == pytest.approx(6 * mlp.layers[0].weight.square().mean().item(), rel=1e-12)
    assert laws[1].sigma_b2 == pytest.approx(mlp.layers[1].bias.square().mean().item(), rel=1e-12)
    assert read_weights(MLP([6, 8, 3], bias=False))[0][0].sigma_b2 == 0
    with pytest.raises(ValueError, match=r"give one network of the stack, mlp\.network\(index\), got a stack of 3"):
        read_weights(MLP([6, 3], networks=3))


@pytest.mark.parametrize(("init", "options"), CASES)
def test_reading_drawn_weights_gives_the_law_back(init: str, options: dict[str, Any]) -> None:
    drawn = MLP(WIDTHS, "relu", dtype=torch.float64)
    given = {"activation": "relu", **options} if init == "lyapunov" else options
    initialize(drawn, init, seed=1, sigma_b2=0.2, **given)
    for read, law in zip(read_weights(drawn)[0], weight_laws(init, WIDTHS, sigma_b2=0.2, **given), strict=True):
        # At least 60 000 entries, of which the relative variance of the square is kurtosis + 2.
        assert read.sigma_w2 == pytest.approx(law.sigma_w2, rel=4.5 * math.sqrt((law.kurtosis + 2) / 60_000))
        assert read.sigma_b2 == pytest.approx(law.sigma_b2, rel=4.5 * math.sqrt(2 / 200))
        assert (read.orthogonal, read.diagonal) == (False, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("fan_in", "fan_out"), [(6, 6), (6, 4), (4, 6)])
def test_orthogonal_weights_and_scaled_identities_are_recognised(
    fan_in: int, fan_out: int, dtype: torch.dtype
) -> None:
    layer = nn.Linear(fan_in, fan_out, dtype=dtype)
    for init in ("orthogonal", "identity"):
        initialize(layer, init, seed=0, gain=-1.5)
        (read,), (law,) = read_weights(layer)[0], weight_laws(init, [fan_in, fan_out], gain=-1.5)
        assert read.sigma_w2 == pytest.approx(law.sigma_w2, rel=1e-6)
        assert (read.orthogonal, read.diagonal, read.kurtosis) == (law.orthogonal, law.diagonal, 0)


@pytest.mark.parametrize(
    "weight",
    [
        torch.diag(torch.tensor([1.0, -1.0, 1.0])),  # orthogonal, but no multiple of the identity
        torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    ],
)
def test_reflections_and_permutations_are_orthogonal_but_no_identity(weight: Tensor) -> None:
    layer = linear(3, 3)
    layer.weight.data = weight
    (law,), _, _ = read_weights(layer)
    assert law.orthogonal
    assert law.diagonal is None


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(3, 3),
        torch.diag(torch.tensor([1.0, 1.0, 1.01])),
        torch.eye(3) + 0.01,
        torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    ],
)
def test_what_is_nearly_or_partly_orthogonal_is_not(weight: Tensor) -> None:
    layer = linear(3, 3)
    layer.weight.data = weight
    (law,), _, _ = read_weights(layer)
    assert not law.orthogonal
    assert law.diagonal is None
    assert law.sigma_w2 == pytest.approx(weight.square().sum().item() / 3)


def test_a_single_row_or_column_is_not_taken_for_orthogonal() -> None:
    for fan_in, fan_out in ((1, 5), (5, 1), (1, 1)):
        assert not read_weights(linear(fan_in, fan_out))[0][0].orthogonal


class Block(nn.Module):
    """A module with a layer inside and no parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


FITS = "theory reads chains of nn.Linear with one activation between two of them; "


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Sequential(linear(4, 4), nn.BatchNorm1d(4), linear(4, 4)), rf"^{FITS}'1' \(BatchNorm1d\) does not fit$"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 3))), rf"^{FITS}'0\.0' \(Conv2d\) does not fit$"),
        (nn.Sequential(nn.ReLU(), linear(4, 4)), rf"^{FITS}'0' \(ReLU\) does not fit$"),
        (
            nn.Sequential(linear(4, 4), nn.Sequential(nn.Tanh(), nn.Dropout(), nn.ReLU()), linear(4, 4)),
            rf"^{FITS}'1\.2' \(ReLU\) does not fit$",
        ),
        (nn.Sequential(linear(4, 4), nn.PReLU(), linear(4, 4)), rf"^{FITS}'1' \(PReLU\) does not fit$"),
        (nn.Sequential(linear(4, 4), Block(), linear(4, 4)), rf"^{FITS}'1' \(Block\) does not fit$"),
        (nn.Sequential(linear(4, 4), linear(4, 4), Block()), rf"^{FITS}'2' \(Block\) does not fit$"),
        (Block(), "^theory reads nn.Sequential chains and gradexp.MLP, got Block$"),
        (nn.Sequential(), "^Sequential has no nn.Linear$"),
        (nn.Sequential(nn.Flatten()), "^Sequential has no nn.Linear$"),
        (
            nn.Sequential(linear(4, 4), nn.ReLU(), linear(4, 4), nn.Tanh(), linear(4, 4)),
            r"^all activations must be alike, got ReLU\(\), Tanh\(\)$",
        ),
        (
            nn.Sequential(linear(4, 4), nn.LeakyReLU(0.1), linear(4, 4), nn.LeakyReLU(0.2), linear(4, 4)),
            "^all activations must be alike, got LeakyReLU",
        ),
        (
            nn.Sequential(linear(4, 4), nn.ReLU(), linear(4, 4), linear(4, 4)),
            r"^all activations must be alike, got ReLU\(\), None$",
        ),
    ],
)
def test_what_is_no_chain_is_refused_by_the_name_of_the_module(model: nn.Module, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_weights(model)


def test_weights_that_are_no_numbers_are_refused() -> None:
    layer = linear(4, 4)
    layer.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="sigma_w2 must be a variance, at least 0 and finite, got nan"):
        read_weights(layer)
