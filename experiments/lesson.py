"""The lesson this project began with, number by number: 150 layers of 1.5 I and 0.5 I, their symptoms and the cure.

The lesson multiplies X = (1, 1) by λ I in every layer and concludes that signal and gradient grow or shrink as λ^L.
That is right; some of the numbers it prints are not, and some of what it says about networks holds for this one only.
``lesson.md`` tells the whole story. Sizes in chains of λ I are compared with exact powers of rational numbers.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import digamma

from experiments.lab.claims import Claim, Findings, above, below, near, number, same
from experiments.lab.drawing import COLOURS, guessing, panels
from experiments.lab.lab import Lab
from experiments.lab.measures import GUESSING, initial, smoothed, training
from gradexp.history.step import STATUSES, Array, Quantity
from gradexp.numerics.formats import limits
from gradexp.phase.figures import weight_scale_figure
from gradexp.phase.plane import weight_scales
from gradexp.plotting import powers_of_ten
from gradexp.runs.result import Result
from gradexp.theory import MeanField

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
EDGES = ((0.95, "vanishing"), (0.96, "stable"), (1.04, "stable"), (1.05, "exploding"))
# Networks that are no λ I: the preset's options are taken back.
REAL = ("data=digits", "width=128", "dtype=float32", "init.gain=1")


@dataclass(frozen=True)
class Training:
    """A real training, with its name in the figure."""

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
    for dtype, layer in (("float32", 150), ("float16", 25)):
        gone = initial(chains["0.5"]).failing_layer("output", dtype, overflow=False)
        claims.append(same(f"0.5 I, first layer whose output is 0 in {dtype}", gone, layer))
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
    weight_gradients = _profile(chains["0.5"], "weight_grad")
    tanh = initial(lab.run("activation=tanh"))
    sigmoid = lab.run(*REAL, "activation=sigmoid", "init=xavier", "depth=50", "steps=100")
    gaussian = initial(lab.run(*REAL, "activation=linear", "init=lecun", "steps=0", "seeds=32"))
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
            for scale, expected in EDGES
        ),
        near("0.5 I: weight gradients of all layers are equal, decades", float(np.ptp(weight_gradients)), 0, 1e-9),
        near(
            "0.5 I: log10 of each, 0.5^149 times the length of (1, 1)",
            float(weight_gradients[0]),
            149 * math.log10(0.5) + math.log10(2) / 2,
            1e-9,
        ),
        below("relu without biases: <W, ∂L/∂W> over layers, rel. spread", _spread_of_products(lab), 1e-9),
        near("tanh(1.5 I) does not explode: log factor of ‖δ‖²", tanh.log_chi(50, 100), shrinks, 1e-6),
        near("Gaussian of std 1/√n is critical: log factor of ‖δ‖²", gaussian.log_chi(), float(drift), 4 * error),
        # Five standard deviations of the slope of one network, about sqrt(2 / 128 / 49).
        near(
            "xavier and sigmoid: log factor of ‖δ‖²",
            initial(sigmoid).log_chi(),
            math.log(MeanField("sigmoid", 1.0).chi_1),
            0.1,
        ),
        same("xavier and sigmoid, 50 layers: verdict", _verdict(sigmoid), "vanishing, stuck"),
    ]


def _symptoms(exploding: Training, vanishing: Training) -> list[Claim]:
    """Look for both tables of symptoms in real trainings."""
    smallest = min(exploding.share_changed(layer) for layer in range(1, exploding.result.config.depth + 1))
    depth = vanishing.result.config.depth
    losses = training(exploding.result).losses
    plateau = float(smoothed(vanishing.result)[-1])
    return [
        same("exploding: verdict", _verdict(exploding.result), "exploding, diverged"),
        above("exploding: huge updates, over the weights of any layer", 10**smallest, 1e6),
        same("exploding: the loss becomes", str(losses[-1]), "nan"),
        below("exploding: at step", len(losses) - 1, 5),
        same("vanishing: verdict", _verdict(vanishing.result), "vanishing, stuck"),
        same("vanishing: change of the first layer's weights", 10 ** vanishing.share_changed(1), 0.0),
        below("vanishing: tiny steps, update over weight of layer 25", 10 ** vanishing.share_changed(25), 1e-6),
        above("vanishing: the last layer does move", 10 ** vanishing.share_changed(depth), 1e-4),
        near("vanishing: plateau, last loss is that of guessing", plateau, GUESSING, 0.05),
    ]


def _cures(lab: Lab, cured: Training) -> list[Claim]:
    """Try the lesson's cures, on the gradient and on training."""
    claims = []
    for init, activation in (("he", "relu"), ("xavier", "tanh")):
        options = (*REAL, f"init={init}", f"activation={activation}")
        deep = lab.run(*options, "steps=100" if activation == "relu" else "steps=0")
        learned = lab.run(*options, "depth=30", "steps=300")
        expected = "stable, stuck" if activation == "relu" else "stable"
        claims.append(same(f"cure {init} for {activation}, 150 layers: verdict", _verdict(deep), expected))
        if activation == "relu":
            claims.append(above("there all outputs point the same way: mean cosine", _cosine(deep), 0.98))
        claims.append(above(f"cure {init} for {activation}, 30 layers: test accuracy", _accuracy(learned), 0.7))
    claims.append(above("cure orthogonal for tanh, 150 layers: test accuracy", _accuracy(cured.result), 0.8))
    return claims


def _spread_of_products(lab: Lab) -> float:
    """Return how far the inner products of weights and their gradients differ over layers, by autograd in float64."""
    network = lab.hidden_layers(*REAL, "activation=relu", "init=he", "bias=false", "width=32").double()
    output = network(torch.ones(1, 4, 32, dtype=torch.float64))
    output.square().sum().backward()
    pairs = [(weight.detach(), weight.grad) for weight in network.parameters()]
    products = [(weight * gradient).sum().item() for weight, gradient in pairs if gradient is not None]
    return (max(products) - min(products)) / max(map(abs, products))


def _profile(result: Result, quantity: Quantity) -> Array:
    return initial(result).profile(quantity)


def _ratio(result: Result) -> float:
    ratio = initial(result).first_over_last("output_grad")
    return math.nan if ratio is None else ratio


def _cosine(result: Result) -> float | None:
    cosine = initial(result).output_cosine
    return None if cosine is None else float(np.mean(cosine))


def _verdict(result: Result) -> str:
    assert result.verdict is not None
    gradient, training = result.verdict.gradient, result.verdict.training
    return gradient if training == "none" else f"{gradient}, {training}"


def _accuracy(result: Result) -> float | None:
    return training(result).tests[-1][2]


def _chain_figure(chains: dict[str, Result]) -> "Figure":
    """Draw how the gradient travels through 150 layers of λ I."""
    figure, [axes] = panels(
        ["150 layers of λ I"], "layer (1 = input side)", "norm of the back-propagated gradient ∂L/∂z"
    )
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
    for colour, trained in zip(COLOURS, trainings, strict=False):
        values = np.array(training(trained.result).losses)
        has_diverged = training(trained.result).diverged_at is not None
        if has_diverged:
            losses.text(6, 4.55, f"{values[0]:.1e}, then {values[-1]:g}", color=colour, fontsize=9)
        values[~np.isfinite(values)] = np.nan
        clipped = np.minimum(values, 4.7)
        losses.plot(clipped, color=colour, marker="x" if has_diverged else "", markersize=9, label=trained.label)
        shares = np.array([trained.share_changed(layer) for layer in range(1, trained.result.config.depth + 1)])
        layers = np.arange(1, len(shares) + 1)
        is_zero = np.isneginf(shares)
        updates.plot(layers, np.where(is_zero, np.nan, shares), color=colour, linewidth=2)
        if is_zero.any():  # which no axis of powers of ten has a place for
            edge = updates.get_xaxis_transform()
            places = np.full(is_zero.sum(), 0.02)
            updates.plot(layers[is_zero], places, "v", color=colour, markersize=5, transform=edge, clip_on=False)
            updates.text(layers[is_zero].max() + 4, 0.02, "exactly 0", fontsize=9, color=colour, transform=edge)
    guessing(losses)
    losses.set(xlabel="training step", ylim=(0, 5))
    updates.set(xlabel="layer (1 = input side)", ylabel="update over weight", ylim=(-14, 10))
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
