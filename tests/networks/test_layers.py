"""What ``initialize`` fills in every kind of layer, by statistics of the matrices in float64, and what it leaves."""

import copy
import math

import pytest
import torch
from cases import few
from torch import nn
from torch.nn.utils import parametrizations

from gradexp import MLP, initialize, measure

BIG = 256


def assert_variance(matrix, variance):
    """Check the mean square within 5 standard errors of a normal law, √(2 / N)."""
    values = matrix.detach().double()
    assert values.square().mean().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / values.numel()))


def assert_orthogonal(matrix):
    values = torch.linalg.svdvals(matrix.detach().double())
    torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-6, atol=0)


def account_of(model, init="he", **options):
    found = []
    initialize(model, init, seed=0, report=found.append, **options)
    return found[0]


def changed(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def he(fan_in):
    return 2 / fan_in


# Attention.


def test_queries_keys_and_values_are_three_matrices():
    attention = initialize(nn.MultiheadAttention(BIG, 4, dtype=torch.float64), "xavier", seed=0)
    for matrix in attention.in_proj_weight.chunk(3):
        assert_variance(matrix, 2 / (BIG + BIG))  # of the whole it would be 2 / (BIG + 3 BIG)
    assert not attention.in_proj_bias.any()
    for matrix in initialize(attention, "orthogonal", seed=0).in_proj_weight.chunk(3):
        assert_orthogonal(matrix)


def test_attention_of_other_widths_has_three_weights():
    attention = initialize(nn.MultiheadAttention(BIG, 4, kdim=100, vdim=50), "he", seed=0)
    assert_variance(attention.q_proj_weight, he(BIG))
    assert_variance(attention.k_proj_weight, he(100))
    assert_variance(attention.v_proj_weight, he(50))


# Recurrent layers.

RECURRENT = [
    (nn.RNN, 1, {"num_layers": 2, "bidirectional": True}),
    (nn.GRU, 3, {"num_layers": 2}),
    (nn.LSTM, 4, {"bidirectional": True}),
    (nn.LSTM, 4, {"proj_size": 20, "num_layers": 2}),
    (nn.RNNCell, 1, {}),
    (nn.GRUCell, 3, {}),
    (nn.LSTMCell, 4, {}),
    (nn.LSTM, 4, {"bias": False}),
]


@pytest.mark.parametrize(("kind", "gates", "options"), RECURRENT)
def test_each_gate_has_its_own_matrices_and_recurrent_ones_are_orthogonal(kind, gates, options):
    hidden = 64
    layer = initialize(kind(100, hidden, dtype=torch.float64, **options), "xavier", seed=0)
    for name, weight in layer.named_parameters():
        if name.startswith("weight_ih"):
            for gate in weight.chunk(gates):
                assert_variance(gate, 2 / (gate.shape[1] + hidden))
        elif name.startswith("weight_hh"):
            for gate in weight.chunk(gates):
                assert_orthogonal(gate)
        elif name.startswith("weight_hr"):
            assert_orthogonal(weight)
        else:
            expected = torch.zeros_like(weight)
            if gates == 4 and name.startswith("bias_ih"):
                expected[hidden : 2 * hidden] = 1  # input, forget, cell, output
            assert torch.equal(weight, expected), name


def test_an_open_forget_gate_keeps_the_state_of_an_lstm():
    lstm = initialize(nn.LSTM(8, 64, dtype=torch.float64), "lecun", seed=0)
    state = torch.randn(1, 1, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, (_, cell) = lstm(torch.zeros(1, 1, 8, dtype=torch.float64), (torch.zeros_like(state), state))
    torch.testing.assert_close(cell, state / (1 + math.exp(-1)))  # no input and no hidden state: the gate alone


def test_torch_default_draws_recurrent_layers_as_torch_does():
    layer = initialize(nn.LSTM(30, 100), "torch_default", seed=0)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= 0.1
        assert_variance(parameter, 0.01 / 3)


def test_variance_of_biases_is_that_of_their_sum():
    lstm = initialize(nn.LSTM(3, 300), "he", seed=0, sigma_b2=0.3)
    both = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach()
    both[300:600] -= 1
    assert_variance(both, 0.3)


# Convolutions.


@pytest.mark.parametrize("groups", [1, 4, 32])
def test_a_group_of_a_convolution_is_a_matrix_of_its_own(groups):
    conv = initialize(nn.Conv2d(32, 64 * 8, 3, groups=groups), "xavier", seed=0)
    assert_variance(conv.weight, 2 / (9 * 32 / groups + 9 * 512 / groups))
    conv = initialize(nn.Conv1d(32, 32, 3, padding=1, groups=groups), "identity")
    x = torch.randn(2, 32, 10)
    torch.testing.assert_close(conv(x), x)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups"),
    [(3, 1, 1, 1), (4, 2, 1, 1), (2, 2, 1, 2), (3, 2, 1, 1), (4, 4, 2, 1), (2, 3, 1, 1)],
)
def test_a_transposed_convolution_keeps_the_mean_square_of_each_output_that_it_has(kernel, stride, dilation, groups):
    torch.manual_seed(0)
    conv = nn.ConvTranspose1d(64, 64, kernel, stride, groups=groups, dilation=dilation, dtype=torch.float64)
    initialize(conv, "lecun", seed=0)
    y = conv(torch.randn(64, 64, 40, dtype=torch.float64))[..., 10 * stride : 30 * stride].detach()
    per_place = y.square().mean(dim=(0, 1)).view(20, stride).mean(dim=0)
    reached = {(tap * dilation) % stride for tap in range(kernel)}
    for place, value in enumerate(per_place.tolist()):
        if place in reached:
            # 64 · 32 products per tap: the weights' own mean square is good to √(2 / N).
            assert value == pytest.approx(1, rel=5 * math.sqrt(2 / (64 * 64 / groups)) + 0.05)
        else:
            assert value == 0


def test_an_identity_transposed_convolution_repeats_each_pixel():
    conv = initialize(nn.ConvTranspose2d(3, 3, 2, 2), "identity")
    image = torch.randn(1, 3, 4, 5)
    torch.testing.assert_close(conv(image), image.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_a_bilinear_layer_sums_over_products_of_both_inputs():
    torch.manual_seed(0)
    layer = initialize(nn.Bilinear(30, 20, 100, dtype=torch.float64), "lecun", seed=0)
    y = layer(torch.randn(400, 30, dtype=torch.float64), torch.randn(400, 20, dtype=torch.float64))
    assert y.square().mean().item() == pytest.approx(1, rel=0.1)


# Embeddings and tied weights.


def test_embeddings_have_variance_1_and_their_padding_is_0():
    layer = nn.Embedding(1000, 50, padding_idx=3)
    initialize(layer, "he", seed=0)
    assert not layer.weight[3].any()
    assert_variance(torch.cat([layer.weight[:3], layer.weight[4:]]), 1)


class Language(nn.Module):
    """A little language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(300, 64)
        self.places = nn.Embedding(16, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 300, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.norm(self.tokens(ids) + self.places.weight[: ids.shape[1]]))


def test_a_head_tied_to_an_embedding_is_filled_once_so_that_logits_have_variance_1():
    model = Language().double()
    account = account_of(model)
    assert account.filled["tokens.weight"] == "normal, variance 1 / features, tied to head.weight"
    assert "head.weight" not in account.filled
    assert_variance(model.tokens.weight, 1 / 64)
    assert_variance(model.places.weight, 1 / 64)  # or one would drown the other
    ids = torch.randint(300, (8, 16), generator=torch.Generator().manual_seed(0))
    others = model(ids).detach().scatter(2, ids.unsqueeze(2), 0)  # all but the token itself, which it knows
    assert others.square().mean().item() == pytest.approx(1, rel=0.1)


def test_embeddings_that_share_a_weight_are_not_tied_to_a_head():
    model = nn.ModuleList([nn.Embedding(300, 64), nn.Embedding(300, 64), nn.Linear(64, 3)])
    model[1].weight = model[0].weight
    assert account_of(model).filled["0.weight"] == "normal, variance 1, tied to 1.weight"
    assert_variance(model[0].weight, 1)


def test_a_weight_of_two_linear_layers_is_drawn_once():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    initialize(model, "he", seed=0)
    plain = initialize(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), "he", seed=0)
    assert torch.equal(model[0].weight, plain[0].weight)
    assert torch.equal(model[2].weight, plain[1].weight)


# Layers of other libraries.


class Conv1D(nn.Module):
    """A linear layer that keeps its weight as (in, out), as GPT-2 of transformers does."""

    def __init__(self, nf, nx):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Dense(nn.Module):
    """A linear layer under names of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return nn.functional.linear(x, self.kernel)


class Scaled(nn.Module):
    """No linear layer of its weight: it has a scale of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x):
        return nn.functional.linear(x, self.weight / 7)


class Graph(nn.Module):
    """A graph convolution with a matrix per relation, which needs edges to run."""

    def __init__(self, in_channels, out_channels, relations):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.randn(relations, in_channels, out_channels))
        self.root = nn.Parameter(torch.randn(in_channels, out_channels))
        self.att = nn.Parameter(torch.randn(1, in_channels, out_channels))

    def forward(self, x, edges):
        raise NotImplementedError


class Experts(nn.Module):
    """Fused experts."""

    def __init__(self, layout):
        super().__init__()
        self.num_experts, self.hidden_size = 4, 96
        up, down = (4, 96, 2 * 128), (4, 128, 96)
        if layout == "out in":
            up, down = (4, 2 * 128, 96), (4, 96, 128)
        self.gate_up_proj = nn.Parameter(torch.randn(up))
        self.down_proj = nn.Parameter(torch.randn(down))
        self.down_proj_bias = nn.Parameter(torch.randn(4, 96))


@pytest.mark.parametrize("widths", [(200, 200), (300, 100), (100, 300)])
def test_a_linear_layer_of_any_make_is_known_by_what_it_computes(widths):
    inputs, outputs = widths
    turned, straight = Conv1D(outputs, inputs).double(), Dense(inputs, outputs).double()
    initialize(nn.Sequential(turned, straight), "he", seed=0)
    assert_variance(turned.weight, he(inputs))
    assert_variance(straight.kernel, he(inputs))
    assert not turned.bias.any()
    x = torch.randn(3, inputs, dtype=torch.float64)
    initialize(nn.Sequential(turned), "identity")
    torch.testing.assert_close(turned(x)[:, : min(widths)], x[:, : min(widths)])


def test_matrices_of_relations_and_experts_are_filled_one_by_one():
    graph = Graph(100, 300, 5)
    with pytest.warns(UserWarning, match=r"att .what Graph does with it is not known"):
        initialize(graph, "he", seed=0)
    assert_variance(graph.weight, he(100))
    assert_variance(graph.root, he(100))
    for layout in ("in out", "out in"):
        experts = initialize(Experts(layout), "orthogonal", seed=0)
        for expert in (*experts.gate_up_proj, *experts.down_proj):
            assert_orthogonal(expert)
        initialize(experts, "he", seed=0)
        assert_variance(experts.gate_up_proj, he(96))
        assert_variance(experts.down_proj, he(128))
        assert not experts.down_proj_bias.any()


def test_what_is_not_understood_is_left_and_can_be_named():
    model = nn.Sequential(nn.Linear(100, 100), Scaled(100, 200))
    before = copy.deepcopy(model.state_dict())
    message = (
        r"^initialize leaves a parameter as it is: 1.weight \(what Scaled does with it is not known: name it in "
        r"layouts, if it is a matrix\); report=print lists all$"
    )
    with pytest.warns(UserWarning, match=message):
        initialize(model, "he", seed=0)
    assert changed(model, before) == {"0.weight", "0.bias"}
    initialize(model, "he", seed=0, layouts={"1.weight": "out in"})
    assert_variance(model[1].weight, he(100))


# What is left on purpose.


class LoRA(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)
        nn.init.zeros_(self.up.weight)


def test_what_is_special_on_purpose_is_left_bit_for_bit_and_said_to_be():
    torch.manual_seed(0)
    modulation, rare, steps, stage = nn.Linear(64, 128), nn.Linear(64, 20), nn.Linear(4, 64), nn.Linear(64, 64)
    nn.init.zeros_(modulation.weight)
    nn.init.zeros_(modulation.bias)
    nn.init.constant_(rare.bias, -4.6)
    nn.init.uniform_(steps.bias, -7, -2)
    model = nn.ModuleDict(
        {
            "lora": LoRA(nn.Linear(64, 64)),
            "modulation": modulation,
            "rare": rare,
            "steps": steps,
            "norm": nn.LayerNorm(64),
            "batch": nn.BatchNorm1d(64),
            "stage": stage,
        }
    )
    model.scale = nn.Parameter(torch.full((64,), 1e-6))
    model.codes = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    before = copy.deepcopy(model.state_dict())
    account = account_of(model)
    filled = {"lora.down.weight", "rare.weight", "steps.weight", "stage.weight", "stage.bias"}
    assert changed(model, before) == filled == set(account.filled)
    assert set(account.left) == {name for name, _ in model.named_parameters()} - filled
    assert account.left["lora.layer.weight"] == "frozen: requires_grad is False"
    assert account.left["lora.up.weight"] == account.left["modulation.weight"] == "exactly 0, as on purpose"
    assert account.left["rare.bias"] == account.left["steps.bias"] == "a bias that was set on purpose"
    assert account.left["norm.weight"] == "of a normalisation"
    assert account.left["scale"] == "a vector, and no matrix"
    for name in ("lora.layer.weight", "lora.up.weight", "rare.bias", "codes"):
        assert name in account.warning
    for name in ("norm.weight", "scale", "modulation.bias"):
        assert name not in account.warning


def test_a_model_of_zeros_is_filled_since_none_of_them_is_on_purpose():
    model = initialize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "normal", std=0.0)
    assert not model[0].weight.any()
    assert initialize(model, "he", seed=0)[1].weight.all()


def test_biases_of_a_trained_model_are_drawn_anew():
    model = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 1))
    nn.init.normal_(model[0].bias, std=0.5)
    nn.init.constant_(model[1].bias, 3.0)
    initialize(model, "he", seed=0)
    assert not model[0].bias.any()
    assert not model[1].bias.any()
    assert initialize(model, "he", seed=0, sigma_b2=0.1)[0].bias.any()


@pytest.mark.parametrize("pattern", ["stem", "stem.weight", "**.mlp", "blocks.*.mlp.weight", "*"])
def test_what_skip_names_is_left_with_all_inside(pattern):
    model = nn.Module()
    model.stem = nn.Linear(4, 4)
    model.blocks = nn.ModuleList([nn.ModuleDict({"mlp": nn.Linear(4, 4), "out": nn.Linear(4, 4)})])
    before = copy.deepcopy(model.state_dict())
    expected = {
        "stem": {"stem.weight", "stem.bias"},
        "stem.weight": {"stem.weight"},
        "**.mlp": {"blocks.0.mlp.weight", "blocks.0.mlp.bias"},
        "blocks.*.mlp.weight": {"blocks.0.mlp.weight"},
        "*": set(before),
    }[pattern]
    if pattern == "*":
        with pytest.raises(ValueError, match=r"^Module has no weight to fill$"):
            initialize(model, "he", skip=pattern)
        return
    initialize(model, "he", seed=0, skip=[pattern])  # without a warning
    assert changed(model, before) == set(before) - expected


def test_skip_leaves_a_tied_weight_under_either_name():
    model = Language()
    before = copy.deepcopy(model.state_dict())
    initialize(model, "he", seed=0, skip="head")
    assert changed(model, before) == {"places.weight"}


# Parametrized layers.


def test_weight_norm_is_set_through_and_its_parameters_stay_themselves():
    layer = parametrizations.weight_norm(nn.Linear(BIG, 100, dtype=torch.float64))
    parameters = list(layer.parameters())
    initialize(layer, "he", seed=0)
    plain = initialize(nn.Linear(BIG, 100, dtype=torch.float64), "he", seed=0)
    torch.testing.assert_close(layer.weight, plain.weight)
    assert all(a is b for a, b in zip(parameters, layer.parameters(), strict=True))


def test_a_parametrization_that_keeps_another_weight_is_left_and_said_to_be():
    model = nn.Sequential(nn.Linear(8, 8), parametrizations.spectral_norm(nn.Linear(8, 8)))
    before = copy.deepcopy(model.state_dict())
    account = account_of(model)
    assert account.left["1.weight"] == "computed by a parametrization, which does not keep what is set"
    assert changed(model, before) == {"0.weight", "0.bias", "1.bias"}
    orthogonal = parametrizations.orthogonal(nn.Linear(8, 8))
    initialize(orthogonal, "orthogonal", seed=0)
    assert_orthogonal(orthogonal.weight)


def test_weights_that_a_hook_computes_are_left():
    with pytest.warns(FutureWarning):
        normed = nn.utils.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(normed, nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"0.weight_v .a hook computes the weight from it"):
        initialize(model, "he", seed=0)


# Depth.


def test_the_ends_of_branches_are_divided_by_the_root_of_their_number():
    def blocks():
        return nn.ModuleList([nn.ModuleDict({"up": nn.Linear(32, 32), "down": nn.Linear(32, 32)}) for _ in range(6)])

    plain = initialize(blocks(), "he", seed=0)
    scaled = initialize(blocks(), "he", seed=0, branch_ends="*.down")
    fixup = initialize(blocks(), "he", seed=0, scale={"*.up": 6**-0.5, "*.down": 0})
    for a, b, c in zip(plain, scaled, fixup, strict=True):
        assert torch.equal(a["up"].weight, b["up"].weight)
        torch.testing.assert_close(b["down"].weight, a["down"].weight / math.sqrt(6))
        torch.testing.assert_close(c["up"].weight, a["up"].weight / math.sqrt(6))
        assert not c["down"].weight.any()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"skip": "blcks"}, "skip: 'blcks' matches no module or parameter with weights"),
        ({"branch_ends": ["0", "7"]}, "branch_ends: '7' matches no module or parameter with weights"),
        ({"scale": {"0": math.nan}}, "scale must be finite numbers, got nan for '0'"),
        ({"layouts": {"0.weight": "rows"}}, "layouts must be 'out in' or 'in out', got 'rows' for '0.weight'"),
    ],
)
def test_names_that_match_nothing_are_refused_before_any_weight_changes(options, text):
    model = nn.Sequential(nn.Linear(3, 3))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r".+") as error:
        initialize(model, "he", **options)
    assert str(error.value) == text
    assert not changed(model, before)


def test_a_model_without_numbers_is_refused():
    with pytest.raises(ValueError, match=r"is on the meta device and has no numbers"):
        initialize(nn.Linear(3, 3, device="meta"), "he")


def test_the_account_is_a_line_per_way_and_names_four():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(6)), nn.LayerNorm(4))
    assert str(account_of(model)).splitlines() == [
        "filled    6  by he: 0.weight, 1.weight, 2.weight, 3.weight, ...",
        "left      2  of a normalisation: 6.weight, 6.bias",
    ]


# lsuv on models that cast, or return more than a tensor.


class Casting(nn.Module):
    """Casts to half between its layers, and returns a dictionary."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 10)

    def forward(self, x, scale=1.0):
        with torch.autocast("cpu", torch.bfloat16):
            h = self.norm(self.first(scale * x).half())
            return {"logits": self.last(torch.relu(h.float())), "hidden": (h,)}


@pytest.mark.parametrize("inputs", [lambda x: x, lambda x: (x, 3.0), lambda x: {"x": x, "scale": 3.0}])
def test_lsuv_scales_models_that_cast_inside_and_return_dictionaries(inputs):
    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    model = initialize(Casting(), "lsuv", seed=0, inputs=inputs(x), tolerance=0.01)
    scale = 1.0 if isinstance(inputs(x), torch.Tensor) else 3.0
    assert model.first(scale * x).var(correction=0).item() == pytest.approx(1, abs=0.02)
    h = torch.relu(model.norm(model.first(scale * x)))
    assert model.last(h).var(correction=0).item() == pytest.approx(1, abs=0.05)


def test_lsuv_scales_the_ends_of_branches_after_all_layers():
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    plain, scaled = (
        initialize(nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)), "lsuv", seed=0, inputs=x, scale=scale)
        for scale in ({}, {"0": 0.5})
    )
    torch.testing.assert_close(scaled[0].weight, plain[0].weight / 2)
    torch.testing.assert_close(scaled[1].weight, plain[1].weight)


def test_lsuv_says_in_a_line_why_a_model_does_not_run():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x.view(7, -1))

    with pytest.raises(ValueError, match=r"^lsuv runs a float64 copy of the model on inputs, which fails: shape "):
        initialize(nn.Sequential(Broken(4, 4)), "lsuv", inputs=torch.ones(2, 4))


# What was filled works.


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.tokens, self.rnn, self.head = nn.Embedding(50, 64), kind(64, 64, 2, batch_first=True), nn.Linear(64, 50)

    def forward(self, ids):
        return self.head(self.rnn(self.tokens(ids))[0]).flatten(0, 1)


def models():
    ids = torch.randint(50, (8, 20), generator=torch.Generator().manual_seed(0))
    x = torch.randn(8, 20, 32, generator=torch.Generator().manual_seed(0))
    for kind in (nn.LSTM, nn.GRU):
        yield kind.__name__, Recurrent(kind), nn.functional.cross_entropy, (ids, ids.flatten())
    encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
    yield "attention", nn.TransformerEncoder(encoder, 8, enable_nested_tensor=False), nn.functional.mse_loss, (x, -x)
    decoder = nn.Sequential(
        *(part for _ in range(4) for part in (nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU())), nn.Conv2d(16, 3, 1)
    )
    image = torch.randn(4, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    yield "decoder", decoder, nn.functional.mse_loss, (image, torch.zeros(4, 3, 32, 32))


MODELS = {name: case for name, *case in models()}


@pytest.mark.parametrize("name", few(["LSTM", "attention", "GRU", "decoder"]))
def test_an_initialised_model_passes_its_gradient_on_and_learns(name):
    model, loss_fn, batch = MODELS[name]
    initialize(model, "he" if name == "decoder" else "lecun", seed=0)
    assert measure(model, loss_fn, batch).verdict().gradient == "stable"
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(20):
        losses.append(loss_fn(model(batch[0]), batch[1]))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_mlps_of_the_command_line_are_filled_as_ever():
    mlp = initialize(MLP([4, 5, 3], "tanh", networks=2), "he", seed=3)
    for network in range(2):
        plain = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
        initialize(plain, "he", seed=3 + network)
        for layer, other in zip(mlp.layers, plain, strict=True):
            assert torch.equal(layer.weight[network], other.weight)
