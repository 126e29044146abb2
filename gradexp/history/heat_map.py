"""The gradient over layers and training steps, as the colours of a map.

Functions import matplotlib, which is slow to load, when they are called.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradexp.history.history import History
from gradexp.history.short_names import short_names, shown_name
from gradexp.history.step import STATUSES, Array
from gradexp.plotting import COLOURS, LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_REACH = 3
"""Powers of ten from white, which is 1, to the darkest colours, at least: where a gradient counts as stable."""

_LEAST_DECADES = 3  # of a scale that has no middle, so that what is stable looks flat
_MOST_NAMES, _LONGEST_NAME = 14, 22  # of layers beside the map
_DOTS = 1000
# Status of a cell without a number: its colour, which everybody tells from those of the scale, and what it means.
_SPECIAL = {"zero": ("black", "exactly 0"), "nonfinite": (COLOURS[4], "inf or nan")}
_OTHERS = ("#888888", "not seen")


def heat_map(history: History) -> "Figure":
    """Draw log10 of the output gradient of each layer, named, at each step.

    Args:
        history: At least one step of output gradients.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    draw_heat_map(axes, history)
    rows = [*range(0, history.depth, -(-history.depth // _MOST_NAMES))]
    names = [shown_name(history.names[row], history.calls[row] if history.calls else 0) for row in rows]
    axes.set_ylabel("layer, from the input up")
    axes.set_yticks([row + 1 for row in rows], short_names(names, _LONGEST_NAME), fontsize=7)
    return figure


def draw_heat_map(axes: "Axes", history: History, middle: float | None = None) -> None:
    """Draw log10 of the output gradient of the first network, layer by step, with a scale beside it.

    A cell that is exactly 0 or not finite has a colour of its own. Of very many steps or layers a thousand are drawn,
    evenly spread; where steps were left out, the one that is nearest.

    Args:
        axes: Axes of steps and layers.
        history: At least one step of output gradients.
        middle: The size, as log10, that is white; None: colours go from the smallest to the largest.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgb
    from matplotlib.patches import Patch
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    drawn = np.ix_(some(history.depth), _columns(history.steps))
    sizes = history.log10["output_grad"][:, 0].T[drawn]  # layer by step
    codes = history.status["output_grad"][:, 0].T[drawn]
    low, high = _limits(sizes[np.isfinite(sizes)], middle)
    scale = ScalarMappable(Normalize(low, high), cmap="viridis" if middle is None else "RdBu_r")
    cells = scale.to_rgba(np.where(np.isfinite(sizes), sizes, low))[..., :3]
    legend = []
    for code, status in enumerate(STATUSES):
        colour, meaning = _SPECIAL.get(status, _OTHERS)
        where = codes == code
        if status not in ("ok", "subnormal") and where.any():
            cells[where] = to_rgb(colour)
            legend.append((colour, meaning))
    first, last = history.steps[0], history.steps[-1]
    half = max(1, last - first) / max(1, len(drawn[1][0]) - 1) / 2
    axes.imshow(
        cells,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(first - half, last + half, 0.5, history.depth + 0.5),
    )
    bar = axes.figure.colorbar(scale, ax=axes, pad=0.02)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:.0f}}}$"))
    bar.set_label("norm of ∂L/∂z" if middle is not None else LABELS["output_grad"], fontsize=8)
    handles = [Patch(color=colour, label=meaning) for colour, meaning in dict.fromkeys(legend)]
    if handles:
        axes.legend(handles=handles, fontsize=8, loc="upper left", framealpha=0.9)
    axes.set_xlabel("training step")
    axes.set_ylabel("layer (1 = input side)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True) if last > first else FixedLocator([first]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _limits(finite: Array, middle: float | None) -> tuple[float, float]:
    """Return the ends of the scale, whole powers of ten from the middle."""
    if middle is not None:
        reach = math.ceil(max(LEAST_REACH, np.abs(finite - middle).max() if finite.size else 0.0))
        return middle - reach, middle + reach
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    missing = max(0.0, _LEAST_DECADES - (high - low)) / 2
    return math.floor(low - missing), math.ceil(high + missing)


def _columns(steps: list[int]) -> NDArray[np.int64]:
    """Return the indices of the steps that are drawn, one for each place of an axis that is even."""
    labels = np.asarray(steps, dtype=float)
    count = min(len(labels), _DOTS)
    if (np.diff(labels) <= 0).any():
        return some(len(labels))
    return np.searchsorted((labels[1:] + labels[:-1]) / 2, np.linspace(labels[0], labels[-1], count))


def some(count: int) -> NDArray[np.int64]:
    """Return indices from first to last, at most as many as there are dots to draw."""
    return np.unique(np.linspace(0, count - 1, min(count, _DOTS)).round().astype(np.int64))
