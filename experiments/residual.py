"""Residual branches must be scaled down with depth, or start at 0, if many layers are to learn without normalisation.

Beside a skip connection a ReLU branch with He's weights and factor a multiplies ‖δ‖² by 1 + a². With a = 1 it doubles
in every layer. What has to stay bounded is the product over layers, and with it Σ a² (Hanin & Rolnick ask for more, a
bounded Σ a). So a = 1 / √L leaves a factor of e over L layers, and a learned a that starts at 0 (SkipInit, ReZero)
none at all; Fixup scales branches by depth too. In most of the papers' networks a branch holds several layers; here
it is one layer of an MLP that sees 8 x 8 digits. Accuracies in the first steps are compared at one rate, 0.01; plain
branches fall there because 30 layers of them and more diverge at it; 100 do not learn at smaller rates either.
"""

import math
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from experiments.lab.claims import Claim, Findings, above, below, near, same
from experiments.lab.drawing import COLOURS, courses, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import LEARNED, grouped, initial, mean_log_chi, slowest_to, steps_to, training
from gradexp.plotting import powers_of_ten
from gradexp.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["depth=10,100", "seed=range(0,2)"]
DEPTH = 100
BLOCKS = DEPTH - 2  # the first and the last layer have no skip connection
EARLY = 50  # steps
# Name of a scaling -> the factor of ‖δ‖² per layer in a wide network.
FACTORS = {"plain": 2.0, "depth": 1 + 1 / DEPTH, "zero": 1.0}
LABELS = {"plain": "branch · 1", "depth": "branch · 1 / √depth", "zero": "branch · learned, from 0"}

Runs = dict[str, dict[int, list[Result]]]


def reproduce(lab: Lab) -> Findings:
    """Measure deep networks with each scaling at initialisation, and train some of several depths and rates."""
    measured, trained = {}, {}
    for name in FACTORS:
        residual = f"residual={name}"
        measured[name] = lab.run(residual, f"depth={DEPTH}", "width=128", "seed=0", "seeds=16", "steps=0")
        trained[name] = grouped(lab.runs(residual), lambda config: config.depth)
    plain = [
        result
        for rate in (1e-4, 1e-3, 0.1)
        for result in lab.runs("residual=plain", f"depth={DEPTH}", f"optimizer.lr={rate}")
    ]
    claims = [*_on_gradients(measured), *_on_training(trained, plain)]
    return Findings(claims, {"residual": _figure(measured, trained)})


def _log_factor(result: Result) -> float:
    """Return the log of the factor of ‖δ‖² over all residual layers, averaged over networks."""
    per_layer = mean_log_chi([result], 1, BLOCKS + 1)
    return math.nan if per_layer is None else per_layer * BLOCKS


def _early_accuracy(result: Result) -> float:
    """Return the share of right answers in the first steps; a network that has diverged is one that guesses."""
    course = training(result)
    shares = course.accuracies[:EARLY] if course.diverged_at is None else []
    return fmean(shares or [0.1])


def _learned(result: Result) -> bool:
    return math.isfinite(steps_to(result))


def _on_gradients(measured: dict[str, Result]) -> list[Claim]:
    # Typical networks here grow less than the mean: by 0.01 per plain branch, by 0.04 over all scaled ones.
    logs = {name: _log_factor(result) for name, result in measured.items()}
    e = BLOCKS * math.log(FACTORS["depth"])
    return [
        near("plain: log of ‖δ‖²'s factor per layer, 2", logs["plain"] / BLOCKS, math.log(2), 0.03),
        near(f"1/√depth: log of it over all {BLOCKS} branches, about e", logs["depth"], e, 0.15),
        near("from 0: log of it over all branches, 1", logs["zero"], 0, 1e-9),
    ]


def _on_training(trained: Runs, plain: list[Result]) -> list[Claim]:
    early = {
        name: {depth: fmean(map(_early_accuracy, results)) for depth, results in runs.items()}
        for name, runs in trained.items()
    }
    deepest = max(trained["plain"])
    plain = plain + trained["plain"][DEPTH]
    budget = plain[0].config.steps
    claims = [
        same(f"plain, {DEPTH} layers: networks that learn, at 4 rates", sum(map(_learned, plain)), 0),
        above(
            f"plain: accuracy at first, 10 less {deepest} layers", early["plain"][10] - early["plain"][deepest], 0.2
        ),
    ]
    for name, text in (("depth", "1/√depth"), ("zero", "from 0")):
        slowest = slowest_to(trained[name][deepest])
        fall = early[name][10] - early[name][deepest]
        claims += [
            below(f"{text}: {deepest} layers learn: steps to loss {LEARNED:g}", slowest, budget),
            below(f"{text}: accuracy at first, 10 less {deepest} layers", fall, 0.05),
        ]
    return claims


def _figure(measured: dict[str, Result], trained: Runs) -> "Figure":
    figure, axes = panels(
        [f"{DEPTH} layers at initialisation", f"training of {DEPTH} layers", f"accuracy in the first {EARLY} steps"],
        "",
        "",
    )
    gradients, losses, early = axes
    layers = np.arange(1, DEPTH + 1)
    for colour, (name, label) in zip(COLOURS, LABELS.items(), strict=False):
        profile = initial(measured[name]).profile("output_grad")
        gradients.plot(layers, profile, color=colour, linewidth=2, label=label)
        gradients.plot(
            layers, (BLOCKS + 1 - layers).clip(0) * math.log10(FACTORS[name]) / 2, "--", color="black", linewidth=1
        )
        courses(losses, trained[name][DEPTH], colour, label)
        depths = sorted(trained[name])
        accuracy = [fmean(map(_early_accuracy, trained[name][depth])) for depth in depths]
        early.plot(depths, accuracy, "o-", color=colour, label=label)
    gradients.plot([], [], "--", color="black", linewidth=1, label="theory, infinite width")
    gradients.set(xlabel="layer (1 = input side)", ylabel="norm of the output gradient ∂L/∂z")
    powers_of_ten(gradients)
    gradients.legend(frameon=False, fontsize=9)
    guessing(losses)
    ends = trained["plain"][DEPTH][0].config.steps
    losses.text(ends, math.log(10), "guessing", ha="right", va="bottom", fontsize=9)
    if all(training(result).diverged_at is not None for result in trained["plain"][DEPTH]):
        losses.text(ends, 2.8, "branch · 1: diverges at once", ha="right", color=COLOURS[0])
    losses.set(xlabel="training step", ylabel="training loss", ylim=(0, 3))
    early.axhline(0.1, color="black", linewidth=1, linestyle=":")
    early.set(xscale="log", xlabel="layers", ylabel="mean accuracy", ylim=(0, 1))
    early.set_xticks(depths, [str(depth) for depth in depths])
    early.minorticks_off()
    return figure
