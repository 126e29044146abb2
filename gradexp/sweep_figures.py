"""Pictures of a sweep: all profiles over each other, and what it came to over the swept options."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradexp.comparison import Comparison, Row, average, seed_groups
from gradexp.figures import COLOURS, LABELS, powers_of_ten
from gradexp.history import Array
from gradexp.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LINES = 7  # as many as there are colours that everybody tells apart
_MOST_PANELS = 12
_DPI = 110

Cell = tuple[dict[str, Any], list[Row]]
"""The options that some jobs share, which differ in their seed only, and these jobs."""


def write_figures(comparison: Comparison) -> dict[str, Path]:
    """Draw what there is to draw of a sweep into its folder, and return title -> file."""
    figures = {
        "Output gradient over layers, at initialisation": ("profiles", profiles_figure(comparison)),
        "log_chi over the swept options": ("log_chi", outcome_figure(comparison, LOG_CHI)),
        "Accuracy over the swept options": ("accuracy", outcome_figure(comparison, ACCURACY)),
    }
    written = {}
    for title, (name, figure) in figures.items():
        if figure is not None:
            written[title] = comparison.folder / f"{name}.png"
            with replacing(written[title]) as path:
                figure.savefig(path, dpi=_DPI, format="png")
    return written


@dataclass(frozen=True)
class Profile:
    """log10 of the output gradient over layers, of the jobs of one cell.

    Args:
        mean: Over seeds, shape ``(layer,)``, nan where there is no number.
        low: Smallest over seeds.
        high: Largest over seeds.
        theory: What is predicted, nan where it is unknown.
    """

    mean: Array
    low: Array
    high: Array
    theory: Array


def read_profile(rows: Sequence[Row]) -> Profile | None:
    """Read the profiles of jobs that differ in their seed only, or None if no file holds one."""
    measured: dict[int, list[float]] = {}
    theory: dict[int, float] = {}
    for row in rows:
        for layer, value, predicted in _initial_rows(row.job.folder / "layers.csv"):
            measured.setdefault(layer, []).append(value)
            theory[layer] = predicted
    if not measured:
        return None
    depth = max(measured)
    columns = [np.array(measured.get(layer, [math.nan])) for layer in range(1, depth + 1)]
    # Where some networks have no number, the others would not stand for all.
    whole = [column if np.isfinite(column).all() else np.array([math.nan]) for column in columns]
    mean, low, high = (np.array([end(column) for column in whole]) for end in (np.mean, np.min, np.max))
    return Profile(mean, low, high, np.array([theory.get(layer, math.nan) for layer in range(1, depth + 1)]))


def _initial_rows(path: Path) -> list[tuple[int, float, float]]:
    """Return (layer, log10 of the output gradient, theory's) from the head of a layers.csv, nan for none."""
    keys = ("log10_output_grad", "theory_log10_output_grad")
    found = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            places = [columns.index(key) for key in ("phase", "layer", *keys)]
            for fields in reader:
                phase, layer, measured, theory = (fields[place] for place in places)
                if phase != "init":
                    break  # rows of the training follow, maybe a million
                found.append((int(layer), float(measured or "nan"), float(theory or "nan")))
    except (OSError, ValueError, IndexError):  # not there yet, or being written
        return []
    return found


def profiles_figure(comparison: Comparison) -> "Figure | None":
    """Draw log10 of the output gradient over layers, one line for the jobs that differ in their seed only.

    Up to seven lines share a panel and a legend. More are spread over panels, with one option told by colour.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    cells = [(shared, profile) for shared, rows in seed_groups(comparison) if (profile := read_profile(rows))]
    if not cells:
        return None
    keys = [key for key in comparison.keys if key != "seed"]
    hue = None if len(cells) <= _MOST_LINES else _hue(cells, keys)
    panels: dict[str, list[tuple[dict[str, Any], Profile]]] = {}
    for shared, profile in cells:
        rest = {key: value for key, value in shared.items() if key != hue} if hue else {}
        panels.setdefault(_label(rest), []).append((shared, profile))
    shown = list(panels.items())[:_MOST_PANELS]
    figure, grid = _panels(Figure, len(shown), (7, 4.2), (4, 3))
    values = _values([shared[hue] for shared, _ in cells]) if hue else []
    colour_of = _colours(values)
    for axes, (title, members) in zip(grid, shown, strict=True):
        for index, (shared, profile) in enumerate(members):
            colour = colour_of(shared[hue]) if hue else COLOURS[index % len(COLOURS)]
            layers = np.arange(1, len(profile.mean) + 1)
            label = _label({hue: shared[hue]}) if hue else _label(shared)
            marker = "o" if len(layers) == 1 else ""
            axes.plot(layers, profile.mean, color=colour, linewidth=1.8, label=label or "measured", marker=marker)
            axes.fill_between(layers, profile.low, profile.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(layers, profile.theory, color=colour, linewidth=1.2, linestyle="--")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        powers_of_ten(axes)
    grid[0].plot([], [], color="black", linewidth=1.2, linestyle="--", label="theory")
    figure.supxlabel("layer (1 = input side)", fontsize=10)
    figure.supylabel(LABELS["output_grad"], fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    if len(values) <= _MOST_LINES:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    else:
        _colour_bar(figure, grid, str(hue), values)
    if len(panels) > len(shown):
        figure.suptitle(f"{len(shown)} of {len(panels)} panels", fontsize=9)
    return figure


@dataclass(frozen=True)
class Quantity:
    """What a heat map shows.

    Args:
        label: With its definition.
        value: Its mean over some jobs, or None.
        colours: Name of a colour map.
        diverging: Whether white stands for 0, in the middle.
        mark: Text in a cell for jobs without a number.
    """

    label: str
    value: Callable[[Sequence[Row]], float | None]
    colours: str
    diverging: bool
    mark: Callable[[Sequence[Row]], str]


def _accuracy(rows: Sequence[Row]) -> float | None:
    test = average(rows, "test_accuracy")
    return average(rows, "train_accuracy") if test is None else test


def _why_no_accuracy(rows: Sequence[Row]) -> str:
    return "diverged" if any(row.numbers["training"] == "diverged" for row in rows) else "–"


LOG_CHI = Quantity(
    "log_chi (below 0 vanishes, above explodes)",
    lambda rows: average(rows, "log_chi"),
    "RdBu_r",
    True,
    lambda rows: "dead" if any(row.numbers["gradient"] == "dead" for row in rows) else "–",
)
ACCURACY = Quantity("test accuracy after training", _accuracy, "cividis", False, _why_no_accuracy)


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
    """Choose the options of the two axes: those with most values, numbers before names; None where there is none."""
    values = {
        key: {json.dumps(row.swept[key]) for row in comparison.rows} for key in comparison.keys if key != "seed"
    }
    ordered = sorted(values, key=lambda key: (_is_numeric(comparison, key), len(values[key])), reverse=True)
    # The axis with more values has more room along the page's width.
    chosen = sorted(ordered[:2], key=lambda key: len(values[key]), reverse=True)
    return (*chosen, None, None)[0], (*chosen, None, None)[1]


def _is_numeric(comparison: Comparison, key: str) -> bool:
    return all(isinstance(row.swept[key], int | float) for row in comparison.rows if row.swept[key] is not None)


def _line_figure(cells: Sequence[Cell], key: str, quantity: Quantity) -> "Figure":
    from matplotlib.figure import Figure

    figure, (axes,) = _panels(Figure, 1, (7, 4.2), (7, 4.2))
    values = [shared[key] for shared, _ in cells]
    numeric = all(isinstance(value, int | float) for value in values)
    places = values if numeric else range(len(values))
    numbers = [quantity.value(rows) for _, rows in cells]
    axes.plot(places, _or_nan(numbers), "o-" if numeric else "o", color=COLOURS[0], label="mean over seeds")
    for place, (_, rows) in zip(places, cells, strict=True):
        each = [quantity.value([row]) for row in rows]
        axes.plot([place] * len(each), _or_nan(each), ".", color=COLOURS[0], alpha=0.4)
    if quantity is LOG_CHI:
        predicted = [average(rows, "log_chi_theory") for _, rows in cells]
        axes.plot(places, _or_nan(predicted), "k--" if numeric else "k_", markersize=20, label="theory")
        axes.axhline(0, color="grey", linewidth=0.8)
    if not numeric:
        axes.set_xticks(list(places), [_short(value) for value in values])
    axes.set_xlabel(key)
    axes.set_ylabel(quantity.label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def _heat_map(cells: Sequence[Cell], x: str, y: str, quantity: Quantity) -> "Figure":
    """Draw a panel for each combination of the options that are on no axis."""
    from matplotlib.figure import Figure

    panels: dict[str, list[Cell]] = {}
    for shared, rows in cells:
        rest = {key: value for key, value in shared.items() if key not in (x, y)}
        panels.setdefault(_label(rest), []).append((shared, rows))
    shown = list(panels.items())[:_MOST_PANELS]
    xs, ys = (_values([shared[key] for shared, _ in cells]) for key in (x, y))
    grids = [_grid(members, x, y, xs, ys, quantity) for _, members in shown]
    numbers = np.concatenate([grid.ravel() for grid in grids])
    numbers = numbers[np.isfinite(numbers)]
    reach = float(np.quantile(np.abs(numbers), 0.95)) or 1.0
    limits = (-reach, reach) if quantity.diverging else (0.0, 1.0)
    figure, axes_grid = _panels(Figure, len(shown), (7, 4.2), (4, 3))
    for axes, (title, members), grid in zip(axes_grid, shown, grids, strict=True):
        axes.set_facecolor("#dddddd")  # where nothing is known
        mesh = axes.imshow(grid, cmap=quantity.colours, vmin=limits[0], vmax=limits[1], aspect="auto", origin="lower")
        _write_cells(axes, members, (x, y), (xs, ys), grid, quantity, limits, small=len(shown) > 1)
        axes.set_xticks(
            range(len(xs)), [_short(value) for value in xs], rotation=45 if len(xs) > 6 else 0, fontsize=9
        )
        axes.set_yticks(range(len(ys)), [_short(value) for value in ys], fontsize=9)
        axes.set_title(title, fontsize=9)
    extend = "both" if quantity.diverging and np.abs(numbers).max() > reach else "neither"
    figure.colorbar(mesh, ax=list(axes_grid), extend=extend).set_label(quantity.label)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)
    if len(panels) > len(shown):
        figure.suptitle(f"{len(shown)} of {len(panels)} panels", fontsize=9)
    return figure


def _values(given: Sequence[Any]) -> list[Any]:
    """Return each value once: numbers by size, others in their order."""
    once = list({json.dumps(value): value for value in given}.values())
    return sorted(once) if _sortable(once) else once


def _sortable(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


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
    members: Sequence[Cell],
    keys: tuple[str, str],
    values: tuple[list[Any], list[Any]],
    grid: Array,
    quantity: Quantity,
    limits: tuple[float, float],
    small: bool,
) -> None:
    """Write into each cell its number where there is room, and what happened where there is none."""
    form = "{:+.2f}" if quantity.diverging else "{:.0%}"
    roomy = grid.size <= (30 if small else 60)
    for shared, rows in members:
        column, line = values[0].index(shared[keys[0]]), values[1].index(shared[keys[1]])
        number = grid[line, column]
        there = bool(np.isfinite(number))
        if not there or roomy:
            text = form.format(number) if there else quantity.mark(rows)
            share = abs(number) / limits[1] if quantity.diverging else 1 - number
            colour = "white" if there and share > 0.6 else "black"
            axes.text(column, line, text, ha="center", va="center", fontsize=7 if small else 8, color=colour)


def _panels(
    figure_class: Any, count: int, alone: tuple[float, float], each: tuple[float, float]
) -> "tuple[Figure, list[Axes]]":
    """Return a figure with so many panels, which share their axes."""
    columns = 1 if count == 1 else 2 if count in (2, 4) else 3
    lines = -(-count // columns)
    size = alone if count == 1 else (each[0] * columns, each[1] * lines)
    figure = figure_class(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, list(grid.flat[:count])


def _hue(cells: Sequence[tuple[dict[str, Any], Any]], keys: Sequence[str]) -> str:
    """Choose the option told by colour: the one with most values of those that colours can tell."""
    values = {key: _values([shared[key] for shared, _ in cells]) for key in keys}
    telling = [key for key in keys if _sortable(values[key]) or len(values[key]) <= _MOST_LINES] or list(keys)
    return max(telling, key=lambda key: len(values[key]))


def _colours(values: Sequence[Any]) -> Callable[[Any], Any]:
    """Return the colour of each value: a scale for many numbers, else distinct ones."""
    from matplotlib import colormaps

    if len(values) > _MOST_LINES:
        return lambda value: colormaps["viridis"](0.92 * values.index(value) / (len(values) - 1))
    return lambda value: COLOURS[values.index(value)]


def _colour_bar(figure: "Figure", grid: Sequence["Axes"], key: str, values: Sequence[Any]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([_colours(values)(value) for value in values])
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=list(grid))
    shown = range(0, len(values), -(-len(values) // 12))
    bar.set_ticks([(i + 0.5) / len(values) for i in shown], labels=[_short(values[i]) for i in shown])
    bar.set_label(key)


def _or_nan(numbers: Sequence[float | None]) -> list[float]:
    return [math.nan if number is None else number for number in numbers]


def _label(shared: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in shared.items())


def _short(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
