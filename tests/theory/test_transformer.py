"""Theory of transformers against closed forms and simulation, and where it says that it knows nothing."""

import math
from functools import partial

import pytest
import torch

from gradexp import initialize
from gradexp.exact.chain import chain_profile
from gradexp.history.history import History
from gradexp.networks.activations import activation
from gradexp.networks.transformer import Transformer
from gradexp.theory import compare, weight_laws
from gradexp.theory.transformer import _of_angle, predict_transformer
from gradexp.theory.weight_laws import UnknownLawError


def law(init, fan_in, fan_out, **options):
    [found] = weight_laws(init, [fan_in, fan_out], **options)
    return found


def inputs(count=4):
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_averages_over_pairs_of_tokens_are_those_of_cho_and_saul():
    # Arc-cosine kernels (Cho & Saul, 2009): (sin θ + (π - θ) cos θ) / 2π and (π - θ) / 2π.
    value, slope = _of_angle(activation("relu"), 1.0)
    for angle in (0.0, 0.3, 1.0, 2.0, math.pi):
        expected = (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
        assert value(angle) == pytest.approx(expected, abs=1e-9)
        assert slope(angle) == pytest.approx((math.pi - angle) / (2 * math.pi), abs=1e-9)


@pytest.mark.parametrize("depth", [2, 50])
def test_one_token_of_a_linear_network_has_the_growth_of_a_residual_one(depth):
    # Every half adds 1 to a stream of length 1 + l, and a norm takes that from what its branch hands back.
    x = torch.ones(1, 8, dtype=torch.float64)
    found = predict_transformer(
        activation("linear"), partial(law, "lecun"), x, 5, depth=depth, width=10**6, context=1
    )
    rows = torch.arange(1, 2 * depth + 2, dtype=torch.float64)
    assert 10 ** (2 * found.log10_output[:-1]) == pytest.approx(rows.numpy(), rel=1e-4)
    # ‖δ‖² is 1 / (2 L + 1) behind the last block, and (l + 1) / l times that of the half above below each.
    expected = 1 / rows
    assert 10 ** (2 * found.log10_output_grad[:-1]) == pytest.approx(expected.numpy(), rel=1e-3)


def test_post_norm_keeps_the_stream_and_the_last_gradient_whatever_the_depth():
    predict = partial(predict_transformer, activation("relu"), partial(law, "lecun"), inputs(), 10)
    last = {}
    for depth in (8, 64):
        found = predict(depth=depth, width=64, context=4, norm="post")
        assert abs(found.log10_output[1:-1]).max() < 1e-12
        last[depth] = found.log10_weight_grad[-2]
    assert last[8] == pytest.approx(last[64], abs=0.01)
    pre = [predict(depth=depth, width=64, context=4).log10_weight_grad[-2] for depth in (16, 64)]
    assert pre[0] - pre[1] == pytest.approx(math.log10(2), abs=0.02)  # like 1/√depth


@pytest.mark.parametrize(
    ("init", "options", "reason"),
    [
        ("lecun", {"queries": "init"}, "no law is known for softmax of drawn queries"),
        ("lecun", {"norm": "none", "phi": "tanh"}, "without norms there is a law for linear, relu and leaky_relu"),
        ("lecun", {"width": 16}, "width 16 is too small"),
        ("identity", {}, "a scaled identity is no random matrix"),
        ("lsuv", {}, "there is no formula for LSUV"),
    ],
)
def test_where_no_law_is_known_it_says_why(init, options, reason):
    options = {"depth": 2, "width": 64, "context": 4, "phi": "relu"} | options
    phi = activation(options.pop("phi"))
    with pytest.raises(UnknownLawError, match=reason):
        predict_transformer(phi, partial(law, init), inputs(), 10, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "phi", "init", "sigma_b2", "options"),
    [
        ("pre", "relu", "he", None, {}),
        ("post", "gelu", "xavier", 0.1, {}),
        ("none", "relu", "lecun", None, {}),
        ("pre", "tanh", "orthogonal", 0.1, {"depth_scaled": True}),
    ],
)
def test_simulated_networks_follow_the_law(norm, phi, init, sigma_b2, options):
    """Mean over 24 networks within three standard errors and the tolerance, which is what ``compare`` asks."""
    sizes = {"depth": 3, "width": 64, "context": 4, "norm": norm, **options}
    found = predict_transformer(activation(phi), partial(law, init, sigma_b2=sigma_b2), inputs(), 10, **sizes)
    measured = []
    for seed in range(24):
        network = Transformer(32, 10, activation=phi, **sizes)
        initialize(network, init, seed=seed, sigma_b2=sigma_b2, **network.rules)
        measured.append(chain_profile(network, inputs(), seed=seed))
    together = History.join(measured)
    agreement = compare(found, together)
    assert agreement.verdict == "agrees", agreement.text
    # Three standard errors of about 0.02 in the log10, and what 1 / width adds.
    assert together.profile("output")[:-1] == pytest.approx(found.log10_output[:-1], abs=0.05)
    assert together.profile("weight_grad") == pytest.approx(found.log10_weight_grad, abs=0.1)
