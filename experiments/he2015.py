"""With 22 rectifier layers He's weights and Xavier's both learn; with 40 Xavier's do not leave the plateau.

Xavier's variance 1 / n loses half of the squared gradient in every ReLU layer, He's 2 / n none. The paper's networks
are convolutional, see ImageNet, and differ so with 30 layers. These are MLPs that see 8 x 8 digits for 450 steps,
with the paper's momentum and rate; of Xavier's with 30 layers one in three begins to learn at the end of them.
At this rate a network of 40 layers with He's weights may lose again what it has learned, as one of three does.
"""

import math
from typing import TYPE_CHECKING

from experiments.lab.claims import Claim, Findings, above, below, near
from experiments.lab.drawing import COLOURS, courses, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import LEARNED, grouped, lowest_loss, mean_log_chi, median_steps_to, ratio, slowest_to
from gradexp.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["seed=0"]

Runs = dict[tuple[str, int], list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Train with both initialisations at both depths."""
    runs = grouped(lab.runs(), lambda config: (config.init.name, config.depth))
    return Findings(_claims(runs), {"he2015": _figure(runs)})


def _claims(runs: Runs) -> list[Claim]:
    budget = runs["he", 40][0].config.steps
    slowest = {key: slowest_to(results) for key, results in runs.items()}
    earlier = ratio(median_steps_to(runs["he", 22]), median_steps_to(runs["xavier", 22]))
    # sqrt(5 / (128 * 39)) = 0.032 is the standard deviation of one network's slope.
    scatter = 0.1
    return [
        near("he: log of the factor of ‖δ‖² per layer", mean_log_chi(runs["he", 40]), 0, scatter),
        near("xavier: the same is log(1/2)", mean_log_chi(runs["xavier", 40]), math.log(0.5), scatter),
        below(f"22 layers, he learns: steps to loss {LEARNED}", slowest["he", 22], budget),
        below("22 layers, xavier learns too: steps", slowest["xavier", 22], budget),
        below("22 layers, he is earlier: its steps over xavier's", earlier, 0.5),
        below(f"40 layers, he learns: steps to loss {LEARNED}", slowest["he", 40], budget),
        above("40 layers, xavier stays on the plateau: lowest loss", lowest_loss(runs["xavier", 40]), 2.2),
    ]


def _figure(runs: Runs) -> "Figure":
    depths = sorted({depth for _, depth in runs})
    figure, axes = panels([f"{depth} layers" for depth in depths], "training step", "training loss")
    for (init, depth), results in runs.items():
        panel = axes[depths.index(depth)]
        courses(panel, results, COLOURS[0 if init == "he" else 1], init)
        panel.set_ylim(0, 3)
    for panel in axes:
        guessing(panel)
    axes[0].legend(frameon=False)
    return figure
