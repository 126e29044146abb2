"""Where a run computes, and what is told of a device that is not there."""

import pytest
import torch

from gradexp.choices import ConfigError
from gradexp.runs.device import find_device


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is there")
def test_mps_that_is_not_there_is_told_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^device=mps is not there: this PyTorch finds no GPU of Apple's; use "):
        find_device("mps")


def test_auto_takes_no_device_without_float64() -> None:
    assert find_device("auto").type in ("cpu", "cuda")
