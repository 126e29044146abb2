"""Clipping the norm of the gradient lets networks learn whose gradient explodes, and does nothing where it vanishes.

Clipped to the norm θ, a gradient g becomes g min(1, θ / ‖g‖): a shorter step in the same direction, of which all
layers keep their shares. A gradient that has vanished is short already. The paper's networks are recurrent, and may
explode where the recurrent weight has a singular value that is too large; these are MLPs of 30 ReLU layers, with
weights larger and smaller than He's. They have no biases, so that the weights' gradient is all there is to clip.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.claims import Claim, Findings, above, below, near, same
from experiments.drawing import COLOURS, panels
from experiments.lab import Lab
from experiments.runs import mean_log_chi, smoothed, steps_to
from gradexp.history import Array
from gradexp.result import Result
from gradexp.theory import predict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUICK = ["seed=0"]
GAINS = {"exploding": 1.2, "vanishing": 0.7}
THRESHOLDS = {"unclipped": "null", "clipped": "1"}
RATE = 0.1
LEARNED = 1.5  # a loss that only a network has that tells most digits apart
GUESSING = math.log(10)
STYLES = {"unclipped": (COLOURS[1], "-"), "clipped": (COLOURS[0], "--")}

Runs = dict[tuple[str, str], list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Train networks with too large and with too small weights, each with and without clipping."""
    runs = {
        (gradient, clipping): lab.runs(f"init.gain={gain}", f"optimizer.clip_norm={threshold}")
        for gradient, gain in GAINS.items()
        for clipping, threshold in THRESHOLDS.items()
    }
    return Findings(_claims(runs), {"pascanu2013": _figure(runs)})


def _claims(runs: Runs) -> list[Claim]:
    # sqrt(5 / (64 * 29)) = 0.052 is the standard deviation of one network's slope.
    claims = [
        near(
            f"{gradient}: log of the factor of ‖δ‖² per layer",
            mean_log_chi(runs[gradient, "unclipped"]),
            predict("relu", sigma_w2=2 * gain**2, width=64, depth=30).log_chi or math.nan,
            0.16,
        )
        for gradient, gain in GAINS.items()
    ]
    unclipped, clipped = runs["exploding", "unclipped"], runs["exploding", "clipped"]
    vanishing = list(zip(runs["vanishing", "unclipped"], runs["vanishing", "clipped"], strict=True))
    norms = [_norm(result, "weight_grad") for result in unclipped]
    ratios = [
        _first(short, "update") - _first(long, "update") for long, short in zip(unclipped, clipped, strict=True)
    ]
    deviation = max(np.abs(ratio + math.log10(norm)).max() for ratio, norm in zip(ratios, norms, strict=True))
    courses = np.array([[smoothed(own) for own in pair] for pair in vanishing])
    slowest = max(steps_to(own, LEARNED) for own in clipped)
    learned = sum(steps_to(own, LEARNED) < math.inf for own in unclipped)
    longest = max(_norm(own, "update") for own in clipped) / RATE
    return [
        *claims,
        above("exploding: norm of the first gradient", min(norms), 30),
        same("exploding, unclipped: networks that learn", learned, 0),
        below(f"exploding, clipped: steps to loss {LEARNED}", slowest, 600),
        near("exploding, clipped to 1: first update over the rate", longest, 1, 1e-3),
        below("largest change of a layer's share in it, in decades", deviation, 1e-3),
        above("vanishing, clipped or not: lowest loss", courses.min(), 2.2),
        below("vanishing: largest change of a loss by clipping", np.abs(courses[:, 0] - courses[:, 1]).max(), 1e-3),
    ]


def _first(result: Result, quantity: str) -> Array:
    """Return log10 of a quantity of each layer's weights in the first step."""
    assert result.gradients is not None
    return result.gradients.profile(quantity, 0)


def _norm(result: Result, quantity: str) -> float:
    """Return the norm of all layers' together, in the first step."""
    return float(np.sqrt(np.sum(10 ** (2 * _first(result, quantity)))))


def _losses(result: Result) -> Array:
    assert result.training is not None
    return np.array(result.training.losses)


def _figure(runs: Runs) -> "Figure":
    titles = [f"{gradient}: he, gain {gain:g}" for gradient, gain in GAINS.items()]
    figure, axes = panels([*titles, "exploding: first update (one network)"], "training step", "training loss")
    for (gradient, clipping), results in runs.items():
        colour, style = STYLES[clipping]
        for index, result in enumerate(results):
            line = {"linestyle": style, "color": colour, "label": f"_{index}" if index else clipping}
            _draw_losses(axes[list(GAINS).index(gradient)], result, line)
            if gradient == "exploding" and not index:
                update = 10 ** _first(result, "update")
                axes[2].semilogy(1 + np.arange(len(update)), update, **line)
    for panel in axes[:2]:
        panel.set(xscale="log", yscale="log", ylim=(0.5, 2e5))
        panel.axhline(GUESSING, color="black", linewidth=1, linestyle=":", label="guessing")
    axes[0].legend(frameon=False)
    axes[2].set(xlabel="layer", ylabel="norm of the update of W")
    return figure


def _draw_losses(panel: "Axes", result: Result, line: dict[str, Any]) -> None:
    """Draw the course of a training, with a cross at the top where it diverges."""
    losses = _losses(result)
    losses = losses[np.isfinite(losses)]
    panel.plot(1 + np.arange(len(losses)), losses, **line)
    if len(losses) < result.config.steps:
        label = "_" if line["label"].startswith("_") else "diverged"
        panel.plot(1 + len(losses), 1e5, "x", color=line["color"], markersize=9, markeredgewidth=2, label=label)
