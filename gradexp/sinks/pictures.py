"""The pictures of one run, small enough for a card of TensorBoard: the gradient over layers, and over training.

Functions import matplotlib, which is slow to load, when they are called.
"""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gradexp.config import as_dict
from gradexp.history.heat_map import draw_heat_map, some
from gradexp.history.history import History
from gradexp.history.plot import draw_profile
from gradexp.history.step import STATUSES
from gradexp.own_parts import options_of
from gradexp.plotting import COLOURS, powers_of_ten, save, show_stable
from gradexp.runs.number_format import NARROW
from gradexp.runs.result import Result
from gradexp.runs.wording import network_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROFILE, TRAINING = "layers/output_gradient_at_initialisation", "layers/output_gradient_in_training"
"""The tags of the two pictures in TensorBoard."""

# Inches and dots per inch. In a card 340 dots wide, type of 10 points is then 11 dots high.
_SIZE, _DPI = (4.2, 2.7), 180


def profile_picture(result: Result) -> "Figure":
    """Draw the gradient over layers at initialisation, theory, where it is stable, and where the format fails.

    If an output overflows or underflows, gradients below it may be lost even if their own size is fine.

    Args:
        result: A run whose profile is measured.
    """
    from matplotlib.ticker import MaxNLocator

    history = result.initial
    assert history is not None
    figure, axes = _card()
    label = f"measured, mean of {len(history.seeds)}" if len(history.seeds) > 1 else "measured"
    draw_profile(axes, history.at(), "output_grad", COLOURS[0], label, theory_label="theory ± 2 sd")
    powers_of_ten(axes)
    show_stable(axes, history.profile("output_grad"), result.config.verdict.decades)
    own = result.config.number_format
    for first, last, colour, failure in _failures(history, own if own in NARROW else "float32"):
        axes.axvspan(first - 0.5, last + 0.5, color=colour, alpha=0.3, linewidth=0, label=failure)
    verdict = result.verdict
    axes.set_title(_title(result, verdict.gradient if verdict is not None else "at initialisation"), fontsize=10)
    axes.set_xlabel("layer (1 = input side)")
    axes.set_ylabel("norm of ∂L/∂z")
    axes.set_xlim(0.5, history.depth + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, framealpha=0.8, edgecolor="none", labelspacing=0.3, handlelength=1.5)
    return figure


def training_picture(result: Result) -> "Figure":
    """Draw log10 of the real gradient, layer by training step, and above it the loss on the same axis.

    The scale is that of the data, at least three powers of ten to both sides of 1. A cell that is exactly 0 or not
    finite has a colour of its own. Of very many steps or layers a thousand are drawn, evenly spread.

    Args:
        result: A run of which the probe has recorded a step.
    """
    history = result.gradients
    assert history is not None
    losses = result.training.losses if result.training is not None else []
    figure, above, axes = _card_of_two(bool(losses))
    draw_heat_map(axes, history, middle=0.0)
    limits = axes.get_xlim()
    if above is not None:
        _draw_loss(above, losses, result.guessing)
        axes.set_xlim(limits)
    figure.align_ylabels()
    (above or axes).set_title(_title(result, "in training"), fontsize=10)
    return figure


_MOST_OVER_GUESSING = 3.0  # times; losses far beyond would press the others onto the axis


def _draw_loss(axes: "Axes", losses: Sequence[float], guessing: float | None) -> None:
    """Draw the loss of each step, and that of a network that ignores its input."""
    steps = some(len(losses))
    values = np.asarray(losses, dtype=float)[steps]
    axes.plot(steps, np.where(np.isfinite(values), values, np.nan), color="black", linewidth=1.3, clip_on=True)
    finite = values[np.isfinite(values)]
    top = float(finite.max(initial=0.0))
    if guessing is not None and math.isfinite(guessing):
        axes.axhline(guessing, color=COLOURS[1], linewidth=1.3, linestyle=":", label="guessing")
        beside = axes.get_yaxis_transform()
        axes.text(1.01, guessing, "guessing", color=COLOURS[1], fontsize=8, va="center", transform=beside)
        top = min(max(top, 1.3 * guessing), _MOST_OVER_GUESSING * guessing) if guessing > 0 else top
    axes.set_ylim(0 if finite.min(initial=0.0) >= 0 else None, 1.05 * top or 1.0)
    axes.set_ylabel("loss")
    axes.tick_params(labelbottom=False)
    axes.grid(alpha=0.3)


def _card_of_two(has_upper: bool) -> "tuple[Figure, Axes | None, Axes]":
    """Return a figure with axes for the layers and, above them and over the same steps, for the loss."""
    if not has_upper:
        figure, axes = _card()
        return figure, None, axes
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(1, 2.6))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure, upper, lower


def _failures(history: History, dtype: str) -> Iterator[tuple[int, int, str, str]]:
    """Yield layers without a usable number as (first, last, colour, failure)."""
    dead = 1 + np.flatnonzero((history.status["output_grad"][0] == STATUSES.index("zero")).all(axis=0))
    if dead.size:
        yield int(dead[0]), int(dead[-1]), "black", "exactly 0"
    for overflow, number in ((False, "0"), (True, "inf")):
        if layer := history.failing_layer("output_grad", dtype, overflow):
            yield 1, layer, "#888888", f"{number} in {dtype}: 1 to {layer}"
        if layer := history.failing_layer("output", dtype, overflow):
            yield layer, history.depth, COLOURS[4], f"outputs {number} in {dtype}: {layer} to {history.depth}"


def pictures(result: Result) -> "dict[str, Figure]":
    """Return the figures of a run, by tag."""
    figures = {}
    if result.initial is not None:
        figures[PROFILE] = profile_picture(result)
    if result.gradients is not None and result.gradients.steps:
        figures[TRAINING] = training_picture(result)
    return figures


def write_pictures(folder: Path, result: Result) -> None:
    """Write the figures of a run as PNG and SVG files, named as the last part of their tags."""
    for tag, figure in pictures(result).items():
        save(figure, folder / tag.rpartition("/")[2], _DPI)


def encoded(figure: "Figure") -> tuple[bytes, int, int]:
    """Return a figure as PNG, with its width and height in dots."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    width, height = (round(inches * _DPI) for inches in _SIZE)
    return buffer.getvalue(), width, height


def _card() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _title(result: Result, subject: str) -> str:
    config = result.config
    init, usual = config.init, options_of("init", config.init.name)
    special = "".join(f" {key}={value}" for key, value in init.options.items() if value != usual.get(key))
    drawn = "" if init.name == "auto" else f"{init.name}{special}, "
    return f"{drawn}{network_name(as_dict(config))}: {subject}"
