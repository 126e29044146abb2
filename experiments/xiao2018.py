"""How deep a plain convolutional network can be: as deep as its kernels are isometries on the critical line.

Mean field gives the line: with circular padding convolutions have that of fully connected layers, and beside it
‖δ‖² changes by chi_1 per layer. On it Gaussian kernels keep mean squares only, so that deep linear networks differ
from each other, and stretch some directions at the cost of others. Kernels that are orthogonal at their centre and 0
elsewhere keep every length. The paper trains 10,000 layers; here networks are of 8 and 16 channels, see 8 x 8 digits,
and 100 layers take 40 steps.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.lab.claims import Claim, Findings, above, below, near
from experiments.lab.drawing import COLOURS, courses, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import initial, lowest_loss
from gradexp.plotting import powers_of_ten
from gradexp.runs.result import Result
from gradexp.theory import MeanField, critical_sigma_w2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["depth=200"]
SIGMA_B2 = 2.01e-5
ORDERED, CHAOTIC = 0.95, 1.5  # sigma_w2 below and above the critical 1.05
LINEAR = ("activation=linear", "sigma_b2=null", "dtype=float64", "seeds=4")
TRAINED = ("width=8", "batch_size=32", "steps=40", "depth=100")
LEARNED = 2.0  # a loss; guessing is 2.3


def reproduce(lab: Lab) -> Findings:
    """Measure plain networks on and beside the critical line, and train some."""
    critical = critical_sigma_w2("tanh", SIGMA_B2)
    measured = {
        "critical": lab.run(),
        "ordered": lab.run(f"init.gain={math.sqrt(ORDERED)}"),
        "chaotic": lab.run(f"init.gain={math.sqrt(CHAOTIC)}"),
        "linear": lab.run(*LINEAR, "init.gain=1"),
        "linear, Gaussian": lab.run(*LINEAR, "init=mean_field", "init.gain=1", "init.sigma_w2=1"),
    }
    trained = {
        "delta-orthogonal": lab.run(*TRAINED),
        "Gaussian": lab.run(*TRAINED, "init=mean_field", "init.gain=1", f"init.sigma_w2={critical}"),
    }
    return Findings(_claims(measured, trained), {"xiao2018": _figure(measured, trained)})


def _claims(measured: dict[str, Result], trained: dict[str, Result]) -> list[Claim]:
    config = measured["critical"].config
    layers = config.depth - 1
    ratio = {name: initial(result).first_over_last("output_grad") for name, result in measured.items()}
    beside = {
        sigma_w2: layers / 2 * math.log10(MeanField("tanh", sigma_w2, SIGMA_B2).chi_1)
        for sigma_w2 in (ORDERED, CHAOTIC)
    }
    learned = {name: lowest_loss([result]) for name, result in trained.items()}
    return [
        near("on the line: log10 of the gradient, 1st over last layer", ratio["critical"], 0, 1),
        # 16 channels and a start far from the fixed length.
        near(f"sigma_w2 = {ORDERED}: the same is that of mean field", ratio["ordered"], beside[ORDERED], 2),
        near(f"sigma_w2 = {CHAOTIC}: the same", ratio["chaotic"], beside[CHAOTIC], 3),
        near("linear, delta-orthogonal: the same, exactly", ratio["linear"], 0, 1e-9),
        above(
            "linear, Gaussian: standard deviation of it over 4 networks", _spread(measured["linear, Gaussian"]), 0.1
        ),
        below("trained, delta-orthogonal: lowest loss", learned["delta-orthogonal"], LEARNED),
        below("the same, less that of Gaussian kernels", learned["delta-orthogonal"] - learned["Gaussian"], -0.3),
    ]


def _spread(result: Result) -> float:
    """Return the standard deviation over networks of log10 ‖δ‖, first over last layer."""
    profiles = initial(result).log10["output_grad"][0]
    return float((profiles[:, 0] - profiles[:, -1]).std(ddof=1))


def _figure(measured: dict[str, Result], trained: dict[str, Result]) -> "Figure":
    figure, axes = panels(["at initialisation", "training"], "", "norm of the output gradient ∂L/∂z")
    labels = {
        "critical": r"tanh, $\sigma_w^2$ = 1.05",
        "ordered": r"tanh, $\sigma_w^2$ = 0.95",
        "chaotic": r"tanh, $\sigma_w^2$ = 1.5",
        "linear": "linear",
        "linear, Gaussian": "linear, Gaussian",
    }
    for index, (name, result) in enumerate(measured.items()):
        profile = initial(result).profile("output_grad")
        layers = np.arange(1, len(profile) + 1)
        axes[0].plot(layers, profile, color=COLOURS[index], label=labels[name])
    axes[0].set_xlabel("layer (1 = input side)")
    powers_of_ten(axes[0])
    axes[0].legend(frameon=False, fontsize=9)
    for colour, (name, result) in zip(COLOURS, trained.items(), strict=False):
        courses(axes[1], [result], colour, name)
    guessing(axes[1])
    axes[1].set(xlabel="training step", ylabel="training loss")
    axes[1].legend(frameon=False, fontsize=9)
    return figure
