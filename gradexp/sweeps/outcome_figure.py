"""Figures of a sweep's results over the swept options: a line over one of them, heat maps over two."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradexp.history.step import Array
from gradexp.plotting import COLOURS
from gradexp.sweeps.compare import Row, SweepResults, average, seed_groups
from gradexp.sweeps.panels import (
    GREY,
    MOST_TICKS,
    are_numbers,
    distinct,
    explain,
    label_ticks,
    option_label,
    panel_grid,
    short_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MOST_HOLES = 0.75  # of the places of a heat map that are filled at least
_MOST_BARS = 40
_MOST_PANELS = 12  # of heat maps
_MOST_NUMBERS = 160  # written into the cells of a picture

Cell = tuple[dict[str, Any], list[Row]]
"""The options that some jobs share, which differ in their seed only, and these jobs."""


@dataclass(frozen=True)
class Quantity:
    """A number that is drawn over the swept options.

    Args:
        label: Name and definition, beside the scale.
        legend: Sentence on how to read the figure.
        mark: Mark of a cell some of whose runs are lost to it, and the meaning of the mark.
        lost: Predicate of some jobs: whether one of them is lost.
        value: Function of some jobs that returns their mean, or None.
        colours: Name of a colour map.
        diverging: Whether white stands for 0, in the middle.
    """

    label: str
    legend: str
    mark: tuple[str, str]
    lost: Callable[[Sequence[Row]], bool]
    value: Callable[[Sequence[Row]], float | None]
    colours: str
    diverging: bool


def _log_chi(rows: Sequence[Row]) -> float | None:
    return average(rows, "log_chi")


def _accuracy(rows: Sequence[Row]) -> float | None:
    test = average(rows, "test_accuracy")
    return average(rows, "train_accuracy") if test is None else test


def _dead(rows: Sequence[Row]) -> bool:
    return any(row.numbers["gradient"] == "dead" for row in rows)


def _diverged(rows: Sequence[Row]) -> bool:
    return any(row.numbers["diverged_at"] is not None for row in rows)


LOG_CHI = Quantity(
    r"log_chi: change of $\log\,\|\partial L/\partial z\|^2$ per layer",
    "towards the input, gradients vanish (blue, below 0) or explode (red, above 0)",
    ("†", "a run is dead, and left out"),
    _dead,
    _log_chi,
    "RdBu_r",
    True,
)
ACCURACY = Quantity(
    "test accuracy after training",
    "mean over seeds",
    ("×", "a run diverged"),
    _diverged,
    _accuracy,
    "cividis",
    False,
)


def outcome_figure(comparison: SweepResults, quantity: Quantity) -> "Figure | None":
    """Draw a number over the swept options: over two of them a heat map, over one a line; seeds are averaged."""
    cells = seed_groups(comparison)
    if not any(quantity.value(rows) is not None for _, rows in cells):
        return None
    x, y = axes_of(comparison)
    if x is None:
        return None
    if y is None:
        return _line_figure(cells, x, quantity)
    return _bars(cells, quantity) if _has_holes(cells, x, y) else _heat_map(cells, x, y, quantity)


def _has_holes(cells: Sequence[Cell], x: str, y: str) -> bool:
    """Return whether so many combinations of two options were never run that a heat map would be of holes."""
    panels = distinct([[value for key, value in shared.items() if key not in (x, y)] for shared, _ in cells])
    places = len(panels) * len(distinct([c[0][x] for c in cells])) * len(distinct([c[0][y] for c in cells]))
    return len(cells) < _MOST_HOLES * places


def _bars(cells: Sequence[Cell], quantity: Quantity) -> "Figure":
    """Draw a bar for the jobs that differ in their seed only, each with its options as they are typed."""
    drawn = list(cells[:_MOST_BARS])
    figure, (axes,) = panel_grid(1, None, (8, 1.2 + 0.28 * len(drawn)))
    places = np.arange(len(drawn))
    numbers = np.array([quantity.value(rows) for _, rows in drawn], dtype=float)  # None becomes nan
    signs = [COLOURS[1] if number > 0 else COLOURS[0] for number in numbers]
    axes.barh(places, np.nan_to_num(numbers), color=signs if quantity.diverging else COLOURS[0], height=0.7)
    if quantity.diverging:
        predicted = np.array([average(rows, "log_chi_theory") for _, rows in drawn], dtype=float)
        if np.isfinite(predicted).any():
            axes.plot(predicted, places, "k|", markersize=11, markeredgewidth=2, label="theory")
            figure.legend(loc="outside lower center", frameon=False)
        axes.axvline(0, color="black", linewidth=0.8)
    else:
        axes.set_xlim(0, 1)
    names = []
    for (shared, rows), number in zip(drawn, numbers, strict=True):
        mark = quantity.mark[0] if quantity.lost(rows) else "" if math.isfinite(number) else "·"
        names.append(f"{option_label(shared)} {mark}".strip())
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel(quantity.label, loc="right")  # beside long names the axes are narrower than it
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    marked = f"; {': '.join(quantity.mark)}" if any(quantity.lost(rows) for _, rows in cells) else ""
    more = f"; {len(drawn)} of {len(cells)}" if len(cells) > len(drawn) else ""
    legend = quantity.legend.replace("(blue, below 0)", "(blue)").replace("(red, above 0)", "(orange)")
    explain(figure, legend + marked + more, {}, {})
    return figure


def axes_of(comparison: SweepResults) -> tuple[str | None, str | None]:
    """Choose the options of the two axes: those with most values; None where there is none.

    Names stand on the second, where they are read as lines of text.
    """
    values = {key: distinct([row.swept[key] for row in comparison.rows]) for key in comparison.keys if key != "seed"}
    ordered = sorted(values, key=lambda key: (len(values[key]), are_numbers(values[key])), reverse=True)
    x, y = (
        sorted(ordered[:2], key=lambda key: not are_numbers(values[key]))
        if len(ordered) > 1
        else (*ordered, None, None)[:2]
    )
    return x, y


def _line_figure(cells: Sequence[Cell], key: str, quantity: Quantity) -> "Figure":
    figure, (axes,) = panel_grid(1, None, (8, 4.4))
    values = [shared[key] for shared, _ in cells]
    numeric = are_numbers(values) and None not in values
    places = np.array(values if numeric else range(len(values)), dtype=float)
    numbers = np.array([quantity.value(rows) for _, rows in cells], dtype=float)  # None becomes nan
    runs = [(place, quantity.value([row])) for place, (_, rows) in zip(places, cells, strict=True) for row in rows]
    has_seeds = len(runs) > len(cells)
    label = "mean over seeds" if has_seeds else "measured"
    axes.plot(places, numbers, "o-" if numeric else "o", color=COLOURS[0], markersize=8, label=label)
    if has_seeds:
        axes.plot(*np.array(runs, dtype=float).T, "_", color=COLOURS[0], markersize=12, alpha=0.6, label="each seed")
    if quantity.diverging:
        predicted = np.array([average(rows, "log_chi_theory") for _, rows in cells], dtype=float)
        if np.isfinite(predicted).any():
            axes.plot(places, predicted, "k--" if numeric else "k+", markersize=14, label="theory")
        axes.axhline(0, color="black", linewidth=0.8)
        reach = 1.15 * float(np.nanmax(np.abs(np.concatenate([numbers, predicted])))) or 1.0
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -0.25 * reach), max(high, 0.25 * reach))  # both signs are to be seen
        low, high = axes.get_ylim()
        axes.axhspan(0, high, color="#b2182b", alpha=0.07, linewidth=0)
        axes.axhspan(low, 0, color="#2166ac", alpha=0.07, linewidth=0)
    else:
        axes.set_ylim(0, 1)
        lost = [place for place, (_, rows) in zip(places, cells, strict=True) if _diverged(rows)]
        if lost:
            axes.plot(lost, [0.03] * len(lost), "x", color="black", markersize=9, label="a run diverged")
    if numeric:
        if places.min() > 0 and places.max() >= 20 * places.min():
            axes.set_xscale("log")
            axes.minorticks_off()
        if len(places) <= MOST_TICKS:
            axes.set_xticks(places, [short_text(value) for value in values])
    else:
        label_ticks(axes.xaxis, values)
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.tick_params(
            axis="x", rotation=30 if max(len(short_text(value)) for value in values) * len(values) > 70 else 0
        )
    axes.set_xlabel(key)
    axes.set_ylabel(quantity.label)
    if quantity.diverging:
        axes.set_title(quantity.legend, fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _heat_map(cells: Sequence[Cell], x: str, y: str, quantity: Quantity) -> "Figure":
    """Draw a panel for each combination of the options that are on no axis."""
    panels: dict[str, list[Cell]] = {}
    for shared, rows in cells:
        rest = {key: value for key, value in shared.items() if key not in (x, y)}
        panels.setdefault(option_label(rest), []).append((shared, rows))
    drawn_panels = dict(list(panels.items())[:_MOST_PANELS])
    xs, ys = (distinct([shared[key] for shared, _ in cells]) for key in (x, y))
    grids = [_grid(members, x, y, xs, ys, quantity) for members in drawn_panels.values()]
    numbers = np.abs([number for grid in grids for number in grid.flat if math.isfinite(number)])
    # A few extreme cells would leave all others white; and white is what noise about 0 should be.
    reach = max(float(np.quantile(numbers, 0.95)), 0.01) if numbers.size else 1.0
    limits = (-reach, reach) if quantity.diverging else (0.0, 1.0)
    room = (9.5, 5.0) if len(drawn_panels) == 1 else (4.4, 3.6)
    size = (
        min(max(0.62 * len(xs) + 1, 6.0 if len(drawn_panels) == 1 else 2.8), room[0]),
        min(max(0.4 * len(ys) + 0.9, 2.5), room[1]),
    )
    figure, axes_grid = panel_grid(len(drawn_panels), None, size)
    written = sum(grid.size for grid in grids) <= _MOST_NUMBERS and size[0] >= 0.5 * len(xs)
    for axes, (title, members), grid in zip(axes_grid, drawn_panels.items(), grids, strict=True):
        axes.set_facecolor(GREY)  # where nothing is known
        mesh = axes.imshow(grid, cmap=quantity.colours, vmin=limits[0], vmax=limits[1], aspect="auto", origin="lower")
        lost = {(ys.index(shared[y]), xs.index(shared[x])) for shared, rows in members if quantity.lost(rows)}
        _write_cells(axes, grid, quantity, limits, lost, written)
        label_ticks(axes.xaxis, xs)
        label_ticks(axes.yaxis, ys)
        axes.tick_params(
            axis="x", rotation=45 if sum(len(short_text(value)) + 1 for value in xs) > 11 * size[0] else 0
        )
        axes.set_title(title)
    if not are_numbers(ys):
        axes_grid[0].invert_yaxis()  # of all panels; names are read from the top down
    extend = "both" if quantity.diverging and numbers.size and numbers.max() > reach else "neither"
    figure.colorbar(mesh, ax=list(axes_grid), extend=extend).set_label(quantity.label, fontsize=9)
    figure.supxlabel(x)
    figure.supylabel(y)
    unknown = "" if all(np.isfinite(grid).all() for grid in grids) else "; grey: no number"
    marked = f"; {': '.join(quantity.mark)}" if any(quantity.lost(rows) for _, rows in cells) else ""
    explain(figure, quantity.legend + marked + unknown, drawn_panels, panels)
    return figure


def _grid(members: Sequence[Cell], x: str, y: str, xs: list[Any], ys: list[Any], quantity: Quantity) -> Array:
    """Return the numbers of a panel, shape ``(y, x)``, nan where there is none."""
    grid = np.full((len(ys), len(xs)), np.nan)
    for shared, rows in members:
        number = quantity.value(rows)
        if number is not None:
            grid[ys.index(shared[y]), xs.index(shared[x])] = number
    return grid


def _write_cells(
    axes: "Axes",
    grid: Array,
    quantity: Quantity,
    limits: tuple[float, float],
    lost: set[tuple[int, int]],
    written: bool,
) -> None:
    """Write into each cell its number where there is room, a mark if a run is lost, and a dot if it has no number."""
    form = "{:+.2f}" if quantity.diverging else "{:.0%}"
    for (line, column), number in np.ndenumerate(grid):
        finite = math.isfinite(number)
        text = form.format(round(number, 2) + 0.0) if finite and written else "" if finite else "·"
        if (line, column) in lost:
            text = f"{text} {quantity.mark[0]}".strip(" ·")
        if text:
            share = abs(number) / limits[1] if quantity.diverging else 1 - number
            colour = "white" if finite and share > 0.6 else "black"
            axes.text(column, line, text, ha="center", va="center", fontsize=9, color=colour)
