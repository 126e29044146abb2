"""What the figures of a sweep share: panels, ticks, colours and labels.

Functions import matplotlib, which is slow to load, when they are called.
"""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradexp.plotting import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_LINES = 7  # as many as there are colours that everybody tells apart
MOST_TICKS = 16
_MOST_LETTERS = 60
GREY = "#d4d4d4"


def explain(figure: "Figure", legend: str, drawn: Mapping[str, Any], panels: Mapping[str, Any]) -> None:
    """Write above a figure how to read it, and how many of the panels are drawn if not all are."""
    left_out = f"\n{len(drawn)} of {len(panels)} panels" if len(panels) > len(drawn) else ""
    # A long line would be cut off at the sides of a narrow picture.
    figure.suptitle("\n".join(textwrap.wrap(legend, int(12 * figure.get_figwidth()))) + left_out, fontsize=11)


def label_ticks(axis: Any, values: Sequence[Any]) -> None:
    """Label the places 0, 1, ... of an axis with values; of many values some are left out."""
    places = range(0, len(values), -(-len(values) // MOST_TICKS))
    axis.set_ticks(list(places), labels=[short_text(values[place]) for place in places])


def distinct(values: Sequence[Any]) -> list[Any]:
    """Return each value once: numbers by size, others in their order, and None, which does not apply, at the end."""
    unique = list({json.dumps(value): value for value in values}.values())
    applicable = [value for value in unique if value is not None]
    return (sorted(applicable) if are_numbers(applicable) else applicable) + [None] * (None in unique)


def are_numbers(values: Sequence[Any]) -> bool:
    """Return whether all values are numbers, except those that do not apply."""
    applicable = [value for value in values if value is not None]
    return bool(applicable) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in applicable
    )


def panel_grid(
    count: int, columns: int | None, each: tuple[float, float], share_x: bool = True
) -> "tuple[Figure, list[Axes]]":
    """Return a figure with ``count`` panels that share their vertical axes and, if asked, the horizontal ones."""
    from matplotlib.figure import Figure

    columns = columns or (count if count <= 3 else 2 if count == 4 else 3 if count <= 9 else 4)
    lines = -(-count // columns)
    figure = Figure(
        figsize=(each[0] * columns + (1.2 if count > 1 else 0), each[1] * lines + 0.9), layout="constrained"
    )
    grid = figure.subplots(lines, columns, sharex=share_x, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)  # also above a place without a panel
    return figure, list(grid.flat[:count])


def colour_scale(values: Sequence[Any]) -> Callable[[Any], Any]:
    """Return the colour of each value: a scale for numbers, distinct ones for a few names."""
    from matplotlib import colormaps

    if are_numbers(values) or len(values) > MOST_LINES:
        return lambda value: colormaps["viridis"](0.88 * values.index(value) / max(len(values) - 1, 1))
    return lambda value: COLOURS[values.index(value)]


def colour_bar(figure: "Figure", grid: Sequence["Axes"], key: str, values: Sequence[Any]) -> None:
    """Add a bar with the colours of an option's values beside the panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([colour_scale(values)(value) for value in values])
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=list(grid))
    indices = range(0, len(values), -(-len(values) // MOST_TICKS))
    bar.set_ticks([(i + 0.5) / len(values) for i in indices], labels=[short_text(values[i]) for i in indices])
    bar.set_label(f"{key} (dashed: theory)")


def option_label(shared: Mapping[str, Any], between: str = ", ") -> str:
    """Return options as they are typed, but for those that do not apply, unless there is no other."""
    given = {key: value for key, value in shared.items() if value is not None}
    return between.join(f"{key}={short_text(value)}" for key, value in (given or shared).items())


def short_text(value: Any) -> str:
    """Return the value of an option with at most four digits or sixty letters, none of which is mathematics."""
    if value is None or isinstance(value, float):
        return "none" if value is None else f"{value:.4g}"
    text = str(value)
    return (text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 1]}…").replace("$", r"\$")
