"""The pictures without scripts show the numbers where they are, and their labels apart."""

import re

import numpy as np
import pytest

from gradexp.page.lines import Line
from gradexp.page.still import loss_still, still

DEPTH = 5


def line(log10: list[float], **others) -> Line:
    return Line("he", range(1, len(log10) + 1), initial={"output_grad": np.array(log10)}, **others)


def places(picture: str, kind: str) -> list[tuple[float, float]]:
    """The points of the first path of a class."""
    found = re.search(rf'<path class="{kind}[^"]*" d="([^"]*)"', picture)
    assert found, kind
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", found[1])]


def heights(picture: str) -> dict[str, float]:
    """Tick -> its height."""
    return {text: float(y) - 4 for y, text in re.findall(r'<text x="[\d.]+" y="([\d.]+)">([^<]+)</text>', picture)}


def test_a_line_is_at_its_ticks() -> None:
    picture = still([line([-8.0, -6.0, -4.0, -2.0, 0.0])], 3.0)
    ticks, points = heights(picture), places(picture, "run")
    assert ticks["10^-8"] == pytest.approx(points[0][1], abs=0.2)
    assert ticks["10^0"] == pytest.approx(points[4][1], abs=0.2)
    assert np.ptp(np.diff([x for x, _ in points])) < 0.2
    assert "10^-8.0 at layer 1" in picture


def test_the_band_of_theory_is_two_standard_deviations_wide() -> None:
    zeros = np.zeros(DEPTH)
    own = line([0.0] * DEPTH, theory={"output_grad": zeros}, spread=np.full(DEPTH, 0.5))
    picture = still([own], 3.0)
    ticks, band = heights(picture), places(picture, "band")
    upper, lower = [ticks["10^1"]] * DEPTH, [ticks["10^-1"]] * DEPTH
    assert [y for _, y in band] == pytest.approx([*upper, *lower], abs=0.2)
    assert len(places(picture, "theory")) == DEPTH


def test_a_prediction_alone_is_drawn_with_its_band() -> None:
    own = Line("theory", [1, 2], theory={"output_grad": np.array([-5.0, 0.0])}, spread=np.array([1.0, 0.0]))
    picture = still([own], 3.0)
    assert places(picture, "run")[0][1] == pytest.approx(
        sum(y for _, y in places(picture, "band")[:4:3]) / 2, abs=0.2
    )
    assert 'class="theory' not in picture


def test_zeros_and_infinities_leave_gaps_and_have_marks_at_the_edges() -> None:
    picture = still([line([-np.inf, -1.0, np.nan, 0.0, np.inf])], 3.0)
    marks = re.findall(r'<path class="mark c0" d="M([\d.]+) (\d+)l', picture)
    bottom, top = (int(y) for _, y in marks)
    assert bottom >= max(heights(picture).values()) > min(heights(picture).values()) >= top
    assert float(marks[0][0]) < float(marks[1][0])
    _, *alone = re.findall(r'<circle class="mark c0" cx="([\d.]+)" cy="([\d.]+)"', picture)[::-1]
    assert len(alone) == 2  # two numbers, each without a neighbour
    assert 'class="run' not in picture
    assert "10^-1.0 at layer 2" in picture


def test_what_is_0_all_over_is_still_a_picture() -> None:
    picture = still([line([-np.inf] * 3)], 3.0)
    assert picture.count('<path class="mark') == 1
    assert ">0 at layer 1<" in picture
    assert still([line([np.nan] * 3)], 3.0) == ""
    assert still([], 3.0) == ""


def test_labels_of_lines_that_end_together_stand_apart_inside_the_picture() -> None:
    picture = still([line([-40.0 - row / 100, 0.0]) for row in range(20)], 3.0)
    found = [float(y) for y in re.findall(r'<text class="label-name c\d" [^>]*y="([\d.]+)"', picture)]
    assert len(found) == 9
    colours = re.findall(r'<circle class="mark (c\d)" [^>]*/><text class="label-name (c\d)"', picture)
    assert len(colours) == 9
    assert all(dot == label for dot, label in colours)
    assert np.diff(found).min() >= 28
    assert 0 < found[0] < found[-1] < float(re.findall(r'viewBox="0 0 \d+ (\d+)"', picture)[0])


def test_a_training_shows_its_last_step_and_its_first_dotted() -> None:
    own = Line("measured", [1, 2], steps=[0, 9], course={"output_grad": np.array([[-4.0, 0.0], [-1.0, 0.0]])})
    picture = still([own], 3.0)
    ticks = heights(picture)
    assert places(picture, "past")[0][1] == pytest.approx(ticks["10^-4"], abs=0.2)
    assert places(picture, "run")[0][1] == pytest.approx(ticks["10^-1"], abs=0.2)


def test_the_loss_goes_from_step_to_step_beside_that_of_guessing() -> None:
    own = Line("he", [1], losses=[2.0, 1.0, float("nan"), 0.5], guessing=2.5)
    picture = loss_still([own])
    ticks, points = heights(picture), places(picture, "run")
    zero, top = ticks["0"], ticks["2.5"]
    assert [(zero - y) / (zero - top) for _, y in points] == pytest.approx([0.8, 0.4], abs=0.01)
    assert len(re.findall("<circle", picture)) == 1  # the last loss, alone after one that is not finite
    (guess,) = re.findall(r'class="guess" d="M\d+ ([\d.]+)H', picture)
    assert float(guess) == pytest.approx(top, abs=0.2)
    assert loss_still([line([0.0])]) == ""
    assert loss_still([Line("nan", [1], losses=[float("nan")])]) == ""
