"""What theory needs to know of an initialisation: the law of each layer's weights, without drawing any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gradexp.choices import DISTRIBUTIONS, INIT_OPTIONS, MODES, check_choice
from gradexp.networks.inits import CUT_STD, scheme_name, zero_drift_sigma_w2, zeros_per_unit
from gradexp.theory.mean_field import check_variance


@dataclass(frozen=True)
class WeightLaw:
    """How one layer's weights and biases are drawn.

    Args:
        sigma_w2: fan_in · Var(W).
        sigma_b2: Var(b).
        kurtosis: Excess kurtosis of a weight: 0 if Gaussian, -1.2 if uniform.
        fixed: What a fixed number of zeros per row takes off again: a sum Σ_j W_ij a_j has the excess kurtosis
            (kurtosis · mean a⁴ / (mean a²)² - fixed) / fan_in.
        orthogonal: Whether W is a gain times an orthogonal (Haar) matrix; sigma_w2 is then gain² · fan_in / m, m the
            larger of fan_in and fan_out.
        diagonal: The gain of a scaled identity, which is not random at all; else None.
        scaled_to: With LSUV, the variance over the data to which the layer's outputs are scaled; else None.
        tolerance: With LSUV, the relative error of that variance that is left as it is.

    Raises:
        ValueError: If a variance is negative or not finite.
    """

    sigma_w2: float
    sigma_b2: float = 0.0
    kurtosis: float = 0.0
    fixed: float = 0.0
    orthogonal: bool = False
    diagonal: float | None = None
    scaled_to: float | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        check_variance("sigma_w2", self.sigma_w2)
        check_variance("sigma_b2", self.sigma_b2)


def weight_laws(
    init: str,
    widths: Sequence[int],
    *,
    sigma_b2: float | None = None,
    bias: bool = True,
    activation: str | None = None,
    negative_slope: float = 0.01,
    **options: Any,
) -> list[WeightLaw]:
    """Return the law of every layer's weights under one of the schemes of ``gradexp.networks.inits``.

    Args:
        init: Name of the scheme.
        widths: n_0, ..., n_L.
        sigma_b2: Variance of the biases; None: the scheme's own, 1 / (3 fan_in) for ``torch_default``, else 0.
        bias: Whether layers have biases at all.
        activation: For ``lyapunov``.
        negative_slope: Of ``leaky_relu``, for ``lyapunov``.
        **options: Options of the scheme; those left out have their defaults.

    Returns:
        One law per layer.

    Raises:
        ValueError: For an unknown scheme or option, or a value that cannot work.

    Example:
        >>> [law.sigma_w2 for law in weight_laws("xavier", [64, 192, 192])]
        [0.5, 1.0]
    """
    name = scheme_name(init, options)
    options = {**INIT_OPTIONS[name], **options}
    for option, choices in (("mode", MODES), ("distribution", DISTRIBUTIONS)):
        if option in options:
            check_choice(option, options[option], choices)
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two numbers of at least 1, got {list(widths)}")
    if name == "lyapunov":
        options |= {"activation": activation, "negative_slope": negative_slope}
    laws = []
    for fan_in, fan_out in pairwise(widths):
        law: dict[str, Any] = LAWS[name](fan_in, fan_out, **options)
        own_bias = 1 / (3 * fan_in) if name == "torch_default" and bias else 0.0
        laws.append(WeightLaw(**law, sigma_b2=own_bias if sigma_b2 is None else sigma_b2))
    return laws


def _spread(variance: float, distribution: str = "normal") -> dict[str, Any]:
    return {"sigma_w2": variance, "kurtosis": _UNIFORM if distribution == "uniform" else 0.0}


def _truncated(fan_in: int, gain: float, std: float | None, corrected: bool) -> dict[str, Any]:
    variance = (2 / fan_in if std is None else std**2) * gain**2
    return {"sigma_w2": fan_in * variance * (1 if corrected else _CUT_VARIANCE), "kurtosis": _CUT_KURTOSIS}


def _sparse(fan_in: int, gain: float, std: float | None, sparsity: float) -> dict[str, Any]:
    kept = fan_in - zeros_per_unit(fan_in, sparsity)
    sigma_w2 = gain**2 if std is None else gain**2 * std**2 * kept
    # Given which weights are not 0 a sum is Gaussian, and its variance is a sum over k of the a², drawn without
    # replacement: relative variance (fan_in / k - 1) (mean a⁴ / (mean a²)² - 1) / fan_in, a third of the kurtosis.
    excess = 3 * fan_in / kept - 3
    return {"sigma_w2": sigma_w2, "kurtosis": excess, "fixed": excess}


_UNIFORM = -1.2
# Of N(0, 1) cut at ±2, by parts: E x² = 1 - 4 p and E x⁴ = 3 E x² - 16 p, p the density at the cut.
_CUT_VARIANCE = CUT_STD**2
_CUT_KURTOSIS = (3 * _CUT_VARIANCE - 4 * (1 - _CUT_VARIANCE)) / _CUT_VARIANCE**2 - 3


def _kaiming(n: int, m: int, gain: float, mode: str, distribution: str) -> dict[str, Any]:
    return _spread(2 * gain**2 * (1 if mode == "fan_in" else n / m), distribution)


def _orthogonal(n: int, m: int, gain: float) -> dict[str, Any]:
    return {"sigma_w2": gain**2 * n / max(n, m), "orthogonal": True}


# name: fan_in, fan_out and the scheme's options -> fields of WeightLaw
LAWS: dict[str, Callable[..., dict[str, Any]]] = {
    "he": _kaiming,
    "xavier": lambda n, m, gain, distribution: _spread(2 * gain**2 * n / (n + m), distribution),
    "lecun": lambda _n, _m, gain, distribution: _spread(gain**2, distribution),
    "orthogonal": _orthogonal,
    "identity": lambda n, m, gain: {"sigma_w2": gain**2 * n / max(n, m), "diagonal": gain},
    "normal": lambda n, _m, gain, std: _spread(n * (gain * std) ** 2),
    "uniform": lambda n, _m, gain, std: _spread(n * (gain * std) ** 2, "uniform"),
    "truncated_normal": lambda n, _m, **options: _truncated(n, **options),
    "sparse": lambda n, _m, **options: _sparse(n, **options),
    "torch_default": lambda _n, _m, gain: _spread(gain**2 / 3, "uniform"),
    "mean_field": lambda _n, _m, gain, sigma_w2: _spread(gain**2 * sigma_w2),
    "lyapunov": lambda n, _m, gain, activation, negative_slope: _spread(
        gain**2 * zero_drift_sigma_w2(n, activation, negative_slope)
    ),
    "lsuv": lambda n, m, gain, tolerance, **_: (
        _orthogonal(n, m, 1.0) | {"scaled_to": gain**2, "tolerance": tolerance}
    ),
}
