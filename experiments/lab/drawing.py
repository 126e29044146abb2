"""What the figures of the experiments have in common."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.measures import GUESSING, WINDOW, smoothed
from gradexp.plotting import COLOURS
from gradexp.runs.result import Result

__all__ = ["COLOURS", "courses", "guessing", "panels"]


def panels(titles: Sequence[str], xlabel: str, ylabel: str) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side, with a grid and the same labels.

    Args:
        titles: One per panel.
        xlabel: Label of every panel.
        ylabel: Label of the first one.
    """
    figure = Figure(figsize=(3.5 * max(len(titles), 2), 4), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=11)
        panel.set_xlabel(xlabel)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(ylabel)
    return figure, axes


def courses(panel: Axes, results: Sequence[Result], colour: str, label: str) -> None:
    """Draw the training losses of some networks, of which the first names them all."""
    for index, result in enumerate(results):
        course = smoothed(result)
        steps = range(WINDOW, WINDOW + len(course))
        panel.plot(steps, course, color=colour, label=f"_{label}" if index else label)


def guessing(panel: Axes, loss: float = GUESSING, label: str = "guessing") -> None:
    """Draw the loss of a network that ignores its input."""
    panel.axhline(loss, color="black", linewidth=1, linestyle=":", label=label)
