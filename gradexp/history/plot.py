"""Figures of a recorded profile: log10 size over layers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradexp.history.derived import extras
from gradexp.history.short_names import short_names, shown_name
from gradexp.history.step import STATUSES, Array, Step, mean_over_networks
from gradexp.plotting import COLOURS, LABELS, powers_of_ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMES = 32  # that have room below an axis
_LONGEST_NAME = 28
_MARKS = {"zero": (0.015, "v", "exactly 0"), "nonfinite": (0.985, "X", "inf or nan")}

MEANINGS = tuple(meaning for _, _, meaning in _MARKS.values())
"""The legend's entries for what has no size."""


def profile_figure(steps: Mapping[str, Step], quantity: str = "output_grad") -> "Figure":
    """Draw one quantity over layers, on an axis of powers of ten.

    Theory, where a step holds it, is dashed, with a band of two standard deviations of one sample of one network.

    Args:
        steps: Label -> measurement; one with an empty label has no entry in the legend.
        quantity: A recorded one of ``QUANTITIES``, a statistic such as ``output.dead``, or one of ``extras``.

    Returns:
        A figure that belongs to no window and needs no closing.

    Raises:
        ValueError: If a step does not hold the quantity.
    """
    # Without pyplot a figure is freed like any other object, also after hundreds of runs.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, step) in enumerate(steps.items()):
        colour = COLOURS[index % len(COLOURS)]
        draw_profile(axes, step, quantity, colour, label or f"_{index}", colour if label else "black")
    if any(f"log10_{quantity}" in step.theory for step in steps.values()):
        axes.plot([], [], linestyle="--", color="black", linewidth=1.5, label="theory, ±2 sd of one network")
    axes.set_xlabel("layer (1 = input side)")
    label_size(axes, quantity)
    named = {(step.phase, *step.names) for step in steps.values()}
    if len(named) == 1 and next(iter(steps.values())).phase != "init":
        figure.set_size_inches(7, 4.8)
        label_rows(axes, next(iter(steps.values())))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    return figure


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
    labels = {"log10_update_ratio": "update / weight", "samples_sd": "sd of log10 over samples"}
    axes.set_ylabel(LABELS.get(quantity, labels.get(quantity, quantity.replace("_", " "))))
    if "." not in quantity and quantity != "samples_sd":
        powers_of_ten(axes)


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
    colour: str,
    label: str,
    theory_colour: str = "black",
    theory_label: str | None = None,
) -> None:
    """Draw one quantity over layers, and its theory, if there is one, dashed with a band of two standard deviations.

    Layers without a number leave a gap; those that are exactly 0 have a mark at the lower edge, those that are not
    finite one at the upper edge.

    Args:
        axes: The axes, of layers and powers of ten.
        step: The measurement.
        quantity: A recorded one of ``QUANTITIES``.
        colour: The colour of the measurement and of the band.
        label: The measurement's entry in the legend.
        theory_colour: The colour of the dashed line.
        theory_label: The dashed line's entry in the legend; None: no entry.
    """
    layers = np.arange(1, step.depth + 1)
    draw_line(axes, layers, values_of(step, quantity), color=colour, linewidth=2, label=label)
    if quantity in step.status:
        draw_marks(axes, layers, step.status[quantity], colour)
    line, spread = step.theory.get(f"log10_{quantity}"), step.theory.get(f"sd_{quantity}")
    if line is not None:
        axes.plot(layers, line, linestyle="--", color=theory_colour, linewidth=1.5, label=theory_label)
        if spread is not None:
            axes.fill_between(layers, line - 2 * spread, line + 2 * spread, color=colour, alpha=0.15, linewidth=0)


def draw_line(axes: "Axes", x: NDArray[Any] | Sequence[int], y: Array, **style: Any) -> None:
    """Draw a line with dots where neighbours have no number, since a line of one point cannot be seen."""
    finite = np.concatenate([[False], np.isfinite(y), [False]])
    alone = np.flatnonzero(finite[1:-1] & ~finite[:-2] & ~finite[2:]).tolist()
    axes.plot(x, y, marker="o" if alone else "", markevery=alone or None, markersize=4, **style)


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
