"""What theory needs to know of an initialisation: the law of each layer's weights, without drawing any."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from gradexp.choices import asked_for
from gradexp.networks.inits import find_scheme
from gradexp.own_parts import OwnPart, raises
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
        scaled_to: Variance over the data to which LSUV scales the layer's outputs; None for other schemes.
        tolerance: Relative error of that variance which LSUV leaves as it is.

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


class UnknownLawError(ValueError):
    """The weights of an initialisation follow no law that is known."""


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
        bias: Whether layers have biases at all; without, ``sigma_b2`` must be left out or 0.
        activation: Name of the activation, for laws that ask for it, as ``lyapunov``'s.
        negative_slope: The slope of ``leaky_relu`` below 0, for the same laws.
        **options: Options of the scheme; those left out have their defaults.

    Returns:
        One law per layer.

    Raises:
        ValueError: If a scheme or option is unknown, or a value cannot work.
        UnknownLawError: If the scheme has no law.

    Examples:
        >>> [law.sigma_w2 for law in weight_laws("xavier", [64, 192, 192])]
        [0.5, 1.0]
    """
    scheme, options = find_scheme(init, options)
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two numbers of at least 1, got {list(widths)}")
    if sigma_b2 and not bias:
        raise ValueError(f"sigma_b2={sigma_b2} needs biases, got bias=False")
    law = scheme.law
    if law is None:
        raise UnknownLawError(f"no law is known for init '{init}'")
    options |= asked_for(law, activation=activation, negative_slope=negative_slope)
    laws = []
    for fan_in, fan_out in pairwise(widths):
        with _naming(init):
            fields = dict(law(fan_in, fan_out, **options))
            biases = fields.pop("sigma_b2", 0.0) * bias
            laws.append(WeightLaw(**fields, sigma_b2=biases if sigma_b2 is None else sigma_b2))
    return laws


@contextmanager
def _naming(init: str) -> Iterator[None]:
    """Name an own init whose law is wrong."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not isinstance(init, OwnPart):
            raise
        raise init.mistake(f"has a law that {raises(error)}") from error
