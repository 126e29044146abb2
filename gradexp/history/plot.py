"""A recorded profile in the axes of a figure: log10 size over layers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradexp.history.derived import extras
from gradexp.history.short_names import short_names, shown_name
from gradexp.history.step import STATUSES, Array, Step, mean_over_networks
from gradexp.plotting import LABELS, powers_of_ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_MOST_NAMES = 32  # that have room below an axis
_LONGEST_NAME = 28
_LEAST_DECADES = 3  # so that what is stable looks flat
_MARKS = {"zero": (0.015, "v", "exactly 0"), "nonfinite": (0.985, "X", "inf or nan")}

MEANINGS = tuple(meaning for _, _, meaning in _MARKS.values())
"""The legend's entries for what has no size."""


def draw_step(axes: "Axes", step: Step, quantity: str, label: str = "") -> None:
    """Draw one quantity over layers, with what the axes need to be read; beside what is there already.

    Theory, where the step holds it, is dashed, with a band of two standard deviations of one sample of one network.

    Args:
        axes: Axes of layers and powers of ten, whose cycle of colours gives the line its own.
        step: The measurement.
        quantity: A recorded one of ``QUANTITIES``, a statistic such as ``output.dead``, or one of ``extras``.
        label: The line's entry in the legend; empty: none.

    Raises:
        ValueError: If the step does not hold the quantity.
    """
    is_first = not axes.lines
    draw_profile(axes, step, quantity, None, label, None if label else "black")
    meaning = "theory, ±2 sd of one network"
    if f"log10_{quantity}" in step.theory and meaning not in axes.get_legend_handles_labels()[1]:
        axes.plot([], [], linestyle="--", color="black", linewidth=1.5, label=meaning)
    label_size(axes, quantity)
    _label_layers(axes, step, is_first)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)


def _label_layers(axes: "Axes", step: Step, is_first: bool) -> None:
    """Name the layers below the axis, or number them, where the steps in it do not share their names."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    before = [text.get_text() for text in axes.get_xticklabels()]
    is_named = step.phase != "init"
    if is_named:
        label_rows(axes, step)
        is_named = is_first or before == [text.get_text() for text in axes.get_xticklabels()]
    if not is_named:
        axes.set_xlabel("layer (1 = input side)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.tick_params(axis="x", labelrotation=0, labelsize="medium")
        axes.set_xlim(auto=True)
        axes.autoscale_view(scaley=False)


def values_of(step: Step, quantity: str) -> Array:
    """Return what is drawn of each layer, averaged over networks.

    Raises:
        ValueError: If it was not recorded.
    """
    further = extras(step.log10, step.stats, step.samples)
    if quantity in step.log10:
        return step.profile(quantity)
    if quantity not in further:
        raise ValueError(f"'{quantity}' was not recorded; choose one of {', '.join([*step.log10, *further])}")
    return mean_over_networks(further[quantity])


def label_size(axes: "Axes", quantity: str) -> None:
    """Label the vertical axis; sizes are powers of ten, statistics are not."""
    labels = {
        "log10_update_ratio": "update / weight",
        "samples_sd": "sd of log10 over samples",
        "output.dead": "share of dead units",
        "output.saturated": "share of saturated outputs",
        "output.cosine": "mean cosine of two samples",
    }
    axes.set_ylabel(LABELS.get(quantity, labels.get(quantity, quantity.replace("_", " "))))
    if "." not in quantity and quantity != "samples_sd":
        powers_of_ten(axes, _LEAST_DECADES)


def label_rows(axes: "Axes", step: Step, rows: Sequence[int] | None = None) -> None:
    """Write the names of layers below an axis on which the first one is at 1, as many as have room."""
    rows = range(step.depth) if rows is None else rows
    every = -(-len(rows) // _MOST_NAMES) or 1
    shown = [*range(0, len(rows), every)]
    names = [shown_name(step.names[rows[index]], step.calls[rows[index]] if step.calls else 0) for index in shown]
    short = short_names(names, _LONGEST_NAME)
    rotation = 90 if max(map(len, short)) > 3 else 0
    axes.set_xticks([index + 1 for index in shown], short, rotation=rotation, fontsize=7)
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.set_xlabel("")


def draw_profile(
    axes: "Axes",
    step: Step,
    quantity: str,
    colour: str | None,
    label: str,
    theory_colour: str | None = "black",
    theory_label: str | None = None,
) -> None:
    """Draw one quantity over layers, and its theory, if there is one, dashed with a band of two standard deviations.

    Layers without a number leave a gap; those that are exactly 0 have a mark at the lower edge, those that are not
    finite one at the upper edge.

    Args:
        axes: The axes, of layers and powers of ten.
        step: The measurement.
        quantity: A recorded one of ``QUANTITIES``.
        colour: The colour of the measurement and of the band; None: the next one of the axes.
        label: The measurement's entry in the legend; empty: none.
        theory_colour: The colour of the dashed line; None: that of the measurement.
        theory_label: The dashed line's entry in the legend; None: no entry.
    """
    layers = np.arange(1, step.depth + 1)
    measured = draw_line(axes, layers, values_of(step, quantity), color=colour, linewidth=2, label=label or "_")
    colour = str(measured.get_color())
    if quantity in step.status:
        draw_marks(axes, layers, step.status[quantity], colour)
    line, spread = step.theory.get(f"log10_{quantity}"), step.theory.get(f"sd_{quantity}")
    if line is not None:
        axes.plot(layers, line, linestyle="--", color=theory_colour or colour, linewidth=1.5, label=theory_label)
        if spread is not None:
            axes.fill_between(layers, line - 2 * spread, line + 2 * spread, color=colour, alpha=0.15, linewidth=0)


def draw_line(axes: "Axes", x: NDArray[Any] | Sequence[int], y: Array, **style: Any) -> "Line2D":
    """Draw a line with dots where neighbours have no number, since a line of one point cannot be seen; return it."""
    finite = np.concatenate([[False], np.isfinite(y), [False]])
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()
    (line,) = axes.plot(x, y, marker="o" if alone else "", markevery=alone or None, markersize=4, **style)
    return line


def draw_marks(axes: "Axes", x: NDArray[Any] | Sequence[int], status: NDArray[np.int8], colour: str) -> None:
    """Mark what is exactly 0, for every network, at the lower edge, and what is not finite, for any, at the upper."""
    places = np.asarray(x)
    labels = axes.get_legend_handles_labels()[1]
    for name, (height, marker, meaning) in _MARKS.items():
        cells = status == STATUSES.index(name)
        where = places[cells.any(axis=0) if name == "nonfinite" else cells.all(axis=0)]
        if where.size:
            axes.scatter(
                where,
                np.full(where.size, height),
                marker=marker,
                s=28,
                color=colour,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                zorder=3,
            )
            if meaning not in labels:
                axes.scatter([], [], marker=marker, s=28, color="black", label=meaning)
