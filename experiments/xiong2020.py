"""How large the gradient of a transformer is, with its norms behind the branches (post) or inside them (pre).

Behind them the stream has the same length everywhere, and the gradient of the last block's weights does not depend on
the number of blocks L; inside them the stream grows, and the last norm divides that gradient by √L. So post-norm
networks begin with steps that are large near the output, which is why they need a warm-up. The paper's matrices are
square and drawn by Xavier, its query weights 0; here the feedforward half is 4 times as wide inside, and LeCun's
variances of 1 / fan_in give branches the same sizes. A gradient is that of one output direction of length 1, without
the √(log d) that the paper's readout of a vocabulary adds.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.lab.claims import Claim, Findings, above, below, between, near
from experiments.lab.drawing import COLOURS, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import grouped, initial
from gradexp.history.step import Array, Quantity
from gradexp.plotting import powers_of_ten
from gradexp.runs.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUICK = ["depth=6,24", "seeds=8"]
NAMES = {"pre": "norm inside (pre)", "post": "norm behind (post)"}

Runs = dict[str, dict[int, Result]]


def reproduce(lab: Lab) -> Findings:
    """Measure stream and gradients over blocks, in networks of several depths."""
    found = grouped(lab.runs(), lambda config: config.model.norm)
    runs = {str(norm): {result.config.depth: result for result in results} for norm, results in found.items()}
    return Findings(_claims(runs), {"xiong2020": _figure(runs)})


def _claims(runs: Runs) -> list[Claim]:
    deepest = max(runs["pre"])
    blocks = np.arange(1, deepest + 1)
    squares = 100.0 ** _of_blocks(runs["pre"][deepest], "output")
    powers = {norm: _exponent(runs[norm]) for norm in runs}
    ratio = _last_gradient(runs["post"][deepest]) - _last_gradient(runs["pre"][deepest])
    claims = [
        above("pre: stream's mean square over 1 + l/2, the least", float((squares / (1 + blocks / 2)).min()), 1),
        below("pre: stream's mean square over 1 + 3l/2, the most", float((squares / (1 + 1.5 * blocks)).max()), 1),
        # Of the paper's two bounds on what a block adds, between 1/2 and 3/2.
        between("pre: what a block adds to it", float(squares[-1] - squares[0]) / (deepest - 1), 0.5, 1.5),
        near("pre: power of L in the last gradient, -1/2", powers["pre"], -0.5, 0.1),
        near("post: power of L in the last gradient, 0", powers["post"], 0, 0.08),
        above(f"{deepest} blocks: last gradient, post over pre", 10**ratio, math.sqrt(deepest / 2)),
    ]
    for norm in NAMES:
        comparison = runs[norm][deepest].comparison
        assert comparison is not None
        claims.append(near(f"{norm}: log_chi against theory, in standard errors", comparison.z, 0, 3))
    return claims


def _of_blocks(result: Result, quantity: Quantity) -> Array:
    """Return log10 of a quantity at the end of each block."""
    return np.asarray(initial(result).profile(quantity)[2:-1:2])


def _last_gradient(result: Result) -> float:
    """Return log10 of the norm of the gradient of the last block's feedforward weights."""
    return float(_of_blocks(result, "weight_grad")[-1])


def _exponent(results: dict[int, Result]) -> float:
    """Return the power of the number of blocks with which that norm changes."""
    depths = sorted(results)
    return float(np.polyfit(np.log10(depths), [_last_gradient(results[depth]) for depth in depths], 1)[0])


def _figure(runs: Runs) -> "Figure":
    figure, axes = panels(["the stream", "gradient of weights", "the same, last block"], "", "")
    stream, gradients, last = axes
    for colour, (norm, label) in zip(COLOURS, NAMES.items(), strict=False):
        deepest = max(runs[norm])
        result = runs[norm][deepest]
        blocks = np.arange(1, deepest + 1)
        shown: tuple[tuple[Axes, Quantity], ...] = ((stream, "output"), (gradients, "weight_grad"))
        for panel, quantity in shown:
            panel.plot(blocks, _of_blocks(result, quantity), color=colour, linewidth=2, label=label)
            theory = initial(result).theory.get(f"log10_{quantity}")
            if theory is not None:
                panel.plot(blocks, theory[2:-1:2], "--", color="black", linewidth=1)
        depths = sorted(runs[norm])
        last.plot(depths, [_last_gradient(runs[norm][depth]) for depth in depths], "o-", color=colour, label=label)
    stream.plot([], [], "--", color="black", linewidth=1, label="theory")
    stream.set(xlabel="block", ylabel="rms of the stream, norm of the gradient")
    gradients.set(xlabel="block")
    last.set(xscale="log", xlabel="number of blocks")
    last.set_xticks(depths, [str(depth) for depth in depths])
    last.minorticks_off()
    for panel in axes:
        powers_of_ten(panel)
    figure.legend(*stream.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
