"""What a network will do, predicted before it is built."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradexp.choices import check_choice
from gradexp.history.sentences import counted, shortened
from gradexp.networks.activations import Activation
from gradexp.numerics.formats import limits
from gradexp.theory.expansion import expand
from gradexp.theory.finite_width import any_layer_dies
from gradexp.theory.length_law import follow_lengths
from gradexp.theory.mean_field import (
    MeanField,
    is_flat_somewhere,
    is_piecewise_linear,
    share_without_slope,
    usable_activation,
)
from gradexp.theory.network import Network
from gradexp.theory.normalised import normalised_or_residual
from gradexp.theory.profile import Profile, diagonal, exact
from gradexp.theory.trust import (
    batch_norm_error,
    lengths_differ,
    neglected_terms,
    non_gaussian_error,
    why_no_formula,
    why_not_trusted,
)
from gradexp.theory.verdict import predicted_verdict
from gradexp.theory.weight_laws import WeightLaw, weight_laws

Array = NDArray[np.float64]

_LN10 = math.log(10)

_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, repr=False)
class Prediction:
    """Theory's profile at initialisation and what stands behind it.

    Arrays have one number per layer, layer l at index l - 1, and are averages over the samples of the predicted mean
    of log10: exactly what ``exact_profile`` measures. If ``valid`` is false they are nan, and ``reason`` says why.

    Args:
        widths: n_0, ..., n_L.
        valid: Whether there is a formula for this network.
        reason: Why not; or which formula it is.
        sigma_w2: fan_in · Var(W) of the hidden layers (of the middle one, where they differ).
        sigma_b2: Var(b) of the same layer.
        point: Mean field at these variances; None for a scaled identity.
        q_star: Fixed length, None where there is none: normalised and residual networks.
        chi_1: Factor of ‖δ‖² per layer towards the input, in infinite width and deep inside.
        log_chi: Predicted ``History.log_chi()``, over all layers; ``slope(first, last)`` is that of some.
        log_chi_sd: Standard deviation of the log_chi of one sample of one network.
        log_chi_mean_field: The same in infinite width.
        tolerance: Error of ``log_chi`` that theory itself admits: the size of the first term left out, 0 if exact.
        log10_output: log10 of rms(zˡ).
        log10_output_grad: log10 of ‖δˡ‖, from 0 at layer L.
        log10_weight_grad: log10 of ‖dl/dWˡ‖.
        sd_output_grad: Standard deviation of log10 ‖δˡ‖ of one sample of one network.
        first_output_grad: ``log10_output_grad`` of the first sample alone.
        first_sd: ``sd_output_grad`` of the first sample alone.
        mean_field_output_grad: log10 of ‖δˡ‖ in infinite width, also where ``valid`` is false; nan if not known.
        dead_probability: Probability that every unit of some layer is off for an input: no gradient comes by.
        laws: The law of each layer's weights; empty if none is known.
    """

    widths: tuple[int, ...]
    valid: bool
    reason: str
    sigma_w2: float
    sigma_b2: float
    point: MeanField | None
    q_star: float | None
    chi_1: float | None
    log_chi: float | None
    log_chi_sd: float | None
    log_chi_mean_field: float | None
    tolerance: float
    log10_output: Array
    log10_output_grad: Array
    log10_weight_grad: Array
    sd_output_grad: Array
    first_output_grad: Array
    first_sd: Array
    mean_field_output_grad: Array
    dead_probability: float
    laws: tuple[WeightLaw, ...]

    @property
    def depth(self) -> int:
        """Number of weight matrices L."""
        return len(self.widths) - 1

    @property
    def first_over_last(self) -> float | None:
        """log10 of ‖δ¹‖ / ‖δᴸ‖: where no formula holds that of infinitely wide layers, or None."""
        profile = self.log10_output_grad if self.valid else self.mean_field_output_grad
        ratio = float(profile[0] - profile[-1])
        return ratio if math.isfinite(ratio) and (self.valid or self.depth > 1) else None

    @property
    def ratio_variance(self) -> float | None:
        """Variance of log(‖δ¹‖² / ‖δᴸ‖²), natural log, of one sample of one network; None where no formula holds.

        About 5 Σ 1 / n_l over the hidden layers of relu, 2 Σ 1 / n_l of linear ones (Hanin, 2018, arXiv:1801.03744).
        """
        return float((2 * _LN10 * self.sd_output_grad[0]) ** 2) if self.valid else None

    def slope(self, first: int | None = None, last: int | None = None) -> float | None:
        """Return log_chi between two layers: what ``History.log_chi(first, last)`` will measure.

        A method beside the number ``log_chi``, which is ``slope()``.

        Args:
            first: First layer, counted from 1; None: 1.
            last: Last layer; None: L.

        Returns:
            Slope of log ‖δˡ‖² per layer towards the input; None where no formula holds, or for one layer.

        Raises:
            ValueError: If the layers are not within 1..depth.

        Examples:
            >>> tanh = predict("tanh", sigma_w2=1.5, sigma_b2=0.1, width=300, depth=100)
            >>> round(tanh.slope(1, 10), 3), round(tanh.slope(10, 100), 3)  # lengths settle in the first layers
            (-0.215, -0.136)
        """
        first = 1 if first is None else first
        last = self.depth if last is None else last
        if not 1 <= first <= last <= self.depth:
            raise ValueError(f"first and last must satisfy 1 <= first <= last <= {self.depth}, got {first}, {last}")
        if first == last or not self.valid:
            return None
        rise = self.log10_output_grad[first - 1] - self.log10_output_grad[last - 1]
        return 2 * _LN10 * float(rise) / (last - first)

    def failing_layer(self, dtype: str, overflow: bool = False) -> int | None:
        """Return the layer from which on, downwards, output gradients leave a number format, or None.

        Judged by the typical largest of n Gaussian elements, ‖δ‖ √(2 log n / n).

        Args:
            dtype: ``float32``, ``float16`` or ``bfloat16``.
            overflow: Whether to inf, else to 0.

        Raises:
            ValueError: If ``dtype`` is another format.
        """
        check_choice("dtype", dtype, _DTYPES)
        n = np.array(self.widths[1:], dtype=np.float64)
        largest = self.log10_output_grad + 0.5 * np.log10(np.maximum(2 * np.log(n), 1) / n)
        smallest, greatest = limits(dtype)
        layers = 1 + np.flatnonzero(largest >= greatest if overflow else largest <= smallest)
        return int(layers.max()) if layers.size else None

    @property
    def arrays(self) -> dict[str, Array]:
        """The profile as ``History.theory`` holds it; empty if there is none."""
        keys = ("log10_output", "log10_output_grad", "log10_weight_grad", "sd_output_grad")
        return {key: getattr(self, key) for key in keys} if self.valid else {}

    def _repr_html_(self) -> str:
        """Return what a notebook shows: verdict, picture with its band, and folded table."""
        from gradexp.page.cell import cell
        from gradexp.theory.page import prediction_page

        return cell(prediction_page(self))

    def __repr__(self) -> str:
        slope = "" if self.log_chi is None else f"log_chi {self.log_chi:+.4g} ± {self.log_chi_sd:.2g}; "
        text = shortened(predicted_verdict(self).text)
        return f"Prediction({counted(self.depth, 'layer')}: {slope}{self.reason})\n{text}"


def predict(
    activation: str | Activation | Callable[[Tensor], Tensor] = "tanh",
    sigma_w2: float | None = None,
    sigma_b2: float | None = None,
    width: int = 128,
    depth: int = 150,
    *,
    widths: Sequence[int] | None = None,
    input_square: float = 1.0,
    weights: str = "gaussian",
    init: str | None = None,
    normalization: str = "none",
    residual: str = "none",
    batch: int = 64,
    dropout: float = 0.0,
    negative_slope: float = 0.01,
    kinks: Sequence[float] = (),
    **options: Any,
) -> Prediction:
    """Predict the profile at initialisation of a network of given variances, or of a scheme.

    Args:
        activation: Name of a built-in activation, an ``Activation``, or an elementwise function.
        sigma_w2: fan_in · Var(W) of every layer; None: 1, or what ``init`` says.
        sigma_b2: Var(b); None: 0, or the scheme's own.
        width: Units of every layer.
        depth: Number of weight matrices L.
        widths: n_0, ..., n_L instead of width and depth.
        input_square: ‖x‖² / n_0.
        weights: ``gaussian``, ``uniform`` or ``orthogonal``.
        init: A scheme of ``gradexp.initialize``, such as ``he``, in place of variances and weights.
        normalization: ``none``, ``layer``, ``batch`` or ``rms``, for which there is no formula.
        residual: ``none``, ``plain``, ``depth`` or ``zero``, as in ``MLP``.
        batch: Number of samples, for batch norm.
        dropout: The probability with which φ(z) is 0, as in ``MLP``: the prediction is then of the gradient in
            training mode. ``exact_profile`` measures without it.
        negative_slope: The slope of ``leaky_relu`` below 0.
        kinks: Every z at which a function or a derivative of it jumps.
        **options: Options of the scheme, such as ``gain``.

    Raises:
        ValueError: If a variance is negative, a width or depth below 1, the activation not elementwise, or a scheme
            or option of it is unknown or has no law.

    Examples:
        >>> round(predict("relu", init="he", width=100, depth=101, dropout=0.2).chi_1, 4)  # 1 / keep
        1.25
        >>> prediction = predict("relu", sigma_w2=2.0, width=100, depth=101)
        >>> round(prediction.log_chi, 4), round(prediction.log_chi_sd, 4)  # about -5 / 2n and √(5 / n L)
        (-0.0254, 0.0228)
    """
    widths = _checked_widths(width, depth, widths)
    law_fields: dict[str, dict[str, Any]] = {
        "gaussian": {},
        "uniform": {"kurtosis": -1.2},
        "orthogonal": {"orthogonal": True},
    }
    check_choice("weights", weights, tuple(law_fields))
    if not isinstance(batch, Integral) or batch < 1:
        raise ValueError(f"batch must be a whole number of at least 1, got {batch!r}")
    if not 0 < input_square < math.inf:
        raise ValueError(f"input_square must be above 0 and finite, got {input_square}")
    phi = usable_activation(activation, negative_slope, kinks)
    laws: Sequence[WeightLaw]
    if init is None:
        if options:
            raise ValueError(f"{', '.join(options)}: options are for a scheme, such as init='he'")
        law = WeightLaw(1.0 if sigma_w2 is None else sigma_w2, sigma_b2 or 0.0, **law_fields[weights])
        laws = [law] * (len(widths) - 1)
    else:
        if weights != "gaussian":
            raise ValueError(f"weights={weights!r} contradicts init={init!r}, which says how they are drawn")
        options |= {} if sigma_w2 is None else {"sigma_w2": sigma_w2}  # an option of mean_field
        name = activation if isinstance(activation, str) else None
        facts: dict[str, Any] = {"sigma_b2": sigma_b2, "activation": name, "negative_slope": negative_slope}
        laws = weight_laws(init, widths, **facts, **options)
    architecture: dict[str, Any] = {"normalization": normalization, "residual": residual, "dropout": dropout}
    return predict_layers(phi, laws, widths, input_square, batch=batch, **architecture)


def predict_layers(
    phi: str | Activation | Callable[[Tensor], Tensor],
    laws: str | Sequence[WeightLaw],
    widths: Sequence[int],
    x: Tensor | float = 1.0,
    *,
    normalization: str = "none",
    residual: str = "none",
    batch: int | None = None,
    input_variance: float | None = None,
    dropout: float = 0.0,
) -> Prediction:
    """Predict a profile from the law of each layer's weights and from the actual inputs.

    Args:
        phi: Name of a built-in activation, an ``Activation``, or an elementwise function.
        laws: The law of each layer's weights, as ``weight_laws`` gives them; or the name of a scheme, with its
            default options.
        widths: n_0, ..., n_L.
        x: Inputs, shape ``(sample, n_0)``. Those that are exactly 0 or not finite are left out. Or the mean square
            ‖x‖² / n_0 of one input.
        normalization: ``none``, ``layer``, ``batch`` or ``rms``, for which there is no formula.
        residual: ``none``, ``plain``, ``depth`` or ``zero``, as in ``MLP``.
        batch: Number of samples, for batch norm; None: of x.
        input_variance: Mean over features of the variance of inputs over samples, for batch norm; None: of x.
        dropout: The probability with which φ(z) is 0, for a prediction of the gradient in training mode.

    Raises:
        ValueError: If a name is unknown, numbers do not fit each other, or as in ``MeanField``.

    Examples:
        >>> round(predict_layers("relu", "he", [64, 200, 200, 10], torch.ones(1, 64)).sigma_w2, 6)
        2.0
    """
    if isinstance(laws, str):
        laws = weight_laws(laws, widths, activation=phi if isinstance(phi, str) else None)
    phi = usable_activation(phi, 0.01, ())
    if len(laws) != len(widths) - 1:
        raise ValueError(f"laws must be {len(widths) - 1}, one for each layer of these widths, got {len(laws)}")
    x = torch.as_tensor(x, dtype=torch.float64).detach().cpu()
    if x.dim() == 0:
        square = float(x)
        if not 0 < square < math.inf:
            raise ValueError(f"x must be inputs, or their mean square, above 0 and finite, got {square}")
        if input_variance is None:  # of independent samples, over the batch
            input_variance = square * (1 - 1 / batch) if batch else square
        x = torch.full((1, widths[0]), math.sqrt(square), dtype=torch.float64)
    if x.dim() != 2 or x.shape[1] != widths[0] or not len(x):
        raise ValueError(f"x must have shape (sample, {widths[0]}), got {tuple(x.shape)}")
    network = Network(phi, laws, widths, normalization, residual, dropout)
    batch = len(x) if batch is None else batch
    if input_variance is None:
        input_variance = float(x.var(dim=0, correction=0).mean())
    mean_square = x.square().mean(dim=1)
    usable = (mean_square > 0) & mean_square.isfinite()
    mean_square, x = mean_square[usable], x[usable]

    reason = why_no_formula(network, mean_square, batch)
    if not reason and normalization == "batch" and input_variance == 0:
        reason = "the inputs do not vary over the batch: batch norm makes them 0"
    if reason:
        return _unavailable(reason, network, mean_square)
    if laws[0].diagonal is not None:
        return _available(
            diagonal(network, x), "exact: a scaled identity, followed unit by unit", 0.0, network, mean_square
        )
    if network.has_exact_laws:
        tolerance = non_gaussian_error(network)
        formula = "as for Gaussian weights" if tolerance > 0 else "exact at any width"
        return _available(exact(network, mean_square), formula, tolerance, network, mean_square)
    return _expanded(network, mean_square, input_variance, batch)


def _expanded(network: Network, mean_square: Tensor, input_variance: float, batch: int) -> Prediction:
    """Predict by expansion in 1 / width."""
    formula, point = "to first order in 1 / width", None
    if network.is_plain:
        profile = expand(network, mean_square)
        point = _mean_field_point(network, mean_square, profile)
        if lengths_differ(profile, point) and (followed := follow_lengths(network, mean_square, profile)) is not None:
            profile, formula = followed, "to first order in 1 / width, with the whole law of lengths"
    else:
        profile = normalised_or_residual(network, mean_square, input_variance, batch)
    tolerance = neglected_terms(profile, network)
    if network.normalization == "batch":
        tolerance, formula = batch_norm_error(network, batch), f"wide layers, batch norm over {batch} samples"
    elif network.branch:  # what ties the gradient's stream to that of the signal is left out (61)
        shares = 1 - (-profile.mean_field.diff(dim=0).abs()[:-1]).exp()  # the last layer has no skip
        tolerance += float(shares.sum(dim=0).mean()) / network.depth / network.narrowest
    reason = why_not_trusted(profile, network, point, tolerance)
    if reason:
        return _unavailable(reason, network, mean_square, profile)
    return _available(profile, formula, tolerance, network, mean_square)


def no_prediction(reason: str, widths: Sequence[int], sigma_b2: float) -> Prediction:
    """Return a prediction without any number, for weights of which nothing is known."""
    nan = np.full(len(widths) - 1, np.nan)
    facts: dict[str, Any] = dict.fromkeys(("point", "q_star", "chi_1", "log_chi", "log_chi_sd", "log_chi_mean_field"))
    facts |= {
        "widths": tuple(widths),
        "sigma_w2": math.nan,
        "sigma_b2": sigma_b2,
        "dead_probability": 0.0,
        "laws": (),
    }
    return _without_layers(reason, nan, facts)


def _mean_field_point(network: Network, mean_square: Tensor, profile: Profile | None) -> MeanField | None:
    """Return mean field at the variances of the middle layer; None for a scaled identity."""
    middle = network.middle
    if middle.diagonal is not None:
        return None
    effective = None if profile is None else profile.sigma_w2
    sigma_w2 = middle.sigma_w2 if effective is None else effective[network.depth // 2]
    start = float(mean_square.median()) if len(mean_square) else 1.0
    return MeanField(network.activation, sigma_w2, middle.sigma_b2, start=start, dropout=network.dropout)


def _facts(network: Network, point: MeanField | None, mean_square: Tensor) -> dict[str, Any]:
    """Return what is known of a network with a formula and without one."""
    return {
        "widths": tuple(network.widths),
        "laws": tuple(network.laws),
        "point": point,
        "sigma_w2": network.middle.sigma_w2 if point is None else point.sigma_w2,
        "sigma_b2": network.middle.sigma_b2,
        "dead_probability": _dead_probability(network, mean_square),
    }


def _dead_probability(network: Network, mean_square: Tensor) -> float:
    """Return the probability that an input lets no gradient through some layer of one network.

    That of relu is exact; where the odds depend on the length, as for hard_tanh, it is taken of infinite width.
    """
    phi, laws = network.activation, network.laws
    is_random = all(law.diagonal is None and law.sigma_w2 for law in laws[1:])
    is_off_at_times = is_flat_somewhere(phi) or network.keep < 1
    if not (network.is_plain and is_random and len(mean_square) and is_off_at_times):
        return 0.0

    def odds(q: float) -> float:
        return 1 - network.keep * (1 - share_without_slope(phi, q))

    q = laws[0].sigma_w2 * float(mean_square.median()) + laws[0].sigma_b2
    off = [odds(q)]
    for law in laws[1:-1]:
        if is_piecewise_linear(phi):  # whatever the length
            off.append(off[0])
            continue
        q = law.sigma_w2 * float(network.moments(torch.tensor(q, dtype=torch.float64)).square) + law.sigma_b2
        off.append(odds(q if q < math.inf else 1e200))
    return any_layer_dies(network.widths[1:-1], off[: network.depth - 1])


def _unavailable(reason: str, network: Network, mean_square: Tensor, profile: Profile | None = None) -> Prediction:
    """Return a prediction without numbers for the layers, but with what mean field alone knows."""
    point = _mean_field_point(network, mean_square, profile)
    facts = _facts(network, point, mean_square)
    fixed = point if network.is_plain else None
    facts["q_star"] = None if fixed is None else fixed.q_star
    facts["chi_1"] = None if fixed is None else fixed.chi_1
    facts["log_chi"] = facts["log_chi_sd"] = None
    facts["log_chi_mean_field"] = None if profile is None else _slope(profile.mean_field)
    nan = np.full(network.depth, np.nan)
    return _without_layers(reason, nan, facts, None if profile is None else _log10(profile.mean_field))


def _without_layers(reason: str, nan: Array, facts: dict[str, Any], mean_field: Array | None = None) -> Prediction:
    return Prediction(
        **facts,
        mean_field_output_grad=nan if mean_field is None else mean_field,
        valid=False,
        reason=reason,
        tolerance=0.0,
        log10_output=nan,
        log10_output_grad=nan,
        log10_weight_grad=nan,
        sd_output_grad=nan,
        first_output_grad=nan,
        first_sd=nan,
    )


def _available(profile: Profile, formula: str, tolerance: float, network: Network, mean_square: Tensor) -> Prediction:
    """Average a profile over the samples that reach every layer, and turn natural logs of squares into log10."""
    first_output_grad, first_variance = profile.output_grad[:, 0], profile.variance[:, 0]
    reaching = (profile.output.isfinite() & profile.output_grad.isfinite()).all(dim=0)
    if not reaching.any():
        return _unavailable("every sample is exactly 0 in some layer", network, mean_square)
    for key in ("output", "inputs", "output_grad", "variance", "mean_field"):
        setattr(profile, key, getattr(profile, key)[:, reaching])
    steps = profile.mean_field.diff(dim=0)
    middle_step = float(-steps[len(steps) // 2].mean()) if len(steps) else None
    point = _mean_field_point(network, mean_square, profile)
    if point is None or not network.is_plain:  # no fixed point describes it
        q_star, chi_1 = None, None if middle_step is None else math.exp(middle_step)
    else:
        q_star, chi_1 = point.q_star, point.chi_1
    return Prediction(
        **_facts(network, point, mean_square),
        valid=True,
        reason=formula,
        q_star=q_star,
        chi_1=chi_1,
        tolerance=tolerance,
        **averaged_logs(
            profile.output,
            profile.output_grad,
            profile.output_grad + profile.inputs + profile.branch.unsqueeze(1),  # (3)
            profile.variance,
            profile.mean_field,
            first=(first_output_grad, first_variance),
        ),
    )


def averaged_logs(
    output: Tensor,
    output_grad: Tensor,
    weight_grad: Tensor,
    variance: Tensor,
    mean_field: Tensor,
    *,
    first: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """Return the fields of a ``Prediction`` that are averages over samples, from natural logs of squares.

    Args:
        output: E log of the mean square of the output, shape ``(layer, sample)``, as the others.
        output_grad: E log of the squared norm of its gradient.
        weight_grad: E log of the squared norm of the weights' gradient.
        variance: Variance of the log of ``output_grad``'s square over networks.
        mean_field: ``output_grad`` in infinite width.
        first: ``output_grad`` and ``variance`` of the first sample, each of shape ``(layer,)``.
    """
    rows = len(output_grad)
    return {
        "log_chi": _slope(output_grad),
        "log_chi_sd": math.sqrt(max(float(variance[0].mean()), 0.0)) / (rows - 1) if rows > 1 else None,
        "log_chi_mean_field": _slope(mean_field),
        "log10_output": _log10(output),
        "log10_output_grad": _log10(output_grad),
        "log10_weight_grad": _log10(weight_grad),
        "sd_output_grad": (variance.mean(dim=1).sqrt() / (2 * _LN10)).numpy(),
        "first_output_grad": (first[0] / (2 * _LN10)).numpy(),
        "first_sd": (first[1].sqrt() / (2 * _LN10)).numpy(),
        "mean_field_output_grad": _log10(mean_field),
    }


def _log10(log_square: Tensor) -> Array:
    """Return the mean over samples of log10 of norms, given natural logs of squared ones."""
    return np.asarray((log_square / (2 * _LN10)).mean(dim=1).numpy())


def _slope(log_square: Tensor) -> float | None:
    """Return the mean over samples of the slope per layer towards the input."""
    return float((log_square[0] - log_square[-1]).mean()) / (len(log_square) - 1) if len(log_square) > 1 else None


def _checked_widths(width: int, depth: int, widths: Sequence[int] | None) -> tuple[int, ...]:
    for name, value in (("width", width), ("depth", depth)):
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    if widths is None:
        return (width,) * (depth + 1)
    if (
        not isinstance(widths, Sequence)
        or len(widths) < 2
        or not all(isinstance(n, Integral) and n >= 1 for n in widths)
    ):
        raise ValueError(f"widths must be at least two whole numbers of at least 1, got {widths!r}")
    return tuple(widths)
