"""How far theory is off on both sides of each threshold of ``gradexp.theory.trust``, beside networks that are drawn.

``python benchmarks/theory_thresholds.py [--device cuda] [NETWORKS]``

Each line is one kind of network. ``value`` is what the threshold is compared with, ``error`` is measured minus
predicted log_chi with its standard error, and ``tolerance`` what theory admits. Theory is asked whether it trusts
itself or not; ``trusted`` tells whether ``predict_layers`` does. Numbers in brackets are equations of docs/theory.md.
"""

import argparse
from collections.abc import Callable
from datetime import date
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

DEPTH = 31
Value = Callable[[Network, Profile], float]


def profile_of(network: Network, x: Tensor) -> Profile:
    """Return the profile that theory would predict if it trusted itself."""
    mean_square = x.square().mean(dim=1)
    if network.has_exact_laws:
        return exact(network, mean_square)
    if network.is_plain:
        return expand(network, mean_square)
    return normalised_or_residual(network, mean_square, float(x.var(dim=0, correction=0).mean()))


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
    steps = profile.output_grad.mean(dim=1)
    predicted = float(steps[0] - steps[-1]) / (DEPTH - 1)
    prediction = theory.predict_layers(
        stack.activation, laws, widths, x, normalization=normalization, residual=residual
    )
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

    section("Batch norm: infinite width and batch, tolerance 0.03, trusted from 8 samples on")
    for activation, init in (("relu", "he"), ("tanh", "lecun")):
        for width, batch in ((64, 4), (64, 8), (64, 16), (64, 64), (128, 64)):
            measure(networks // 20, device, None, init, activation, width, batch=batch, normalization="batch")


if __name__ == "__main__":
    main()
