"""Figure of a sweep's profiles: the output gradient over layers, one line for jobs that differ in their seed only.

Functions import matplotlib, which is slow to load, when they are called.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradexp.history.step import Array
from gradexp.plotting import COLOURS, LABELS, powers_of_ten, show_stable
from gradexp.sweeps.compare import Row, SweepResults, seed_groups
from gradexp.sweeps.panels import (
    GREY,
    MOST_LINES,
    are_numbers,
    colour_bar,
    colour_scale,
    distinct,
    explain,
    option_label,
    panel_grid,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_MOST_PROFILES = 16  # panels, which may be smaller than those of heat maps


@dataclass(frozen=True)
class SeedBand:
    """log10 of the output gradient over layers, of the jobs of one cell.

    Args:
        mean: Mean over the networks that are not dead, shape ``(layer,)``, nan if there are none.
        low: Smallest value over these networks.
        high: Largest value over them.
        theory: Prediction, nan where it is unknown.
    """

    mean: Array
    low: Array
    high: Array
    theory: Array


def read_profile(rows: Sequence[Row]) -> SeedBand | None:
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
    table = np.array([[profile.get(layer, math.nan) for layer in layers] for profile in measured.values()])
    # A dead network is left out at all layers, as from log_chi: one would hide the others, or bend their mean.
    without_dead = table[np.isfinite(table).all(axis=1)]
    networks = without_dead if len(without_dead) else np.full((1, len(layers)), math.nan)
    predictions = np.array([theory.get(layer, math.nan) for layer in layers])
    return SeedBand(networks.mean(axis=0), networks.min(axis=0), networks.max(axis=0), predictions)


def _initial_rows(path: Path) -> list[tuple[int, int, float, float]]:
    """Return (seed, layer, log10 of the output gradient, theory's) from the head of a layers.csv, nan for none."""
    keys = ("log10_output_grad", "theory_log10_output_grad")
    rows = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            columns = next(reader, [])
            places = [columns.index(key) for key in ("phase", "seed", "layer", *keys)]
            for fields in reader:
                phase, seed, layer, measured, theory = (fields[place] for place in places)
                if phase != "init":
                    break  # rows of the training follow, maybe a million
                rows.append((int(seed), int(layer), float(measured or "nan"), float(theory or "nan")))
    except (OSError, ValueError, IndexError, csv.Error):  # not there yet, or being written
        return []
    return rows


def profiles_figure(comparison: SweepResults) -> "Figure | None":
    """Draw log10 of the output gradient over layers, one line for the jobs that differ in their seed only.

    Up to seven lines share a panel and a legend. More are spread over panels, with one option told apart by colour.
    """
    from matplotlib.ticker import MaxNLocator

    cells = [(shared, rows, profile) for shared, rows in seed_groups(comparison) if (profile := read_profile(rows))]
    if not cells:
        return None
    hue, spread = _hue([shared for shared, _, _ in cells]) if len(cells) > MOST_LINES else (None, False)
    columns, panels = _in_panels(cells, hue, spread)
    drawn_panels = dict(list(panels.items())[:_MOST_PROFILES])
    decades = cells[0][1][0].job.summary["config"].get("verdict", {}).get("decades", 3.0)
    size = (8.0, 4.6) if len(drawn_panels) == 1 else (3.2, 2.7) if len(drawn_panels) > 4 else (4.4, 3.3)
    figure, grid = panel_grid(len(drawn_panels), columns, size, share_x=False)
    values = distinct([shared[hue] for shared, _, _ in cells]) if hue else []
    colour_of = colour_scale(values)
    for axes, (title, members) in zip(grid, drawn_panels.items(), strict=True):
        if spread and not hue:
            for _, _, profile in cells:  # behind the panel's only line, to be compared with it
                axes.plot(np.arange(1, len(profile.mean) + 1), profile.mean, color=GREY, linewidth=1)
        for index, (shared, rows, profile) in enumerate(members):
            colour = colour_of(shared[hue]) if hue else COLOURS[0 if spread else index]
            layers = np.arange(1, len(profile.mean) + 1)
            label = (
                option_label({hue: shared[hue]}) if hue else (option_label(shared) or "measured") + _verdicts(rows)
            )
            marker = "o" if len(layers) == 1 else ""
            axes.plot(layers, profile.mean, color=colour, linewidth=2, label=label, marker=marker)
            axes.fill_between(layers, profile.low, profile.high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(layers, profile.theory, color="black", linewidth=1, linestyle="--", zorder=3)
        depth = max(len(profile.mean) for _, _, profile in (cells if spread and not hue else members))
        axes.set_xlim(1 - 0.02 * depth, 1.02 * depth)
        axes.set_title(
            title + (_verdicts([row for _, rows, _ in members for row in rows]) if spread else ""), fontsize=10
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5 if spread else 10, integer=True))
        powers_of_ten(axes)
    # Once all lines are there: the panels share their height, which it sets.
    for axes, members in zip(grid, drawn_panels.values(), strict=True):
        show_stable(axes, np.concatenate([profile.mean for _, _, profile in members]), decades)
    figure.supxlabel("layer (1 = input side)")
    figure.supylabel(LABELS["output_grad"])
    text = "read from right (output) to left (input): falling = vanishing, rising = exploding"
    explain(figure, text, drawn_panels, panels)
    if len(values) <= MOST_LINES:
        _profile_legend(figure, grid, cells, named=bool(hue) or not spread, sort=not spread)
    else:
        colour_bar(figure, grid, str(hue), values)
    return figure


def _verdicts(rows: Sequence[Row]) -> str:
    """Return the verdicts on the gradient of some jobs, as the end of a label."""
    words = dict.fromkeys(str(row.numbers["gradient"]) for row in rows if row.numbers["gradient"])
    return f": {' or '.join(words)}" if words else ""


def _hue(shared: Sequence[Mapping[str, Any]]) -> tuple[str | None, bool]:
    """Choose the option that colours tell apart, and return that lines are spread over panels.

    It is the one with most values of those that colours can tell: numbers, or a few names. None: each line has its
    own panel.
    """
    values = {key: distinct([each[key] for each in shared]) for key in shared[0]}
    telling = [key for key in values if are_numbers(values[key]) or len(values[key]) <= MOST_LINES]
    telling = [key for key in telling if len(values[key]) > 1]
    if not telling and len(shared) <= _MOST_PROFILES:
        return None, True
    return max(telling or values, key=lambda key: (len(values[key]), are_numbers(values[key]))), True


Line = tuple[dict[str, Any], list[Row], SeedBand]


def _in_panels(cells: Sequence[Line], hue: str | None, spread: bool) -> tuple[int | None, dict[str, list[Line]]]:
    """Sort lines into panels, and return how many columns of panels show their options in rows and columns."""
    if not spread:
        return None, {"": list(cells)}
    keys = [key for key in cells[0][0] if key != hue]
    values = {key: distinct([shared[key] for shared, _, _ in cells]) for key in keys}
    # The option with most values goes along the width of the page.
    keys.sort(key=lambda key: len(values[key]))
    ordered = sorted(cells, key=lambda cell: [values[key].index(cell[0][key]) for key in keys])
    panels: dict[str, list[Line]] = {}
    for cell in ordered:
        panels.setdefault(option_label({key: cell[0][key] for key in keys}, "\n"), []).append(cell)
    across = len(values[keys[-1]]) if keys else 1
    return (across if across <= 6 and across < len(panels) else None), panels


def _profile_legend(figure: "Figure", grid: Sequence["Axes"], cells: Sequence[Line], named: bool, sort: bool) -> None:
    """Name each colour once; if asked, from the top down, as the lines end at layer 1."""
    lines: dict[str, Any] = {}
    for axes in grid:
        for line in axes.get_lines():
            if not str(line.get_label()).startswith("_"):
                lines.setdefault(str(line.get_label()), line)
    if sort:
        ends = {label: float(np.nan_to_num(line.get_ydata()[0], nan=-np.inf)) for label, line in lines.items()}
        lines = {label: lines[label] for label in sorted(lines, key=lambda label: -ends[label])}
    if not named:
        lines = {}
    if any(np.isfinite(profile.theory).any() for _, _, profile in cells):
        (lines["theory"],) = grid[0].plot([], [], color="black", linewidth=1.3, linestyle="--")
    bands = [patch for axes in grid[:1] for patch in axes.patches if str(patch.get_label()).startswith("stable")]
    lines |= {str(patch.get_label()).replace(": ", ":\n"): patch for patch in bands}
    if any((profile.high > profile.low).any() for _, _, profile in cells):
        lines["range over seeds"] = grid[0].fill_between([], [], color="grey", alpha=0.3)
    if lines:
        figure.legend(list(lines.values()), list(lines), loc="outside right center", frameon=False)
