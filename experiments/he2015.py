"""With 22 rectifier layers He's weights and Xavier's both learn; with 30 He's learn and Xavier's stall.

Xavier's variance 1 / n loses half of the squared gradient in every ReLU layer, He's 2 / n none. The paper's networks
are convolutional and see ImageNet; these are MLPs that see 8 x 8 digits, with the paper's momentum and rate.
"""

import math
from typing import TYPE_CHECKING

from experiments.claims import Claim, Findings, above, below, near
from experiments.drawing import COLOURS, panels
from experiments.lab import Lab
from experiments.runs import WINDOW, grouped, mean_log_chi, median_steps_to, smoothed, steps_to
from gradexp.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["seed=0"]
LEARNED = 1.5  # a loss that only a network has that tells most digits apart; guessing has 2.3

Runs = dict[tuple[str, int], list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Train with both initialisations at both depths."""
    runs = grouped(lab.runs(), lambda config: (config.init.name, config.depth))
    return Findings(_claims(runs), {"he2015": _figure(runs)})


def _claims(runs: Runs) -> list[Claim]:
    budget = runs["he", 30][0].config.steps
    slowest = {key: max(steps_to(result, LEARNED) for result in own) for key, own in runs.items()}
    earlier = median_steps_to(runs["he", 22], LEARNED) / median_steps_to(runs["xavier", 22], LEARNED)
    lowest = min(smoothed(result).min() for result in runs["xavier", 30])
    # sqrt(5 / (128 * 29)) = 0.037 is the standard deviation of one network's slope.
    scatter = 0.11
    return [
        near("he: log of the factor of ‖δ‖² per layer", mean_log_chi(runs["he", 30]), 0, scatter),
        near("xavier: the same is log(1/2)", mean_log_chi(runs["xavier", 30]), math.log(0.5), scatter),
        below(f"22 layers, he learns: steps to loss {LEARNED}", slowest["he", 22], budget),
        below("22 layers, xavier learns too: steps", slowest["xavier", 22], budget),
        below("22 layers, he is earlier: its steps over xavier's", earlier, 0.5),
        below(f"30 layers, he learns: steps to loss {LEARNED}", slowest["he", 30], budget),
        above("30 layers, xavier stalls: its lowest loss", lowest, LEARNED),
    ]


def _figure(runs: Runs) -> "Figure":
    depths = sorted({depth for _, depth in runs})
    figure, axes = panels([f"{depth} layers" for depth in depths], "training step", "training loss")
    for (init, depth), results in runs.items():
        panel = axes[depths.index(depth)]
        for index, result in enumerate(results):
            course = smoothed(result)
            colour = COLOURS[0 if init == "he" else 1]
            panel.plot(range(WINDOW, WINDOW + len(course)), course, color=colour, label=f"_{init}" if index else init)
        panel.set_ylim(0, 3)
    for panel in axes:
        panel.axhline(math.log(10), color="black", linewidth=1, linestyle=":", label="guessing")
    axes[0].legend(frameon=False)
    return figure
