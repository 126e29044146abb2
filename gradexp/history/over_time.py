"""Whether the gradient comes back through time steps of a recurrent net, or calls of a module that repeats."""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from gradexp.history.finding import Finding
from gradexp.history.flow import Flow
from gradexp.history.slope import factor, power
from gradexp.history.step import STATUSES, Array, Step, mean_over_networks

# The steps share their weights, whose gradient is the sum over all of them: what is smaller than the largest part
# by float32's rounding is lost in that sum, whatever the learning rate.
_ROUNDING = -math.log10(np.finfo(np.float32).eps)


def over_time(step: Step, flow: Flow | None, decades: float) -> list[Finding]:
    """Return where the gradient vanishes or explodes over time.

    It vanishes if at the first time step so many decades are missing beyond float32's rounding; it explodes if it
    grows by so many.

    Args:
        step: With sizes at each time step, if they were recorded.
        flow: The way of the gradient, for modules that are called once per time step.
        decades: The threshold.
    """
    found = []
    for name, values, unit in [*_times(step), *(_calls(flow) if flow is not None else ())]:
        finite = np.flatnonzero(np.isfinite(values))
        if len(finite) < 2:
            continue
        first, last = int(finite[0]), int(finite[-1])
        peak = int(finite[np.argmax(values[finite])])
        lost, grown = float(values[first] - values[peak]), float(values[first] - values[last])
        if lost < -decades - _ROUNDING:
            below = f", and exactly 0 before step {first + 1}" if first and values[first - 1] == -np.inf else ""
            found.append(_finding("vanishing", name, lost, first, peak, len(values), unit, below))
        elif grown > decades:
            found.append(_finding("exploding", name, grown, first, last, len(values), unit))
    return found


def _finding(
    kind: str, name: str, change: float, first: int, last: int, count: int, unit: str, below: str = ""
) -> Finding:
    text = (
        f"{power(change)} from {unit} {last + 1} of {count} back to {unit} {first + 1} of {name}, "
        f"x{factor(change / (last - first))} per {unit}{below}"
    )
    return Finding(f"{kind} over time", text, (name,))


def _times(step: Step) -> Iterator[tuple[str, Array, str]]:
    """Yield the output gradient at each time step, in the order in which the layer reads them."""
    for key, log10 in step.time_log10.items():
        quantity, _, name = key.partition("/")
        if quantity == "output_grad":
            zero = (step.time_status[key] == STATUSES.index("zero")).all(axis=0)
            values = np.where(zero, -np.inf, mean_over_networks(log10))
            yield name, values[::-1] if name.endswith("_reverse") else values, "step"


def _calls(flow: Flow) -> Iterator[tuple[str, Array, str]]:
    """Yield the output gradient at each call of modules whose calls feed each other."""
    rows = defaultdict(list)
    for row in flow.order:
        rows[flow.step.names[row]].append(row)
    for name, calls in rows.items():
        if len(calls) > 2 and all(flow.above[a] >> b & 1 for a, b in pairwise(calls)):
            yield name, flow.value[calls], "call"
