"""How far theory is off on both sides of each threshold of ``gradexp.theory.trust``, beside networks that are drawn.

``python benchmarks/theory_thresholds.py [--device cuda] [NETWORKS]``

Networks are drawn with their weights and measured by ``exact_profile``; in three sections near the end,
thousands of them, without (``tests/helpers/drawn.py``), which has the same law.

Each line is one kind of network. ``value`` is what the threshold is compared with, ``error`` is measured minus
predicted log_chi with its standard error, and ``tolerance`` what theory admits. Theory is asked whether it trusts
itself or not; ``trusted`` tells whether ``predict_layers`` does. Numbers in brackets are equations of docs/theory.md.
"""

import argparse
import math
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from machine import machine
from torch import Tensor

from gradexp import MLP, exact_profile, initialize, theory
from gradexp.theory import trust
from gradexp.theory.expansion import expand
from gradexp.theory.network import Network
from gradexp.theory.normalised import normalised_or_residual
from gradexp.theory.profile import Profile, exact

sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
from drawn import drawn

DEPTH = 31
# Networks times units times layers that are drawn at a time.
_AT_ONCE = 8_000_000
Value = Callable[[Network, Profile], float]


def profile_of(network: Network, x: Tensor) -> Profile:
    """Return the profile that theory would predict if it trusted itself."""
    mean_square = x.square().mean(dim=1)
    if network.has_exact_laws:
        return exact(network, mean_square)
    if network.is_plain:
        return expand(network, mean_square)
    return normalised_or_residual(network, mean_square, float(x.var(dim=0, correction=0).mean()), len(x))


def kurtosis(network: Network, _: Profile) -> float:
    return trust.non_gaussian_error(network)


def tolerance(network: Network, profile: Profile) -> float:
    return trust.neglected_terms(profile, network)


def fluctuation(_: Network, profile: Profile) -> float:
    assert profile.fluctuation is not None
    assert profile.dependence is not None
    return float((profile.fluctuation * (10 * profile.dependence).clamp(max=1)).max())


def marginal_fluctuation(_: Network, profile: Profile) -> float:
    assert profile.fluctuation is not None
    return float(profile.fluctuation.max())


def measure(
    networks: int,
    device: str,
    value: Value | None,
    init: str,
    activation: str,
    width: int,
    batch: int = 1,
    normalization: str = "none",
    residual: str = "none",
    sigma_b2: float | None = None,
    **options: Any,
) -> None:
    """Draw networks of one kind, fewer of wide ones, and print how far theory is off."""
    networks = max(min(networks, networks * 64**2 // width**2), 8)
    widths = [width] * (DEPTH + 1)
    x = torch.randn(batch, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    stack = MLP(
        widths,
        activation,
        networks=networks,
        dtype=torch.float64,
        device=device,
        draw=False,
        normalization=normalization,
        residual=residual,
    )
    initialize(stack, init, seed=0, sigma_b2=sigma_b2, activation=activation, **options)
    initial = exact_profile(stack, x.to(device), seeds=list(range(networks))).at()
    laws = theory.weight_laws(init, widths, sigma_b2=sigma_b2, activation=activation, **options)
    network = Network(stack.activation, laws, widths, normalization, residual)
    profile = profile_of(network, x)
    prediction = theory.predict_layers(
        stack.activation, laws, widths, x, normalization=normalization, residual=residual
    )
    predicted = prediction.log_chi
    if predicted is None:
        steps = profile.output_grad.mean(dim=1)
        predicted = float(steps[0] - steps[-1]) / (DEPTH - 1)
    log_chi, error = initial.log_chi(), initial.log_chi_se()
    assert log_chi is not None
    assert error is not None
    kind = " ".join([activation, init, *(f"{key}={option}" for key, option in options.items())])
    kind += "" if sigma_b2 is None else f" sigma_b2={sigma_b2:g}"
    kind += "" if normalization == "none" else f" normalization={normalization}"
    estimate = (
        trust.non_gaussian_error(network) if network.has_exact_laws else trust.neglected_terms(profile, network)
    )
    admitted = prediction.tolerance if prediction.valid else estimate
    print(
        f"{kind:43} n={width:<4} B={batch:<4}"
        f"{'' if value is None else f'{value(network, profile):.4f}':>8} {log_chi - predicted:+9.4f} ± {error:.4f}"
        f" {admitted:9.4f}  {'yes' if prediction.valid else 'no'}",
        flush=True,
    )


def measure_drawn(
    networks: int, activation: str, width: int, depth: int, sigma_w2: float, sigma_b2: float = 0.0
) -> None:
    """Draw plain networks without their weights; print total log ratio, spread, and how far log_chi is off."""
    part = max(1, networks * width * depth // _AT_ONCE)
    phi = theory.mean_field.as_activation(activation)
    parts = [drawn(phi, width, depth, networks // part, sigma_w2, sigma_b2, seed=seed)[1] for seed in range(part)]
    log_ratio = torch.cat(parts)[:, 0]
    found = theory.predict(activation, sigma_w2, sigma_b2, width, depth)
    steps = depth - 1
    mean, error = float(log_ratio.mean()), float(log_ratio.std()) / math.sqrt(len(log_ratio))
    kind = f"{activation} sigma_w2={sigma_w2:.4g} sigma_b2={sigma_b2:g}"
    if found.log_chi is None or found.log_chi_sd is None or found.log_chi_mean_field is None:
        print(f"{kind:36} n={width:<4} L={depth:<4} {mean:8.3f} ± {error:.3f}  none: {found.reason}", flush=True)
        return
    print(
        f"{kind:36} n={width:<4} L={depth:<4} {mean:8.3f} ± {error:.3f} {found.log_chi * steps:9.3f} "
        f"{found.log_chi_mean_field * steps:9.3f} {float(log_ratio.std()):8.3f} {found.log_chi_sd * steps:8.3f} "
        f"{mean / steps - found.log_chi:+9.5f} ± {error / steps:.5f} {found.tolerance:9.5f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", type=int, nargs="?", default=400)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    networks, device = arguments.networks, arguments.device
    print(
        f"{date.today()}, torch {torch.__version__}, {machine(device)}, {networks} networks of depth {DEPTH} a line"
    )

    def section(title: str) -> None:
        print(f"\n{title}\n{'network':43} {'':13}{'value':>8} {'error of log_chi':>18} {'tolerance':>9}  trusted")

    section("Weights that are not Gaussian: 10 |kurtosis| / n² (63), trusted up to 0.015 (64)")
    for width in (8, 16, 32, 64):
        measure(networks, device, kurtosis, "he", "relu", width, distribution="uniform")
    for width in (20, 40, 80, 160):
        measure(networks, device, kurtosis, "sparse", "relu", width, sparsity=0.8)

    section("Fluctuating lengths: ν min(1, 10 |E φ'² He₂| / E φ'²), trusted up to 0.1 (65)")
    for width in (8, 12, 16, 24, 48):
        measure(networks, device, fluctuation, "mean_field", "tanh", width, sigma_b2=0.05, sigma_w2=2.5)
    for width in (8, 16, 32, 64):
        measure(networks, device, fluctuation, "lecun", "selu", width)

    section("The same where lengths have no isolated fixed point: ν, trusted up to 0.03 (65)")
    for width in (32, 64, 128, 192):
        measure(networks, device, marginal_fluctuation, "lecun", "tanh", width)

    section("Second order: the tolerance itself (62), trusted up to 0.02 (64)")
    for width in (6, 8, 12, 16, 32):
        measure(networks, device, tolerance, "xavier", "sigmoid", width)
    for width in (8, 16, 32, 64):
        measure(networks, device, tolerance, "lecun", "tanh", width, normalization="layer")

    section("Residual branches: the term of r that is left out (61)")
    for activation, init in (("relu", "he"), ("tanh", "lecun")):
        for width in (16, 64):
            measure(networks, device, None, init, activation, width, residual="plain")

    section("Batch norm: 3 / n (6 / n where samples do not settle) + 0.4 / (L - 1), trusted up to 0.1 inside (63a)")
    for activation, init in (("linear", "lecun"), ("relu", "he"), ("tanh", "lecun"), ("gelu", "lecun")):
        for width, batch in ((16, 8), (64, 4), (64, 8), (64, 32), (64, 128), (128, 8), (128, 64)):
            measure(networks // 5, device, None, init, activation, width, batch=batch, normalization="batch")
    for activation in ("relu", "tanh"):
        for batch in (8, 32):
            measure(
                *(networks // 5, device, None, "lecun", activation, 64),
                batch=batch,
                normalization="batch",
                residual="plain",
            )

    section("Layer norm in a stream: the term of r that is left out (61)")
    for activation in ("relu", "tanh"):
        for width in (32, 64):
            measure(networks, device, None, "lecun", activation, width, normalization="layer", residual="plain")

    def drawn_section(title: str) -> None:
        print(f"\n{title}\n{'network':36} {'':13} {'measured':>16} {'predicted':>9} {'infinite':>9}", end=" ")
        print(f"{'sd':>8} {'theory':>8} {'error of log_chi':>19} {'tolerance':>9}")

    drawn_section("log ‖δ¹‖² / ‖δᴸ‖² at critical points where lengths go to 0: the whole law of lengths is followed")
    for width in (16, 32, 64, 128, 1000):
        measure_drawn(10 * networks, "tanh", width, 150, 1.0)
    for activation, sigma_w2 in (("erf", math.pi / 4), ("softsign", 1.0), ("hard_tanh", 1.0), ("elu", 1.0)):
        for width in (32, 64):
            measure_drawn(10 * networks, activation, width, 60, sigma_w2)

    drawn_section("Activations of one sign: what ties the gradient to them (46b)")
    for width in (24, 32, 64, 128):
        measure_drawn(20 * networks, "softplus", width, 40, 1.0)
    for sigma_b2, width in ((0.3, 48), (0.3, 128)):
        measure_drawn(20 * networks, "silu", width, 40, 1.5, sigma_b2)
    for width in (64, 512):
        measure_drawn(5 * networks, "gelu", width, 40, 1.9, 0.1)

    drawn_section("Other activations")
    for activation, sigma_w2, sigma_b2 in (
        ("tanh", 2.5, 0.05),
        ("sigmoid", 1.0, 0.0),
        ("sigmoid", 9.0, 0.1),
        ("relu", 1.8, 0.1),
        ("selu", 1.0, 0.0),
        ("elu", 1.0, 0.1),
        ("gelu", 1.0, 1.0),
    ):
        for width, depth in ((32, 40), (64, 100)):
            measure_drawn(20 * networks, activation, width, depth, sigma_w2, sigma_b2)

    print("\nrelu layers with biases: share of networks in which an input dies, and the law 1 - (1 - 2⁻ⁿ)ᴸ⁻¹ (23)")
    for width, depth in ((4, 20), (6, 60), (8, 150)):
        stack = MLP(
            [64] + [width] * (depth - 1) + [10], "relu", networks=5 * networks, dtype=torch.float64, draw=False
        )
        initialize(stack, "he", seed=0, sigma_b2=0.01)
        x = torch.randn(1, 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        samples = exact_profile(stack, x).samples
        assert samples is not None
        dead = float((~torch.from_numpy(samples[0, :, 0, 0]).isfinite()).double().mean())
        law = theory.predict("relu", 2.0, 0.01, widths=stack.widths).dead_probability
        error = math.sqrt(law * (1 - law) / (5 * networks))
        print(f"n={width} L={depth:<4} measured {dead:.3f} ± {error:.3f}  law {law:.3f}", flush=True)


if __name__ == "__main__":
    main()
