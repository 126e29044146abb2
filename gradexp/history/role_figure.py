"""A figure of a deep model: a line for each role over the blocks of each stack."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradexp.history.plot import MEANINGS, draw_line, draw_marks, draw_step, label_rows, label_size, values_of
from gradexp.history.roles import Place, merged_roles, places
from gradexp.history.short_names import short_names
from gradexp.history.step import Array, Step, mean
from gradexp.plotting import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEW = 30  # layers that are drawn one by one, as in the table
_LONGEST_ROLE = 32
_FEWEST_BLOCKS = 2
_MOST_PANELS = 6
_STYLES = ("-", "--", ":", "-.")


@dataclass
class _Panel:
    """What is drawn into one panel: the roles of a stack, or rows that are in none.

    Args:
        title: Its heading.
        roles: Role -> its rows, in the order of their blocks; empty for rows without a stack.
        rows: All its rows.
    """

    title: str
    roles: dict[str, list[int]]
    rows: list[int]


def draw_figure(figure: "Figure", step: Step, quantity: str, label: str = "") -> None:
    """Draw one quantity of one step: over layers, or of more than 30 over blocks, if the names show blocks.

    Args:
        figure: An empty figure; it gets the size that the drawing needs.
        step: The measurement.
        quantity: As for ``draw_step``.
        label: What it shows, in the legend or above the panels; empty: nothing.

    Raises:
        ValueError: If the step does not hold the quantity.
    """
    figure.set_layout_engine("constrained")
    found = places(step.names, step.calls)
    panels = _panels(found)
    if step.depth <= _FEW or not any(len(panel.roles) > 1 for panel in panels):
        figure.set_size_inches(7, 4 if step.phase == "init" else 4.8)
        axes = figure.add_subplot()
        axes.set_prop_cycle(color=COLOURS)
        draw_step(axes, step, quantity, label)
    else:
        _draw_panels(figure, step, quantity, found, panels)
        if label:
            figure.suptitle(label)


def _panels(found: list[Place]) -> list[_Panel]:
    """Return a panel for each stack, the longest ones if there are many, and one for all other rows."""
    stacks: dict[tuple[str, bool], _Panel] = {}
    for row, (place, role) in enumerate(zip(found, merged_roles(found), strict=True)):
        if place.block is not None:
            panel = stacks.setdefault((place.stack, place.is_call), _Panel(place.stack, {}, []))
            panel.roles.setdefault(role, []).append(row)
            panel.rows.append(row)
    long = [
        panel
        for panel in stacks.values()
        if len({found[row].block for row in panel.rows}) >= _FEWEST_BLOCKS and len(panel.roles) > 1
    ]
    chosen = sorted(long, key=lambda panel: -len(panel.rows))[:_MOST_PANELS]
    inside = {row for panel in chosen for row in panel.rows}
    for panel in chosen:
        for rows in panel.roles.values():
            rows.sort(key=lambda row: found[row].block or 0)
    others = [row for row in range(len(found)) if row not in inside]
    panels = [panel for panel in long if panel in chosen]
    return [*panels, _Panel("others", {}, others)] if others else panels


def _draw_panels(figure: "Figure", step: Step, quantity: str, found: list[Place], panels: list[_Panel]) -> None:
    from matplotlib.ticker import MaxNLocator

    values = values_of(step, quantity)
    widths = [
        max(6, len({found[row].block for row in panel.rows})) if panel.roles else min(12, max(2, len(panel.rows)))
        for panel in panels
    ]
    roles = list(dict.fromkeys(role for panel in panels for role in panel.roles))
    width = min(13, 7 + len(panels))
    figure.set_size_inches(width, max(4.2, 0.19 * len(roles)))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    letters = [int(11 * width * share / sum(widths)) for share in widths]
    for axes, panel, room in zip(grid, panels, letters, strict=True):
        for role, rows in panel.roles.items():
            style = _style(roles.index(role))
            blocks = [(found[row].block or 0) + found[row].is_call for row in rows]
            draw_line(axes, *_means(blocks, values[rows]), linewidth=1.6, label=role or "(block)", **style)
            if quantity in step.status:
                draw_marks(axes, blocks, step.status[quantity][:, rows], style["color"])
        if panel.roles:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("call" if found[panel.rows[0]].is_call else "block")
        else:
            _draw_others(axes, step, quantity, panel.rows, values)
        axes.set_title(short_names([panel.title], room)[0] if panel.roles else panel.title, fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    label_size(grid[0], quantity)
    handles: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles = dict(sorted(handles.items(), key=lambda entry: entry[0] in MEANINGS))  # the marks below the lines
    labels = short_names(list(handles), _LONGEST_ROLE)
    figure.legend(list(handles.values()), labels, loc="outside right upper", frameon=False, fontsize=8)


def _means(blocks: list[int], values: Array) -> tuple[list[int], Array]:
    """Return the blocks and the mean of each, which is of its experts, if a role has several rows in it."""
    of_each: dict[int, list[float]] = {}
    for block, value in zip(blocks, values.tolist(), strict=True):
        of_each.setdefault(block, []).append(value)
    means = [mean(np.array(own)) for own in of_each.values()]
    return [*of_each], np.array([np.nan if value is None else value for value in means])


def _draw_others(axes: "Axes", step: Step, quantity: str, rows: list[int], values: Any) -> None:
    """Draw rows that are in no stack as dots above their names."""
    at = np.arange(1, len(rows) + 1)
    axes.plot(at, values[rows], "o", color="black", markersize=4)
    if quantity in step.status:
        draw_marks(axes, at, step.status[quantity][:, rows], "black")
    label_rows(axes, step, rows)


def _style(index: int) -> dict[str, Any]:
    """Return colour and dashes of a role, which are different for 28 of them."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": _STYLES[index // len(COLOURS) % len(_STYLES)]}
