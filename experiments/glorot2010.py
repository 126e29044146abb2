"""Signal and gradient over five tanh layers, with the standard initialisation and with the normalised one.

The standard one, U(-1/√n, 1/√n), has n Var(W) = 1/3 and loses at least a factor √3 per layer both ways; PyTorch still
draws its linear layers so. The normalised one, of 2 / (fan_in + fan_out), loses what tanh takes only. Yet weight
gradients are flat in both: what the signal loses on its way up, the gradient loses on its way down. The paper's
hidden layers have 1000 units and see shapes, handwritten digits and photographs; these have 500 and see 8 x 8 digits.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.claims import Claim, Findings, above, below
from experiments.drawing import COLOURS, panels
from experiments.lab import Lab
from experiments.runs import grouped, mean_profile, median_steps_to
from gradexp.figures import powers_of_ten
from gradexp.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["width=200", "seed=0,1"]
HIDDEN = 5
NAMES = {"torch_default": "standard", "xavier": "normalised"}
LEARNED = 1.5  # a loss; guessing has 2.3

Runs = dict[str, list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Measure both at initialisation, and train them."""
    runs = grouped(lab.runs(), lambda config: config.init.name)
    return Findings(_claims(runs), {"glorot2010": _figure(runs)})


def _claims(runs: Runs) -> list[Claim]:
    claims = []
    # Slopes of tanh are at most 1, so that a linear layer's factors are the bounds.
    bound = 1 / math.sqrt(3)
    for quantity, what in (("output", "signal, upwards"), ("output_grad", "gradient, downwards")):
        factors = {init: _factor(results, quantity) for init, results in runs.items()}
        claims += [
            below(f"standard, factor per layer of the {what}", factors["torch_default"], bound),
            above("normalised, the same", factors["xavier"], 0.75),
        ]
    for init, results in runs.items():
        # Not of layer 1, which is smaller in both, as it has 64 inputs.
        profile = mean_profile(results, "weight_grad")[1:HIDDEN]
        claims.append(below(f"{NAMES[init]}, decades that weight gradients span", float(np.ptp(profile)), 0.1))
    earlier = median_steps_to(runs["xavier"], LEARNED) / median_steps_to(runs["torch_default"], LEARNED)
    claims.append(below(f"normalised learns earlier: steps to loss {LEARNED} over standard's", earlier, 0.7))
    return claims


def _factor(results: list[Result], quantity: str) -> float:
    """Return the mean factor per hidden layer, in the direction in which the quantity travels."""
    profile = mean_profile(results, quantity)[:HIDDEN]
    decades = profile[-1] - profile[0] if quantity == "output" else profile[0] - profile[-1]
    return float(10 ** (decades / (HIDDEN - 1)))


def _figure(runs: Runs) -> "Figure":
    quantities = {
        "output": "signal: rms of z (Fig. 6)",
        "output_grad": "gradient: norm of ∂L/∂z (Fig. 7)",
        "weight_grad": "norm of ∂L/∂W (Fig. 8)",
    }
    figure, axes = panels(list(quantities.values()), "hidden layer (1 = input)", "size at initialisation")
    layers = np.arange(1, HIDDEN + 1)
    for panel, quantity in zip(axes, quantities, strict=True):
        for index, (init, results) in enumerate(runs.items()):
            assert results[0].initial is not None
            colour, theory = COLOURS[index], results[0].initial.theory[f"log10_{quantity}"]
            panel.plot(layers, mean_profile(results, quantity)[:HIDDEN], "o-", color=colour, label=NAMES[init])
            panel.plot(layers, theory[:HIDDEN], "--", color=colour)
        panel.plot([], [], "--", color="black", label="theory")
        panel.set_ylim(-1.6, 1.1)
        powers_of_ten(panel)
    axes[0].legend(frameon=False)
    return figure
