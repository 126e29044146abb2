"""The findings at initialisation as lines of text, for terminal and TensorBoard."""

from gradexp.history.step import Step
from gradexp.runs.result import Result


def slope_lines(initial: Step) -> list[str]:
    """Return how fast the gradient grows or shrinks, and how much the networks differ."""
    lines = []
    slope, scale = initial.log_chi(), initial.depth_scale()
    if slope is not None:
        reach = f", depth scale {scale:.3g} layers" if scale is not None else ""
        error = initial.log_chi_se()
        spread = f" ± {error:.2g}" if error is not None else ""
        lines.append(f"log_chi {slope:+.4g}{spread} per layer towards the input{reach}")
    if quantiles := initial.log_chi_quantiles():
        low, middle, high = quantiles.values()
        lines.append(f"  of the networks 5 % are below {low:+.4g}, half {middle:+.4g}, 95 % {high:+.4g}")
    return lines


def theory_lines(result: Result) -> list[str]:
    """Return what theory expects of log_chi and how far the measurement is from it, or why theory is silent."""
    prediction, comparison = result.prediction, result.comparison
    if prediction is None or comparison is None:
        return []
    if prediction.log_chi is None or prediction.log_chi_sd is None or comparison.z is None:
        return [comparison.text]
    sd = round(prediction.log_chi_sd, 8)  # without fluctuations what is left is rounding
    good_to = f", good to {prediction.tolerance:.1g}" if prediction.tolerance else ""
    return [
        f"theory  {prediction.log_chi:+.4g}, standard deviation {sd:.2g} for one network "
        f"({prediction.reason}{good_to}): {comparison.text}"
    ]


def range_lines(initial: Step, dtype: str) -> list[str]:
    """Return from which layer on a number format would fail, for outputs and for output gradients."""
    lines = []
    for quantity, label, direction in (("output", "outputs", "up"), ("output_grad", "output gradients", "down")):
        for overflow, word in ((False, "underflow to 0"), (True, "overflow to inf")):
            layer = initial.failing_layer(quantity, dtype, overflow)
            if layer is not None:
                lines.append(f"in {dtype} {label} would {word} from layer {layer} {direction}")
    return lines
