"""Deep linear networks learn in as many steps at any depth if their weights are orthogonal, but not if Gaussian.

The product of orthogonal matrices passes all directions on alike; that of Gaussian ones, of the same scale, loses
most of them. The paper's networks have 1000 units and learn MNIST; these have 64 and see digits for 300 steps, within
which Gaussian ones of 100 layers do not get there, where the paper sees them take ever longer. As there, each has the
best learning rate of a grid. At large rates the loss of deep networks can jump up again, so steps are counted until
it is low for good.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from experiments.lab.claims import Claim, Findings, above, below, near
from experiments.lab.drawing import COLOURS, courses, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import WINDOW, grouped, lowest_loss, smoothed
from gradexp.exact.jacobian import singular_values
from gradexp.history.step import Array
from gradexp.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["seed=0", "depth=10,100", "optimizer.lr=0.003,0.03,0.1,0.3,1"]
LEARNED = 0.06  # a squared error that goes with nine digits out of ten told apart; a constant output has 0.09
SHALLOW, DEEP = 10, 100
PER_LAYER = 0.3  # learning rate times depth, where the rate is inversely proportional to depth
LIMIT = 300  # steps of the preset

Runs = dict[tuple[str, int], list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Train both initialisations at all depths and rates, and take the product of the deep networks' matrices."""
    runs = grouped(lab.runs(), lambda config: (config.init.name, config.depth))
    best = {key: _at_best_rate(results) for key, results in runs.items()}
    scaled = {
        depth: lab.runs("init=orthogonal", f"depth={depth}", f"optimizer.lr={PER_LAYER / depth}")
        for depth in (SHALLOW, DEEP)
    }
    spectra = {init: _spectrum(lab, init) for init in ("orthogonal", "xavier")}
    return Findings(_claims(runs, best, scaled, spectra), {"saxe2014": _figure(best)})


def _claims(
    runs: Runs, best: Runs, scaled: Mapping[int, Sequence[Result]], spectra: Mapping[str, Array]
) -> list[Claim]:
    steps = {key: _median_steps(results) for key, results in best.items()}
    deep, shallow = steps["orthogonal", DEEP], steps["orthogonal", SHALLOW]
    at_scaled = {depth: _median_steps(results) for depth, results in scaled.items()}
    spread = spectra["orthogonal"][0] - spectra["orthogonal"][-1]
    middle = float(np.median(spectra["xavier"])) / (DEEP - 1)
    return [
        near("orthogonal: powers of ten between singular values", spread, 0, 1e-4),
        # The k-th of n singular values shrinks by sqrt(1 - k / n) per layer, give or take 10^0.005 in one network.
        near("Gaussian: log₁₀ of the median one, per layer", middle, math.log10(0.5) / 2, 0.02),
        below(f"orthogonal, {DEEP} layers: steps until below {LEARNED} for good", deep, LIMIT / 2),
        below(f"its steps over those of {SHALLOW} layers", deep / shallow, 1.5),
        near(f"the same at the rate {PER_LAYER} / depth", at_scaled[DEEP] / at_scaled[SHALLOW], 1, 0.3),
        below(f"Gaussian, {SHALLOW} layers: steps", steps["xavier", SHALLOW], LIMIT / 2),
        above(
            f"Gaussian, {DEEP} layers do not within {LIMIT} steps: lowest loss",
            lowest_loss(runs["xavier", DEEP]),
            LEARNED,
        ),
    ]


def _steps(result: Result) -> float:
    """Return after how many steps the mean loss over ten of them was low for good; inf if it was not at the end."""
    course = smoothed(result)
    low = course < LEARNED
    return float(WINDOW + np.flatnonzero(~low).max(initial=-1) + 1) if low[-1] else math.inf


def _median_steps(results: Sequence[Result]) -> float:
    return median(_steps(result) for result in results)


def _at_best_rate(results: Sequence[Result]) -> list[Result]:
    """Return the results at the learning rate that has learned first, or if none has, with the lowest losses."""
    rates = grouped(results, lambda config: config.optimizer.lr)
    # The largest of them: some networks diverge at rates that are good for others.
    return min(rates.values(), key=lambda runs: (_median_steps(runs), max(lowest_loss([result]) for result in runs)))


def _spectrum(lab: Lab, init: str) -> Array:
    """Return log10 of the singular values of the product of all matrices of a deep network but the last."""
    network = lab.hidden_layers(f"init={init}", f"depth={DEEP}")
    return singular_values(network, torch.ones(1, network.widths[0])).flatten().numpy()


def _figure(best: Runs) -> "Figure":
    inits = {"orthogonal": "orthogonal weights", "xavier": "Gaussian weights"}
    figure, axes = panels(list(inits.values()), "training step", "training loss at the best rate")
    for panel, init in zip(axes, inits, strict=True):
        depths = sorted(depth for name, depth in best if name == init)
        for depth, colour in zip(depths, COLOURS, strict=False):
            courses(panel, best[init, depth], colour, f"{depth} layers")
        guessing(panel, 0.09, "constant output")
        panel.set_yscale("log")
        panel.set_ylim(0.03, 2)
    axes[0].legend(frameon=False)
    return figure
