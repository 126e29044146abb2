"""The recurrent network against torch's own cells, and its profile over time against autograd."""

import re

import pytest
import torch
from torch import nn

from gradexp import initialize, measure
from gradexp.exact.chain import chain_profile
from gradexp.networks.rnn import RNN
from gradexp.networks.tokens import tokens


def drawn(cell, init="orthogonal", depth=7, context=4, **options):
    network = RNN(12, 3, depth=depth, width=5, cell=cell, context=context, **options).double()
    return initialize(network, init, seed=0, sigma_b2=0.1, **network.rules)


def inputs(count=4):
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_recurrent_network_computes_what_torch_computes(cell):
    network = drawn(cell)
    reference = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](3, 5, batch_first=True).double()
    # torch has the gates in another order, and resets W h where this resets h: the same for a diagonal W.
    gates = [*zip(network.recurrence, network.inputs, strict=True)]
    named = {"rnn": [0], "gru": [0, 1, 2], "lstm": [1, 0, 3, 2]}[cell]
    if cell == "gru":
        network.recurrence[2].weight.data = torch.diag(torch.linspace(-1, 1, 5, dtype=torch.float64))
        network.recurrence[2].bias.data.zero_()
    with torch.no_grad():
        reference.weight_hh_l0.copy_(torch.cat([gates[index][0].weight for index in named]))
        reference.weight_ih_l0.copy_(torch.cat([gates[index][1].weight for index in named]))
        reference.bias_ih_l0.copy_(torch.cat([gates[index][0].bias for index in named]))
        reference.bias_hh_l0.zero_()
        if cell == "lstm":
            reference.bias_hh_l0[5:10] = 1
    padded = nn.functional.pad(tokens(inputs(), 4), (0, 0, 0, 2))  # 6 time steps
    expected = network.readout(reference(padded)[0][:, -1])
    torch.testing.assert_close(network(inputs()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_profile_over_time_is_that_of_autograd(cell):
    network = drawn(cell)
    c = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    profile = chain_profile(network, inputs(), c)
    rows = ["recurrence.0"] * 6 if cell == "rnn" else [f"steps.{t}" for t in range(6)]
    assert profile.names == [*rows, "readout"]
    assert profile.calls == ([*range(6), 0] if cell == "rnn" else [0] * 7)
    weights = [weight for name, weight in network.named_parameters() if "bias" not in name]
    logs = {"output": [], "output_grad": [], "weight_grad": []}
    for sample, cotangent in zip(inputs(), c, strict=True):
        h, steps = network.unrolled(sample.unsqueeze(0))
        states = [h := step.run(h) for step in steps]
        gradients = torch.autograd.grad((h * cotangent).sum(), states)
        start, _ = network.unrolled(sample.unsqueeze(0))
        befores = [start, *states[:-1]]
        of_weights = [
            torch.autograd.grad(step.run(before.detach()), weights, gradient, allow_unused=True)
            for step, before, gradient in zip(steps, befores, gradients, strict=True)
        ]
        logs["output"].append([state.detach().square().mean().sqrt().log10() for state in states])
        logs["output_grad"].append([gradient.norm().log10() for gradient in gradients])
        logs["weight_grad"].append(
            [torch.cat([g.flatten() for g in row if g is not None]).norm().log10() for row in of_weights]
        )
    for quantity, rows in logs.items():
        expected = torch.tensor(rows, dtype=torch.float64).mean(0)
        torch.testing.assert_close(torch.from_numpy(profile.profile(quantity)), expected, rtol=1e-11, atol=1e-11)


def test_the_profile_goes_on_where_states_and_gradients_leave_float64():
    network = RNN(12, 3, depth=61, width=5, context=4, activation="linear")
    initialize(network, "orthogonal", gain=1e-8, seed=0, **network.rules)
    profile = chain_profile(network, inputs())
    gradient, output = profile.profile("output_grad"), profile.profile("output")
    assert gradient[0] - gradient[-2] == pytest.approx(-8 * 59, abs=1e-5)  # the weights are float32
    assert output[-2] - output[3] == pytest.approx(-8 * 56, abs=1e-5)


def test_measure_finds_the_profile_of_one_sample():
    network, x = drawn("rnn"), inputs(1)
    c = nn.functional.normalize(torch.ones(1, 3, dtype=torch.float64))
    profile = chain_profile(network, x, c)
    measured = measure(network, lambda: (network(x) * c).sum(), select=["recurrence.*", "readout"])
    assert measured.names == [*["recurrence.0"] * 6, "readout"]
    for quantity in ("output", "output_grad"):
        assert measured.profile(quantity) == pytest.approx(profile.profile(quantity), abs=1e-12)


def test_init_draws_the_recurrence_and_nothing_else():
    network = RNN(12, 3, depth=7, width=5, context=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    initialize(network, "identity", gain=0.5, seed=0, **network.rules)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"recurrence.0.weight"}
    assert torch.equal(network.recurrence[0].weight, 0.5 * torch.eye(5))


def test_few_steps_take_few_tokens():
    network = RNN(12, 3, depth=3, width=5, context=4)
    assert network.context == 2
    assert network(inputs(2).float()).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cell": "elman"}, "cell must be one of rnn, gru, lstm, got 'elman'"),
        ({"depth": 1}, "depth must be at least 2, a time step and the readout, got 1"),
        ({"context": 0}, "context must be at least 1, got 0"),
        (
            {"context": 9},
            "context must be smaller, such as 6: 12 features make 6 tokens of 2, so that others are empty, got 9",
        ),
        (
            {"context": 13, "depth": 9},
            "context must be smaller, such as 6: 12 features make 6 tokens of 2, so that others are empty, "
            "got 13 (cut to 8, one per time step)",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_one_line(options, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        RNN(12, 3, width=5, **{"depth": 20} | options)
