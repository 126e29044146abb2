"""Whether the gradient comes back through time steps of a recurrent net, or calls of a module that repeats."""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from gradexp.history.finding import Finding, Kind
from gradexp.history.flow import Flow
from gradexp.history.sentences import named
from gradexp.history.slope import power, times
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
    found: dict[str, tuple[float, Finding]] = {}
    for name, values, unit in [*_times(step), *(_calls(flow) if flow is not None else ())]:
        finite = np.flatnonzero(np.isfinite(values))
        if len(finite) < 2:
            continue
        first, last = int(finite[0]), int(finite[-1])
        peak = int(finite[np.argmax(values[finite])])
        lost, grown = float(values[first] - values[peak]), float(values[first] - values[last])
        if lost < -decades - _ROUNDING:
            below = f", and is exactly 0 before {unit} {first + 1}" if first and values[first - 1] == -np.inf else ""
            finding = _finding("vanishing over time", name, lost, first, peak, unit, below)
        elif grown > decades and values[first] - _given(flow, name) > decades:
            finding = _finding("exploding over time", name, grown, first, last, unit)
        else:
            continue
        worst = max(abs(lost), abs(grown))
        # The layers of one net read each other, and vanish together.
        if finding.kind not in found or worst > found[finding.kind][0]:
            found[finding.kind] = worst, finding
    return [finding for _, finding in found.values()]


def _given(flow: Flow | None, name: str) -> float:
    """Return the largest gradient that comes to a layer from others; -inf if those are not known.

    What a layer above spreads unevenly over time does not explode in the layers that it reads.
    """
    if flow is None:
        return -np.inf
    rows = [row for row in flow.order if flow.step.names[row] == name]
    readers = {reader for row in rows for reader in flow.readers[row]} - set(rows)
    return max((float(flow.value[reader]) for reader in readers), default=-np.inf)


def _finding(kind: Kind, name: str, change: float, first: int, last: int, unit: str, below: str = "") -> Finding:
    text = (
        f"the gradient at {named(name)} {'falls' if change < 0 else 'grows'} by {power(change)} from "
        f"{unit} {last + 1} back to {unit} {first + 1}, {times(change / (last - first))} per {unit}{below}"
    )
    return Finding(kind, text, (name,))


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
