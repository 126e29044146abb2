"""Curves over training steps: one for each layer of a small model, one for each role of a deep one."""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from gradexp.history.derived import extras
from gradexp.history.roles import Place, merged_roles, places
from gradexp.history.short_names import shown_name
from gradexp.history.step import Array, Quantity, mean_over_networks
from gradexp.kinds import texts
from gradexp.patterns import is_match

_FEW = 30  # layers that have curves of their own, as in the table
_MOST = 32  # curves of one quantity


def curves_of(
    names: list[str],
    calls: list[int],
    layers: str | Iterable[str] | None,
    most: int = _MOST,
    has_blocks: bool = False,
) -> dict[str, list[int]]:
    """Return the name of each curve and the rows that it is the mean of.

    Args:
        names: Name of each row's module.
        calls: Which call of its module each row is.
        layers: Patterns of names, as in the probe's ``select``: a curve for each row that matches. None: one for each
            row of up to 30, and of more for each role of a stack of blocks.
        most: How many there are at most without patterns; of more, some are evenly chosen.
        has_blocks: Whether to add, where roles leave room, curves for each row of some blocks, evenly chosen.

    Raises:
        ValueError: If a pattern matches no row.
        TypeError: If it is no string.
    """
    shown = [shown_name(name, call).replace(" #", ".call_") for name, call in zip(names, calls, strict=True)]
    if layers is not None:
        return {shown[row]: [row] for row in _matching(names, texts("layers", layers, "patterns of names"))}
    if len(names) <= min(_FEW, most):
        return {name: [row] for row, name in enumerate(shown)}
    roles: dict[str, list[int]] = defaultdict(list)
    found = places(names, calls)
    for row, (place, role) in enumerate(zip(found, merged_roles(found), strict=True)):
        parts = [*place.stack.split("."), *role.replace("*", "").split(".")]
        key = shown[row] if place.block is None else ".".join(filter(None, parts)) or "blocks"
        roles[key].append(row)
    kept = [*roles]
    if len(kept) > most:
        kept = [kept[index] for index in np.linspace(0, len(kept) - 1, most).round().astype(int)]
    curves = {shown[roles[name][0]] if len(roles[name]) == 1 else name: roles[name] for name in kept}
    rows = _rows_of_blocks(found, most - len(curves)) if has_blocks else []
    return curves | {shown[row]: [row] for row in rows}


def _rows_of_blocks(found: list[Place], room: int) -> list[int]:
    """Return all rows of as many blocks as there is room for, the first and the last block of all among them."""
    blocks: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row, place in enumerate(found):
        if place.block is not None:
            blocks[place.stack, place.block].append(row)
    keys = [*blocks]
    for count in range(min(room, len(keys)), 0, -1):
        chosen = [keys[index] for index in np.linspace(0, len(keys) - 1, count).round().astype(int)]
        rows = [row for key in chosen for row in blocks[key]]
        if len(rows) <= room:
            return rows
    return []


def _matching(names: list[str], patterns: list[str]) -> list[int]:
    for pattern in patterns:
        if not any(is_match(name, pattern) for name in names):
            raise ValueError(f"layers: '{pattern}' matches none of the {len(names)} rows, such as '{names[-1]}'")
    return [row for row, name in enumerate(names) if any(is_match(name, pattern) for pattern in patterns)]


def quantities_of(log10: dict[Quantity, Array], stats: dict[str, Array], samples: Array | None) -> dict[str, Array]:
    """Return what has curves, each of shape ``(step, network, layer)``: gradients, and all that was asked for beside.

    Args:
        log10: Quantity -> shape ``(step, network, layer)``.
        stats: The same of further statistics.
        samples: Shape ``(step, network, layer, sample)``.
    """
    sizes = {f"log10_{quantity}": log10[quantity] for quantity in ("output_grad", "weight_grad") if quantity in log10}
    return sizes | extras(log10, stats, samples)


def curve(values: Array, rows: list[int]) -> Array:
    """Return the mean over networks and some rows at each step; nan where none has a number."""
    return mean_over_networks(values[:, :, rows].reshape(len(values), -1).T)


class Means:
    """The means of one step over networks and the rows of each curve, all at once.

    Args:
        curves: The rows of each curve.
        depth: Number of rows.
    """

    def __init__(self, curves: Iterable[list[int]], depth: int) -> None:
        of_curves = [*curves]
        self._belongs = np.zeros((depth, len(of_curves)))
        for number, rows in enumerate(of_curves):
            self._belongs[rows, number] = 1

    def of(self, values: Array) -> Array:
        """Return the means, shape ``(..., curve)``, nan where no cell has a number.

        Args:
            values: Shape ``(..., network, row)``.
        """
        finite = np.isfinite(values)
        count = finite.sum(axis=-2) @ self._belongs
        total = np.where(finite, values, 0).sum(axis=-2) @ self._belongs
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
