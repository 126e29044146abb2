"""Rows without a number: gradients of exactly 0, of inf or nan, and such that nobody saw."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding
from gradexp.history.flow import Flow
from gradexp.history.sentences import named
from gradexp.history.step import STATUSES, Step, is_seen

_OPEN_END = "no ReLU, clamp or other flat function between it and the loss"
_FIRE_AGAIN = "gradexp.initialize(model, 'he', sigma_b2=0), if a ReLU after it is off for every sample"


def not_finite(step: Step, flow: Flow | None) -> list[Finding]:
    """Return the first row whose output, or else whose gradient, is inf or nan."""
    for quantity, what in (("output", "the output of {} is"), ("output_grad", "{} receives a gradient of")):
        rows = _rows_with(step, quantity, "nonfinite")
        if rows.size:
            # Forward it happened at the first one, backward at one that gets a finite gradient from above.
            row = int(rows[0] if quantity == "output" else rows[-1])
            if quantity == "output_grad" and flow is not None:
                inner = {a for a, b in step.feeds if b in set(rows.tolist())}
                row = next((r for r in rows[::-1].tolist() if r not in inner), row)
            name = _name(step, row)
            return [Finding("nonfinite", f"{what.format(named(name))} inf or nan", (name,), severity=3)]
    return []


def without_values(step: Step) -> list[Finding]:
    """Return that no gradient was seen at all, and why."""
    if "output_grad" not in step.status or is_seen(step.status["output_grad"]).any():
        return []
    statuses = Counter(STATUSES[code] for code in step.status["output_grad"][0])
    if not statuses:
        return []
    status, count = statuses.most_common(1)[0]
    text = f"no layer shows a gradient ({status} in {count} of {step.depth})"
    return [Finding("unknown", text, severity=2)]


def no_gradient(flow: Flow, findings: Sequence[Finding]) -> list[Finding]:
    """Return where a gradient of exactly 0 begins, if on every way to the inputs it does.

    Args:
        flow: The way of the gradient.
        findings: What is known already. A gradient that vanishes, or weights that are 0, explain a 0.
    """
    known = {finding.kind for finding in findings}
    lowest = flow.sources
    value = flow.by_module()
    if not lowest or any(value[row] > -np.inf for row in lowest) or known & _EXPLAINED:
        return []
    step = flow.step
    zero = {row for row in flow.order if flow.value[row] == -np.inf}
    begin = [row for row in flow.order if row in zero and not set(flow.readers[row]) <= zero]
    if not begin:  # not even the rows that feed the loss get a gradient
        row = flow.ends[-1]
        text = f"{flow.shown(row)} receives a gradient of exactly 0 for every sample"
        return [Finding("dead", text, (flow.name(row),), _OPEN_END, severity=3)]
    row = begin[-1]
    reader = max(flow.readers[row], key=lambda other: flow.value[other])
    silent = set(_rows_with(step, "output", "zero").tolist())
    learns = "weight_grad" in step.log10 and np.isfinite(step.profile("weight_grad")[reader])
    first = next((other for other in flow.order if other in silent), None)
    if reader in silent and learns:
        names = [flow.name(r) for r in flow.order if r in silent and r not in zero and set(flow.feeders[r]) & zero]
        several = f" and {len(names) - 1} more" if len(names) > 1 else ""
        whose = "their" if several else "its"
        text = (
            f"below {named(names[0])}{several} the gradient is exactly 0, since {whose} weights are; "
            "they get a gradient: measure again after a step"
        )
        return [Finding("zero by initialisation", text, tuple(names), severity=0)]
    if first is not None and not learns:
        text = f"{flow.shown(first)} outputs 0 for every sample"
        givers = [flow.shown(feeder) for feeder in flow.feeders[first]]
        if givers:
            text += f", and gets nothing but 0 from what comes after {' and '.join(givers[:3])}"
        return [Finding("dead", text, (*givers, flow.name(first)), severity=3)]
    why = (
        "its weights are 0, or what comes before it is saturated"
        if learns
        else "what comes after it is 0 for every sample"
    )
    text = (
        f"{flow.shown(row)} receives a gradient of exactly 0 for every sample, though {flow.shown(reader)} gets one: "
    )
    remedy = "" if learns else _FIRE_AGAIN
    return [Finding("dead", text + why, (flow.name(row), flow.name(reader)), remedy, severity=3)]


_EXPLAINED = {"vanishing", "vanishing over time", "zero by initialisation", "cut", "number format", "dead"}


def _rows_with(step: Step, quantity: str, status: str) -> NDArray[np.int64]:
    """Return rows that have a status in every network; one network is enough for inf or nan."""
    if quantity not in step.status:
        return np.empty(0, np.int64)
    codes = step.status[quantity] == STATUSES.index(status)
    return np.flatnonzero(codes.any(axis=0) if status == "nonfinite" else codes.all(axis=0))


def _name(step: Step, row: int) -> str:
    call = step.calls[row] if step.calls else 0
    return (step.names[row] or "(model)") + (f" #{call + 1}" if call else "")
