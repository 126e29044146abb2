"""The prediction for a network that is no MLP, from what a law says of each row of its profile."""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from gradexp.theory.prediction import Array, Prediction

_LN10 = math.log(10)


def prediction_of_rows(
    elements: Sequence[int],
    output: Tensor,
    output_grad: Tensor,
    weight_grad: Tensor,
    variance: Tensor,
    *,
    reason: str,
    sigma_w2: float,
    sigma_b2: float = 0.0,
    tolerance: float = 0.0,
    mean_field: Tensor | None = None,
    q_star: float | None = None,
    chi_1: float | None = None,
) -> Prediction:
    """Return a prediction from natural logs of squares, averages over networks, each of shape ``(row, sample)``.

    Args:
        elements: Number of elements of the input and of the output of each row, n_0, ..., n_L.
        output: E log of the mean square of h_l.
        output_grad: E log ‖δ_l‖², 0 at the last row.
        weight_grad: E log of the squared norm of dl/dW over all weight matrices of the row.
        variance: Variance of log ‖δ_l‖² of one sample over networks.
        reason: Which formula it is.
        sigma_w2: fan_in · Var(W) inside.
        sigma_b2: Var(b) inside.
        tolerance: What the law neglects of ``log_chi``.
        mean_field: E log ‖δ_l‖² in infinite width; None: ``output_grad``.
        q_star: The fixed mean square, if there is one.
        chi_1: Factor of ‖δ‖² per row towards the input, in infinite width and deep inside.
    """
    mean_field = output_grad if mean_field is None else mean_field
    rows = len(output_grad)

    def log10(log_square: Tensor) -> Array:
        return np.asarray((log_square / (2 * _LN10)).mean(dim=1).numpy())

    def slope(log_square: Tensor) -> float | None:
        return float((log_square[0] - log_square[-1]).mean()) / (rows - 1) if rows > 1 else None

    return Prediction(
        widths=tuple(elements),
        valid=True,
        reason=reason,
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
        point=None,
        q_star=q_star,
        chi_1=chi_1,
        log_chi=slope(output_grad),
        log_chi_sd=math.sqrt(max(float(variance[0].mean()), 0.0)) / (rows - 1) if rows > 1 else None,
        log_chi_mean_field=slope(mean_field),
        tolerance=tolerance,
        log10_output=log10(output),
        log10_output_grad=log10(output_grad),
        mean_field_output_grad=log10(mean_field),
        log10_weight_grad=log10(weight_grad),
        sd_output_grad=(variance.mean(dim=1).sqrt() / (2 * _LN10)).numpy(),
        first_output_grad=(output_grad[:, 0] / (2 * _LN10)).numpy(),
        first_sd=(variance[:, 0].sqrt() / (2 * _LN10)).numpy(),
        dead_probability=0.0,
        laws=(),
    )
