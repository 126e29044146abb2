"""What a history prints where the console has few characters."""

import io
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradexp import measure
from gradexp.history.encoding import printable
from gradexp.history.table import table


def test_what_a_console_has_stays_and_heights_become_digits():
    assert printable("1e-3…2e-3 ▁▄▇ ·", "cp1252") == "1e-3…2e-3 147 ·"
    assert printable("1e-3…2e-3 ▁▄▇ ·", "ascii") == "1e-3~2e-3 147 ."
    assert printable("schicht_ä ▄", "ascii") == "schicht_? 4"
    assert printable("▄", None) == "▄"


def test_a_deep_model_can_be_printed_on_any_console():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(40)])
    text = table(measure(model, F.cross_entropy, (torch.randn(4, 4), torch.tensor([0, 1, 1, 0]))).at())
    for encoding in ("ascii", "cp1252", "utf-8"):
        assert printable(text, encoding).encode(encoding).decode(encoding).count("?") == 0


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
