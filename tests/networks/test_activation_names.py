"""Names of activations."""

import pytest
import torch

from gradexp import MLP
from gradexp.choices import ACTIVATION_ALIASES, ACTIVATIONS
from gradexp.config import Config
from gradexp.networks.activations import activation
from gradexp.theory import MeanField


def test_swish_is_silu_wherever_an_activation_is_named() -> None:
    z = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(activation("swish")(z), z * torch.sigmoid(z))
    assert MLP([2, 3, 2], "swish").activation is activation("silu")
    assert MeanField("swish", 2.0, 0.6).chi_1 == MeanField("silu", 2.0, 0.6).chi_1
    assert Config(activation="swish").activation == "silu"
    with pytest.raises(ValueError, match=r"^unknown activation 'swosh'; choose one of linear, .*, swish$"):
        activation("swosh")


def test_a_further_name_is_no_activation_of_its_own() -> None:
    assert not set(ACTIVATION_ALIASES) & set(ACTIVATIONS)
    assert set(ACTIVATION_ALIASES.values()) <= set(ACTIVATIONS)
