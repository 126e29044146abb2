"""A figure shows itself, and is pyplot's where the program uses pyplot."""

import importlib
import pickle
import struct
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf

from gradexp.history.history import History
from gradexp.history.shown_figure import ShownFigure, shown_figure
from gradexp.history.step import STATUSES


def history(layers: int = 3) -> History:
    log10 = np.linspace(-2, 0, layers)[None, None]
    ok = np.full(log10.shape, STATUSES.index("ok"), dtype=np.int8)
    return History("init", [str(row) for row in range(layers)], [0], [0], {"output_grad": log10}, {"output_grad": ok})


@pytest.fixture
def no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has not imported pyplot."""
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)


@pytest.fixture
def plt(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Pyplot in use, without a window and without a figure; other tests do not find it."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    before = sys.modules.get("matplotlib.pyplot")
    pyplot = importlib.import_module("matplotlib.pyplot")
    backend = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    pyplot.close("all")
    yield pyplot
    pyplot.close("all")
    pyplot.switch_backend(backend)
    if before is None:
        del sys.modules["matplotlib.pyplot"]


@pytest.mark.usefixtures("no_pyplot")
def test_without_pyplot_no_figure_stays_open_and_nothing_is_set() -> None:
    before = matplotlib.rcParams.copy()  # asked for its backend, it would import pyplot
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history().plot()._repr_mimebundle_()
        for _ in range(21):  # from then on pyplot would warn
            shown_figure()
    assert "matplotlib.pyplot" not in sys.modules
    assert Gcf.get_all_fig_managers() == []
    assert matplotlib.rcParams.copy() == before


def test_with_pyplot_it_is_the_current_figure_until_it_is_closed(plt: ModuleType) -> None:
    other = plt.figure()
    figure = history().plot()
    assert plt.gcf() is figure
    assert len(plt.get_fignums()) == 2
    plt.close(figure)
    assert plt.gcf() is other


def test_an_error_leaves_no_empty_figure(plt: ModuleType) -> None:
    with pytest.raises(ValueError, match="was not recorded"):
        history().plot("update")
    assert plt.get_fignums() == []


def test_axes_of_ones_own_make_no_figure(plt: ModuleType) -> None:
    _, (left, right) = plt.subplots(1, 2)
    assert history().plot(ax=right) is right
    assert len(plt.get_fignums()) == 1
    assert (len(left.lines), len(right.lines)) == (0, 1)


@pytest.mark.usefixtures("no_pyplot")
def test_the_picture_is_sharp_and_as_wide_as_the_figure() -> None:
    figure = history().plot()
    assert isinstance(figure, ShownFigure)
    data, shown = figure._repr_png_()
    width, height = struct.unpack(">II", data[16:24])  # of the header of a PNG
    assert (width, height) == (2 * shown["width"], 2 * shown["height"]) == (1008, 576)
    assert figure._repr_mimebundle_() == {}


@pytest.mark.usefixtures("no_pyplot")
def test_a_figure_with_a_window_is_not_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = history().plot()
    monkeypatch.setattr(type(figure.canvas), "required_interactive_framework", "qt")
    assert figure._repr_png_() is None


def test_looking_at_it_closes_it_under_the_inline_backend_only(
    plt: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = history().plot()
    figure._repr_mimebundle_()
    assert plt.get_fignums() == [figure.number]
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    figure._repr_mimebundle_(include=None, exclude=None)
    assert plt.get_fignums() == []


@pytest.mark.usefixtures("no_pyplot")
def test_a_figure_can_be_pickled() -> None:
    again = pickle.loads(pickle.dumps(history().plot()))
    np.testing.assert_array_equal(again.axes[0].lines[0].get_ydata(), [-2.0, -1.0, 0.0])
