"""The transformer against torch's own encoder, and its profile against autograd and ``measure``."""

import math

import pytest
import torch
from torch import nn

from gradexp import initialize, measure
from gradexp.exact.chain import chain_profile
from gradexp.networks.tokens import tokens
from gradexp.networks.transformer import Transformer


def drawn(norm, queries="init", **options):
    network = Transformer(12, 3, depth=2, width=8, heads=2, context=4, norm=norm, queries=queries, **options).double()
    return initialize(network, "lecun", seed=0, sigma_b2=0.1, **network.rules)


def inputs(count=3):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_transformer_computes_what_torch_computes(norm):
    network = drawn(norm)
    h = network.embedding(tokens(inputs(), 4)) + network.positions
    for block in network.blocks:
        reference = nn.TransformerEncoderLayer(
            8, 2, 32, dropout=0, batch_first=True, norm_first=norm == "pre", layer_norm_eps=0
        ).double()
        attention, mlp = block.attention, block.mlp
        parts = [attention.queries, attention.keys, attention.values]
        with torch.no_grad():
            reference.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            reference.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        for own, theirs in (
            (attention.output, reference.self_attn.out_proj),
            (mlp.inner, reference.linear1),
            (mlp.output, reference.linear2),
        ):
            theirs.load_state_dict(own.state_dict())
        h = reference(h)
    if norm == "pre":
        h = nn.functional.layer_norm(h, (8,), eps=0)
    torch.testing.assert_close(network(inputs()), network.readout(h.mean(1)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
def test_measure_finds_the_profile_of_one_sample(norm):
    network, x = drawn(norm), inputs(1)
    c = nn.functional.normalize(torch.ones(1, 3, dtype=torch.float64))
    profile = chain_profile(network, x, c)
    measured = measure(network, lambda: (network(x) * c).sum(), select=["embedding", "blocks.*.*", "readout"])
    assert measured.names == profile.names
    for quantity in ("output", "output_grad"):
        assert measured.profile(quantity) == pytest.approx(profile.profile(quantity), abs=1e-12)
    gradients = {}
    (network(x) * c).sum().backward()
    for name, parameter in network.named_parameters():
        if name.endswith("weight"):
            row = next(row for row in profile.names if name.startswith(row))
            gradients[row] = gradients.get(row, 0) + float(parameter.grad.square().sum())
    expected = [0.5 * math.log10(gradients[row]) for row in profile.names]
    assert profile.profile("weight_grad") == pytest.approx(expected, abs=1e-11)


def test_zero_queries_let_all_tokens_weigh_the_same_and_learn():
    network, x = drawn("pre", queries="zero"), inputs()
    attention = network.blocks[0].attention
    s = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert not attention.queries.weight.any()
    attention.queries.bias.data.zero_()
    expected = attention.output(attention.values(s).mean(1, keepdim=True)).expand_as(s)
    torch.testing.assert_close(attention.branch(s), expected)
    network(x).sum().backward()
    assert attention.queries.weight.grad.any()


def test_depth_scaling_divides_the_ends_of_branches():
    plain, scaled = drawn("pre"), drawn("pre", depth_scaled=True)
    other = dict(scaled.named_parameters())
    for name, parameter in plain.named_parameters():
        factor = 0.5 if name.endswith("output.weight") else 1.0
        assert torch.allclose(other[name], factor * parameter, rtol=1e-14, atol=0), name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"heads": 3}, "width must be a multiple of heads=3, got 8"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"context": 8}, "context must be smaller, such as 6: 12 features make 6 tokens of 2, .*, got 8"),
        ({"norm": "batch"}, "norm must be one of pre, post, none, got 'batch'"),
        ({"queries": "one"}, "queries must be one of zero, init, got 'one'"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_one_line(options, text):
    with pytest.raises(ValueError, match=f"^{text}$"):
        Transformer(12, 3, depth=2, width=8, **{"heads": 2, "context": 4} | options)
