"""A measurement as a table in plain text: one line per layer, and the verdict below."""

import math
import textwrap

import numpy as np

from gradexp.history.step import STATUSES, Array, Step
from gradexp.history.verdict import gradient_verdict

_COLUMNS = {"output": "output rms", "output_grad": "output grad", "weight_grad": "weight grad"}
_BAR = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MAX_LINES = 200  # the middle of a deeper network is left out


def table(step: Step, decades: float = 3.0) -> str:
    """Return layer, name, sizes, status and a bar of each layer, then the verdict with its thresholds.

    The bar is the output gradient on a log scale. A size that is missing shows its status in its place; the last
    columns name what is unusual.

    Args:
        step: The measurement.
        decades: The threshold: over all layers below 10^-decades the gradient vanishes, above 10^decades it explodes.
    """
    quantities = [quantity for quantity in _COLUMNS if quantity in step.log10]
    profiles = {quantity: step.profile(quantity) for quantity in quantities}
    names = [name + (f" #{call + 1}" if call else "") for name, call in zip(step.names, step.calls, strict=True)]
    width = min(18, max(7, *(len(name) for name in names)))
    bars = _bars(profiles.get("output_grad", np.full(step.depth, np.nan)))
    heads = "".join(f"{_COLUMNS[quantity]:>12}" for quantity in quantities)
    lines = [f"layer  {'name':<{width}}{heads}  {'status':<11}{'gradient' if 'output_grad' in profiles else ''}"]
    for layer, name in enumerate(names):
        codes = {quantity: STATUSES[step.status[quantity][0, layer]] for quantity in quantities}
        sizes = "".join(f"{power_of_ten(profiles[q][layer], codes[q]):>12}" for q in quantities)
        lines.append(
            f"{layer + 1:>5}  {_short(name, width):<{width}}{sizes}  {_worst(codes):<11}{bars[layer]}".rstrip()
        )
    if len(lines) > _MAX_LINES:
        left_out = len(lines) - _MAX_LINES
        lines[_MAX_LINES // 2 : -_MAX_LINES // 2] = [f"  ...  {left_out} layers more"]
    if "output_grad" in step.log10:
        limits = f"vanishing: below 10^-{decades:g} in all, exploding: above 10^+{decades:g}"
        lines += ["", *textwrap.wrap(gradient_verdict(step, decades).text, 80), f"({limits})"]
    return "\n".join(lines)


def power_of_ten(log10: float, status: str) -> str:
    """Return a size, which may be far outside float64, in three digits, or the status of a missing one."""
    if not math.isfinite(log10):
        return status
    exponent = math.floor(log10)
    digits = f"{10 ** (log10 - exponent):.2f}"
    if digits == "10.00":
        digits, exponent = "1.00", exponent + 1
    return f"{digits}e{exponent:+03d}"


def _worst(codes: dict[str, str]) -> str:
    """Return the most telling status of a layer; having no weight to train tells least."""
    order = ("nonfinite", "zero", "hook_missed", "subnormal", "unused", "not_called", "frozen")
    gradients = [status for quantity, status in codes.items() if quantity != "weight_grad" or status != "frozen"]
    return next((status for status in order if status in (gradients or codes.values())), "ok")


def _short(name: str, width: int) -> str:
    """Shorten a module's dotted name from its beginning, which tells least."""
    name = "".join(character if character.isprintable() else "?" for character in name) or "(model)"
    levels = name.split(".")
    for length in (3, 1):
        for index, level in enumerate(levels[:-1]):
            if len(".".join(levels)) > width:
                levels[index] = level[:length]
    name = ".".join(levels)
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]


def _bars(log10: Array) -> list[str]:
    """Draw values on a log scale at least one decade wide, with an empty bar where there is no number."""
    finite = log10[np.isfinite(log10)]
    if not finite.size:
        return [""] * len(log10)
    low, high = finite.min(), max(finite.max(), finite.min() + 1)
    bars = []
    for value in log10:
        eighths = 0 if not math.isfinite(value) else 1 + round((value - low) / (high - low) * (8 * _BAR - 1))
        bars.append("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip())
    return bars
