"""Deep linear networks learn in as many steps at any depth if their weights are orthogonal, but not if Gaussian.

The product of orthogonal matrices passes all directions on alike; that of Gaussian ones, of the same scale, loses
most of them. The paper's networks have 1000 units and learn MNIST; these have 64 and learn digits in 300 steps, so
that Gaussian ones are seen to fail with 100 layers where the paper sees them take ever longer. As there, each has the
best learning rate of a grid.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from experiments.claims import Claim, Findings, above, below, near
from experiments.drawing import COLOURS, panels
from experiments.lab import Lab
from experiments.runs import WINDOW, at_best_rate, grouped, lowest_loss, median_steps_to, smoothed
from gradexp import MLP, initialize
from gradexp.history import Array
from gradexp.jacobian import singular_values
from gradexp.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["seed=0", "depth=10,100", "optimizer.lr=0.003,0.03,0.1"]
LEARNED = 0.06  # a squared error that goes with nine digits out of ten told apart; a constant output has 0.09
SHALLOW, DEEP = 10, 100
PER_LAYER = 0.3  # learning rate times depth, where the rate is inversely proportional to depth

Runs = dict[tuple[str, int], list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Train both initialisations at all depths and rates, and take the product of the deep networks' matrices."""
    runs = grouped(lab.runs(), lambda config: (config.init.name, config.depth))
    best = {key: at_best_rate(own, LEARNED) for key, own in runs.items()}
    spectra = {init: _spectrum(lab, init) for init in ("orthogonal", "xavier")}
    return Findings(_claims(runs, best, spectra), {"saxe2014": _figure(best)})


def _claims(runs: Runs, best: Runs, spectra: Mapping[str, Array]) -> list[Claim]:
    steps = {key: median_steps_to(own, LEARNED) for key, own in best.items()}
    scaled = {
        depth: median_steps_to(
            [result for result in runs["orthogonal", depth] if result.config.optimizer.lr == PER_LAYER / depth],
            LEARNED,
        )
        for depth in (SHALLOW, DEEP)
    }
    lowest = lowest_loss(best["xavier", DEEP])
    spread = spectra["orthogonal"][0] - spectra["orthogonal"][-1]
    middle = float(np.median(spectra["xavier"])) / (DEEP - 1)
    return [
        near("orthogonal: powers of ten between singular values", spread, 0, 1e-4),
        # The k-th of n singular values shrinks by sqrt(1 - k / n) per layer, give or take 10^0.005 in one network.
        near("Gaussian: log₁₀ of the median one, per layer", middle, math.log10(0.5) / 2, 0.02),
        below(f"orthogonal, {DEEP} layers learn: steps to {LEARNED}", steps["orthogonal", DEEP], 150),
        below(
            f"its steps over those of {SHALLOW} layers", steps["orthogonal", DEEP] / steps["orthogonal", SHALLOW], 1.5
        ),
        near(f"the same at the rate {PER_LAYER} / depth", scaled[DEEP] / scaled[SHALLOW], 1, 0.3),
        below(f"Gaussian, {SHALLOW} layers learn: steps", steps["xavier", SHALLOW], 250),
        above(f"Gaussian, {DEEP} layers do not learn: lowest loss", lowest, LEARNED),
    ]


def _spectrum(lab: Lab, init: str) -> Array:
    """Return log10 of the singular values of the product of all matrices of a deep network but the last."""
    config, *_ = lab.configs(f"init={init}", f"depth={DEEP}")
    hidden = config.hidden_widths
    network = MLP([hidden[0], *hidden], config.activation, bias=False)
    initialize(network, config.init.name, seed=config.seed, **config.init.options)
    return singular_values(network, torch.ones(1, hidden[0])).flatten().numpy()


def _figure(best: Runs) -> "Figure":
    inits = {"orthogonal": "orthogonal weights", "xavier": "Gaussian weights"}
    figure, axes = panels(list(inits.values()), "training step", "training loss at the best rate")
    for panel, init in zip(axes, inits, strict=True):
        depths = sorted(depth for name, depth in best if name == init)
        for depth, colour in zip(depths, COLOURS, strict=False):
            for index, result in enumerate(best[init, depth]):
                course = smoothed(result)
                label = f"_{depth}" if index else f"{depth} layers"
                panel.plot(range(WINDOW, WINDOW + len(course)), course, color=colour, label=label)
        panel.axhline(0.09, color="black", linewidth=1, linestyle=":", label="constant output")
        panel.set_yscale("log")
        panel.set_ylim(0.03, 2)
    axes[0].legend(frameon=False)
    return figure
