"""Figures of the phase diagram.

Functions import matplotlib, which is slow to load, when they are called.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradexp.numerics.formats import limits
from gradexp.plotting import COLOURS, STABLE, powers_of_ten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gradexp.phase.plane import MeasuredPoint, PhaseDiagram, WeightScalePoint


# Depths whose limit of trainability is drawn in a phase diagram.
DEPTHS = (10, 30, 100, 300)
# log10 of what rounds to 0 and to inf.
_SMALLEST_FLOAT32, _LARGEST_FLOAT32 = limits("float32")


def phase_figure(plane: "PhaseDiagram", dots: Sequence["MeasuredPoint"] = ()) -> "Figure":
    """Draw chi_1 over the plane of variances, the edge of chaos, and how deep inputs can still be told apart.

    Args:
        plane: Mean field on a grid.
        dots: Measured networks, coloured on the same scale by exp(log_chi).
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(7, 4.8), layout="constrained")
    axes = figure.add_subplot()
    grid = (plane.sigma_w2, plane.sigma_b2)
    # White at 1, and as far to blue as to red: colour-blind readers see these apart.
    colours: dict[str, Any] = {"norm": LogNorm(0.5, 2), "cmap": "RdBu_r"}
    chi = np.maximum(plane.values["chi_1"], 1e-9)  # a logarithm is taken
    mesh = axes.pcolormesh(*grid, chi, shading="gouraud", rasterized=True, **colours)
    bar = figure.colorbar(mesh, ax=axes, extend="both")
    bar.set_label(r"$\chi_1$: factor of $\|\delta\|^2$ per layer, towards the input")
    bar.ax.yaxis.set_major_locator(FixedLocator([0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.4, 1.7, 2]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    levels = {sign * 6 / layers: f"{layers}" for layers in DEPTHS for sign in (-1, 1)}
    grey, thin = "#444444", 0.9
    lines = axes.contour(*grid, plane.rate, sorted(levels), colors=grey, linestyles="solid", linewidths=thin)
    for label in axes.clabel(lines, fmt=levels, fontsize=9, manual=_where_crossed(plane, levels)):
        label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    axes.plot([], [], color=grey, linewidth=thin, label=r"$6\,\xi_c$ in layers: trainable up to this depth")
    axes.plot(*plane.edge.T, color="black", linewidth=2.5, label=r"edge of chaos, $\chi_1 = 1$")
    measured = [(dot, math.exp(dot.log_chi)) for dot in dots if dot.log_chi is not None]
    if measured:
        first = measured[0][0]
        x, y = [dot.sigma_w2 for dot, _ in measured], [dot.sigma_b2 for dot, _ in measured]
        axes.scatter(x, y, s=120, color="white", zorder=3)  # a rim, to be seen on any colour
        axes.scatter(
            x,
            y,
            c=[factor for _, factor in measured],
            edgecolors="black",
            s=70,
            zorder=3,
            label=f"measured: depth {first.depth}, width {first.width}, {first.networks} networks",
            **colours,
        )
    axes.set_xlim(plane.sigma_w2[0], plane.sigma_w2[-1])
    axes.set_ylim(plane.sigma_b2[0], plane.sigma_b2[-1])
    axes.set_xlabel(r"$\sigma_w^2$ = fan_in · Var(W)")
    axes.set_ylabel(r"$\sigma_b^2$ = Var(b)")
    axes.set_title(f"{plane.activation}: gradients vanish (blue) or explode (red)")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _where_crossed(plane: "PhaseDiagram", levels: Iterable[float]) -> list[tuple[float, float]]:
    """Return positions for the contour labels, at three quarters of the height.

    Labels that would overlap are left out.
    """
    row = int(np.searchsorted(plane.sigma_b2, plane.sigma_b2[0] + 0.75 * np.ptp(plane.sigma_b2)))
    rate, w2 = plane.rate[row], plane.sigma_w2
    taken: list[float] = []
    for level in (0.0, *levels):  # 0 is the edge, which has no number but takes room
        for left in np.flatnonzero((rate[:-1] > level) & (rate[1:] <= level))[:1]:
            share = (rate[left] - level) / (rate[left] - rate[left + 1])
            x = float(w2[left] + share * (w2[left + 1] - w2[left]))
            if all(abs(x - other) > 0.018 * np.ptp(w2) for other in taken):
                taken.append(x)
    edge = 1 if rate[0] > 0 >= rate[-1] else 0
    return [(x, float(plane.sigma_b2[row])) for x in taken[edge:]]


def weight_scale_figure(scales: Sequence["WeightScalePoint"], decades: float = 3.0) -> "Figure":
    """Draw how far the gradient shrinks or grows over a whole network, against the scale of its weights.

    Args:
        scales: Predictions (dashed lines) and measurements (markers).
        decades: Powers of ten within which a gradient counts as stable.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(7, 5.2), layout="constrained")
    axes = figure.add_subplot()
    depth, width = scales[0].depth, scales[0].width
    names = {"identity": r"$\lambda\,I$", "gaussian": r"Gaussian, std $\lambda/\sqrt{n}$"}
    for index, (activation, weights) in enumerate(dict.fromkeys((s.activation, s.weights) for s in scales)):
        points = [s for s in scales if (s.activation, s.weights) == (activation, weights)]
        line = sorted((s.weight_scale, np.nan if s.predicted is None else s.predicted) for s in points)
        dots = [(s.weight_scale, s.measured) for s in points if s.measured is not None]
        # Open markers are smaller than filled ones, as many lie on each other.
        filled = weights == "identity"
        style: dict[str, Any] = {"color": COLOURS[index], "markerfacecolor": COLOURS[index] if filled else "white"}
        axes.plot(*np.array(line).T, "--", color=COLOURS[index], linewidth=1.5)
        if dots:
            label = f"{activation}, {names[weights]}"
            axes.plot(*np.array(dots).T, "os^D"[index % 4], markersize=7 if filled else 5, label=label, **style)
    axes.plot([], [], "--", color="black", label="theory (dashed), measured (markers)")
    low, high = min(s.weight_scale for s in scales), max(s.weight_scale for s in scales)
    top = 1.05 * max((depth - 1) * max(abs(math.log10(low)), abs(math.log10(high))), 2 * decades)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(-top, top)
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25, 1.6, 2, 2.5, 4, 10]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    powers_of_ten(axes)
    axes.axhspan(-decades, decades, color=COLOURS[2], alpha=0.25, linewidth=0)
    axes.text(low * 1.02, 0, STABLE.format(decades), va="center", fontsize=9)
    left: dict[str, Any] = {"x": low * 1.02, "ha": "left"}
    right: dict[str, Any] = {"x": high / 1.02, "ha": "right"}
    for edge, end, text, place in (
        (_LARGEST_FLOAT32, top, "inf in float32", {**left, "va": "top"}),
        (_SMALLEST_FLOAT32, -top, "0 in float32", {**right, "va": "bottom"}),
    ):
        if abs(edge) < top:
            axes.axhspan(edge, end, color="#888888", alpha=0.25, linewidth=0)
            axes.text(y=edge, s=text, fontsize=9, **place)  # beside the band, which may be thin
    axes.set_xlabel(r"weight scale $\lambda$")
    axes.set_ylabel(rf"$\|\delta^1\|\,/\,\|\delta^{{{depth}}}\|$: gradient at layer 1 over layer {depth}")
    axes.set_title(f"Critical region of {depth} layers of {width} units")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
