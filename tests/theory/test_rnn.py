"""Theory of recurrent networks against closed forms and simulation, and where it says that it knows nothing."""

import math

import pytest
import torch

from gradexp import initialize
from gradexp.exact.chain import chain_profile
from gradexp.history.history import History
from gradexp.networks.activations import activation
from gradexp.networks.rnn import RNN
from gradexp.theory import compare, weight_laws
from gradexp.theory.rnn import predict_rnn
from gradexp.theory.weight_laws import UnknownLawError


def inputs(count=4):
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def predicted(init, gain, phi, depth=41, width=128, sigma_b2=None, **options):
    [law] = weight_laws(init, [width, width], sigma_b2=sigma_b2, gain=gain)
    return predict_rnn(activation(phi), law, inputs(), 10, depth=depth, width=width, context=4, **options)


@pytest.mark.parametrize("init", ["orthogonal", "identity"])
def test_a_multiple_of_an_isometry_gives_the_power_of_its_gain(init):
    found = predicted(init, 0.9, "linear")
    # The gradient of length 1 meets 64 · Gaussian weights of the readout, and then 39 times the gain.
    expected = math.log10(0.9) * 39 - 0.5 / 128 * 2 / math.log(10) / 2
    assert found.log10_output_grad[0] == pytest.approx(expected, abs=1e-9)
    assert found.sd_output_grad[0] == pytest.approx(math.sqrt(2 / 128) / (2 * math.log(10)))
    assert found.tolerance == 0
    assert found.chi_1 == pytest.approx(0.81)


def test_units_of_an_irnn_that_are_on_stay_on():
    # Behind the last input a unit is on for ever or off for ever, so that nothing is lost any more.
    found = predicted("identity", 1.0, "relu", depth=101)
    assert found.log10_output_grad[3] == pytest.approx(found.log10_output_grad[-2], abs=1e-12)
    # With a single token half of the units are on.
    x = torch.ones(1, 4, dtype=torch.float64)
    [law] = weight_laws("identity", [512, 512])
    alone = predict_rnn(activation("relu"), law, x, 3, depth=5, width=512, context=1)
    half = math.log(0.5) - (3 / 0.5 - 1) / (2 * 512)
    assert 2 * math.log(10) * alone.log10_output_grad[0] == pytest.approx(half, abs=2e-3)


def test_a_sample_that_has_much_input_saturates_and_forgets():
    quiet, loud = predicted("orthogonal", 1.2, "tanh", depth=5), None
    [law] = weight_laws("orthogonal", [128, 128], gain=1.2)
    loud = predict_rnn(activation("tanh"), law, 3 * inputs(), 10, depth=5, width=128, context=4)
    assert loud.log_chi < quiet.log_chi < 0


@pytest.mark.parametrize(
    ("init", "gain", "phi", "options", "reason"),
    [
        ("lecun", 1.0, "linear", {"depth": 301}, "width 128 is too small for a law, since the weights are the same"),
        ("lecun", 1.5, "relu", {"depth": 301}, "width 128 is too small for a law"),
        (
            "identity",
            1.0,
            "tanh",
            {"depth": 301, "width": 8},
            "so few units of a scaled identity let the gradient through",
        ),
        ("orthogonal", 1.0, "tanh", {"cell": "lstm"}, "no law is known for the gates of cell 'lstm'"),
        ("orthogonal", 0.0, "tanh", {}, "sigma_w2 is 0"),
    ],
)
def test_where_no_law_is_known_it_says_why(init, gain, phi, options, reason):
    with pytest.raises(UnknownLawError, match=reason):
        predicted(init, gain, phi, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("init", "gain", "phi", "sigma_b2"),
    [
        ("orthogonal", 1.2, "tanh", None),
        ("lecun", 2.5, "tanh", None),
        ("identity", 1.0, "relu", None),
        ("identity", 0.95, "relu", 0.05),
    ],
)
def test_simulated_networks_follow_the_law(init, gain, phi, sigma_b2):
    """Mean over 12 networks within three standard errors and the tolerance; all of this is what ``compare`` does."""
    found = predicted(init, gain, phi, sigma_b2=sigma_b2)
    measured = []
    for seed in range(12):
        network = RNN(32, 10, depth=41, width=128, context=4, activation=phi)
        initialize(network, init, seed=seed, gain=gain, sigma_b2=sigma_b2, **network.rules)
        measured.append(chain_profile(network, inputs(), seed=seed))
    together = History.join(measured)
    agreement = compare(found, together)
    assert agreement.verdict == "agrees", agreement.text
    # And so do states and gradients of weights, to three standard errors of about 0.06 and what 1 / width adds.
    assert together.profile("output") == pytest.approx(found.log10_output, abs=0.12)
    assert together.profile("weight_grad") == pytest.approx(found.log10_weight_grad, abs=0.25)
