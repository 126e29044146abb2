"""The prediction for a network that is no MLP, from what a law says of each row of its profile."""

from collections.abc import Sequence

from torch import Tensor

from gradexp.theory.prediction import Prediction, averaged_logs


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
    return Prediction(
        widths=tuple(elements),
        valid=True,
        reason=reason,
        sigma_w2=sigma_w2,
        sigma_b2=sigma_b2,
        point=None,
        q_star=q_star,
        chi_1=chi_1,
        tolerance=tolerance,
        dead_probability=0.0,
        laws=(),
        **averaged_logs(
            output,
            output_grad,
            weight_grad,
            variance,
            output_grad if mean_field is None else mean_field,
            first=(output_grad[:, 0], variance[:, 0]),
        ),
    )
