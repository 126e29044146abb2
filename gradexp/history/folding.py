"""Rows that are alike as one: the layers of one role over the blocks of a stack."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gradexp.history.roles import Place, merged_roles
from gradexp.history.step import Array

_FEWEST = 2  # rows that fold: the range of two numbers holds both
_SPIKE = 1.0  # decades by which an outlier leaves all lines through its neighbours


@dataclass(frozen=True)
class Fold:
    """One line of a table.

    Args:
        rows: Its rows, in order of their blocks; one, if it stands for itself.
        stack: The stack of blocks that it is in; empty outside of those that have a heading.
        name: What to call it: of a row of a stack its block and role, of several the role.
    """

    rows: tuple[int, ...]
    stack: str
    name: str


def folded(places: Sequence[Place], names: Sequence[str], kinds: Sequence[object], log10: Array) -> list[Fold]:
    """Return the lines of a table: rows of one stack, role and kind make one, but for outliers.

    Args:
        places: Place of each row.
        names: Name of each row, as it is shown.
        kinds: What is unusual about each row, such as its status; only rows that are the same in it fold.
        log10: Sizes, shape ``(row,)``, by which outliers are told.
    """
    groups: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for row, (place, role) in enumerate(zip(places, merged_roles(places), strict=True)):
        key = (place.stack, role, place.is_call) if place.block is not None else (names[row], "", False)
        groups[key].append(row)
    stacks: dict[tuple[str, bool], list[list[int]]] = defaultdict(list)
    for (stack, _, is_call), rows in groups.items():
        stacks[stack, is_call].append(rows)
    lines = []
    for (stack, _), members in stacks.items():
        blocks = {places[row].block for rows in members for row in rows}
        has_heading = len(members) > 1 and max(map(len, members)) >= _FEWEST
        for rows in members:
            rows.sort(key=lambda row: (places[row].block or 0, row))
            is_line = len({places[row].block for row in rows}) == len(rows)  # unlike experts, several in a block
            for part in _parts(rows, kinds, _outliers(rows, log10) if is_line else []):
                # Then those that are left out follow one by one.
                is_most = 2 * len(part) > len(rows) and {places[row].block for row in rows} == blocks
                name = _name([places[row] for row in part], names[part[0]], is_most, has_heading)
                lines.append(Fold(tuple(part), stack if has_heading else "", name))
    return lines


def _parts(rows: list[int], kinds: Sequence[object], alone: list[int]) -> list[list[int]]:
    """Split the rows of a role into those that fold, and then those that stand alone."""
    same: dict[object, list[int]] = defaultdict(list)
    for row in rows:
        if row not in alone:
            same[kinds[row]].append(row)
    parts = [part for part in same.values() if len(part) >= _FEWEST]
    together = {row for part in parts for row in part}
    return parts + [[row] for row in rows if row not in together]


def _outliers(rows: list[int], log10: Array) -> list[int]:
    """Return the rows that no line through two others nearby meets, unlike those of steps and slopes."""
    values = log10[rows].tolist()
    if len(rows) < 5 or not np.isfinite(values).all():
        return []
    alone = []
    for at, value in enumerate(values):
        pairs = [(at + i, at + j) for i, j in ((-1, 1), (-2, -1), (1, 2), (-3, -2), (2, 3))]
        lines = [
            values[i] + (values[j] - values[i]) / (j - i) * (at - i)
            for i, j in pairs
            if min(i, j) >= 0 and max(i, j) < len(values)
        ]
        if min(abs(value - line) for line in lines) > _SPIKE:
            alone.append(rows[at])
    return alone if len(alone) <= max(4, len(rows) // 8) else []  # many are noise


def _name(places: list[Place], own: str, is_most: bool, has_heading: bool) -> str:
    """Return the name of some rows of one role, the first of which has an own one."""
    place = places[0]
    if place.block is None or (len(places) == 1 and not has_heading):
        return own
    if is_most and len(places) > 1 and has_heading:
        return _role(places) or "(block)"
    call = own[own.rindex(" #") :] if len(places) == 1 and " #" in own and not place.is_call else ""
    return blocks_name(places, own, with_stack=not has_heading) + call


def blocks_name(places: Sequence[Place], own: str, with_stack: bool = True, with_role: bool = True) -> str:
    """Return what some rows of a stack are called together, such as ``layers.0-31.fc`` or ``cell #1-60``.

    Args:
        places: Their places, all of one stack.
        own: The whole name of the first.
        with_stack: Whether to name the stack.
        with_role: Whether to name the role.
    """
    place = places[0]
    blocks = spans([other.block + place.is_call for other in places if other.block is not None])
    if place.is_call:
        blocks = f"#{blocks}"
    if with_stack and place.stack:
        # A number may stand at the end of a part: ``denselayer12``.
        gap = " " if place.is_call else "." if own.startswith(f"{place.stack}.{place.block}") else ""
        blocks = f"{place.stack}{gap}{blocks}"
    return f"{blocks}.{_role(places)}" if with_role and place.role else blocks


def _role(places: Sequence[Place]) -> str:
    """Return the role of some rows, with runs for numbers in which they differ, such as ``experts.0-7.w1``."""
    parts = zip(*(place.role.split(".") for place in places), strict=True)
    return ".".join(own[0] if len(set(own)) == 1 else spans([int(part) for part in own]) for own in parts)


def spans(numbers: Sequence[int]) -> str:
    """Write whole numbers as runs, at most four, such as ``0-4,6-11``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in runs]
    if len(shown) > 4:
        shown = [*shown[:2], "…", shown[-1]]
    return ",".join(shown)
