import math
import sys

import pytest
import torch

from gradexp.numerics.compiled import square_sum_if_asked
from gradexp.numerics.norms import scaled_norms

BLOCK = 1 << 17


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 37])
def test_every_number_counts_once(in_c, count):
    """Squares of whole numbers add up without rounding, so that one left out or counted twice shows."""
    x = torch.arange(1, count + 1, dtype=torch.float32) % 1000
    assert in_c(x.data_ptr(), count) == sum(int(value) ** 2 for value in x.tolist())


def test_equal_numbers_do_not_add_up_their_rounding(in_c):
    x = torch.full((5_000_000,), 0.1)
    exact = math.fsum([x[0].item() ** 2] * len(x))
    assert in_c(x.data_ptr(), len(x)) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("value", ["", "0", "no", "off", "False", " 0 "])
def test_nothing_is_compiled_unless_it_is_asked_for(monkeypatch, value):
    monkeypatch.setenv("GRADEXP_COMPILED_NORMS", value)
    monkeypatch.setenv("CC", "no-such-compiler")
    assert square_sum_if_asked() is None


@pytest.mark.parametrize("value", ["1", "yes", "on", "True"])
def test_a_yes_asks_for_it(monkeypatch, value):
    monkeypatch.setenv("GRADEXP_COMPILED_NORMS", value)
    monkeypatch.setattr("gradexp.numerics.compiled.compiled_square_sum", lambda: "compiled")
    assert square_sum_if_asked() == "compiled"


@pytest.mark.parametrize("value", ["2", "nein"])
def test_any_other_word_is_named_and_asks_for_nothing(monkeypatch, value):
    monkeypatch.setenv("GRADEXP_COMPILED_NORMS", value)
    text = f"^GRADEXP_COMPILED_NORMS must be 1, true, yes, on or 0, false, no, off, got '{value}'; .* by torch$"
    with pytest.warns(UserWarning, match=text):
        assert square_sum_if_asked() is None


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "No such file"),
        ('cc "', "No closing quotation"),
        (f"{sys.executable} -c 'raise SystemExit(\"broken\")'", "broken"),
    ],
)
def test_without_a_compiler_one_line_says_so(monkeypatch, compiler, reason):
    monkeypatch.setenv("GRADEXP_COMPILED_NORMS", "1")
    monkeypatch.setenv("CC", compiler)
    with pytest.warns(UserWarning, match=f"needs a C compiler, .CC or cc .*{reason}.*; norms are taken by torch"):
        assert square_sum_if_asked() is None


def test_it_is_used_if_asked_for(monkeypatch, in_c):
    calls = []
    monkeypatch.setattr("gradexp.numerics.norms._square_sum", lambda *args: calls.append(args) or in_c(*args))
    tensors = [torch.ones(4), torch.ones(3, 3), torch.ones(4, dtype=torch.bfloat16), torch.ones(4, 4).mT[:2]]
    assert [float(norm) for norm, _ in scaled_norms(tensors)] == pytest.approx([2, 3, 2, math.sqrt(8)])
    assert calls == [(x.data_ptr(), x.numel()) for x in tensors[:2]]
