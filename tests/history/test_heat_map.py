"""The map of the gradient over layers and steps: each cell has the colour of its size, where it belongs."""

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import Normalize

from gradexp.history.heat_map import heat_map
from gradexp.history.history import History
from gradexp.history.step import STATUSES


def history(sizes, steps=None, names=None):
    """Return a history of some sizes, one row for each step."""
    log10 = np.asarray(sizes, dtype=float)[:, None]
    status = np.where(np.isfinite(log10), STATUSES.index("ok"), STATUSES.index("zero")).astype(np.int8)
    return History(
        phase="train",
        names=names or [f"net.{row}" for row in range(log10.shape[2])],
        steps=[*range(len(log10))] if steps is None else steps,
        seeds=[0],
        log10={"output_grad": log10},
        status={"output_grad": status},
    )


def cells(figure):
    return np.asarray(figure.axes[0].images[0].get_array())


def test_each_cell_has_the_colour_of_its_size():
    sizes = np.array([[-1.0, -4.0, -7.0], [-2.0, -5.0, -np.inf]])
    drawn = cells(heat_map(history(sizes)))
    colours = matplotlib.colormaps["viridis"](Normalize(-7, -1)(np.nan_to_num(sizes, neginf=0)))[..., :3]
    colours[1, 2] = 0.0  # black: exactly 0
    np.testing.assert_allclose(drawn, colours.transpose(1, 0, 2), atol=1 / 255)


def test_a_gradient_that_stays_as_it_is_looks_so():
    """A tenth of a power of ten is a thirtieth of the scale."""
    figure = heat_map(history([[-2.0, -2.1]]))
    assert figure.axes[1].get_ylim() == pytest.approx((-4, 0))


def test_steps_stand_at_their_labels_where_most_of_the_older_ones_were_forgotten():
    steps = [0, 40, 80, 90, 100]
    figure = heat_map(history([[float(step)] for step in steps], steps))
    row = cells(figure)[0]
    scale = matplotlib.colormaps["viridis"](Normalize(0, 100)(np.array([0, 40, 40, 80, 100.0])))[:, :3]
    np.testing.assert_allclose(row, scale, atol=1 / 255)  # at 0, 25, 50, 75 and 100: what is nearest
    left, right, *_ = figure.axes[0].images[0].get_extent()
    assert (left, right) == (-12.5, 112.5)


def test_labels_that_do_not_rise_are_drawn_in_their_order():
    assert cells(heat_map(history([[1.0], [2.0], [3.0]], [0, 0, 1]))).shape == (1, 3, 3)


@pytest.mark.parametrize(("depth", "named"), [(3, 3), (14, 14), (15, 8), (200, 14)])
def test_layers_are_named_as_far_as_there_is_room(depth, named):
    figure = heat_map(history(np.zeros((2, depth))))
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == named
    assert labels[0] == "net.0"
