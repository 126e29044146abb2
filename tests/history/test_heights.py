"""Pictures in text have a scale that does not follow small differences."""

import numpy as np
import pytest

from gradexp.history.heights import Picture, Scale


def heights(log10, statuses=None, width=100):
    return Scale.of(np.array(log10)).heights(log10, statuses or ["ok"] * len(log10), width)


def test_what_changes_by_less_than_a_third_of_a_decade_is_flat():
    assert heights([0.3, -0.3, 0.1, 0.0]) == "▄▄▄▄"


def test_a_height_is_a_decade_unless_there_are_more():
    assert heights([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 0.0]) == "▁▂▃▄▅▆▇▄"
    assert heights([-60.0, -30.0, 0.0]) == "▁▄▇"
    assert Scale.of(np.array([-60.0, 0.0])).step == pytest.approx(63 / 6)


def test_zero_and_infinity_are_marked_and_not_averaged_away():
    assert heights([np.nan, 0.0, np.nan, np.nan], ["zero", "ok", "nonfinite", "frozen"]) == "0▄x·"
    many = [0.0] * 50
    many[7] = np.nan
    statuses = ["ok"] * 50
    statuses[7] = "zero"
    picture = heights(many, statuses, 10)
    assert picture == "▄0▄▄▄▄▄▄▄▄"


def test_without_a_number_there_is_no_scale():
    assert Scale.of(np.array([np.nan])) is None


def test_marks_are_where_the_decades_above_them_say():
    log10 = np.array([-3.0, 3.0, 0.0])
    picture = Picture(Scale.of(log10), log10, ["ok"] * 3, 1)
    width = picture.width(13)
    head = picture.head(width)[1]
    assert head.split() == ["-3", "0", "+3"]
    drawn = [picture.draw([row], width) for row in range(3)]
    assert [line.index("█") for line in drawn] == [0, width - 1, head.index("0")]
