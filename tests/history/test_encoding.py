"""What a history prints where the console has few characters."""

import io
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_measurement_can_be_printed_on_any_console(encoding, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    history = measure(model, F.cross_entropy, (torch.randn(4, 3), torch.tensor([0, 1, 1, 0])))
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    sys.stdout.write(f"{history}\n")
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert "stable" in text
    assert ("#" in text) == (encoding != "utf-8")
