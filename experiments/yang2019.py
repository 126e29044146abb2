"""Batch norm makes the gradient of a deep ReLU network explode, and no initialisation helps.

In wide layers and large batches ‖δ‖² grows by π / (π - 1) per layer towards the input; the scale of the weights
cancels. Such networks cannot be trained beyond some depth unless they have skip connections, or activations that are
close to linear; on MNIST the paper finds the limit at about 50 layers. These MLPs see 8 x 8 digits for 150 steps, and
where learning stops depends on that: here 40 layers hardly learn and 60 do not. Narrow ReLU networks of 60 layers
learn little without batch norm too; with it, skip connections or linear layers are cures, as in the paper.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.claims import Claim, Findings, above, below, near
from experiments.drawing import COLOURS, panels
from experiments.lab import Lab
from experiments.runs import WINDOW, grouped, smoothed, steps_to
from gradexp.figures import powers_of_ten
from gradexp.history import mean
from gradexp.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["init=he", "depth=10,60", "seed=0"]
LEARNED = 1.5  # a loss that only a network has that tells most digits apart; guessing has 2.3
DEEP = "depth=60"
RATE = math.log(math.pi / (math.pi - 1))
# Between the layers that still see what the data are like and those in which the cotangent is not yet mixed.
FIRST, LAST = 11, 50
SCHEMES = {
    "he": ("init=he",),
    "xavier": ("init=xavier",),
    "orthogonal": ("init=orthogonal",),
    "he, gain 1/2": ("init=he", "init.gain=0.5"),
    "he, gain 2": ("init=he", "init.gain=2"),
    "he, no batch norm": ("init=he", "normalization=none"),
}
CURED = {"skip connections": "residual=plain", "linear": "activation=linear"}

Runs = dict[str, list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Measure deep networks at initialisation, and train some of several depths, rates and cures."""
    measured = {name: lab.run(*own, DEEP, "seed=0", "seeds=8", "steps=0") for name, own in SCHEMES.items()}
    trained = grouped(lab.runs(), lambda config: f"{config.depth} layers")
    rates = [one for rate in (0.001, 0.1) for one in lab.runs(DEEP, f"optimizer.lr={rate}")]
    cured = {name: lab.runs(DEEP, cure) for name, cure in CURED.items()}
    return Findings(_claims(measured, trained, rates, cured), {"yang2019": _figure(measured, trained, cured)})


def _log_chi(result: Result) -> float:
    """Return the log of the factor of ‖δ‖² per layer, deep inside, averaged over networks."""
    assert result.initial is not None
    found = mean(result.initial.log_chi_per_network(FIRST, LAST))
    return math.nan if found is None else found


def _claims(measured: dict[str, Result], trained: Runs, rates: list[Result], cured: Runs) -> list[Claim]:
    # Width 64 and batches of 64 are off by about 0.02, networks scatter by 0.005.
    claims = [
        near(f"{name}: log of ‖δ‖²'s factor, π/(π-1)", _log_chi(measured[name]), RATE, 0.03)
        for name in ("he", "xavier", "orthogonal")
    ]
    difference = _log_chi(measured["he, gain 2"]) - _log_chi(measured["he, gain 1/2"])
    budget = rates[0].config.steps
    slowest = {name: max(steps_to(one, LEARNED) for one in own) for name, own in (trained | cured).items()}
    # The loss of one that has diverged is nan.
    lowest = min(float(np.nanmin([*smoothed(one), math.inf])) for one in trained["60 layers"] + rates)
    return [
        *claims,
        near("their scale cancels: he, gain 2 less gain 1/2", difference, 0, 1e-5),
        below(f"10 layers learn: steps to loss {LEARNED}", slowest["10 layers"], budget),
        above("60 layers do not, at 3 learning rates: lowest loss", lowest, LEARNED),
        below("60 layers with skip connections learn: steps", slowest["skip connections"], budget),
        below("60 linear layers learn: steps", slowest["linear"], budget),
    ]


def _figure(measured: dict[str, Result], trained: Runs, cured: Runs) -> "Figure":
    figure, axes = panels(["at initialisation", "training", "60 layers, cured"], "training step", "")
    gradients, training, cures = axes
    shown = [name for name in measured if "1/2" not in name]  # a network of gain 1/2 is the same as of gain 2
    for index, name in enumerate(shown):
        history = measured[name].initial
        assert history is not None
        profile = history.profile("output_grad")
        layers = np.arange(1, len(profile) + 1)
        # Those below are wider, as most lie on each other.
        gradients.plot(layers, profile, color=COLOURS[index], linewidth=6 - index, label=name)
    theory = (layers[-1] - layers) * RATE / (2 * math.log(10))
    gradients.plot(layers, theory, "--", color="black", linewidth=1.5, label="theory: √(π/(π-1)) per layer")
    gradients.set(xlabel="layer (1 = input side)", ylabel="norm of the output gradient ∂L/∂z")
    powers_of_ten(gradients)
    for panel, runs in ((training, trained), (cures, {"relu alone": trained["60 layers"], **cured})):
        for colour, (name, results) in zip(COLOURS, runs.items(), strict=False):
            for index, result in enumerate(results):
                course = smoothed(result)
                steps = range(WINDOW, WINDOW + len(course))
                panel.plot(steps, course, color=colour, label=f"_{name}" if index else name)
        panel.axhline(math.log(10), color="black", linewidth=1, linestyle=":", label="guessing")
        panel.set(ylabel="training loss", ylim=(0, 3))
        panel.legend(frameon=False, fontsize=9)
    gradients.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.12))
    return figure
