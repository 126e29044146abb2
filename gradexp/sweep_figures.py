"""Pictures of a sweep: all profiles over each other, and what it came to over the swept options."""

import csv
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradexp.comparison import Comparison, Row, average, seed_groups
from gradexp.figures import COLOURS, LABELS, powers_of_ten, save
from gradexp.history import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LINES = 7  # as many as there are colours that everybody tells apart
_MOST_PANELS = 12  # of heat maps
_MOST_PROFILES = 16  # panels, which may be smaller than those of heat maps
_MOST_NUMBERS = 160  # written into the cells of a picture
_MOST_TICKS = 16
_DPI = 110
_GREY = "#d4d4d4"

Cell = tuple[dict[str, Any], list[Row]]
"""The options that some jobs share, which differ in their seed only, and these jobs."""


def write_figures(comparison: Comparison) -> dict[str, Path]:
    """Draw what there is to draw of a sweep into its folder, as PNG and SVG, and return title -> PNG file."""
    figures = {
        "Output gradient over layers, at initialisation": ("profiles", profiles_figure(comparison)),
        "log_chi over the swept options": ("log_chi", outcome_figure(comparison, LOG_CHI)),
        "Accuracy over the swept options": ("accuracy", outcome_figure(comparison, ACCURACY)),
    }
    written = {}
    for title, (name, figure) in figures.items():
        if figure is not None:
            written[title] = save(figure, comparison.folder / name, _DPI)
    return written


@dataclass(frozen=True)
class Profile:
    """log10 of the output gradient over layers, of the jobs of one cell.

    Args:
        mean: Over living networks, shape ``(layer,)``, nan if there are none.
        low: Smallest over them.
        high: Largest over them.
        theory: What is predicted, nan where it is unknown.
    """

    mean: Array
    low: Array
    high: Array
    theory: Array


def read_profile(rows: Sequence[Row]) -> Profile | None:
    """Read the profiles of jobs that differ in their seed only, or None if no file holds one."""
    measured: dict[tuple[int, int], dict[int, float]] = {}
    theory: dict[int, float] = {}
    for job, row in enumerate(rows):
        for seed, layer, value, predicted in _initial_rows(row.job.folder / "layers.csv"):
            measured.setdefault((job, seed), {})[layer] = value
            theory[layer] = predicted
    if not measured:
        return None
    layers = range(1, max(theory) + 1)
    table = np.array([[own.get(layer, math.nan) for layer in layers] for own in measured.values()])
    # A dead network is left out at all layers, as from log_chi: one would hide the others, or bend their mean.
    living = table[np.isfinite(table).all(axis=1)]
    shown = living if len(living) else np.full((1, len(layers)), math.nan)
    predictions = np.array([theory.get(layer, math.nan) for layer in layers])
    return Profile(shown.mean(axis=0), shown.min(axis=0), shown.max(axis=0), predictions)


def _initial_rows(path: Path) -> list[tuple[int, int, float, float]]:
    """Return (seed, layer, log10 of the output gradient, theory's) from the head of a layers.csv, nan for none."""
    keys = ("log10_output_grad", "theory_log10_output_grad")
    found = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            places = [columns.index(key) for key in ("phase", "seed", "layer", *keys)]
            for fields in reader:
                phase, seed, layer, measured, theory = (fields[place] for place in places)
                if phase != "init":
                    break  # rows of the training follow, maybe a million
                found.append((int(seed), int(layer), float(measured or "nan"), float(theory or "nan")))
    except (OSError, ValueError, IndexError, csv.Error):  # not there yet, or being written
        return []
    return found


def profiles_figure(comparison: Comparison) -> "Figure | None":
    """Draw log10 of the output gradient over layers, one line for the jobs that differ in their seed only.

    Up to seven lines share a panel and a legend. More are spread over panels, with one option told by colour.
    """
    from matplotlib.ticker import MaxNLocator

    cells = [(shared, rows, profile) for shared, rows in seed_groups(comparison) if (profile := read_profile(rows))]
    if not cells:
        return None
    hue, spread = _hue([shared for shared, _, _ in cells]) if len(cells) > _MOST_LINES else (None, False)
    columns, panels = _in_panels(cells, hue, spread)
    shown = dict(list(panels.items())[:_MOST_PROFILES])
    size = (8.0, 4.6) if len(shown) == 1 else (3.2, 2.7) if len(shown) > 4 else (4.4, 3.3)
    figure, grid = _panels(len(shown), columns, size)
    values = _values([shared[hue] for shared, _, _ in cells]) if hue else []
    colour_of = _colours(values)
    depth = max(len(profile.mean) for _, _, profile in cells)
    for axes, (title, members) in zip(grid, shown.items(), strict=True):
        if spread and not hue:
            for _, _, profile in cells:  # behind the panel's only line, to be compared with it
                axes.plot(np.arange(1, len(profile.mean) + 1), profile.mean, color=_GREY, linewidth=1)
        for index, (shared, rows, profile) in enumerate(members):
            colour = colour_of(shared[hue]) if hue else COLOURS[0 if spread else index]
            layers = np.arange(1, len(profile.mean) + 1)
            label = _label({hue: shared[hue]}) if hue else (_label(shared) or "measured") + _said(rows)
            marker = "o" if len(layers) == 1 else ""
            axes.plot(layers, profile.mean, color=colour, linewidth=2, label=label, marker=marker)
            axes.fill_between(layers, profile.low, profile.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(layers, profile.theory, color=colour, linewidth=1.3, linestyle="--")
        axes.set_xlim(1 - 0.02 * depth, 1.02 * depth)
        axes.set_title(
            title + (_said([row for _, rows, _ in members for row in rows]) if spread else ""), fontsize=10
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5 if spread else 10, integer=True))
        powers_of_ten(axes)
    figure.supxlabel("layer (1 = input side)")
    figure.supylabel(LABELS["output_grad"])
    text = "gradients run from right to left: one that falls towards the left vanishes, one that rises explodes"
    _say(figure, text, shown, panels)
    if len(values) <= _MOST_LINES:
        _profile_legend(figure, grid, cells, named=bool(hue) or not spread, sort=not spread)
    else:
        _colour_bar(figure, grid, str(hue), values)
    return figure


def _said(rows: Sequence[Row]) -> str:
    """Return the verdicts on the gradient of some jobs, as the end of a label."""
    words = dict.fromkeys(str(row.numbers["gradient"]) for row in rows if row.numbers["gradient"])
    return f": {' or '.join(words)}" if words else ""


def _hue(shared: Sequence[Mapping[str, Any]]) -> tuple[str | None, bool]:
    """Choose the option told by colour, and say that lines are spread over panels.

    It is the one with most values of those that colours can tell: numbers, or a few names. None: each line has its
    own panel.
    """
    values = {key: _values([each[key] for each in shared]) for key in shared[0]}
    telling = [key for key in values if _numeric(values[key]) or len(values[key]) <= _MOST_LINES]
    telling = [key for key in telling if len(values[key]) > 1]
    if not telling and len(shared) <= _MOST_PROFILES:
        return None, True
    return max(telling or values, key=lambda key: (len(values[key]), _numeric(values[key]))), True


Line = tuple[dict[str, Any], list[Row], Profile]


def _in_panels(cells: Sequence[Line], hue: str | None, spread: bool) -> tuple[int | None, dict[str, list[Line]]]:
    """Sort lines into panels, and say how many columns of panels show their options in rows and columns."""
    if not spread:
        return None, {"": list(cells)}
    keys = [key for key in cells[0][0] if key != hue]
    values = {key: _values([shared[key] for shared, _, _ in cells]) for key in keys}
    # The option with most values goes along the width of the page.
    keys.sort(key=lambda key: len(values[key]))
    ordered = sorted(cells, key=lambda cell: [values[key].index(cell[0][key]) for key in keys])
    panels: dict[str, list[Line]] = {}
    for cell in ordered:
        panels.setdefault(_label({key: cell[0][key] for key in keys}, "\n"), []).append(cell)
    across = len(values[keys[-1]]) if keys else 1
    return (across if across <= 6 and across < len(panels) else None), panels


def _profile_legend(figure: "Figure", grid: Sequence["Axes"], cells: Sequence[Line], named: bool, sort: bool) -> None:
    """Name each colour once; if asked, from the top down, as the lines end at layer 1."""
    lines: dict[str, Any] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, handle)
    if sort:
        ends = {label: float(np.nan_to_num(line.get_ydata()[0], nan=-np.inf)) for label, line in lines.items()}
        lines = {label: lines[label] for label in sorted(lines, key=lambda label: -ends[label])}
    if not named:
        lines = {}
    if any(np.isfinite(profile.theory).any() for _, _, profile in cells):
        (lines["theory"],) = grid[0].plot([], [], color="black", linewidth=1.3, linestyle="--")
    if any((profile.high > profile.low).any() for _, _, profile in cells):
        lines["range over seeds"] = grid[0].fill_between([], [], color="grey", alpha=0.3)
    if lines:
        figure.legend(list(lines.values()), list(lines), loc="outside right center", frameon=False)


@dataclass(frozen=True)
class Quantity:
    """What a heat map shows.

    Args:
        label: With its definition.
        legend: How to read it.
        mark: Stands in a cell some of whose runs are lost to it, and what it means.
        lost: Whether one of some runs is lost.
        value: Its mean over some jobs, or None.
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


def outcome_figure(comparison: Comparison, quantity: Quantity) -> "Figure | None":
    """Draw a number over the swept options: over two of them a heat map, over one a line; seeds are averaged."""
    cells = seed_groups(comparison)
    if not any(quantity.value(rows) is not None for _, rows in cells):
        return None
    x, y = axes_of(comparison)
    if x is None:
        return None
    return _line_figure(cells, x, quantity) if y is None else _heat_map(cells, x, y, quantity)


def axes_of(comparison: Comparison) -> tuple[str | None, str | None]:
    """Choose the options of the two axes: those with most values; None where there is none.

    Names stand on the second, where they are read as lines of text.
    """
    values = {key: _values([row.swept[key] for row in comparison.rows]) for key in comparison.keys if key != "seed"}
    ordered = sorted(values, key=lambda key: (len(values[key]), _numeric(values[key])), reverse=True)
    x, y = (
        sorted(ordered[:2], key=lambda key: not _numeric(values[key]))
        if len(ordered) > 1
        else (*ordered, None, None)[:2]
    )
    return x, y


def _line_figure(cells: Sequence[Cell], key: str, quantity: Quantity) -> "Figure":
    figure, (axes,) = _panels(1, None, (8, 4.4))
    values = [shared[key] for shared, _ in cells]
    numeric = _numeric(values) and None not in values
    places = np.array(values if numeric else range(len(values)), dtype=float)
    numbers = np.array([quantity.value(rows) for _, rows in cells], dtype=float)  # None becomes nan
    axes.plot(places, numbers, "o-" if numeric else "o", color=COLOURS[0], markersize=8, label="mean over seeds")
    runs = [(place, quantity.value([row])) for place, (_, rows) in zip(places, cells, strict=True) for row in rows]
    if len(runs) > len(cells):
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
        if len(places) <= _MOST_TICKS:
            axes.set_xticks(places, [_short(value) for value in values])
    else:
        _name_ticks(axes.xaxis, values)
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.tick_params(
            axis="x", rotation=30 if max(len(_short(value)) for value in values) * len(values) > 70 else 0
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
        panels.setdefault(_label(rest), []).append((shared, rows))
    shown = dict(list(panels.items())[:_MOST_PANELS])
    xs, ys = (_values([shared[key] for shared, _ in cells]) for key in (x, y))
    grids = [_grid(members, x, y, xs, ys, quantity) for members in shown.values()]
    numbers = np.abs([number for grid in grids for number in grid.flat if math.isfinite(number)])
    # A few extreme cells would leave all others white; and white is what noise about 0 should be.
    reach = max(float(np.quantile(numbers, 0.95)), 0.01) if numbers.size else 1.0
    limits = (-reach, reach) if quantity.diverging else (0.0, 1.0)
    room = (9.5, 5.0) if len(shown) == 1 else (4.4, 3.6)
    size = (
        min(max(0.62 * len(xs) + 1, 6.0 if len(shown) == 1 else 2.8), room[0]),
        min(max(0.4 * len(ys) + 0.9, 2.5), room[1]),
    )
    figure, axes_grid = _panels(len(shown), None, size)
    written = sum(grid.size for grid in grids) <= _MOST_NUMBERS and size[0] >= 0.5 * len(xs)
    for axes, (title, members), grid in zip(axes_grid, shown.items(), grids, strict=True):
        axes.set_facecolor(_GREY)  # where nothing is known
        mesh = axes.imshow(grid, cmap=quantity.colours, vmin=limits[0], vmax=limits[1], aspect="auto", origin="lower")
        lost = {(ys.index(shared[y]), xs.index(shared[x])) for shared, rows in members if quantity.lost(rows)}
        _write_cells(axes, grid, quantity, limits, lost, written)
        _name_ticks(axes.xaxis, xs)
        _name_ticks(axes.yaxis, ys)
        axes.tick_params(axis="x", rotation=45 if sum(len(_short(value)) + 1 for value in xs) > 11 * size[0] else 0)
        axes.set_title(title)
    if not _numeric(ys):
        axes_grid[0].invert_yaxis()  # of all panels; names are read from the top down
    extend = "both" if quantity.diverging and numbers.size and numbers.max() > reach else "neither"
    figure.colorbar(mesh, ax=list(axes_grid), extend=extend).set_label(quantity.label, fontsize=9)
    figure.supxlabel(x)
    figure.supylabel(y)
    unknown = "" if all(np.isfinite(grid).all() for grid in grids) else "; grey: no number"
    marked = f"; {': '.join(quantity.mark)}" if any(quantity.lost(rows) for _, rows in cells) else ""
    _say(figure, quantity.legend + marked + unknown, shown, panels)
    return figure


def _say(figure: "Figure", legend: str, shown: Mapping[str, Any], panels: Mapping[str, Any]) -> None:
    """Write how to read a picture above it, and whether it shows all panels."""
    left_out = f"\n{len(shown)} of {len(panels)} panels" if len(panels) > len(shown) else ""
    # A long line would be cut off at the sides of a narrow picture.
    figure.suptitle("\n".join(textwrap.wrap(legend, int(12 * figure.get_figwidth()))) + left_out, fontsize=11)


def _name_ticks(axis: Any, values: Sequence[Any]) -> None:
    """Name the places 0, 1, ... of an axis by values, of which many are thinned out."""
    shown = range(0, len(values), -(-len(values) // _MOST_TICKS))
    axis.set_ticks(list(shown), labels=[_short(values[place]) for place in shown])


def _values(given: Sequence[Any]) -> list[Any]:
    """Return each value once: numbers by size, others in their order, what does not apply at the end."""
    once = list({json.dumps(value): value for value in given}.values())
    there = [value for value in once if value is not None]
    return (sorted(there) if _numeric(there) else there) + [None] * (None in once)


def _numeric(values: Sequence[Any]) -> bool:
    """Whether values are numbers, but for those that do not apply."""
    there = [value for value in values if value is not None]
    return bool(there) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there)


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
    """Write into each cell its number where there is room, a mark if a run is lost, a dot for no number."""
    form = "{:+.2f}" if quantity.diverging else "{:.0%}"
    for (line, column), number in np.ndenumerate(grid):
        there = math.isfinite(number)
        text = form.format(round(number, 2) + 0.0) if there and written else "" if there else "·"
        if (line, column) in lost:
            text = f"{text} {quantity.mark[0]}".strip(" ·")
        if text:
            share = abs(number) / limits[1] if quantity.diverging else 1 - number
            colour = "white" if there and share > 0.6 else "black"
            axes.text(column, line, text, ha="center", va="center", fontsize=9, color=colour)


def _panels(count: int, columns: int | None, each: tuple[float, float]) -> "tuple[Figure, list[Axes]]":
    """Return a figure with so many panels, which share their axes."""
    from matplotlib.figure import Figure

    columns = columns or (count if count <= 3 else 2 if count == 4 else 3 if count <= 9 else 4)
    lines = -(-count // columns)
    figure = Figure(
        figsize=(each[0] * columns + (1.2 if count > 1 else 0), each[1] * lines + 0.9), layout="constrained"
    )
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[max(count - columns, 0) : count]:
        axes.tick_params(labelbottom=True)  # also above a place without a panel
    return figure, list(grid.flat[:count])


def _colours(values: Sequence[Any]) -> Callable[[Any], Any]:
    """Return the colour of each value: a scale for numbers, distinct ones for a few names."""
    from matplotlib import colormaps

    if _numeric(values) or len(values) > _MOST_LINES:
        return lambda value: colormaps["viridis"](0.88 * values.index(value) / max(len(values) - 1, 1))
    return lambda value: COLOURS[values.index(value)]


def _colour_bar(figure: "Figure", grid: Sequence["Axes"], key: str, values: Sequence[Any]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([_colours(values)(value) for value in values])
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=list(grid))
    shown = range(0, len(values), -(-len(values) // _MOST_TICKS))
    bar.set_ticks([(i + 0.5) / len(values) for i in shown], labels=[_short(values[i]) for i in shown])
    bar.set_label(f"{key} (dashed: theory)")


def _label(shared: Mapping[str, Any], between: str = ", ") -> str:
    return between.join(f"{key}={_short(value)}" for key, value in shared.items())


def _short(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
