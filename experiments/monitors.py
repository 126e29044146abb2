"""Most monitors of gradients say 0 or inf where every element of a gradient is an ordinary float32 number.

A norm in float32 squares first and loses elements below 2.6e-23 or above 1.8e19. Five of the seven monitors take
torch's; the two others report a histogram, which has its norm too. A later torch may repair that
(pytorch/pytorch#193006): what the installed one makes of one constant vector tells what to expect of the five.

In 150 ReLU layers every weight gradient is of the order of 2^(-150/2) with Xavier's weights, and of 2^(150/2) with
weights twice as large. The truth is numpy's norm, in float64, of the same float32 gradients, which one backward pass
of a batch of digits has left. A package that is not installed is replaced by its formula, and the table says so; else
the real one is asked. A semicolon parts what is said of the two networks.
"""

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from experiments.gradient_monitors import MONITORS, Monitor, copy_of, weights
from experiments.lab.claims import Claim, Findings, below, near, same
from experiments.lab.drawing import COLOURS, panels
from experiments.lab.lab import Lab
from gradexp import MLP, GradientProbe
from gradexp.history.step import Array
from gradexp.runs.data import load
from gradexp.runs.result import Result
from gradexp.runs.training import clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUICK: list[str] = []  # the whole takes seconds
OURS = "gradexp GradientProbe"
# What is expected of those that report a histogram: TorchExplorer's bins are 2e-5 wide, or wider.
HISTOGRAMS = {
    "TorchExplorer histogram": ("wrong", "right"),
    "wandb.watch histogram": ("right", "right"),
}
STYLES = {
    "TorchExplorer histogram": (COLOURS[4], "-"),
    "wandb.watch histogram": (COLOURS[2], "-"),
    OURS: (COLOURS[0], ":"),
}

Lists = list[list[float]]  # a number for each layer of the vanishing and of the exploding network
Readings = dict[str, Lists]


def reproduce(lab: Lab) -> Findings:
    """Ask every monitor for the gradients of a vanishing and of an exploding network."""
    networks = [_after_backward(lab.run(f"init.gain={gain}", "save_weights=true")) for gain in (1, 2)]
    truth = [[float(np.linalg.norm(_numpy(weight))) for weight in weights(model)] for model, _ in networks]
    truly = "; ".join(str(sum(not 0 < norm < math.inf for norm in norms)) for norms in truth)
    claims = [same("vanishing; exploding network: layers truly 0 or inf", truly, "0; 0")]
    readings: Readings = {}
    for monitor in MONITORS:
        (vanishing, origin), (exploding, _) = (monitor.read(model) for model, _ in networks)
        readings[monitor.name] = [vanishing, exploding]
        claims.append(same(f"{monitor.name} ({origin})", _judged([vanishing, exploding], truth), _expected(monitor)))
    # All of them that take torch's norm, unless it has been repaired.
    lost = sum("all 0" in _judged(lists, truth) for lists in readings.values())
    expected = 0 if _word_of_torch(1e-30) == "right" else len(MONITORS) - len(HISTOGRAMS)
    claims.append(same("monitors that read 0 in every layer of the vanishing one", lost, expected))
    readings[OURS] = [ours for _, ours in networks]
    claims.append(same(OURS, _judged(readings[OURS], truth), "all right; all right"))
    claims.append(below(f"{OURS}: largest relative error of a layer", _largest_error(readings[OURS], truth), 1e-6))
    return Findings(claims + _of_clipping(networks[1][0]), {"monitors": _figure(readings, truth)})


def _after_backward(result: Result) -> tuple[MLP, list[float]]:
    """Return the network of a run with the gradients of its first batch, and what gradexp's probe says of them."""
    config = result.config
    data = load(config.data, config.width)
    model = MLP([data.input_width, *config.hidden_widths, data.output_width], config.activation, bias=config.bias)
    assert result.weights is not None
    model.load_state_dict(result.weights)
    with GradientProbe(model) as probe:
        output = model(data.x_train[: config.batch_size].float().unsqueeze(0)).squeeze(0)
        F.cross_entropy(output, data.y_train[: config.batch_size]).backward()
        probe.collect()
    return model, [10**log10 for log10 in probe.history.profile("weight_grad")]


def _numpy(weight: nn.Parameter) -> Array:
    assert weight.grad is not None
    return weight.grad.numpy().astype(np.float64).ravel()


def _judged(readings: Lists, truth: Lists) -> str:
    """Return for how many layers a monitor was right to a factor of ten, or what it reported instead."""
    judgements = []
    for network, norms in zip(readings, truth, strict=True):
        words = Counter(map(_word, network, norms))
        judgements.append(
            "all " + str(*words) if len(words) == 1 else ", ".join(f"{n} {word}" for word, n in words.items())
        )
    return "; ".join(judgements)


def _word(reading: float, norm: float) -> str:
    if reading == 0 or not math.isfinite(reading):
        return f"{reading:g}"
    return "right" if norm / 10 < reading < norm * 10 else "wrong"


def _expected(monitor: Monitor) -> str:
    words = HISTOGRAMS.get(monitor.name) or [_word_of_torch(size) for size in (1e-30, 1e30)]
    return "; ".join(f"all {word}" for word in words)


def _word_of_torch(size: float) -> str:
    """Judge what torch's norm says of 64 elements of some size."""
    return _word(float(torch.linalg.vector_norm(torch.full((64,), size))), 8 * size)


def _largest_error(readings: Lists, truth: Lists) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.abs(np.concatenate(readings) / np.concatenate(truth) - 1).max())


def _of_clipping(exploding: nn.Module) -> list[Claim]:
    """Clip the gradients of the exploding network to norm 1, as torch does it and as gradexp does."""
    left = []
    for clipping in (torch.nn.utils.clip_grad_norm_, clip):
        copies = [copy_of(parameter) for parameter in exploding.parameters()]
        clipping(copies, 1.0)
        left.append(float(np.linalg.norm(np.concatenate([_numpy(copy) for copy in copies]))))
    expected = float(_word_of_torch(1e30) == "right")
    return [
        near("torch clip_grad_norm_ to 1: norm left of an exploding one", left[0], expected, 1e-3),
        near("gradexp clip_norm=1: norm left of the same", left[1], 1, 1e-3),
    ]


def _figure(readings: Readings, truth: Lists) -> "Figure":
    titles = ["vanishing: xavier", "exploding: xavier, gain 2"]
    figure, axes = panels(titles, "layer", "norm of the weight gradient ∂L/∂W")
    for index, panel in enumerate(axes):
        _draw(panel, {name: np.array(lists[index]) for name, lists in readings.items()}, np.array(truth[index]))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw(panel: "Axes", readings: dict[str, Array], truth: Array) -> None:
    """Draw the truth, what monitors read, and on a line of its own each reading that is 0 or inf."""
    layers = np.arange(1, len(truth) + 1)
    panel.set_yscale("log")
    panel.plot(layers, truth, color="#BBBBBB", linewidth=9, label="truth")
    for name, (colour, style) in STYLES.items():
        drawable = (readings[name] > 0) & np.isfinite(readings[name])
        panel.plot(layers[drawable], readings[name][drawable], style, color=colour, linewidth=2, label=name)
    for value, place, offset in ((0.0, truth.min() / 1e14, 8), (math.inf, truth.max() * 1e9, -8)):
        lost = [name for name, norms in readings.items() if (norms == value).any()]
        if lost:
            at = layers[np.any([readings[name] == value for name in lost], axis=0)]
            panel.plot(at, np.full(len(at), place), "x", color=COLOURS[1], markevery=3, markersize=5)
            panel.text(1, place, f"{value:g}", transform=panel.get_yaxis_transform(), color=COLOURS[1], va="center")
            text = panel.annotate("\n".join(lost), (layers.mean(), place), (0, offset), textcoords="offset points")
            text.set(color=COLOURS[1], fontsize=9, ha="center", va="bottom" if offset > 0 else "top")
