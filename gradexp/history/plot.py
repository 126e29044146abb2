"""Figures of a recorded profile: log10 size over layers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gradexp.history.step import Step
from gradexp.plotting import COLOURS, LABELS, powers_of_ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def profile_figure(steps: Mapping[str, Step], quantity: str = "output_grad") -> "Figure":
    """Draw one quantity over layers, on an axis of powers of ten.

    Theory, where a step holds it, is dashed, with a band of two standard deviations of one sample of one network.

    Args:
        steps: Label -> measurement; one with an empty label has no entry in the legend.
        quantity: A recorded one of ``QUANTITIES``.

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
    axes.set_ylabel(LABELS.get(quantity, quantity))
    powers_of_ten(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False)
    return figure


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

    Layers without a number leave a gap. If only one layer has one, it is a dot.

    Args:
        axes: The axes, of layers and powers of ten.
        step: The measurement.
        quantity: A recorded one of ``QUANTITIES``.
        colour: The colour of the measurement and of the band.
        label: The measurement's entry in the legend.
        theory_colour: The colour of the dashed line.
        theory_label: The dashed line's entry in the legend; None: no entry.
    """
    layers, profile = np.arange(1, step.depth + 1), step.profile(quantity)
    marker = "o" if np.isfinite(profile).sum() == 1 else ""
    axes.plot(layers, profile, marker=marker, color=colour, linewidth=2, label=label)
    line, spread = step.theory.get(f"log10_{quantity}"), step.theory.get(f"sd_{quantity}")
    if line is not None:
        axes.plot(layers, line, linestyle="--", color=theory_colour, linewidth=1.5, label=theory_label)
        if spread is not None:
            axes.fill_between(layers, line - 2 * spread, line + 2 * spread, color=colour, alpha=0.15, linewidth=0)
