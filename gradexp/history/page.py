"""A history as a page to open in a browser: its lines, its findings and its table."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gradexp.history.columns import power_of_ten
from gradexp.history.curves import curves_of
from gradexp.history.short_names import shown_name
from gradexp.history.step import STATUSES, Array, Phase, Quantity, Step, mean_over_networks
from gradexp.history.verdict import gradient_verdict
from gradexp.page.lines import Line
from gradexp.page.page import NAMES, Page
from gradexp.page.parts import layer_table

_FEW = 30  # layers that make one line, as in the table

_ZERO, _NONFINITE = STATUSES.index("zero"), STATUSES.index("nonfinite")


class Recorded(Protocol):
    """Recorded steps; ``gradexp.history.history.History`` holds them."""

    phase: Phase
    steps: list[int]
    log10: dict[Quantity, Array]
    status: dict[Quantity, NDArray[np.int8]]
    loss: Array | None

    @property
    def depth(self) -> int:
        """Number of layers."""

    def at(self, step: int = -1) -> Step:
        """Return one recorded step."""


def history_page(history: Recorded, title: str = "", decades: float = 3.0) -> Page:
    """Return a page of what was measured: over layers, and over steps if there are several.

    Args:
        history: A measurement of any model, with at least one step.
        title: The headline; empty: the number of layers.
        decades: The threshold of the verdict, in powers of ten.

    Raises:
        ValueError: If nothing is recorded yet.
    """
    last = history.at()
    verdict = gradient_verdict(last, decades) if "output_grad" in last.log10 else None
    alone = len(history.steps) == 1
    line = initial_line("measured", history) if alone else training_line("measured", history)
    counts = [f"{history.depth} layers" if title else "", "" if alone else f"{len(history.steps)} recorded steps"]
    at = "at initialisation" if history.phase == "init" else "measured" if alone else f"step {history.steps[-1]}"
    return Page(
        title or f"{history.depth} layers",
        words=[verdict.gradient] if verdict else [],
        text=verdict.text if verdict else "",
        facts=[", ".join(filter(None, counts))],
        lines=by_role(line, last),
        names=named(last),
        first=at,
        decades=decades,
        findings=verdict.findings if verdict and verdict.findings else last.findings,
        sections=[steps_table(last, at)],
    )


def initial_line(name: str, history: Recorded, **others: Any) -> Line:
    """Return the profile of a history's last step, with theory and the range over networks.

    Args:
        name: Name of the line.
        history: The measurement.
        others: Further fields of the line.
    """
    step = history.at()
    shown = [quantity for quantity in NAMES if quantity in step.log10]
    theory: dict[str, Array] = {q: step.theory[f"log10_{q}"] for q in shown if f"log10_{q}" in step.theory}
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    if step.networks > 1:
        for quantity in shown:
            values = step.log10[quantity]
            low[quantity] = np.where(np.isfinite(values), values, np.inf).min(axis=0)
            high[quantity] = np.where(np.isfinite(values), values, -np.inf).max(axis=0)
    return Line(
        name,
        range(1, step.depth + 1),
        initial={quantity: marked(step.log10[quantity], step.status[quantity]) for quantity in shown},
        theory=theory,
        spread=step.theory.get("sd_output_grad"),
        low=low,
        high=high,
        **others,
    )


def training_line(name: str, history: Recorded, **others: Any) -> Line:
    """Return the course of a history over its steps, with the loss where it was recorded."""
    shown = [quantity for quantity in NAMES if quantity in history.log10]
    losses = [] if history.loss is None else mean_over_networks(history.loss.T).tolist()
    return Line(
        name,
        range(1, history.depth + 1),
        **{"steps": history.steps, "course": course(history, shown), "losses": losses, **others},
    )


def by_role(line: Line, step: Step) -> list[Line]:
    """Return a line of many layers as one for each role that returns from block to block, and one for the others.

    Args:
        line: A line of all layers.
        step: A step of the same layers.
    """
    if step.depth <= _FEW:
        return [line]
    curves = curves_of(step.names, step.calls, None)
    roles = {role: rows for role, rows in curves.items() if len(rows) > 1}
    if len(roles) < 2:
        return [line]
    inside = {row for rows in roles.values() for row in rows}
    others = [row for row in range(step.depth) if row not in inside]
    lines = [_of_rows(line, role, rows) for role, rows in roles.items()]
    lines += [_of_rows(line, "others", others)] if others else []
    return [replace(lines[0], losses=line.losses), *lines[1:]]


def _of_rows(line: Line, name: str, rows: Sequence[int]) -> Line:
    """Return some layers of a line, without its loss."""
    picked: dict[str, Any] = {
        key: {quantity: sizes[..., list(rows)] for quantity, sizes in getattr(line, key).items()}
        for key in ("initial", "theory", "low", "high", "course")
    }
    spread = None if line.spread is None else line.spread[list(rows)]
    return replace(
        line, name=name, layers=[row + 1 for row in rows], depth=max(line.layers), spread=spread, losses=(), **picked
    )


def course(history: Recorded, quantities: Sequence[Quantity]) -> dict[str, Array]:
    """Return quantity -> log10 of its size at each step and layer, as ``Line`` holds it."""
    return {quantity: marked(history.log10[quantity], history.status[quantity]) for quantity in quantities}


def marked(log10: Array, status: NDArray[np.int8]) -> Array:
    """Average log10 sizes over networks; -inf stands for exactly 0, inf for one that is not finite.

    Args:
        log10: Shape ``(..., network, layer)``, nan where there is no number.
        status: Indices into ``STATUSES``, same shape.

    Returns:
        Shape ``(..., layer)``.
    """
    means = mean_over_networks(np.moveaxis(log10, -2, 0))
    missing = ~np.isfinite(means)
    zero, nonfinite = (status == _ZERO).all(axis=-2), (status == _NONFINITE).any(axis=-2)
    return np.where(missing & nonfinite, np.inf, np.where(missing & zero, -np.inf, means))


def named(step: Step) -> list[str]:
    """Return the names of a step's rows, with the number of the call where a module is called again."""
    return [shown_name(name, call) for name, call in zip(step.names, step.calls, strict=True)]


def steps_table(step: Step, at: str) -> str:
    """Return the sizes of a step as a folded table of HTML.

    Args:
        step: The measurement.
        at: When it was made, in words.
    """
    shown = [quantity for quantity in NAMES if quantity in step.log10]
    profiles = {quantity: step.profile(quantity) for quantity in shown}
    theory = step.theory.get("log10_output_grad")
    predicted = [] if theory is None else ["theory of ∂L/∂z"]
    heads = ["layer", "name", *(NAMES[quantity] for quantity in shown), *predicted]
    rows = []
    for layer, name in enumerate(named(step)):
        sizes = [power_of_ten(profiles[q][layer], STATUSES[step.status[q][0, layer]]) for q in shown]
        predicted = [] if theory is None else [power_of_ten(theory[layer], "")]
        rows.append([str(layer + 1), name, *sizes, *predicted])
    return layer_table(f"{at}: root mean square of the output, norms of the others", heads, rows)
