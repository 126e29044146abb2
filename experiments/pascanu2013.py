"""Clipping the norm of the gradient lets networks learn whose gradient explodes, and does nothing where it vanishes.

Clipped to the norm θ, a gradient g becomes g min(1, θ / ‖g‖): a shorter step in the same direction, of which all
layers keep their shares. A gradient that has vanished is short already. The paper's networks are recurrent, and may
explode where the recurrent weight has a singular value that is too large. These are MLPs of 30 ReLU layers: unscaled
skip connections double ‖δ‖² in every layer, weights of 0.7 times He's halve it. They have no biases, so that the
weights' gradient is all there is to clip. Without clipping the first ones diverge at the rate at which they learn
with it, and at rates so small that they do not, they are still worse than guessing after the same number of steps.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.lab.claims import Claim, Findings, above, below, near, same
from experiments.lab.drawing import COLOURS, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import LEARNED, grouped, lowest_loss, mean_log_chi, slowest_to, smoothed, training
from gradexp.history.step import Array, Quantity
from gradexp.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUICK = ["seed=0"]
# The vanishing ones get a large rate, which is what would help if anything did.
NETWORKS = {"exploding": (), "vanishing": ("residual=none", "init.gain=0.7", "optimizer.lr=0.1")}
FACTORS = {"exploding": 2.0, "vanishing": 0.7**2}  # of ‖δ‖² per layer
TITLES = {"exploding": "exploding: plain skip connections", "vanishing": "vanishing: he, gain 0.7"}
THRESHOLD = 10
RATE = 0.01
SMALLER = (1e-3, 1e-4, 5e-5, 2e-5, 1e-5, 1e-6)
STYLES = {"unclipped": (COLOURS[1], "-"), "clipped": (COLOURS[0], "--")}

Runs = dict[tuple[str, str], list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Train networks whose gradient explodes and vanishes, with and without clipping, and at smaller rates."""
    runs = {
        (gradient, clipping): lab.runs(*network, f"optimizer.clip_norm={threshold}")
        for gradient, network in NETWORKS.items()
        for clipping, threshold in (("unclipped", "null"), ("clipped", THRESHOLD))
    }
    rates = ",".join(map(str, SMALLER))
    smaller = lab.runs(*NETWORKS["exploding"], "optimizer.clip_norm=null", f"optimizer.lr={rates}")
    return Findings(_claims(runs, smaller), {"pascanu2013": _figure(runs, smaller)})


def _claims(runs: Runs, smaller: list[Result]) -> list[Claim]:
    # sqrt(5 / (64 * 28)) = 0.053 is the standard deviation of one vanishing network's slope.
    claims = [
        near(
            f"{gradient}: log of the factor of ‖δ‖² per layer",
            mean_log_chi(runs[gradient, "unclipped"], 1, 29),  # the first and the last layer have no skip connection
            math.log(factor),
            0.16,
        )
        for gradient, factor in FACTORS.items()
    ]
    unclipped, clipped = runs["exploding", "unclipped"], runs["exploding", "clipped"]
    verdicts = {result.verdict.gradient for result in unclipped if result.verdict}
    budget = clipped[0].config.steps
    pairs = list(zip(unclipped, clipped, strict=True))
    shares = [_first(short, "update") - _first(long, "update") for long, short in pairs]
    deviation = max(
        np.abs(share + math.log10(_norm(result, "weight_grad") / THRESHOLD)).max()
        for share, result in zip(shares, unclipped, strict=True)
    )
    longest = max(_norm(result, "update") for result in clipped) / RATE
    courses = np.array([[smoothed(result) for result in runs["vanishing", clipping]] for clipping in STYLES])
    return [
        *claims,
        same("exploding: gradient, by the verdict of gradexp", ", ".join(sorted(verdicts)), "exploding"),
        below(f"exploding, clipped: steps to loss {LEARNED}", slowest_to(clipped), budget),
        above(
            f"unclipped, {1 + len(SMALLER)} rates: lowest loss in {budget} steps",
            lowest_loss(unclipped + smaller),
            LEARNED,
        ),
        near(f"exploding, clipped to {THRESHOLD}: first update over the rate", longest, THRESHOLD, 0.01),
        below("largest change of a layer's share in it, in decades", deviation, 1e-3),
        above("vanishing, clipped or not: lowest loss", courses.min(), 2.2),
        below("vanishing: largest change of a loss by clipping", np.abs(courses[0] - courses[1]).max(), 1e-3),
    ]


def _first(result: Result, quantity: Quantity) -> Array:
    """Return log10 of a quantity of each layer's weights in the first step."""
    assert result.gradients is not None
    return result.gradients.profile(quantity, 0)


def _norm(result: Result, quantity: Quantity) -> float:
    """Return the joint norm over all layers in the first step."""
    return float(np.sqrt(np.sum(10 ** (2 * _first(result, quantity)))))


def _figure(runs: Runs, smaller: list[Result]) -> "Figure":
    figure, axes = panels(
        [*TITLES.values(), "exploding: first update (one network)"], "training step", "training loss"
    )
    for (gradient, clipping), results in runs.items():
        colour, style = STYLES[clipping]
        for index, result in enumerate(results):
            line: dict[str, Any] = {"linestyle": style, "color": colour, "label": f"_{index}" if index else clipping}
            _draw_losses(axes[list(NETWORKS).index(gradient)], result, line)
            if gradient == "exploding" and not index:
                update = 10 ** _first(result, "update")
                axes[2].semilogy(1 + np.arange(len(update)), update, **line)
    for index, (first, *_) in enumerate(grouped(smaller, lambda config: config.optimizer.lr).values()):
        line = {"linestyle": "-", "color": COLOURS[1], "alpha": 0.4, "linewidth": 1}
        _draw_losses(axes[0], first, {**line, "label": f"_{index}" if index else "unclipped, smaller rates"})
    for panel in axes[:2]:
        panel.set(xscale="log", yscale="log", ylim=(0.5, 5e5))
        guessing(panel)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    axes[2].set(xlabel="layer", ylabel="norm of the update of W")
    return figure


def _draw_losses(panel: "Axes", result: Result, line: dict[str, Any]) -> None:
    """Draw the course of a training, with a cross at the top where it diverges."""
    losses = np.array(training(result).losses)
    losses = losses[np.isfinite(losses)]
    panel.plot(1 + np.arange(len(losses)), losses, **line)
    if len(losses) < result.config.steps:
        cross = {**line, "linestyle": "", "label": "diverged" if line["label"] == "unclipped" else "_"}
        panel.plot(1 + len(losses), 2e5, marker="x", markersize=9, markeredgewidth=2, **cross)
