"""Weight initialisation: fourteen schemes, of which ``initialize`` applies one to every layer of a model.

A scheme fills the weight of one layer of one network in place and returns it. The shape is torch's, ``(out, in)``
or ``(out, in, *kernel)``, and so are the fans: fan_in = in · prod(kernel), the number of terms in one output, and
fan_out = out · prod(kernel); a weight of fewer than two dimensions is a ``ValueError``. In every scheme ``gain``
multiplies the standard deviation (for ``orthogonal_`` and ``identity_``, the matrix), and ``generator`` is where
the numbers come from, None being torch's global generator.

A scheme's options are the parameters before the ``*``. What stands behind it is given: ``generator``, and where a
scheme asks for them the network's ``activation`` and ``negative_slope``. ``INITS`` at the foot of the file names the
schemes, each with the law of its weights, from which theory predicts a network without drawing any.
"""

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gradexp.choices import DISTRIBUTIONS, INIT_OPTIONS, MODES, check_choice
from gradexp.numerics.seeds import steady
from gradexp.numerics.square_sum import log_square_sum
from gradexp.own_parts import OwnPart

Source = Generator | None


def he_(
    weight: Tensor,
    gain: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "normal",
    *,
    generator: Source = None,
) -> Tensor:
    """Draw ``weight`` with variance 2 gain² / fan.

    The 2 makes up for the half of the units that relu sets to 0, so that on average the square of the outputs
    (``mode="fan_in"``) or of the output gradients (``"fan_out"``) is kept (He et al., 2015, arXiv:1502.01852).

    Args:
        weight: Weight of one layer, shape ``(out, in, *kernel)``; changed in place.
        gain: Factor of the standard deviation.
        mode: ``fan_in`` or ``fan_out``.
        distribution: ``normal`` or ``uniform``, with the same variance.
        generator: Generator of the random numbers; None: torch's global one.

    Raises:
        ValueError: For an unknown mode or distribution.

    Examples:
        >>> round(he_(torch.empty(500, 200), gain=3.0).std().item(), 1)  # 3 · sqrt(2 / 200)
        0.3
    """
    check_choice("mode", mode, MODES)
    fan = fans(weight)[MODES.index(mode)]
    return draw(weight, gain * math.sqrt(2 / fan), distribution, generator)


def xavier_(weight: Tensor, gain: float = 1.0, distribution: str = "normal", *, generator: Source = None) -> Tensor:
    """Draw ``weight`` with variance 2 gain² / (fan_in + fan_out).

    In a linear network that is the middle between what keeps the outputs and what keeps the output gradients
    (Glorot & Bengio, 2010). ``distribution`` is ``normal`` or ``uniform``, any other is a ``ValueError``.
    """
    return draw(weight, gain * math.sqrt(2 / sum(fans(weight))), distribution, generator)


def lecun_(weight: Tensor, gain: float = 1.0, distribution: str = "normal", *, generator: Source = None) -> Tensor:
    """Draw ``weight`` with variance gain² / fan_in.

    Keeps the mean square of the outputs of a linear layer (LeCun et al., Efficient BackProp, 1998).
    ``distribution`` is ``normal`` or ``uniform``, any other is a ``ValueError``.
    """
    return draw(weight, gain / math.sqrt(fans(weight)[0]), distribution, generator)


def orthogonal_(weight: Tensor, gain: float = 1.0, *, generator: Source = None) -> Tensor:
    """Draw ``weight`` = gain · Q, Q uniform (Haar) among the matrices with orthonormal rows or columns.

    All singular values are ``gain``, so a square linear layer scales every vector alike (Saxe et al., 2014,
    arXiv:1312.6120). A convolution is flattened to ``(out, in · prod(kernel))``.
    """
    fans(weight)
    # QR alone is not Haar: R must have a positive diagonal. torch sees to it.
    nn.init.orthogonal_(weight, gain, generator)
    return weight


@torch.no_grad()
def delta_orthogonal_(weight: Tensor, gain: float = 1.0, *, generator: Source = None) -> Tensor:
    """Set ``weight`` to gain · Q at the centre of its kernel and to 0 elsewhere, Q as in ``orthogonal_``.

    A convolution then maps the channels of each position as an orthogonal layer does, and a linear network of
    such convolutions keeps every length at any depth (Xiao et al., 2018, arXiv:1806.05393). The flattened kernel of
    ``orthogonal_`` does not: it mixes neighbours, which a chain of them makes alike. A layer without a kernel is
    ``orthogonal_``.
    """
    fans(weight)
    centre = centre_of(weight.zero_())
    centre.copy_(orthogonal_(torch.empty_like(centre), gain, generator=generator))
    return weight


@torch.no_grad()
def identity_(weight: Tensor, gain: float = 1.0, *, generator: Source = None) -> Tensor:  # noqa: ARG001
    """Set ``weight`` to gain · I; nothing is random.

    A rectangular matrix has ``gain`` on its main diagonal, a convolution at the centre of its kernel: with gain 1
    each channel is passed on unchanged.

    Examples:
        >>> identity_(torch.empty(2, 3), gain=1.5)
        tensor([[1.5000, 0.0000, 0.0000],
                [0.0000, 1.5000, 0.0000]])
    """
    fans(weight)
    centre_of(weight.zero_()).diagonal().fill_(gain)
    return weight


def normal_(weight: Tensor, gain: float = 1.0, std: float = 0.01, *, generator: Source = None) -> Tensor:
    """Draw ``weight`` from N(0, (gain · std)²) whatever the fans are, as AlexNet did with std 0.01."""
    fans(weight)
    return draw(weight, gain * std, "normal", generator)


def uniform_(weight: Tensor, gain: float = 1.0, std: float = 0.01, *, generator: Source = None) -> Tensor:
    """Draw ``weight`` from U(-a, a), a = √3 · gain · std: the standard deviation of ``normal_``."""
    fans(weight)
    return draw(weight, gain * std, "uniform", generator)


# Standard deviation of N(0, 1) cut at ±2, and the probability of that range.
_CUT_MASS = math.erf(math.sqrt(2))
CUT_STD = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / _CUT_MASS)


@torch.no_grad()
def truncated_normal_(
    weight: Tensor,
    gain: float = 1.0,
    std: float | None = None,
    corrected: bool = True,
    *,
    generator: Source = None,
) -> Tensor:
    """Draw ``weight`` from a normal distribution cut at two of its standard deviations.

    The cut leaves 0.879626 of the standard deviation; ``corrected`` widens the distribution so that gain · std is
    what remains. torch's ``trunc_normal_`` cuts at ±2 unless told otherwise, and so never cuts a small std.

    Args:
        weight: Weight of one layer, shape ``(out, in, *kernel)``; changed in place.
        gain: Factor of the standard deviation.
        std: Standard deviation; None is He's, sqrt(2 / fan_in).
        corrected: Whether ``std`` is that of the weights, or of the normal distribution before the cut.
        generator: Generator of the random numbers; None: torch's global one.
    """
    fan_in, _ = fans(weight)
    std = math.sqrt(2 / fan_in) if std is None else std
    weight.uniform_(-_CUT_MASS, _CUT_MASS, generator=generator).erfinv_().mul_(math.sqrt(2))
    # Rounding may put the outermost number just beyond the cut.
    return weight.clamp_(-2, 2).mul_(gain * std / (CUT_STD if corrected else 1))


@torch.no_grad()
def sparse_(
    weight: Tensor,
    gain: float = 1.0,
    std: float | None = None,
    sparsity: float = 0.9,
    *,
    generator: Source = None,
) -> Tensor:
    """Draw ``weight`` normal, with the same number of each unit's incoming weights exactly 0.

    Few inputs do not blur into their average as many do (Martens, 2010). Of the fan_in weights of a unit
    ceil(sparsity · fan_in) are 0, at random places, but never all. torch's ``sparse_`` is another scheme: it
    sets a share of each input's *outgoing* weights to 0.

    Args:
        weight: Weight of one layer, shape ``(out, in, *kernel)``; changed in place.
        gain: Factor of the standard deviation.
        std: Standard deviation of the other weights; None is 1 / sqrt(their number per unit), which keeps the
            mean square of a linear layer's outputs.
        sparsity: Share of 0, at least 0 and below 1.
        generator: Generator of the random numbers; None: torch's global one.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).
    """
    fan_in, _ = fans(weight)
    zeros = zeros_per_unit(fan_in, sparsity)
    std = 1 / math.sqrt(fan_in - zeros) if std is None else std
    rows = draw(torch.empty_like(weight).flatten(1), gain * std, "normal", generator)
    shuffled = torch.empty_like(rows, dtype=torch.float64).uniform_(generator=generator).argsort(dim=1)
    rows.scatter_(1, shuffled[:, :zeros], 0.0)
    return weight.copy_(rows.view(weight.shape))


def zeros_per_unit(fan_in: int, sparsity: float) -> int:
    """Return how many incoming weights of a unit ``sparse_`` sets to 0.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    # Without rounding 0.07 · 100 = 7.000000000000001 would set 8 weights to 0.
    return min(math.ceil(round(sparsity * fan_in, 9)), fan_in - 1)


def torch_default_(weight: Tensor, gain: float = 1.0, *, generator: Source = None) -> Tensor:
    """Draw ``weight`` from U(-a, a), a = gain / sqrt(fan_in), as ``nn.Linear`` and ``nn.Conv2d`` do.

    The variance is gain² / (3 fan_in): with gain 1 every linear layer loses two thirds of the square.
    """
    return draw(weight, gain / math.sqrt(3 * fans(weight)[0]), "uniform", generator)


def mean_field_(weight: Tensor, gain: float = 1.0, sigma_w2: float = 1.0, *, generator: Source = None) -> Tensor:
    """Draw ``weight`` from N(0, gain² · sigma_w2 / fan_in).

    Mean-field theory draws its phase diagrams over sigma_w2 and the variance sigma_b2 of the biases (Poole et
    al., 2016, arXiv:1606.05340). A negative sigma_w2 is a ``ValueError``.
    """
    if not sigma_w2 >= 0:
        raise ValueError(f"sigma_w2 must be at least 0, got {sigma_w2}")
    return draw(weight, gain * math.sqrt(sigma_w2 / fans(weight)[0]), "normal", generator)


def lyapunov_(
    weight: Tensor,
    gain: float = 1.0,
    *,
    generator: Source = None,
    activation: str | None,
    negative_slope: float = 0.01,
) -> Tensor:
    """Draw ``weight`` as ``mean_field_`` with the sigma_w2 at which a network of this width has no drift.

    See ``zero_drift_sigma_w2`` for its value, its errors and what is exact: fully connected layers without biases.
    """
    sigma_w2 = zero_drift_sigma_w2(fans(weight)[0], activation, negative_slope)
    return mean_field_(weight, gain, sigma_w2, generator=generator)


@functools.cache
def zero_drift_sigma_w2(width: int, activation: str | None, negative_slope: float = 0.01) -> float:
    """Return the sigma_w2 at which E[log ‖δˡ‖² - log ‖δˡ⁺¹‖²] is exactly 0 at a finite width n.

    He's sigma_w2 = 2 keeps the *mean* of the squared norm; the typical network shrinks by about exp(-5 / 2n) per
    relu layer, since the log of a factor that fluctuates around 1 is below 0 on average. Per layer the factor is
    sigma_w2 · S / n, with S the sum over n units of φ'² z², where z is from N(0, 1) and φ' is 1 or the slope
    below 0 with even odds. So sigma_w2 = exp(-E log(S / n)), which ``log_square_sum`` gives.

    With probability 2⁻ⁿ all n relu units are off and S = 0; the mean is over the other cases. Sussillo & Abbott
    (2014, arXiv:1412.6558) had the idea and fitted the value.

    Args:
        width: Number of units n, the fan_in of the weight.
        activation: ``linear``, ``relu`` or ``leaky_relu``.
        negative_slope: Slope of ``leaky_relu`` below 0.

    Returns:
        fan_in · Var(W), to 11 digits up to width 10 000 and 8 at a million.

    Raises:
        ValueError: For a width below 1, another activation or a slope that no float can square.

    Examples:
        >>> round(zero_drift_sigma_w2(10, "relu"), 5)
        2.71994
    """
    slopes = {"linear": (1.0, 1.0), "relu": (0.0, 1.0), "leaky_relu": (negative_slope, 1.0)}
    if activation not in slopes:
        raise ValueError(f"lyapunov needs activation {', '.join(slopes)}, got {activation!r}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if activation == "leaky_relu" and negative_slope != 0 and not 1e-100 <= abs(negative_slope) <= 1e100:
        raise ValueError(f"negative_slope must be 0, or 1e-100 to 1e100 in size, got {negative_slope}")
    return width * math.exp(-log_square_sum(width, slopes[activation]).mean)


def lsuv_(
    weight: Tensor,
    gain: float = 1.0,
    tolerance: float = 0.1,  # noqa: ARG001
    iterations: int = 10,  # noqa: ARG001
    *,
    generator: Source = None,
) -> Tensor:
    """Draw ``weight`` as ``orthogonal_`` does; ``lsuv`` starts from it.

    ``initialize`` then scales each layer by data, so that its outputs on a batch have variance gain², to a relative
    ``tolerance`` and in at most ``iterations`` divisions (Mishkin & Matas, 2015, arXiv:1511.06422): see
    ``gradexp.networks.lsuv``.
    """
    return orthogonal_(weight, gain, generator=generator)


ALIASES = {"glorot": "xavier", "kaiming": "he"}


def scheme_name(init: str, options: Mapping[str, Any]) -> str:
    """Return the scheme's own name.

    Raises:
        ValueError: If there is no such scheme, or it does not have one of the options.
    """
    name = ALIASES.get(init, init)
    if name not in INITS:
        raise ValueError(f"unknown init {init!r}; choose one of {', '.join([*INITS, *ALIASES])}")
    allowed = INIT_OPTIONS[name]
    for option in options:
        if option not in allowed:
            raise ValueError(f"init '{init}' has no option '{option}'; it takes {', '.join(allowed)}")
    return name


def find_scheme(init: str, options: Mapping[str, Any]) -> tuple["Scheme", dict[str, Any]]:
    """Return a scheme and all of its options, those that are not given with their defaults.

    Raises:
        ValueError: If there is no such scheme, or it does not have one of the options.
    """
    if isinstance(init, OwnPart):
        return Scheme(functools.partial(_fill_by, init), getattr(init.function, "law", None)), dict(options)
    name = scheme_name(init, options)
    return INITS[name], {**INIT_OPTIONS[name], **options}


def _fill_by(part: OwnPart, weight: Tensor, *, generator: Source = None, **options: Any) -> Tensor:
    """Fill a weight by an own part, the same for the same generator even where the part does not take one.

    Raises:
        ConfigError: If it raises, or leaves weights unset or not finite.
    """
    weight.fill_(math.nan)
    takes = part.facts(generator=generator)
    with part.named(), nullcontext() if takes else steady(generator):
        part.function(weight, **takes, **options)
    if weight.isfinite().all():
        return weight
    shape = f"a weight of shape {tuple(weight.shape)}"
    if weight.isnan().all():
        raise part.mistake(f"leaves {shape} unset: it must fill it in place")
    raise part.mistake(f"puts nan or inf into {shape}")


def centre_of(weight: Tensor) -> Tensor:
    """Return the matrix at the centre of a kernel, a view."""
    while weight.dim() > 2:
        weight = weight.select(-1, weight.shape[-1] // 2)
    return weight


def fans(weight: Tensor) -> tuple[int, int]:
    """Return fan_in and fan_out of one network's weight."""
    if weight.dim() < 2 or weight.numel() == 0:
        raise ValueError(f"weight must have at least two dimensions, none empty, got {tuple(weight.shape)}")
    kernel = math.prod(weight.shape[2:])
    return weight.shape[1] * kernel, weight.shape[0] * kernel


@torch.no_grad()
def draw(tensor: Tensor, std: float, distribution: str, generator: Source) -> Tensor:
    """Fill ``tensor`` with numbers of mean 0 and the given standard deviation."""
    check_choice("distribution", distribution, DISTRIBUTIONS)
    if not math.isfinite(std):
        raise ValueError(f"the standard deviation of the weights must be a finite number, got {std}")
    if distribution == "normal":
        return tensor.normal_(generator=generator).mul_(std)
    return tensor.uniform_(-1, 1, generator=generator).mul_(math.sqrt(3) * std)


Law = dict[str, Any]  # fields of theory.WeightLaw: sigma_w2 = fan_in · Var(W), kurtosis, ...


def _independent(sigma_w2: float, distribution: str = "normal") -> Law:
    check_choice("distribution", distribution, DISTRIBUTIONS)
    return {"sigma_w2": sigma_w2, "kurtosis": -1.2 if distribution == "uniform" else 0.0}


def _he_law(n: int, m: int, gain: float, mode: str, distribution: str) -> Law:
    check_choice("mode", mode, MODES)
    return _independent(2 * gain**2 * (1 if mode == "fan_in" else n / m), distribution)


def _orthogonal_law(n: int, m: int, gain: float) -> Law:
    return {"sigma_w2": gain**2 * n / max(n, m), "orthogonal": True}


# Of N(0, 1) cut at ±2, by parts: E x² = 1 - 4 p and E x⁴ = 3 E x² - 16 p, p the density at the cut.
_CUT_VARIANCE = CUT_STD**2
_CUT_KURTOSIS = (3 * _CUT_VARIANCE - 4 * (1 - _CUT_VARIANCE)) / _CUT_VARIANCE**2 - 3


def _truncated_law(n: int, _m: int, gain: float, std: float | None, corrected: bool) -> Law:
    variance = (2 / n if std is None else std**2) * gain**2
    return {"sigma_w2": n * variance * (1 if corrected else _CUT_VARIANCE), "kurtosis": _CUT_KURTOSIS}


def _sparse_law(n: int, _m: int, gain: float, std: float | None, sparsity: float) -> Law:
    kept = n - zeros_per_unit(n, sparsity)
    sigma_w2 = gain**2 if std is None else gain**2 * std**2 * kept
    # Given which weights are not 0 a sum is Gaussian, and its variance is a sum over k of the a², drawn without
    # replacement: relative variance (fan_in / k - 1) (mean a⁴ / (mean a²)² - 1) / fan_in, a third of the kurtosis.
    excess = 3 * n / kept - 3
    return {"sigma_w2": sigma_w2, "kurtosis": excess, "fixed": excess}


def _lyapunov_law(n: int, _m: int, gain: float, *, activation: str | None, negative_slope: float) -> Law:
    return _independent(gain**2 * zero_drift_sigma_w2(n, activation, negative_slope))


def _lsuv_law(n: int, m: int, gain: float, tolerance: float, iterations: int) -> Law:  # noqa: ARG001
    return _orthogonal_law(n, m, 1.0) | {"scaled_to": gain**2, "tolerance": tolerance}


@dataclass(frozen=True)
class Scheme:
    """One way to draw weights.

    Args:
        fill: The function that draws a weight; its parameters before the ``*`` are the options of the scheme.
        law: The law of the weights that ``fill`` draws, as fields of ``theory.WeightLaw``, from fan_in, fan_out and
            all options by name; None: not known, and theory has nothing to say.
    """

    fill: Callable[..., Tensor]
    law: Callable[..., Law] | None = None


# The options and defaults of each are read from here without importing the file: see gradexp/choices.py.
INITS: dict[str, Scheme] = {
    "he": Scheme(he_, _he_law),
    "xavier": Scheme(xavier_, lambda n, m, gain, distribution: _independent(2 * gain**2 * n / (n + m), distribution)),
    "lecun": Scheme(lecun_, lambda _n, _m, gain, distribution: _independent(gain**2, distribution)),
    "orthogonal": Scheme(orthogonal_, _orthogonal_law),
    "delta_orthogonal": Scheme(delta_orthogonal_, _orthogonal_law),
    "identity": Scheme(identity_, lambda n, m, gain: {"sigma_w2": gain**2 * n / max(n, m), "diagonal": gain}),
    "normal": Scheme(normal_, lambda n, _m, gain, std: _independent(n * (gain * std) ** 2)),
    "uniform": Scheme(uniform_, lambda n, _m, gain, std: _independent(n * (gain * std) ** 2, "uniform")),
    "truncated_normal": Scheme(truncated_normal_, _truncated_law),
    "sparse": Scheme(sparse_, _sparse_law),
    "torch_default": Scheme(
        torch_default_, lambda n, _m, gain: _independent(gain**2 / 3, "uniform") | {"sigma_b2": 1 / (3 * n)}
    ),
    "mean_field": Scheme(mean_field_, lambda _n, _m, gain, sigma_w2: _independent(gain**2 * sigma_w2)),
    "lyapunov": Scheme(lyapunov_, _lyapunov_law),
    "lsuv": Scheme(lsuv_, _lsuv_law),
}
