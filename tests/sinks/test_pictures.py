"""The pictures of one run, looked at by their artists and their pixels."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from cases import few
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gradexp.config import Config, InitConfig, OptimizerConfig
from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.runs.experiment import run
from gradexp.runs.result import Result
from gradexp.sinks.files import Files
from gradexp.sinks.pictures import PROFILE, SCALE, TRAINING, pictures, profile_picture, training_picture


def small(**options: Any) -> Result:
    return run(Config(**({"depth": 12, "width": 8, "steps": 3} | options)))


def trained(log10: ArrayLike, status: list[str] | None = None, steps: list[int] | None = None) -> Result:
    """A run whose probe saw these numbers, layer by layer in each step, and these statuses in all steps."""
    values = np.array(log10)[:, None]
    codes = np.zeros(values.shape, dtype=np.int8)
    if status is not None:
        codes[:] = [STATUSES.index(word) for word in status]
    names = [f"layers.{index}" for index in range(values.shape[-1])]
    labels = steps or list(range(len(values)))
    history = History("train", names, labels, [0], {"output_grad": values}, {"output_grad": codes})
    return Result(Config(depth=len(names)), gradients=history)


def cells(figure: Figure) -> np.ndarray:
    [image] = figure.axes[0].get_images()
    return np.asarray(image.get_array())


def legend(figure: Figure) -> list[str]:
    drawn = figure.axes[0].get_legend()
    return [] if drawn is None else [text.get_text() for text in drawn.get_texts()]


def test_colours_are_the_same_in_all_runs_and_reach_over_all_that_float32_holds() -> None:
    one = cells(training_picture(trained([[0.0, -3.0, -20.0, 20.0]])))[:, 0]
    other = cells(training_picture(trained([[-20.0, -3.0, 0.0, -44.9]])))[:, 0]
    assert np.array_equal(one[[0, 1, 2]], other[[2, 1, 0]])
    assert one[0].min() > 0.95  # white is 1
    red, _, blue = one[3]
    assert red > blue  # exploding
    red, _, blue = one[2]
    assert blue > red  # vanishing
    assert not np.allclose(one[2], other[3], atol=0.1)  # no size of float32 is off the scale
    assert math.log10(np.finfo(np.float32).smallest_subnormal) > -SCALE
    assert math.log10(np.finfo(np.float32).max) < SCALE
    assert np.abs(one[1] - one[0]).max() > 0.1  # three powers of ten can be seen


def test_zero_and_what_is_not_finite_have_colours_of_their_own() -> None:
    words = ["zero", "nonfinite", "hook_missed", "ok", "subnormal"]
    figure = training_picture(trained([[math.nan, math.nan, math.nan, 0.0, -40.0]], words))
    drawn = [tuple(cell) for cell in cells(figure)[:, 0]]
    assert drawn[0] == to_rgb("black")
    assert len(set(drawn)) == 5
    assert legend(figure) == ["exactly 0", "inf or nan", "not seen"]
    scale = training_picture(trained([np.linspace(-SCALE, SCALE, 500)]))
    for special in drawn[:3]:
        assert np.abs(cells(scale)[:, 0] - special).max(axis=1).min() > 0.15
    assert legend(scale) == []


def test_layer_1_is_at_the_bottom_and_each_step_at_its_number() -> None:
    figure = training_picture(trained([[0.0, -9.0], [0.0, -9.0], [0.0, 9.0]], steps=[0, 10, 20]))
    [image] = figure.axes[0].get_images()
    assert image.get_extent() == [-5, 25, 0.5, 2.5]
    assert image.origin == "lower"
    assert cells(figure).shape == (2, 3, 3)


def test_of_very_many_steps_and_layers_a_thousand_are_drawn() -> None:
    table = np.zeros((1500, 1200))
    table[-1, -1], table[0, 0] = 30.0, -30.0
    figure = training_picture(trained(table))
    drawn = cells(figure)
    assert drawn.shape == (1000, 1000, 3)
    assert drawn[0, 0, 2] > drawn[0, 0, 0]  # the first and the last are among them
    assert drawn[-1, -1, 0] > drawn[-1, -1, 2]


def horizontal(patch):
    """Return where a patch begins and ends on its axis; until matplotlib 3.9 a span was no rectangle."""
    box = patch.get_window_extent().transformed(patch.axes.transData.inverted())
    return round(box.x0, 6), round(box.x1, 6)


def test_the_profile_shows_measurement_theory_and_where_the_number_format_fails() -> None:
    result = small(activation="linear", depth=60, steps=0, init=InitConfig("identity", gain=0.1))
    figure = profile_picture(result)
    assert result.initial is not None
    down = result.initial.failing_layer("output_grad", "float32", overflow=False)
    up = result.initial.failing_layer("output", "float32", overflow=False)
    failures = [f"0 in float32\nfrom layer {down} down", f"outputs 0 in float32\nfrom layer {up} up"]
    assert legend(figure) == ["measured", "theory ± 2 sd", *failures]
    spans = [horizontal(patch) for patch in figure.axes[0].patches]
    assert spans == [(0.5, down + 0.5), (up - 0.5, 60.5)]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert np.diff(lines["measured"])[:-1] == pytest.approx(np.ones(58))  # the last layer has more units
    assert lines["theory ± 2 sd"] == pytest.approx(lines["measured"], abs=0.05)  # the cotangents are drawn
    assert figure.axes[0].get_title() == "identity gain=0.1, 60 linear layers: vanishing"


def test_layers_that_are_exactly_0_are_marked() -> None:
    figure = profile_picture(small(init=InitConfig("normal", std=0.0), bias=False, steps=0))
    assert "exactly 0" in legend(figure)
    [span] = [patch for patch in figure.axes[0].patches if patch.get_label() == "exactly 0"]
    assert horizontal(span) == (0.5, 11.5)
    [line] = [line for line in figure.axes[0].get_lines() if line.get_label() == "measured"]
    assert line.get_marker() == "o"  # layer 12 alone has a number


@pytest.mark.slow
def test_no_number_format_is_blamed_where_none_fails() -> None:
    result = small(dtype="float64", seeds=3)
    assert legend(profile_picture(result)) == ["measured, mean of 3", "theory ± 2 sd"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    few(
        [
            {"depth": 1},
            {"steps": 0},
            {"steps": 1},
            {"dtype": "float64"},
            {"optimizer": OptimizerConfig(lr=1e30)},
            {"init": InitConfig("normal", std=0.0)},
        ]
    ),
    ids=str,
)
def test_every_run_can_be_drawn(options: dict[str, Any]) -> None:
    result = small(**options)
    found = pictures(result)
    assert list(found) == [PROFILE, TRAINING][: 1 + bool(result.config.steps)]
    for figure in found.values():
        FigureCanvasAgg(figure).draw()


def test_a_run_that_ended_before_it_was_measured_has_no_picture(tmp_path: Path) -> None:
    assert pictures(Result(Config())) == {}
    Files(tmp_path, figures=True).write("end", Result(Config(), status="failed"))
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".svg")] == []


@pytest.mark.slow
def test_files_are_drawn_if_asked_for(tmp_path: Path) -> None:
    result = small()
    for figures in (False, True):
        folder = tmp_path / str(figures)
        folder.mkdir()
        Files(folder, figures).write("end", result)
        drawn = {path.name for path in folder.iterdir() if path.suffix in (".png", ".svg")}
        stems = [tag.removeprefix("layers/") for tag in (PROFILE, TRAINING)]
        assert drawn == {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg") if figures}
    for stem in stems:
        with PIL.Image.open(folder / f"{stem}.png") as picture:
            assert picture.width > 600
        assert "<svg" in (folder / f"{stem}.svg").read_text(encoding="utf-8")
