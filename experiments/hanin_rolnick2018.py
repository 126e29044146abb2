"""Lengths must neither change on average, which the variance of weights decides, nor vary much, which widths decide.

In random ReLU networks the mean of ‖a‖² over networks keeps its size if the variance of weights is 2 / fan_in, and
decays or explodes otherwise. Even then log‖a‖² and log‖δ‖² have a variance over networks that is a sum over hidden
layers, equal or not: about 5 Σ 1 / n in wide ones, 1.3 times that at width 16 and twice at 8. The typical network is
far from the mean, and deep narrow ones do not start to learn. Hanin & Rolnick train on MNIST; here it is 8 x 8
digits, and a network has started once 20 % of its answers in training are right. The variances are those of one
input, and compared with a law that is exact at any width.
"""

import math
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import NullFormatter
from scipy.stats import kendalltau

from experiments.lab.claims import Claim, Findings, above, near
from experiments.lab.drawing import COLOURS, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import WINDOW, grouped, initial, training
from gradexp.config import Config
from gradexp.history.step import Array
from gradexp.networks.inits import CUT_STD
from gradexp.runs.result import Result
from gradexp.theory import layer_law

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK = ["seed=range(0,3)"]
STARTED = 0.2  # share of right answers; guessing has 0.1
NETWORKS, NETWORKS_IF_QUICK = 512, 192  # of each shape and scheme, at initialisation
# Hidden widths that are not all equal: rising, falling and alternating.
SHAPES = [[*range(8, 65, 3)], [*range(64, 7, -3)], [8, 64] * 10]
# Name -> options, and fan_in · Var(W) / 2, the factor of the mean ‖a‖² per layer.
SCHEMES = {
    "he, gain 1.1": (("init=he", "init.gain=1.1"), 1.21),
    "he": (("init=he",), 1.0),
    "he, uniform": (("init=he", "init.distribution=uniform"), 1.0),
    "he, cut at 2 sd": (("init=truncated_normal", "init.corrected=false"), CUT_STD**2),
    "xavier": (("init=xavier",), 0.5),
}
WIDTH, LAYERS = 100, 20  # of the networks for these

Shape = tuple[int, ...]


def reproduce(lab: Lab) -> Findings:
    """Measure many random networks of each scheme and shape, and train some of each shape."""
    count = NETWORKS_IF_QUICK if lab.quick else NETWORKS
    at_start = ("steps=0", "batch_size=1", "seed=0", f"seeds={count}")
    measured, trained = lab.runs(*at_start), lab.runs()
    for widths in SHAPES:
        shape = (f"widths={widths}", f"depth={len(widths) + 1}", "width=64")
        measured += lab.runs(*shape, *at_start)
        trained += lab.runs(*shape)
    networks = {shape: result for shape, [result] in grouped(measured, _shape_of).items()}
    runs = grouped(trained, _shape_of)
    starts = {shape: [_steps_to_start(result) for result in results] for shape, results in runs.items()}
    lengths = {}
    for name, (options, _) in SCHEMES.items():
        square = lab.run(f"width={WIDTH}", f"depth={LAYERS + 2}", *options, *at_start)
        lengths[name] = _log_activation_squares(square)
    claims = [*_on_means(lengths), *_on_spread(networks), *_on_training(starts)]
    return Findings(claims, {"hanin_rolnick2018": _figure(lengths, networks, starts)})


def _shape_of(config: Config) -> Shape:
    return tuple(config.hidden_widths)


def _log_activation_squares(result: Result) -> Array:
    """Return log ‖aˡ‖² for l from 1 to depth - 1, shape ``(network, layer)``, as ‖dl/dWˡ‖ = ‖δˡ‖ ‖aˡ⁻¹‖."""
    step = initial(result).at()
    return _squared(step.without_dead("weight_grad") - step.without_dead("output_grad"))[:, 1:]


def _log_gradient_square(result: Result) -> Array:
    """Return log ‖δ¹‖², shape ``(network,)``; ‖δ‖ is 1 at the output."""
    return _squared(initial(result).at().without_dead("output_grad"))[:, 0]


def _squared(log10: Array) -> Array:
    return np.asarray(2 * math.log(10) * log10)


def _steps_to_start(result: Result) -> float:
    """Return after how many steps enough of the last ten batches' answers were right; inf if they never were."""
    share = np.convolve(training(result).accuracies, np.full(WINDOW, 1 / WINDOW), mode="valid")
    reached = np.flatnonzero(share > STARTED)
    return float(reached[0] + WINDOW) if reached.size else math.inf


def _sum(shape: Shape) -> float:
    return sum(1 / width for width in shape)


def _law(shape: Shape) -> tuple[float, float]:
    """Return mean and variance of log ‖δ¹‖² over random networks, exact at any width."""
    layers = [layer_law(width, width, 2.0, (0.0, 1.0)) for width in shape]
    return sum(layer.mean for layer in layers), sum(layer.variance for layer in layers)


def _on_means(lengths: dict[str, Array]) -> list[Claim]:
    claims, networks = [], len(lengths["he"])
    # A length has a relative variance of exp(5 Σ 1 / n) - 1 over networks; four standard errors of its mean.
    within = 4 * math.sqrt(math.expm1(5 * LAYERS / WIDTH) / networks) / LAYERS
    for name, (_, factor) in SCHEMES.items():
        rate = math.log(_mean_growth(lengths[name])[-1]) / LAYERS
        claims.append(near(f"{name}: log of mean ‖a‖²'s factor", rate, math.log(factor), within))
    return claims


def _on_spread(networks: dict[Shape, Result]) -> list[Claim]:
    claims, count = [], next(iter(networks.values())).config.seeds
    kinds = {
        "equal widths": [shape for shape in networks if len(set(shape)) == 1],
        "unequal widths": [shape for shape in networks if len(set(shape)) > 1],
    }
    for name, shapes in kinds.items():
        ratio = fmean(_variance(networks[shape]) / _law(shape)[1] for shape in shapes)
        # Three standard errors of the variance of one shape, although this is a mean over several: all shapes draw
        # their weights from the same seed, so that their errors may be alike.
        within = 3 * math.sqrt(2 / count)
        claims.append(near(f"{name}: variance of log‖δ¹‖² over the exact law's", ratio, 1, within))
    narrow = (16,) * 39
    slope = float(np.nanmean(_log_gradient_square(networks[narrow]))) / len(narrow)
    mean, variance = (moment / len(narrow) for moment in _law(narrow))
    within = 4 * math.sqrt(variance / len(narrow) / count)
    return [*claims, near("he, width 16: typical log of ‖δ‖²'s factor, exact law", slope, mean, within)]


def _on_training(starts: dict[Shape, list[float]]) -> list[Claim]:
    sums = [_sum(shape) for shape in starts]
    rank = float(kendalltau(sums, [median(steps) for steps in starts.values()]).statistic)
    wide, narrow = (fmean(math.isfinite(steps) for steps in starts[(width,) * 39]) for width in (64, 8))
    return [
        above("steps to start against Σ 1/n: Kendall's rank correlation", rank, 0.6),
        above("40 layers: share that starts, width 64 less 8", wide - narrow, 0.6),
    ]


def _mean_growth(logs: Array) -> Array:
    """Return the mean over networks of ‖aˡ‖² / ‖a¹‖², per layer."""
    return np.asarray(np.nanmean(np.exp(logs - logs[:, :1]), axis=0))


def _variance(result: Result) -> float:
    return float(np.nanvar(_log_gradient_square(result), ddof=1))


def _figure(lengths: dict[str, Array], networks: dict[Shape, Result], starts: dict[Shape, list[float]]) -> "Figure":
    figure, axes = panels(["average length", "spread over networks", "start of training"], "", "")
    means, spread, start = axes
    layers = np.arange(1, LAYERS + 2)
    for colour, (name, logs) in zip(COLOURS, lengths.items(), strict=False):
        under = name == "he"  # two schemes with the same course
        means.plot(layers, _mean_growth(logs), color=colour, linewidth=5 if under else 2, label=name)
        means.plot(layers, SCHEMES[name][1] ** (layers - 1), "--", color="black", linewidth=1)
    means.plot([], [], "--", color="black", linewidth=1, label="fan_in · Var(W) / 2 per layer")
    means.set(yscale="log", xlabel="layer", ylabel="mean ‖a‖² over networks, 1 at layer 1")
    means.legend(frameon=False, fontsize=9)

    sums = np.array(sorted(_sum(shape) for shape in networks))
    spread.plot(sums, 5 * sums, "--", color="black", linewidth=1, label="5 Σ 1 / width")
    never = 1.2 * max((start for steps in starts.values() for start in steps if math.isfinite(start)), default=1)
    for shape, steps in starts.items():
        equal = len(set(shape)) == 1
        style: dict[str, Any] = {
            "color": COLOURS[0 if equal else 1],
            "marker": "o" if equal else "^",
            "linestyle": "",
        }
        spread.plot(_sum(shape), _variance(networks[shape]), **style, label=f"{'' if equal else 'un'}equal widths")
        spread.plot(_sum(shape), _law(shape)[1], "k_", markersize=10, label="exact law")
        start.plot([_sum(shape)] * len(steps), np.minimum(steps, never), **style, alpha=0.6)
    spread.set(yscale="log", ylabel="variance of log ‖δ¹‖² over networks")
    entries = dict(zip(*reversed(spread.get_legend_handles_labels()), strict=True))  # one of each label
    spread.legend(entries.values(), entries, frameon=False, fontsize=9)
    start.axhline(never, color="black", linewidth=1, linestyle=":")
    start.text(0.15, never, "never", va="bottom")
    start.set(ylabel=f"steps to an accuracy of {STARTED:.0%}", ylim=(0, 1.1 * never))
    for panel in (spread, start):
        panel.set(xscale="log", xlabel="Σ 1 / width over hidden layers")
        panel.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"])
        panel.xaxis.set_minor_formatter(NullFormatter())
    return figure
