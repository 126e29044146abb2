"""The findings at initialisation as lines of text, for terminal and TensorBoard."""

from gradexp.history.step import Quantity, Step
from gradexp.runs.number_format import NARROW
from gradexp.runs.result import Result


def slope_lines(initial: Step) -> list[str]:
    """Return how fast the gradient grows or shrinks, and how much the networks differ."""
    lines = []
    slope, scale = initial.log_chi(), initial.depth_scale()
    if slope is not None:
        reach = f", depth scale {scale:.3g} layers" if scale is not None else ""
        error = initial.log_chi_se()
        spread = f" ± {error:.2g}" if error is not None else ""
        lines.append(f"log_chi   {slope:+.3f}{spread} per layer towards the input{reach}")
    if quantiles := initial.log_chi_quantiles():
        low, middle, high = quantiles.values()
        count = initial.networks
        lines.append(f"          median over {count} networks {middle:+.3f} (5 to 95 %: {low:+.3f} to {high:+.3f})")
    return lines


def theory_lines(result: Result) -> list[str]:
    """Return what theory expects of log_chi and how far the measurement is from it, or why theory is silent."""
    prediction, comparison = result.prediction, result.comparison
    if prediction is None or comparison is None:
        return []
    if prediction.log_chi is None or prediction.log_chi_sd is None or comparison.z is None:
        return [f"theory    {comparison.text.removeprefix('theory ')}"]
    sd = round(prediction.log_chi_sd, 8)  # without fluctuations what is left is rounding
    spread = f" ± {sd:.2g} for one network" if sd else ""
    good_to = f", good to {prediction.tolerance:.1g}" if prediction.tolerance else ""
    return [
        f"theory    {prediction.log_chi:+.3f}{spread} ({prediction.reason}{good_to})",
        f"          {comparison.text}",
    ]


_FORMATS = ("float16", "bfloat16", "float32")


def range_lines(initial: Step, dtype: str) -> list[str]:
    """Return from which layer on a size is 0 or inf in the number formats in use, for outputs and gradients.

    Args:
        initial: The profile at initialisation, which no format cuts off.
        dtype: The run's own format; of one of 16 bits ``format_lines`` knows more.
    """
    lines = []
    ways: tuple[tuple[Quantity, str, str], ...] = (
        ("output", "outputs  ", "up"),
        ("output_grad", "gradients", "down"),
    )
    for quantity, label, direction in ways:
        for overflow, word in ((False, "0"), (True, "inf")):
            names = [name for name in dict.fromkeys((*_FORMATS, dtype)) if name != dtype or name not in NARROW]
            layers = {name: initial.failing_layer(quantity, name, overflow) for name in names}
            fails = [f"layer {layer} {direction} in {name}" for name, layer in layers.items() if layer is not None]
            if fails:
                lines.append(f"{label} {word} from {', '.join(fails)}")
    return lines


def format_lines(result: Result) -> list[str]:
    """Return where the real gradients of the first batch leave a format of 16 bits, and which steps it has cost."""
    check, training = result.format_check, result.training
    if check is None:
        return []
    seen = f"; measured: {check.measured or 'none is lost'}" if check.is_measured else ""
    lines = [f"{check.name:9} expected in training: {check.expected or 'none is lost'}{seen}"]
    if check.expected is check.measured is None:
        sure = ", as expected" if check.is_measured else ", it is expected"
        lines = [f"{check.name:9} holds all outputs and gradients of the first batch{sure}"]
    if training is not None and training.skipped:
        count, steps = len(training.skipped), len(training.losses)
        lines.append(f"skipped   {count} of {steps} steps, as gradients of the scaled loss are not finite")
    return lines
