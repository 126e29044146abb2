"""Wide tanh networks forget how long an input was within a few layers, and the angle between two inputs more slowly.

Below the edge of chaos all inputs end up parallel, above it at an angle that depends on the network only, however
near they were. The setting is the paper's: sigma_b = 0.3, three values of sigma_w, 1000 units. Lengths are measured
on random inputs, and their courses over the layers on pairs of inputs whose lengths and angle are given.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from experiments.lab.claims import Claim, Findings, above, below, near
from experiments.lab.drawing import COLOURS, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import initial
from gradexp import MLP
from gradexp.history.step import Array
from gradexp.runs.result import Result
from gradexp.theory import MeanField

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["seed=0"]
SIGMA_W = (1.3, 2.5, 4.0)
SIGMA_B2 = 0.3**2
LENGTHS = (0.05, 0.5, 5.0)  # mean squares of inputs
CORRELATIONS = (0.0, 0.5, 0.9)  # of inputs of mean square 1
PAIRS = 32  # of each correlation: what a network does to one pair scatters by 1 / sqrt(width)
FEW = 8  # layers, after which lengths have converged and correlations below the edge of chaos have not


class Course(NamedTuple):
    """What layers 1, 2, ... make of the inputs.

    Args:
        lengths: Mean squares of the outputs, shape ``(layer, LENGTHS)``.
        correlations: Correlations of the outputs of two inputs, averaged over pairs, shape ``(layer, CORRELATIONS)``.
    """

    lengths: Array
    correlations: Array


def reproduce(lab: Lab) -> Findings:
    """Measure lengths in the runs, and follow inputs of known lengths and angles through the same networks."""
    runs, courses = {}, []
    for sigma in SIGMA_W:
        variance = f"init.sigma_w2={sigma**2:g}"
        runs[sigma] = lab.runs(variance)
        networks = [lab.hidden_layers(variance, f"seed={result.config.seed}") for result in runs[sigma]]
        courses.append(_mean([_follow(network) for network in networks]))
    return Findings(_claims(runs, courses), {"poole2016": _figure(courses)})


def _claims(runs: Mapping[float, Sequence[Result]], courses: Sequence[Course]) -> list[Claim]:
    points = [MeanField("tanh", sigma**2, SIGMA_B2) for sigma in SIGMA_W]
    # Each layer's length scatters by sqrt(2 / 1000) and hands a part of that on. Over the layers of one network, in
    # which parallel inputs share their luck, that leaves a standard error of 2 %.
    lengths = [
        near(f"σ_w {sigma:g}: length after {FEW} layers is q*", _length(results), point.q_star, 0.06 * point.q_star)
        for (sigma, results), point in zip(runs.items(), points, strict=True)
    ]
    spread = max(course.lengths[FEW - 1].max() / course.lengths[FEW - 1].min() for course in courses)
    order, chaos, deep_chaos = (course.correlations[-1] for course in courses)
    depth = len(courses[0].correlations)
    # A layer scatters the correlation of one pair by 1 / sqrt(1000), and at σ_w 2.5 hands on 0.8 of what came before:
    # 0.05 in all, and 0.01 over 32 pairs.
    return [
        *lengths,
        below(f"{FEW} layers make lengths 1 : 100 equal: ratio left", spread, 1.1),
        above("σ_w 1.3: correlation 0 rises towards 1, after 30 layers", order[0], 0.9),
        near("σ_w 1.3: which is what theory has there", order[0], points[0].correlation_after(depth - 1, 0.0), 0.05),
        near("σ_w 2.5: correlation 0.9 falls to c*", chaos[-1], points[1].c_star, 0.05),
        near("σ_w 4: the same", deep_chaos[-1], points[2].c_star, 0.03),
        above("c* is lower there: that of σ_w 2.5 less that of 4", chaos[-1] - deep_chaos[-1], 0.04),
    ]


def _length(results: Sequence[Result]) -> float:
    """Return the mean square of outputs, of all layers after the first few but the last, whose width is its own."""
    profiles = [initial(result).profile("output")[FEW:-1] for result in results]
    return float((10 ** (2 * np.array(profiles))).mean())


@torch.no_grad()
def _follow(network: MLP) -> Course:
    """Return what hidden layers make of inputs whose lengths and angles are known."""
    width = network.widths[0]
    # Orthogonal directions, two for each pair; Gaussian weights prefer none.
    along, across = (math.sqrt(width) * torch.eye(width)[: 2 * PAIRS]).split(PAIRS)
    scaled = [math.sqrt(q) * along for q in LENGTHS]
    turned = [c * along + math.sqrt(1 - c * c) * across for c in CORRELATIONS]
    a = torch.cat([along, *scaled, *turned])
    lengths, correlations = [], []
    for layer in network.layers:
        z = layer(a.unsqueeze(0)).view(-1, PAIRS, width)
        lengths.append(z[1 : 1 + len(LENGTHS)].double().square().mean((1, 2)))
        correlations.append(torch.cosine_similarity(z[0].double(), z[1 + len(LENGTHS) :].double(), dim=-1).mean(1))
        a = network.activation(z).flatten(0, 1)
    return Course(torch.stack(lengths).numpy(), torch.stack(correlations).numpy())


def _mean(courses: Sequence[Course]) -> Course:
    return Course(*(np.mean(field, axis=0) for field in zip(*courses, strict=True)))


def _predicted(sigma: float, layers: int) -> Course:
    """Return the same in infinite width."""
    point = MeanField("tanh", sigma**2, SIGMA_B2)

    def first(dot: float) -> float:
        return sigma**2 * dot + SIGMA_B2

    lengths = [point.lengths(first(q), layers) for q in LENGTHS]
    sizes = point.lengths(first(1.0), layers)
    correlations = [[first(c) / first(1.0)] for c in CORRELATIONS]
    for course in correlations:
        for q in sizes[:-1]:
            course.append(point.correlation_map(course[-1], q))
    return Course(np.array(lengths).T, np.array(correlations).T)


def _figure(courses: Sequence[Course]) -> "Figure":
    figure, axes = panels(
        ["lengths converge to q*", "correlations converge to c*"], "layer", "length q, mean square of outputs"
    )
    for sigma, course, colour in zip(SIGMA_W, courses, COLOURS, strict=False):
        for panel, measured, predicted in zip(axes, course, _predicted(sigma, len(course.lengths)), strict=True):
            layers = range(1, len(measured) + 1)
            panel.plot(layers, measured, "o", color=colour, markersize=3.5)
            panel.plot(layers, predicted, "--", color=colour, linewidth=1.2)
        axes[1].plot([], [], "o", color=colour, label=f"$\\sigma_w$ = {sigma:g}")
    axes[0].set_yscale("log")
    axes[0].set_xlim(0.5, 12.5)
    axes[0].set_xticks(range(2, 13, 2))
    axes[1].set_ylabel("correlation of two inputs")
    axes[1].plot([], [], "--", color="black", linewidth=1.2, label="theory")
    axes[1].legend(frameon=False)
    return figure
