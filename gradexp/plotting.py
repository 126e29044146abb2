"""What all figures share: colours, labels, axes of powers of ten, saving. Only a figure loads matplotlib."""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from gradexp.atomic_write import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe & Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LABELS = {
    "output": "rms of the output z",
    "output_grad": "norm of the back-propagated gradient ∂L/∂z",
    "weight_grad": "norm of the weight gradient ∂L/∂W",
    "weight": "norm of the weight W",
    "update": "norm of the update of W",
}


def save(figure: "Figure", path: Path, dpi: int) -> Path:
    """Write a figure to ``path.png`` and ``path.svg`` and return the former."""
    from matplotlib import rc_context

    # The settings are what None stands for.
    no_layout = rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False})
    with warnings.catch_warnings(), no_layout:
        # A name may have letters that the font has not; they are drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")
        # With very long names matplotlib 3.8 leaves the panels where they are.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)  # once for both files
        figure.set_layout_engine(None)  # of "none" matplotlib would draw each file twice
        for ending in ("svg", "png"):
            file = path.with_name(f"{path.name}.{ending}")
            with replacing(file) as neighbour:
                figure.savefig(neighbour, dpi=dpi, format=ending)
    return file


def powers_of_ten(axes: "Axes", least: int = 1) -> None:
    """Label an axis of logarithms as powers of ten; float64 does not hold the sizes themselves.

    Args:
        axes: The axes, with all that they show.
        least: Powers of ten that they show at least: below one all labels would be the same, and noise in a flat
            profile looks like a trend.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = axes.dataLim.intervaly
    if math.isfinite(low) and high - low < least:
        x, bottom = axes.dataLim.x0, math.floor((low + high - least) / 2 + 0.5)
        axes.update_datalim([(x, min(low, bottom)), (x, max(high, bottom + least))])
        axes.autoscale_view(scalex=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))


def _power_of_ten(log10: float, _position: int | None) -> str:
    """Return a tick's label; a function of the module, so that figures can be pickled."""
    return f"$10^{{{log10:.0f}}}$"


STABLE = "stable: within {:g} powers of ten"
LEAST_HEIGHT = 6.0
"""Powers of ten that an axis of gradients is high, at least, so that a stable one looks level."""


def show_stable(axes: "Axes", log10: "Iterable[float]", decades: float) -> None:
    """Shade the sizes at which a gradient counts as stable, those about that of the last layer, and show all of them.

    Args:
        axes: Axes of layers and powers of ten.
        log10: A gradient over layers, nan where it has no number.
        decades: The threshold of the verdict.
    """
    finite = [float(value) for value in log10 if math.isfinite(value)]
    if not finite or decades > _MOST_DECADES:
        return
    middle = finite[-1]
    reach = max(decades, LEAST_HEIGHT / 2)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, middle - 1.05 * reach), max(high, middle + 1.05 * reach))
    label = STABLE.format(decades)
    axes.axhspan(middle - decades, middle + decades, color=COLOURS[2], alpha=0.1, linewidth=0, label=label)


_MOST_DECADES = 30  # a threshold beyond them would press all lines together
