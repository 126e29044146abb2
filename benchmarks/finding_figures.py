"""How findings look: the pictures of docs/findings.md, from the examples in ``finding_examples.py``.

``python benchmarks/finding_figures.py [KIND ...]`` writes them to docs/findings/, each model as it is and cured.
"""

import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import torch
from finding_examples import EXAMPLES
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradexp import History
from gradexp.history.plot import draw_step
from gradexp.plotting import COLOURS

FOLDER = Path(__file__).parents[1] / "docs" / "findings"

SHOWN = {
    "number format": "output_grad",
    "cut": "output_grad",
    "dead layer": "output_grad",
    "vanishing": "output_grad",
    "exploding": "output_grad",
    "vanishing over time": "time",
    "exploding over time": "time",
    "exploding activations": "output",
    "dead units": "output.dead",
    "inputs collapse": "output.cosine",
    "updates": "log10_update_ratio",
    "unbounded loss": "loss",
    "closed branches": "output_grad",
}
"""Kind of finding -> what shows it: a quantity over layers, or over time steps, or the loss over training steps."""

CURED = {"closed branches": "branches as large as what passes them"}


def recorded(kind: str, is_cured: bool) -> History:
    torch.manual_seed(0)
    return EXAMPLES[kind](is_cured)


def draw(axes: Axes, kind: str, history: History, label: str) -> None:
    quantity = SHOWN[kind]
    if quantity == "loss":
        axes.plot(history.steps, history.loss[:, 0], linewidth=2, label=label)
        axes.set(xlabel="training step", ylabel="loss")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    elif quantity == "time":
        steps = history.over_time("net")
        draw_step(axes, steps, "output_grad", label)
        axes.set_xticks([1, *range(10, steps.depth + 1, 10)], [1, *range(10, steps.depth + 1, 10)], rotation=0)
        axes.set_xlabel("time step")
    else:
        history.plot(quantity, ax=axes, label=label)


def figure_of(kind: str) -> Figure:
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=[COLOURS[1], COLOURS[0]])
    for is_cured in (False, True):
        draw(axes, kind, recorded(kind, is_cured), CURED.get(kind, "cured") if is_cured else kind)
    axes.set_ylabel(axes.get_ylabel().replace("norm of the ", "").replace("back-propagated ", ""), fontsize=9)
    return figure


def main() -> None:
    mpl.rcParams["font.size"] = 9
    FOLDER.mkdir(exist_ok=True)
    for kind in sys.argv[1:] or SHOWN:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            figure = figure_of(kind)
        figure.savefig(FOLDER / f"{kind.replace(' ', '_')}.png", dpi=100)


if __name__ == "__main__":
    main()
