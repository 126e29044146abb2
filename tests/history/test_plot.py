"""Figures show what a History holds."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.history.history import History
from gradexp.history.step import STATUSES
from gradexp.phase.figures import phase_figure, weight_scale_figure
from gradexp.phase.plane import MeasuredPoint, PhaseDiagram, WeightScalePoint


@pytest.fixture(autouse=True)
def no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another test has imported, these figures are nobody's, and are freed."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)


def history(log10: list[float]) -> History:
    values = np.array([[log10]])
    status = np.where(np.isfinite(values), STATUSES.index("ok"), STATUSES.index("zero")).astype(np.int8)
    names = [str(layer) for layer in range(len(log10))]
    return History("init", names, [0], [0], {"output_grad": values}, {"output_grad": status})


def test_line_goes_through_the_profile_and_leaves_gaps() -> None:
    (axes,) = history([-400.0, np.nan, 2.0]).plot().axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [-400.0, np.nan, 2.0])


def test_axis_is_labelled_in_powers_of_ten() -> None:
    figure = history([-400.0, 0.0]).plot()
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "$10^{-400}$" in labels


@pytest.mark.parametrize("profile", [[0.0, 0.0, 0.0], [-0.3, -0.2, -0.3], [0.2, 1e-9, 0.0]])
def test_a_flat_profile_looks_flat_and_no_label_is_there_twice(profile: list[float]) -> None:
    figure = history(profile).plot()
    figure.canvas.draw()
    low, high = figure.axes[0].get_ylim()
    ticks = [tick for tick in figure.axes[0].get_yticks() if low <= tick <= high]
    assert high - low >= 3
    assert len(ticks) >= 2
    assert all(tick == round(tick) for tick in ticks)


def test_legend_names_the_labelled_histories_only() -> None:
    (axes,) = history([0.0, 1.0]).plot(label="he").axes
    history([1.0, 2.0]).plot(ax=axes)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["he"]
    assert history([0.0, 1.0]).plot().axes[0].get_legend() is None
    assert blocks().plot(label="gpt").get_suptitle() == "gpt"


def test_a_single_layer_is_visible_as_a_point() -> None:
    (axes,) = history([1.0]).plot().axes
    assert axes.lines[0].get_marker() == "o"


def probed(names: list[str], log10: list[float], **statuses: str) -> History:
    """Return what a probe may have recorded; ``row_3="zero"`` is a status."""
    own = history(log10)
    for row, status in statuses.items():
        own.status["output_grad"][0, 0, int(row[4:])] = STATUSES.index(status)
    return History("train", names, [0], [0], own.log10, own.status)


def test_numbers_between_zeros_are_dots_and_zeros_are_marked_at_the_edge() -> None:
    log10 = [np.nan, 1.0, np.nan, np.nan, 0.0, 0.5, np.nan]
    (axes,) = probed(list("abcdefg"), log10, row_3="nonfinite").plot().axes
    (line,) = axes.lines
    assert (line.get_marker(), line.get_markevery()) == ("o", [1])
    zeros, infinite = (one for one in axes.collections if len(one.get_offsets()))
    assert zeros.get_offsets()[:, 0].tolist() == [1, 3, 7]
    assert infinite.get_offsets()[:, 0].tolist() == [4]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["exactly 0", "inf or nan"]


def test_a_profile_that_is_0_all_over_still_shows_that() -> None:
    figure = probed(list("abc"), [np.nan] * 3).plot()
    figure.canvas.draw()
    marks = next(one for one in figure.axes[0].collections if len(one.get_offsets()))
    assert len(marks.get_offsets()) == 3


def test_names_below_the_axis_are_whole_and_do_not_overlap() -> None:
    names = [f"model.part{'abc'[index % 3]}.x{index}y" for index in range(200)]
    figure = probed(names, [0.0] * 200).plot()
    figure.canvas.draw()
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == names[::7]
    boxes = [label.get_window_extent() for label in labels]
    assert all(left.x1 <= right.x0 + 1 for left, right in pairwise(boxes))


def blocks(count: int = 20) -> History:
    roles = {"attn.q": -4.0, "attn.v": -1.0, "mlp": 0.0}
    names = ["embed", *(f"h.{block}.{role}" for block in range(count) for role in roles), "head"]
    return probed(names, [0.5, *([*roles.values()] * count), 0.2])


def test_a_deep_model_has_a_line_for_each_role_over_its_blocks() -> None:
    figure = blocks().plot()
    stack, others = figure.axes
    assert [line.get_label() for line in stack.lines] == ["attn.q", "attn.v", "mlp"]
    for line, value in zip(stack.lines, (-4.0, -1.0, 0.0), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), range(20))
        np.testing.assert_array_equal(line.get_ydata(), [value] * 20)
    assert [label.get_text() for label in others.get_xticklabels()] == ["embed", "head"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["attn.q", "attn.v", "mlp"]
    assert len(blocks(5).plot().axes) == 1


def test_a_zero_in_a_block_has_a_mark_in_the_colour_of_its_role() -> None:
    own = blocks()
    row = own.names.index("h.7.mlp")
    own.log10["output_grad"][0, 0, row] = np.nan
    own.status["output_grad"][0, 0, row] = STATUSES.index("zero")
    figure = own.plot()
    mark = next(one for one in figure.axes[0].collections if len(one.get_offsets()))
    assert mark.get_offsets()[:, 0].tolist() == [7]
    assert figure.legends[0].get_texts()[-1].get_text() == "exactly 0"


def test_stacks_have_panels_of_their_own() -> None:
    names = [f"{stack}.block.{i}.{role}" for stack in ("encoder", "decoder") for i in range(8) for role in "qkv"]
    figure = probed(names, [0.0] * len(names)).plot()
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["encoder.block", "decoder.block"]
    low, high = figure.axes[0].get_ylim()
    assert high - low >= 3


def test_statistics_and_the_relative_update_can_be_drawn() -> None:
    own = blocks()
    shape = own.log10["output_grad"].shape
    own.stats["output.dead"] = np.full(shape, 0.25)
    own.log10 |= {"weight": np.ones(shape), "update": np.full(shape, -2.0)}
    own.samples = np.zeros((*shape, 3))
    for quantity, value in (("output.dead", 0.25), ("log10_update_ratio", -3.0), ("samples_sd", 0.0)):
        figure = own.plot(quantity)
        figure.canvas.draw()
        np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [value] * 20)
    with pytest.raises(
        ValueError, match=r"choose one of output_grad, .*, log10_update_ratio, samples_sd, output\.dead$"
    ):
        own.plot("dead")


def test_history_plots_itself() -> None:
    assert history([0.0, 1.0]).plot().axes[0].get_xlabel() == "layer (1 = input side)"


def test_profiles_are_drawn_into_axes_of_ones_own_in_its_colours() -> None:
    axes = Figure().add_subplot()
    axes.set_prop_cycle(color=["red", "green"])
    for name, last in (("he", -1.0), ("xavier", -9.0)):
        own = history([last, 0.0])
        own.theory = {"log10_output_grad": np.zeros(2), "sd_output_grad": np.ones(2)}
        assert own.plot(ax=axes, label=name) is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        *("he", "theory, ±2 sd of one network", "xavier")
    ]
    drawn = {line.get_label(): line for line in axes.lines}
    assert [drawn[name].get_color() for name in ("he", "xavier")] == ["red", "green"]
    np.testing.assert_array_equal(drawn["xavier"].get_ydata(), [-9.0, 0.0])
    assert [line.get_color() for line in axes.lines if line.get_linestyle() == "--"].count("green") == 1


def test_layers_are_named_as_long_as_all_models_share_the_names() -> None:
    axes = Figure().add_subplot()
    for label in ("a", "b"):
        probed(["in", "out"], [0.0, 1.0]).plot(ax=axes, label=label)
        assert [text.get_text() for text in axes.get_xticklabels()] == ["in", "out"]
    probed([*"abcdefgh"], [0.0] * 8).plot(ax=axes, label="c")
    axes.figure.canvas.draw()
    assert axes.get_xlabel() == "layer (1 = input side)"
    assert {"2", "4", "8"} <= {text.get_text() for text in axes.get_xticklabels()}
    assert axes.get_xlim()[1] >= 8


def test_missing_quantity_is_an_error() -> None:
    with pytest.raises(ValueError, match="'update' was not recorded; choose one of output_grad"):
        history([0.0]).plot("update")


def plane() -> PhaseDiagram:
    """A made-up plane whose chi_1 is sigma_w2, so that the edge is at 1."""
    w2, b2 = np.linspace(0.2, 3, 15), np.linspace(0, 0.5, 6)
    chi = np.tile(w2, (6, 1))
    with np.errstate(divide="ignore"):
        values = {"chi_1": chi, "xi_c": 1 / np.abs(np.log(chi))}
    return PhaseDiagram("made_up", w2, b2, values, np.array([[1.0, 0.0], [1.0, 0.5]]))


def test_phase_diagram_shows_chi_1_the_edge_and_depths() -> None:
    figure = phase_figure(plane())
    axes, bar = figure.axes
    figure.canvas.draw()
    (mesh,) = [one for one in axes.collections if one.get_array() is not None and one.get_array().size == 90]
    np.testing.assert_array_equal(np.ravel(mesh.get_array()), np.tile(plane().sigma_w2, 6))
    # White is 1, and blue and red are as far from it.
    assert np.prod(mesh.get_clim()) == pytest.approx(1)
    edge = next(line for line in axes.lines if line.get_label().startswith("edge of chaos"))
    np.testing.assert_array_equal(edge.get_xdata(), [1, 1])
    assert {text.get_text() for text in axes.texts} <= {"10", "30", "100", "300"}
    assert "fan_in" in axes.get_xlabel()
    assert "chi_1" in bar.get_ylabel()


def test_a_contour_is_where_6_xi_c_is_its_depth() -> None:
    figure = phase_figure(plane())
    contours = next(one for one in figure.axes[0].collections if hasattr(one, "levels"))
    crossed = {
        level: path.vertices[:, 0]
        for level, path in zip(contours.levels, contours.get_paths(), strict=True)
        if len(path.vertices)
    }
    for level, x in crossed.items():
        # |log chi_1| = 6 / depth; straight lines between grid points are 1 % off.
        np.testing.assert_allclose(x, np.exp(-level), rtol=0.02)
    assert 6 / 10 in crossed


def test_dots_have_the_colours_of_the_plane() -> None:
    dots = [
        MeasuredPoint("tanh", 1.5, 0.1, 64, 50, 4, np.log(1.5), 0.01, None),
        MeasuredPoint("tanh", 2.5, 0.1, 64, 50, 4, None, None, None),
    ]
    axes = phase_figure(plane(), dots).axes[0]
    measured = next(one for one in axes.collections if one.get_label().startswith("measured"))
    mesh = next(one for one in axes.collections if one.get_array() is not None and one.get_array().size == 90)
    np.testing.assert_allclose(measured.get_array(), [1.5])
    assert measured.get_clim() == mesh.get_clim()
    assert measured.get_label() == "measured: depth 50, width 64, 4 networks"
    assert len(measured.get_offsets()) == 1


def scales() -> list[WeightScalePoint]:
    line = [
        WeightScalePoint("linear", "identity", x, 8, 101, 100 * np.log10(x), None, None) for x in (0.25, 1.0, 4.0)
    ]
    return [*line, WeightScalePoint("linear", "identity", 0.5, 8, 101, None, -30.0, None)]


def test_weight_scales_are_dashed_where_predicted_and_dots_where_measured() -> None:
    figure = weight_scale_figure(scales())
    (axes,) = figure.axes
    theory, measured = axes.lines[:2]
    assert theory.get_linestyle() == "--"
    np.testing.assert_array_equal(theory.get_xdata(), [0.25, 0.5, 1, 4])
    np.testing.assert_allclose(theory.get_ydata(), [100 * np.log10(0.25), np.nan, 0, 100 * np.log10(4)])
    assert (measured.get_marker(), measured.get_linestyle()) == ("o", "None")
    np.testing.assert_array_equal(measured.get_xydata(), [[0.5, -30.0]])
    figure.canvas.draw()
    assert "$10^{0}$" in [label.get_text() for label in axes.get_yticklabels()]
    assert {text.get_text() for text in axes.texts} == {
        "stable: within 3 powers of ten",
        "inf in float32",
        "0 in float32",
    }
    assert "layer 1 over layer 101" in axes.get_ylabel()


def test_float32_is_not_mentioned_where_it_does_not_fail() -> None:
    shallow = [scale._replace(depth=11) for scale in scales()]
    assert [text.get_text() for text in weight_scale_figure(shallow).axes[0].texts] == [
        "stable: within 3 powers of ten"
    ]


def test_theory_is_dashed_with_its_band() -> None:
    mlp = initialize(MLP([8] * 7, "relu", networks=4, dtype=torch.float64), "he", seed=0)
    x = torch.ones(2, 8, dtype=torch.float64)
    history = exact_profile(mlp, x)
    prediction = theory.predict_layers(mlp.activation, theory.weight_laws("he", mlp.widths), mlp.widths, x)
    assert len(history.plot().axes[0].lines) == 1
    history.theory = prediction.arrays
    axes = history.plot().axes[0]
    measured, predicted = axes.lines[:2]
    np.testing.assert_allclose(measured.get_ydata(), history.profile("output_grad"))
    np.testing.assert_allclose(predicted.get_ydata(), prediction.log10_output_grad)
    assert (measured.get_linestyle(), predicted.get_linestyle()) == ("-", "--")
    (band,) = axes.collections
    top = prediction.log10_output_grad + 2 * prediction.sd_output_grad
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(top.max())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["theory, ±2 sd of one network"]
    assert not history.plot("output").axes[0].collections  # a band is known for gradients only
