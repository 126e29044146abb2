"""Figures show what a History holds."""

import numpy as np
import pytest

from gradexp.figures import profile_figure
from gradexp.history import STATUSES, History


def history(log10: list[float]) -> History:
    values = np.array([[log10]])
    status = np.where(np.isfinite(values), STATUSES.index("ok"), STATUSES.index("zero")).astype(np.int8)
    names = [str(layer) for layer in range(len(log10))]
    return History("init", names, [0], [0], {"output_grad": values}, {"output_grad": status})


def test_line_goes_through_the_profile_and_leaves_gaps() -> None:
    (axes,) = profile_figure({"a": history([-400.0, np.nan, 2.0])}).axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [-400.0, np.nan, 2.0])


def test_axis_is_labelled_in_powers_of_ten() -> None:
    figure = profile_figure({"a": history([-400.0, 0.0])})
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert "$10^{-400}$" in labels


def test_legend_names_the_labelled_histories_only() -> None:
    (axes,) = profile_figure({"he": history([0.0, 1.0]), "": history([1.0, 2.0])}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["he"]
    assert profile_figure({"": history([0.0, 1.0])}).axes[0].get_legend() is None


def test_a_single_layer_is_visible_as_a_point() -> None:
    (axes,) = profile_figure({"": history([1.0])}).axes
    assert axes.lines[0].get_marker() == "o"


def test_history_plots_itself() -> None:
    assert history([0.0, 1.0]).plot().axes[0].get_xlabel() == "layer (1 = input side)"


def test_missing_quantity_is_an_error() -> None:
    with pytest.raises(ValueError, match="'update' was not recorded; choose one of output_grad"):
        profile_figure({"": history([0.0])}, "update")
