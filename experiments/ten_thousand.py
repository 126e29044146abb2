"""Ten thousand layers, measured exactly: the lesson's linear ones, and tanh on and beside the critical line.

On the line, with orthogonal weights, 10,000 layers let the gradient through; Xiao et al. trained as deep a network of
convolutions. Beside it the gradient loses 114 powers of ten or wins 77. In the linear networks the expected sizes are
powers of ten that no float64 holds.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.lab.claims import Claim, Findings, between, near, same
from experiments.lab.drawing import COLOURS, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import initial
from gradexp.history.history import History
from gradexp.plotting import powers_of_ten
from gradexp.theory import MeanField, critical_sigma_w2

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["width=16"]
LINEAR = ("activation=linear", "data=ones", "width=2", "dtype=float64", "init=identity", "sigma_b2=null")
SIGMA_B2 = 2.01e-5
ORDERED, CHAOTIC = 0.95, 1.5  # sigma_w2 below and above the critical 1.05


def reproduce(lab: Lab) -> Findings:
    """Measure networks of 10,000 layers at initialisation."""
    critical = critical_sigma_w2("tanh", SIGMA_B2)
    gains = {"ordered": math.sqrt(ORDERED), "critical": math.sqrt(critical), "chaotic": math.sqrt(CHAOTIC)}
    networks = {name: _measure(lab, f"init.gain={gain}") for name, gain in gains.items()}
    for scale in (0.5, 1.5):
        networks[f"{scale} I"] = _measure(lab, *LINEAR, f"init.gain={scale}")
    return Findings(_claims(networks), {"ten_thousand": _figure(networks)})


def _measure(lab: Lab, *overrides: str) -> History:
    return initial(lab.run(*overrides))


def _claims(networks: dict[str, History]) -> list[Claim]:
    ratio = {name: network.first_over_last("output_grad") for name, network in networks.items()}
    output = {name: float(network.profile("output")[-1]) for name, network in networks.items()}
    ordered, chaotic = (
        9_999 / 2 * math.log10(MeanField("tanh", sigma_w2, SIGMA_B2).chi_1) for sigma_w2 in (ORDERED, CHAOTIC)
    )
    return [
        near("0.5 I: log10 of the output is 10000 log10 0.5", output["0.5 I"], 10_000 * math.log10(0.5), 1e-7),
        near("1.5 I: log10 of the output is 10000 log10 1.5", output["1.5 I"], 10_000 * math.log10(1.5), 1e-7),
        near("0.5 I: log10 of the gradient, 1st over last", ratio["0.5 I"], 9_999 * math.log10(0.5), 1e-7),
        # 2^-150 is half of the smallest float32 and rounds to 0; 1.5^219 is the first power above 2^128.
        same("0.5 I: outputs are 0 in float32 from layer", _fails(networks["0.5 I"], overflow=False), 150),
        same("1.5 I: outputs are inf in float32 from layer", _fails(networks["1.5 I"], overflow=True), 219),
        between("tanh on the line: log10 of the gradient, 1st over last", ratio["critical"], -3, 3),
        near(f"tanh, sigma_w2 = {ORDERED} instead of 1.05: the same", ratio["ordered"], ordered, 3),
        # Narrow networks explode less than mean field has it: by 77 powers of ten at width 64 and by 51 at width 16.
        between(f"tanh, sigma_w2 = {CHAOTIC}: the same", ratio["chaotic"], 40, math.ceil(chaotic)),
    ]


def _fails(network: History, overflow: bool) -> int | None:
    return network.failing_layer("output", "float32", overflow)


def _figure(networks: dict[str, History]) -> "Figure":
    titles = ["tanh, orthogonal", "linear, λ I"]
    figure, axes = panels(titles, "layer (1 = input side)", "norm of the output gradient ∂L/∂z")
    labels = {
        "ordered": r"$\sigma_w^2$ = 0.95",
        "critical": r"$\sigma_w^2$ = 1.05",
        "chaotic": r"$\sigma_w^2$ = 1.5",
    }
    for index, (name, network) in enumerate(networks.items()):
        panel = axes[0 if name in labels else 1]
        layers = np.arange(1, network.depth + 1)
        panel.plot(
            layers, network.profile("output_grad"), color=COLOURS[index], label=labels.get(name, f"λ = {name[:3]}")
        )
    for panel in axes:
        powers_of_ten(panel)
        panel.legend(frameon=False, loc="lower right")
    return figure
