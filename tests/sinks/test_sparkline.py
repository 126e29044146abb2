"""Bars of a profile: one scale for all, marks for what has no number."""

import math

import numpy as np
import pytest

from gradexp.history.step import STATUSES
from gradexp.sinks.sparkline import BLOCKS, sparkline

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([0.0], "▄"),
        ([5.0, 5.0, 5.0], "▄▄▄"),
        ([5.0, 5.0 + 1e-12, 5.0 - 1e-12], "▄▄▄"),
        ([0.0, 1.0], "▃▅"),
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], "█▇▆▅▃▂▁"),
        ([-1760.0, 0.0], "▁█"),
        ([0.0, NAN, 6.0], "▁?█"),
        ([NAN, NAN], "??"),
        ([-math.inf, 0.0, math.inf], "?▄?"),
        ([], ""),
    ],
)
def test_sparkline(values, drawn):
    assert sparkline(np.array(values)) == drawn


def test_a_sparkline_tells_zero_from_not_finite_and_from_unseen():
    codes = [STATUSES.index(status) for status in ("zero", "nonfinite", "hook_missed", "ok", "ok", "zero")]
    values, status = np.array([NAN, NAN, NAN, 0.0, 6.0, NAN]), np.array(codes, dtype=np.int8)
    assert sparkline(values, status) == "0x?▁█0"


def test_one_layer_of_many_without_a_number_is_no_mark_but_inf_is():
    for word, drawn in (("zero", "▄"), ("hook_missed", "▄"), ("nonfinite", "x")):
        values, status = np.zeros(6), np.zeros(6, dtype=np.int8)
        values[0], status[0] = NAN, STATUSES.index(word)
        assert sparkline(values, status, width=1) == drawn
        status[:3], values[:3] = STATUSES.index(word), NAN
        assert sparkline(values, status, width=1) in "0?x"


def test_what_stands_below_each_other_is_drawn_on_one_scale():
    measured, theory = np.array([0.0, -1.0, -2.0]), np.array([0.0, -3.5, -7.0])
    assert sparkline(measured, beside=theory) == "█▇▆"
    assert sparkline(theory, beside=measured) == "█▅▁"


def test_the_height_grows_with_the_powers_of_ten_up_to_six():
    heights = []
    for decades in (0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 30.0):
        levels = [BLOCKS.index(bar) for bar in sparkline(np.linspace(-decades, 0, 24))]
        assert levels == sorted(levels)
        heights.append(levels[-1] - levels[0])
    assert heights == sorted(heights)
    assert heights[0] <= 1
    assert heights[-2:] == [7, 7]


def test_a_sparkline_of_10000_layers_averages_them():
    assert sparkline(np.zeros(10000)) == "▄" * 24
    assert sparkline(np.linspace(0, 8, 10000), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.full(10000, NAN)) == "?" * 24
