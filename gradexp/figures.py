"""Pictures of measurements, drawn with matplotlib, which is loaded only when a figure is asked for."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from gradexp.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LABELS = {
    "output": "rms of the output z",
    "output_grad": "norm of the output gradient ∂L/∂z",
    "weight_grad": "norm of the weight gradient ∂L/∂W",
    "weight": "norm of the weight W",
    "update": "norm of the update of W",
}


def profile_figure(histories: Mapping[str, History], quantity: str = "output_grad", step: int = -1) -> "Figure":
    """Draw one quantity over layers, on an axis of powers of ten.

    Layers without a number leave a gap. One measured layer is one point of a line.

    Args:
        histories: Label -> measurement; an empty label has no entry in the legend.
        quantity: What to draw.
        step: Index of the recorded step.

    Returns:
        A figure that belongs to no window and needs no closing.

    Raises:
        ValueError: If a history does not hold the quantity.
    """
    # Without pyplot a figure is freed like any other object, also after hundreds of runs.
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for index, (label, history) in enumerate(histories.items()):
        profile = history.profile(quantity, step)
        marker = "o" if history.depth == 1 else ""
        colour = COLOURS[index % len(COLOURS)]
        layers = np.arange(1, history.depth + 1)
        axes.plot(layers, profile, marker=marker, color=colour, linewidth=2, label=label or f"_{index}")
    axes.set_xlabel("layer (1 = input side)")
    axes.set_ylabel(LABELS.get(quantity, quantity))
    # The numbers are logarithms already, since float64 does not hold the sizes themselves.
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:.0f}}}$"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if any(histories):
        axes.legend(frameon=False)
    return figure
