"""The order of rows: that of the forward pass, over all recorded steps."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Hashable)


def merged(order: Sequence[Row], calls: Sequence[Row], rank: Callable[[Row], Any]) -> list[Row]:
    """Return an order of rows with those of another step put where they belong.

    A new row comes after the one that was called before it in its step, and there before rows that the step did not
    call, unless those come first in the model.

    Args:
        order: The order of the rows that are known.
        calls: The rows of one step in the order of their calls.
        rank: A row's place in the model.

    Examples:
        >>> merged(["a", "c"], ["a", "b", "c"], rank="abc".index)
        ['a', 'b', 'c']
    """
    rows, called = list(order), set(calls)
    present = set(rows)
    place = 0
    for row in calls:
        if row in present:
            place = rows.index(row) + 1
            continue
        while place < len(rows) and rows[place] not in called and rank(rows[place]) < rank(row):
            place += 1
        rows.insert(place, row)
        present.add(row)
        place += 1
    return rows
