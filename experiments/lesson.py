"""The lesson this project began with, number by number: 150 layers of 1.5 I and 0.5 I, their symptoms and the cure.

The lesson multiplies X = (1, 1) by λ I in every layer and concludes that signal and gradient grow or shrink as λ^L.
That is right; some of the numbers it prints are not, and some of what it says about networks holds for this one only.
``lesson.md`` tells the whole story. Expected values here are exact: powers of rational numbers, or a fixed point.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import digamma

from experiments.claims import Claim, Findings, above, below, near, number, same
from experiments.drawing import COLOURS, panels
from experiments.lab import Lab
from experiments.runs import smoothed
from gradexp.figures import powers_of_ten, weight_scale_figure
from gradexp.history import STATUSES, Array, limits
from gradexp.plane import weight_scales
from gradexp.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUICK: list[str] = []

ROWS = (1, 2, 3, 10, 50, 150)
# What the lesson prints where that is wrong: (λ, power) -> its number.
PRINTED = {
    ("1.5", 150): "3.7e26",
    ("1.5", 149): "3.7e26",
    ("1.1", 152): "2.3e6",
    ("0.9", 152): "7.3e-8",
    ("1.1", 150): "2.28e6",
    ("0.9", 150): "7.30e-8",
}
# Within three powers of ten over 150 layers: from 10^(-3/149) = 0.955 to 10^(3/149) = 1.047.
WINDOW = ((0.95, "vanishing"), (0.96, "stable"), (1.04, "stable"), (1.05, "exploding"))
# Networks that are no λ I: the preset's options are taken back.
REAL = ("data=digits", "width=128", "dtype=float32", "init.gain=1")


@dataclass(frozen=True)
class Training:
    """A real training: what it is called in the figure, and what came of it."""

    label: str
    result: Result

    def share_changed(self, layer: int) -> float:
        """Return log10 of ‖update‖ / ‖weight‖ of a layer in the first step, -inf if no weight has changed."""
        gradients = self.result.gradients
        assert gradients is not None
        if STATUSES[gradients.status["update"][0, 0, layer - 1]] == "zero":
            return -math.inf
        return float((gradients.log10["update"] - gradients.log10["weight"])[0, 0, layer - 1])


def reproduce(lab: Lab) -> Findings:
    """Compute the lesson's tables, try what it says on real networks, and cure them."""
    chains = {scale: lab.run(f"init.gain={scale}") for scale in ("1.5", "1.1", "1.0", "0.9", "0.5")}
    exploding = Training(
        "exploding: relu, 60 layers,\nhe with gain 1.5",
        lab.run(*REAL, "activation=relu", "init=he", "init.gain=1.5", "depth=60", "steps=100"),
    )
    vanishing = Training(
        "vanishing: tanh, 50 layers,\n" r"$\sigma_w^2$ = 0.5, $\sigma_b^2$ = 0.05",
        lab.run(*REAL, "activation=tanh", "init=mean_field", "init.sigma_w2=0.5", "sigma_b2=0.05", "depth=50",
                "steps=100"),
    )  # fmt: skip
    cured = Training(
        "cured: tanh, 150 layers,\northogonal", lab.run(*REAL, "activation=tanh", "init=orthogonal", "steps=100")
    )
    claims = [
        *_tables(lab, chains),
        *_statements(lab, chains),
        *_symptoms(exploding, vanishing),
        *_cures(lab, cured),
    ]
    figures = {
        "lesson": _chain_figure(chains),
        "lesson_critical_region": _critical_region(lab),
        "lesson_symptoms": _symptom_figure([exploding, vanishing, cured]),
        "lesson_weight_gradients": _weight_gradient_figure(chains["0.5"], vanishing.result),
    }
    return Findings(claims, figures)


def _tables(lab: Lab, chains: dict[str, Result]) -> list[Claim]:
    """Compare sizes over layers with exact powers."""
    claims = []
    for scale in ("1.5", "0.5"):
        outputs = _profile(chains[scale], "output")
        for layer in ROWS:
            claims.append(_power(f"{scale} I, output of layer {layer}", scale, layer, outputs[layer - 1]))
    # The gradient passes one matrix less than the output, as the cotangent stands at the last layer's output.
    claims.append(_power("1.5 I, gradient at layer 1 over layer 150", "1.5", 149, _ratio(chains["1.5"])))
    for power in (150, 152):
        for scale in ("1.1", "0.9"):
            result = lab.run(f"init.gain={scale}", f"depth={power + 1}")
            claims.append(_power(f"{scale} I, gradient over {power} layers", scale, power, _ratio(result)))
    zero = chains["0.5"].initial
    assert zero is not None
    gone = zero.failing_layer("output", "float32", overflow=False)
    claims.append(same("0.5 I, first layer whose output is 0 in float32", gone, 150))
    return claims


def _power(text: str, scale: str, power: int, measured: float) -> Claim:
    """Claim that log10 of a size is that of an exact power, to 9 digits."""
    exact = Fraction(scale) ** power
    expected = math.log10(exact.numerator) - math.log10(exact.denominator)
    printed = PRINTED.get((scale, power))
    note = f" (the lesson prints {printed})" if printed else ""
    return Claim(text + note, number(10**measured), number(float(exact)), abs(measured - expected) < 1e-9)


def _statements(lab: Lab, chains: dict[str, Result]) -> list[Claim]:
    """Try what the lesson says of networks in general."""
    fitted = 10 ** float(np.polyfit(np.arange(1, 151), _profile(chains["1.5"], "output"), 1)[0])
    spread = float(np.ptp(_profile(chains["0.5"], "weight_grad")))
    tanh = lab.run("activation=tanh").initial
    sigmoid = lab.run(*REAL, "activation=sigmoid", "init=xavier", "depth=50", "steps=0").initial
    gaussian = lab.run(*REAL, "activation=linear", "init=lecun", "steps=0", "seeds=32").initial
    assert tanh is not None
    assert sigmoid is not None
    assert gaussian is not None
    fixed_point = 1.0
    for _ in range(200):
        fixed_point = math.tanh(1.5 * fixed_point)
    shrinks = 2 * math.log(1.5 * (1 - fixed_point**2))
    # Mean and standard error of log(χ² / n) with n = 128 degrees of freedom, over 149 layers of 32 networks.
    drift, error = digamma(64) - math.log(64), math.sqrt(2 / 128 / 149 / 32)
    return [
        near("1.5 I: λ of λ^L, fitted to 150 layers", fitted, 1.5, 1e-9),
        *(
            same(f"{scale} I: gradient", _verdict(lab.run(f"init.gain={scale}")), expected)
            for scale, expected in WINDOW
        ),
        near("0.5 I: weight gradients of all layers are equal, decades", spread, 0, 1e-9),
        near("tanh(1.5 I) does not explode: log factor of ‖δ‖²", tanh.log_chi(50, 100), shrinks, 1e-6),
        near("Gaussian of std 1/√n is critical: log factor of ‖δ‖²", gaussian.log_chi(), float(drift), 4 * error),
        near("xavier and sigmoid: log factor of ‖δ‖²", sigmoid.log_chi(), math.log(0.0557207), 0.1),
    ]


def _symptoms(exploding: Training, vanishing: Training) -> list[Claim]:
    """Look for both tables of symptoms in real trainings."""
    result = exploding.result
    assert result.training is not None
    depth = vanishing.result.config.depth
    steady = smoothed(vanishing.result)
    return [
        same("exploding: verdict", _verdict(result), "exploding, diverged"),
        above("exploding: huge updates, first step over weight", 10 ** exploding.share_changed(1), 1),
        below("exploding: NaN loss, at step", result.training.diverged_at, 5),
        same("vanishing: verdict", _verdict(vanishing.result), "vanishing, stuck"),
        below("vanishing: early layers unchanged, update over weight", 10 ** vanishing.share_changed(1), 1e-8),
        above("vanishing: the last layer does move", 10 ** vanishing.share_changed(depth), 1e-4),
        near("vanishing: plateau, last loss is that of guessing", float(steady[-1]), math.log(10), 0.05),
    ]


def _cures(lab: Lab, cured: Training) -> list[Claim]:
    """Try the lesson's cures, on the gradient and on training."""
    claims = []
    for init, activation in (("he", "relu"), ("xavier", "tanh")):
        options = (*REAL, f"init={init}", f"activation={activation}")
        deep = lab.run(*options, "steps=0")
        learned = lab.run(*options, "depth=30", "steps=300")
        claims.append(same(f"cure {init} for {activation}, 150 layers: gradient", _verdict(deep), "stable"))
        claims.append(above(f"cure {init} for {activation}, 30 layers: test accuracy", _accuracy(learned), 0.7))
    claims.append(above("cure orthogonal for tanh, 150 layers: test accuracy", _accuracy(cured.result), 0.7))
    return claims


def _profile(result: Result, quantity: str) -> Array:
    assert result.initial is not None
    return result.initial.profile(quantity)


def _ratio(result: Result) -> float:
    assert result.initial is not None
    return result.initial.first_over_last("output_grad") or 0.0


def _verdict(result: Result) -> str:
    assert result.verdict is not None
    gradient, training = result.verdict.gradient, result.verdict.training
    return gradient if training == "none" else f"{gradient}, {training}"


def _accuracy(result: Result) -> float | None:
    assert result.training is not None
    return result.training.tests[-1][2]


def _chain_figure(chains: dict[str, Result]) -> "Figure":
    """Draw how the gradient travels through 150 layers of λ I."""
    figure, [axes] = panels(["150 layers of λ I"], "layer (1 = input side)", "norm of the output gradient ∂L/∂z")
    layers = np.arange(1, 151)
    for index, (scale, result) in enumerate(chains.items()):
        axes.plot(layers, _profile(result, "output_grad"), color=COLOURS[index], linewidth=2, label=f"λ = {scale}")
    smallest, _ = limits("float32")
    axes.axhspan(smallest - 8, smallest, color="#888888", alpha=0.25, linewidth=0)
    axes.text(150, smallest - 4, "0 in float32", ha="right", va="center")
    axes.set_ylim(smallest - 8, 30)
    powers_of_ten(axes)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.13))
    return figure


def _critical_region(lab: Lab) -> "Figure":
    """Draw the window of weight scales in which a gradient survives 150 layers."""
    lines, markers = np.geomspace(0.5, 2, 41), np.geomspace(0.5, 2, 9)

    def advance(done: int, total: int) -> None:
        lab.progress.advance("critical region", done, total)

    activations = ["linear", "tanh"]
    return weight_scale_figure(
        weight_scales(activations, lines, markers, width=100, depth=150, seeds=range(4), progress=advance)
    )


def _symptom_figure(trainings: list[Training]) -> "Figure":
    """Draw the losses, and how far the first step moves each layer."""
    figure, (losses, updates) = panels(["the loss", "the first step"], "", "training loss")
    for index, training in enumerate(trainings):
        log = training.result.training
        assert log is not None
        values = np.array(log.losses)
        values[~np.isfinite(values)] = np.nan
        marker = "x" if log.diverged_at is not None else ""
        losses.plot(np.minimum(values, 4.7), color=COLOURS[index], marker=marker, markersize=9, label=training.label)
        depth = training.result.config.depth
        shares = [training.share_changed(layer) for layer in range(1, depth + 1)]
        seen = np.maximum(shares, -13)
        updates.plot(np.arange(1, depth + 1), seen, color=COLOURS[index], linewidth=2)
    losses.axhline(math.log(10), color="black", linewidth=1, linestyle=":", label="guessing")
    losses.text(6, 4.55, "1.6e11, then NaN", color=COLOURS[0], fontsize=9)
    losses.set(xlabel="training step", ylim=(0, 5))
    updates.set(xlabel="layer (1 = input side)", ylabel="update over weight", ylim=(-14, 10))
    updates.text(12, -13, "no weight changes", va="center", fontsize=9, color=COLOURS[1])
    powers_of_ten(updates)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _weight_gradient_figure(chain: Result, biased: Result) -> "Figure":
    """Draw that small weight gradients in early layers do not follow from a vanishing gradient."""
    titles = ["0.5 I, no bias", "tanh with biases"]
    figure, axes = panels(titles, "layer (1 = input side)", "norm at initialisation")
    for panel, result in zip(axes, (chain, biased), strict=True):
        layers = np.arange(1, result.config.depth + 1)
        panel.plot(layers, _profile(result, "output_grad"), color=COLOURS[0], linewidth=2, label="∂L/∂z")
        panel.plot(layers, _profile(result, "weight_grad"), color=COLOURS[1], linewidth=2, label="∂L/∂W")
        powers_of_ten(panel)
    axes[0].legend(frameon=False)
    return figure
