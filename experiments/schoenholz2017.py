"""How far information and gradients reach into tanh networks, and how deep they can be trained.

Mean field gives two lengths in layers. Towards the input |dL/dW|² changes by exp(-1 / xi_grad) per layer, and the
difference between two inputs is forgotten over xi_c; both lengths diverge at the edge of chaos. The paper finds that
networks on MNIST and CIFAR train up to about 6 xi_c layers. That factor moves with budget and optimizer; the shape
does not. Here networks are narrower (64 units, and 300 for the gradient), see 8 x 8 digits and take 300 steps; of
those beyond 6 xi_c only one learns, of 30 layers at sigma_w2 = 1.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import spearmanr

from experiments.lab.claims import Claim, Findings, above, below, between, near
from experiments.lab.drawing import COLOURS, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import grouped, initial, mean_profile, training
from gradexp.plotting import powers_of_ten
from gradexp.runs.result import Result
from gradexp.theory import MeanField

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUICK = ["depth=10,40", "init.sigma_w2=1.0,1.5,1.76,2.0,4.0"]
SIGMA_B2 = 0.05
# Networks in which the gradient is measured, and the layers between which: after a start that depends on the input.
PROFILE = ("init.sigma_w2=1.0,1.5,2.5,4.0", "width=300", "steps=0", "seed=0", "seeds=4")
DEPTH, QUICK_DEPTH, FIRST = 240, 120, 20
REACH = 6  # xi_c

Map = dict[tuple[int, float], Result]
Profiles = dict[float, list[Result]]


def reproduce(lab: Lab) -> Findings:
    """Measure the gradient of weights over layers, and train over depth and variance."""
    depth = QUICK_DEPTH if lab.quick else DEPTH
    profiles = grouped(lab.runs(*PROFILE, f"depth={depth}"), lambda config: config.init.sigma_w2 or 0.0)
    trained = {(r.config.depth, r.config.init.sigma_w2 or 0.0): r for r in lab.runs()}
    return Findings(_claims(profiles, trained), {"schoenholz2017": _figure(profiles, trained)})


def _claims(profiles: Profiles, trained: Map) -> list[Claim]:
    claims = []
    for sigma_w2, results in profiles.items():
        profile = mean_profile(results, "weight_grad")
        layers = len(profile) - 1 - FIRST
        slope = 2 * math.log(10) * float(profile[FIRST - 1] - profile[-2]) / layers
        expected = -1 / MeanField("tanh", sigma_w2, SIGMA_B2).xi_grad
        # 0.01 for terms of order 1 / width, and three standard errors over 4 networks of 300 units and 100 layers.
        claims.append(near(f"sigma_w2 = {sigma_w2:g}: slope of log ‖∂L/∂W‖² is -1/xi_grad", slope, expected, 0.03))
    accuracies = {key: _accuracy(result) for key, result in trained.items()}
    lengths = {(depth, w2): depth / MeanField("tanh", w2, SIGMA_B2).xi_c for depth, w2 in trained}
    shallow = [accuracy for key, accuracy in accuracies.items() if lengths[key] < REACH / 2]
    deep = [accuracy for key, accuracy in accuracies.items() if lengths[key] > REACH]
    rank = float(spearmanr(list(lengths.values()), list(accuracies.values())).statistic)
    of_40 = {w2: accuracy for (depth, w2), accuracy in accuracies.items() if depth == 40}
    return [
        *claims,
        above(f"depth below {REACH // 2} xi_c: mean accuracy", float(np.mean(shallow)), 0.8),
        below(f"depth above {REACH} xi_c: mean accuracy", float(np.mean(deep)), 0.5),
        below("accuracy against depth / xi_c: rank correlation", rank, -0.4),
        between(
            "40 layers: sigma_w2 of the best, about the edge 1.76", max(of_40, key=lambda w2: of_40[w2]), 1.25, 2
        ),
    ]


def _accuracy(result: Result) -> float:
    """Return the accuracy in training; a network that diverged guesses."""
    accuracy = training(result).train_accuracy
    return 0.1 if accuracy is None else accuracy


def _figure(profiles: Profiles, trained: Map) -> "Figure":
    figure, axes = panels(["gradient of the weights", "accuracy after 300 steps"], "", "norm of ∂L/∂W")
    for index, (sigma_w2, results) in enumerate(profiles.items()):
        profile, theory = mean_profile(results, "weight_grad"), initial(results[0]).theory["log10_weight_grad"]
        layers = np.arange(1, len(profile))
        label = rf"$\sigma_w^2$ = {sigma_w2:g}"
        axes[0].plot(layers, profile[:-1], color=COLOURS[index], linewidth=2, label=label)
        axes[0].plot(layers, theory[:-1], "--", color="black", linewidth=1)
    axes[0].plot([], [], "--", color="black", linewidth=1, label="theory")
    axes[0].set_xlabel("layer (1 = input side)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    powers_of_ten(axes[0])
    _draw_map(axes[1], trained)
    return figure


def _draw_map(axes: "Axes", trained: Map) -> None:
    """Draw the accuracy over variance and depth as tiles, and the reach of information."""
    depths, variances = sorted({key[0] for key in trained}), sorted({key[1] for key in trained})
    tiles = np.array([[_accuracy(trained[depth, w2]) for w2 in variances] for depth in depths])
    mesh = axes.pcolormesh(_edges(variances), _edges(depths), tiles, vmin=0, vmax=1, cmap="cividis")
    fine = np.linspace(_edges(variances)[0], _edges(variances)[-1], 200)
    reach = [REACH * MeanField("tanh", float(w2), SIGMA_B2).xi_c for w2 in fine]
    axes.plot(fine, reach, "--", color="white", linewidth=2.5)
    axes.set(ylim=(_edges(depths)[0], _edges(depths)[-1]), xlabel=r"$\sigma_w^2$ = fan_in · Var(W)", ylabel="depth")
    axes.text(fine[-8], reach[-8] + 2, r"$6\,\xi_c$", color="white", ha="right", va="bottom")
    axes.grid(visible=False)
    assert axes.figure is not None
    axes.figure.colorbar(mesh, ax=axes)


def _edges(values: list[float] | list[int]) -> np.ndarray:
    """Return the borders of tiles about these values."""
    middles = (np.array(values[1:]) + np.array(values[:-1])) / 2
    return np.array([values[0] - (middles[0] - values[0]), *middles, values[-1] + (values[-1] - middles[-1])])
