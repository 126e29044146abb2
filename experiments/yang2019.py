"""Batch norm makes the gradient of a deep ReLU network explode, and no initialisation helps.

In wide layers and large batches ‖δ‖² grows by π / (π - 1) per layer towards the input; the scale of the weights
cancels. Such networks cannot be trained beyond some depth unless they have skip connections, or activations that are
close to linear; on MNIST the paper finds the limit at about 50 layers. These MLPs see 8 x 8 digits for 150 steps, and
where learning stops depends on that: here 40 ReLU layers hardly learn and 60 do not, which alone would not convict
batch norm, as such narrow networks do not learn without it either. Orthogonal tanh layers tell: 60 of them learn
within 25 steps, and with batch norm, in which ‖δ‖² grows as well, get hardly below a loss of 1.5 at any of three
rates. With batch norm skip connections or linear layers are cures, as in the paper.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.lab.claims import Claim, Findings, above, below, near
from experiments.lab.drawing import COLOURS, courses, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import LEARNED, grouped, initial, lowest_loss, mean_log_chi, slowest_to
from gradexp.plotting import powers_of_ten
from gradexp.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["init=he", "depth=10,60", "seed=0"]
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
TANH = ("activation=tanh", "init=orthogonal")
# Name of a network of 60 layers in the figure -> its options.
CONTROL = {"tanh, no batch norm": (*TANH, "normalization=none"), "tanh, batch norm": TANH}
CURED = {"relu, batch norm, skip": ("residual=plain",), "linear, batch norm": ("activation=linear",)}

Runs = dict[str, list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Measure deep networks at initialisation, and train some of several depths, with and without batch norm."""
    measured = {name: lab.run(*options, DEEP, "seed=0", "seeds=8", "steps=0") for name, options in SCHEMES.items()}
    trained = grouped(lab.runs(), lambda config: f"{config.depth} layers")
    deep = {name: lab.runs(DEEP, *options) for name, options in (CONTROL | CURED).items()}
    rates = [result for rate in (0.001, 0.1) for result in lab.runs(DEEP, *TANH, f"optimizer.lr={rate}")]
    return Findings(_claims(measured, trained, deep, rates), {"yang2019": _figure(measured, trained, deep)})


def _claims(measured: dict[str, Result], trained: Runs, deep: Runs, rates: list[Result]) -> list[Claim]:
    chi = {name: mean_log_chi([result], FIRST, LAST) for name, result in measured.items()}
    # Width 64 and batches of 64 are off by about 0.02, networks scatter by 0.005.
    claims = [
        near(f"{name}: log of ‖δ‖²'s factor, π/(π-1)", chi[name], RATE, 0.03)
        for name in ("he", "xavier", "orthogonal")
    ]
    difference = (chi["he, gain 2"] or math.nan) - (chi["he, gain 1/2"] or math.nan)
    budget = trained["10 layers"][0].config.steps
    bare, normalized, skip, linear = deep.values()
    return [
        *claims,
        near("their scale cancels: he, gain 2 less gain 1/2", difference, 0, 1e-5),
        below(f"10 layers learn: steps to loss {LEARNED}", slowest_to(trained["10 layers"]), budget),
        above("60 layers do not: lowest loss", lowest_loss(trained["60 layers"]), LEARNED),
        below("60 orthogonal tanh layers, no batch norm: steps", slowest_to(bare), 50),
        above("the same with batch norm, 3 rates: lowest loss", lowest_loss(normalized + rates), 1),
        below("60 layers with skip connections learn: steps", slowest_to(skip), budget),
        below("60 linear layers learn: steps", slowest_to(linear), budget),
    ]


def _figure(measured: dict[str, Result], trained: Runs, deep: Runs) -> "Figure":
    titles = ["at initialisation", "training, relu with batch norm", "60 layers: control, and cures"]
    figure, (gradients, depths, others) = panels(titles, "training step", "")
    labels = [name for name in measured if "1/2" not in name]  # a network of gain 1/2 is the same as of gain 2
    for index, name in enumerate(labels):
        profile = initial(measured[name]).profile("output_grad")
        layers = np.arange(1, len(profile) + 1)
        # Those below are wider, as most lie on each other.
        gradients.plot(layers, profile, color=COLOURS[index], linewidth=6 - index, label=name)
    theory = (layers[-1] - layers) * RATE / (2 * math.log(10))
    gradients.plot(layers, theory, "--", color="black", linewidth=1.5, label="theory: √(π/(π-1)) per layer")
    gradients.set(xlabel="layer (1 = input side)", ylabel="norm of the output gradient ∂L/∂z")
    powers_of_ten(gradients)
    for panel, runs in ((depths, trained), (others, deep)):
        for colour, (name, results) in zip(COLOURS, runs.items(), strict=False):
            courses(panel, results, colour, name)
        guessing(panel)
        panel.set(ylabel="training loss", ylim=(0, 4))
        panel.legend(frameon=False, fontsize=9, loc="upper right")
    gradients.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 0.12))
    return figure
