"""Rows of one role fold, and what is unusual does not."""

import numpy as np
import pytest

from gradexp.history.folding import folded, spans
from gradexp.history.roles import places


def fold(names, calls=(), kinds=None, log10=None):
    log10 = np.zeros(len(names)) if log10 is None else np.array(log10, float)
    return folded(places(names, calls), names, kinds or ["ok"] * len(names), log10)


def test_every_row_is_in_exactly_one_line():
    rng = np.random.default_rng(0)
    names = [f"h.{block}.{role}" for block in range(20) for role in ("q", "k", "mlp.0", "mlp.2")] + ["head"]
    kinds = rng.choice(["ok", "zero", "frozen"], len(names)).tolist()
    lines = fold(names, kinds=kinds, log10=rng.normal(size=len(names)))
    assert sorted(row for line in lines for row in line.rows) == [*range(len(names))]
    for line in lines:
        assert len({kinds[row] for row in line.rows}) == 1
        assert len({names[row].partition(".")[2].partition(".")[2] for row in line.rows}) == 1


def test_a_stack_of_one_role_is_called_by_its_name_and_range():
    assert [line.name for line in fold([f"layers.{index}" for index in range(32)])] == ["layers.0-31"]
    assert [line.name for line in fold([f"{index}" for index in range(0, 82, 2)])] == ["0,2,…,80"]
    assert [line.name for line in fold([f"stage.conv{index}.x" for index in range(1, 5)])] == ["stage.conv1-4.x"]


def test_calls_are_counted_from_1():
    assert [line.name for line in fold(["cell"] * 60, range(60))] == ["cell #1-60"]


def test_further_calls_in_a_block_keep_their_numbers():
    names = [f"h.{block}.{role}" for block in range(3) for role in "qk"]
    twice = [*names, *(f"{name} #2" for name in names)]
    kinds = [f"{index}" for index in range(12)]
    calls = [0] * 6 + [1] * 6
    lines = folded(places(names * 2, calls), twice, kinds, np.zeros(12))
    assert len({line.name for line in lines}) == 12
    assert "1.k #2" in {line.name for line in lines}


def test_experts_fold_over_experts_and_blocks():
    names = [f"layers.{block}.experts.{expert}.w1" for block in range(4) for expert in range(8)] + ["layers.0.attn"]
    kinds = ["ok"] * len(names)
    kinds[9] = "zero"
    lines = fold(names, kinds=kinds)
    assert [(line.name, len(line.rows)) for line in lines] == [
        ("experts.0-7.w1", 31),
        ("1.experts.1.w1", 1),
        ("0.attn", 1),
    ]


@pytest.mark.parametrize("where", [0, 1, 10, 18, 19])
def test_a_spike_stands_alone(where):
    log10 = np.linspace(-10, 0, 20)
    log10[where] += 4
    lines = fold([f"layers.{index}" for index in range(20)], log10=log10)
    assert (where,) in [line.rows for line in lines]
    assert len(lines) == 2


def test_steps_slopes_and_noise_unfold_nothing():
    names = [f"layers.{index}" for index in range(40)]
    noise = np.random.default_rng(0).normal(scale=0.2, size=40)
    for log10 in (noise, noise - np.arange(40), noise - 8 * (np.arange(40) > 20), np.full(40, np.nan)):
        assert len(fold(names, log10=log10)) == 1


def test_whole_numbers_are_written_as_runs():
    assert spans([3, 0, 1, 2, 7]) == "0-3,7"
    assert spans([5]) == "5"
    assert spans(range(0, 20, 2)) == "0,2,…,18"
