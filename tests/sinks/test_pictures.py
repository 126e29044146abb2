"""The pictures of one run, looked at by their artists and their pixels."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from cases import few
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from gradexp.config import Config, DataConfig, InitConfig, OptimizerConfig, VerdictConfig
from gradexp.history.heat_map import LEAST_REACH
from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.runs.experiment import run
from gradexp.runs.result import Result
from gradexp.runs.training import Training
from gradexp.sinks.files import Files
from gradexp.sinks.pictures import PROFILE, TRAINING, pictures, profile_picture, training_picture

STABLE = "stable: within 3 powers of ten"


def small(**options: Any) -> Result:
    return run(Config(**({"depth": 12, "width": 8, "steps": 3} | options)))


def below(figure: Figure) -> Axes:
    """The axes of the layers over the training steps, below those of the loss if there are any."""
    return next(axes for axes in figure.axes if axes.get_images())


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
    [image] = below(figure).get_images()
    return np.asarray(image.get_array())


def legend(figure: Figure) -> list[str]:
    drawn = (below(figure) if any(axes.get_images() for axes in figure.axes) else figure.axes[0]).get_legend()
    return [] if drawn is None else [text.get_text() for text in drawn.get_texts()]


def scale_of(figure: Figure) -> tuple[float, float]:
    """The powers of ten at the ends of the bar of colours."""
    low, high = figure.axes[-1].get_ylim()
    return low, high


def test_the_scale_is_that_of_the_data_and_at_least_where_a_gradient_is_stable() -> None:
    for sizes, reach in (([0.0, -0.4], 3), ([-2.9, 2.0], 3), ([-5.2, 0.0], 6), ([0.0, 44.9], 45), ([-320.0], 320)):
        figure = training_picture(trained([sizes]))
        assert scale_of(figure) == (-reach, reach)
    assert Config().verdict.decades == LEAST_REACH
    white, pale, blue = cells(training_picture(trained([[0.0, -0.3, -3.0]])))[:, 0]
    assert white.min() > 0.95  # white is 1
    assert np.abs(pale - white).max() > 0.05  # a factor of 2 can be seen
    assert blue[2] > blue[0] + 0.2  # vanishing
    red = cells(training_picture(trained([[0.0, 3.0]])))[1, 0]
    assert red[0] > red[2] + 0.2  # exploding


def test_the_loss_is_above_on_the_same_steps_with_the_dotted_line_of_guessing() -> None:
    result = trained(np.zeros((4, 3)), steps=[0, 10, 20, 30])
    result.training, result.guessing = Training([2.5 - 0.01 * step for step in range(31)]), 2.3
    figure = training_picture(result)
    loss, layers = figure.axes[:2]
    assert loss.get_xlim() == layers.get_xlim() == (-5, 35)
    course, guessing = loss.get_lines()
    assert np.asarray(course.get_ydata()) == pytest.approx(result.training.losses)
    assert np.asarray(course.get_xdata()).tolist() == list(range(31))
    assert (guessing.get_linestyle(), set(guessing.get_ydata())) == (":", {2.3})
    assert [text.get_text() for text in loss.texts] == ["guessing"]
    FigureCanvasAgg(figure).draw()
    # One below the other, not only alike.
    assert loss.get_position().x0 == pytest.approx(layers.get_position().x0)
    assert loss.get_position().x1 == pytest.approx(layers.get_position().x1)
    assert loss.get_position().y0 > layers.get_position().y1


@pytest.mark.parametrize("losses", [[2.5, math.nan, math.inf], [1e30, 2.3], [0.0], [math.nan]])
def test_odd_losses_can_be_drawn_and_leave_guessing_to_be_seen(losses: list[float]) -> None:
    result = trained(np.zeros((len(losses), 3)))
    result.training, result.guessing = Training(losses), 2.3
    figure = training_picture(result)
    FigureCanvasAgg(figure).draw()
    low, high = figure.axes[0].get_ylim()
    assert low == 0
    assert 2.3 < high < 8


def test_zero_and_what_is_not_finite_have_colours_of_their_own() -> None:
    words = ["zero", "nonfinite", "hook_missed", "ok", "subnormal"]
    figure = training_picture(trained([[math.nan, math.nan, math.nan, 0.0, -40.0]], words))
    drawn = [tuple(cell) for cell in cells(figure)[:, 0]]
    assert drawn[0] == to_rgb("black")
    assert len(set(drawn)) == 5
    assert legend(figure) == ["exactly 0", "inf or nan", "not seen"]
    scale = training_picture(trained([np.linspace(-40, 40, 500)]))
    for special in drawn[:3]:
        assert np.abs(cells(scale)[:, 0] - special).max(axis=1).min() > 0.15
    assert legend(scale) == []


def test_layer_1_is_at_the_bottom_and_each_step_at_its_number() -> None:
    figure = training_picture(trained([[0.0, -9.0], [0.0, -9.0], [0.0, 9.0]], steps=[0, 10, 20]))
    [image] = below(figure).get_images()
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


@pytest.mark.slow
def test_the_profile_shows_measurement_theory_and_where_the_number_format_fails() -> None:
    result = small(activation="linear", depth=60, steps=0, init=InitConfig("identity", gain=0.1))
    figure = profile_picture(result)
    assert result.initial is not None
    down = result.initial.failing_layer("output_grad", "float32", overflow=False)
    up = result.initial.failing_layer("output", "float32", overflow=False)
    failures = [f"0 in float32: 1 to {down}", f"outputs 0 in float32: {up} to 60"]
    assert legend(figure) == ["measured", "theory ± 2 sd", STABLE, *failures]
    spans = [horizontal(patch) for patch in figure.axes[0].patches if patch.get_label() in failures]
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
    assert legend(profile_picture(result)) == ["measured, mean of 3", "theory ± 2 sd", STABLE]


@pytest.mark.parametrize("decades", [1.0, 3.0, 5.0])
def test_a_stable_gradient_looks_level_and_the_band_of_its_verdict_is_shown(decades: float) -> None:
    result = small(verdict=VerdictConfig(decades), steps=0)
    [axes] = profile_picture(result).axes
    [band] = [patch for patch in axes.patches if str(patch.get_label()).startswith("stable")]
    assert band.get_label() == f"stable: within {decades:g} powers of ten"
    assert result.initial is not None
    middle, (low, high) = result.initial.profile("output_grad")[-1], axes.get_ylim()
    box = band.get_window_extent().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((middle - decades, middle + decades))
    assert high - low >= 6
    assert low < box.y0 < box.y1 < high


def test_what_is_lost_in_float32_is_shown_of_a_run_in_float64_too() -> None:
    result = small(
        activation="linear", depth=150, width=2, steps=0, dtype="float64",
        init=InitConfig("identity", gain=0.5), data=DataConfig("ones"),
    )  # fmt: skip
    assert "outputs 0 in float32: 150 to 150" in legend(profile_picture(result))


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
