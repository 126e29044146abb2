"""A table that fits into a terminal: ranges lose digits, then pictures and names room, then columns move below."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gradexp.history.columns import Column
from gradexp.history.folding import Fold
from gradexp.history.heights import Picture
from gradexp.history.short_names import short_names

_LEAST_NAME = 18
_NAME_HEAD = len("name")
_LEFT = 7  # characters of the first column, and the gap behind it
_MAX_LINES = 200  # the middle of a longer table is left out
# Digits of a range, and characters of its picture, from the most to the least.
_FOLDED_STEPS = (3, 40), (2, 24), (2, 16), (1, 16), (1, 12)
_SINGLE_STEPS = (3, 25), (3, 13)


@dataclass
class Layout:
    """The lines of a table, and which of its columns have room.

    Args:
        folds: Its lines.
        columns: What could be shown, the most important first.
        status: What is unusual about each line; empty if the table has no such column.
        headings: Stack -> the line above its roles.
        picture: What is drawn at the right; None: nothing.
        width: Characters of a line.
    """

    folds: list[Fold]
    columns: Sequence[Column]
    status: list[str]
    headings: dict[str, str]
    picture: Picture | None
    width: int
    rest: list[Column] = field(init=False)
    """The columns that have no room."""

    def __post_init__(self) -> None:
        self._status_width = max(6, *map(len, self.status)) if self.status else 0
        self._longest = max(_NAME_HEAD, *(len(fold.name) + 2 * bool(fold.stack) for fold in self.folds))
        columns = [*self.columns]
        while not self._fits(columns) and len(columns) > 1:
            columns.pop()
        if self._names_width < min(_LEAST_NAME, self._longest):  # a very narrow terminal
            self.picture = None
            self._fits(columns)
        self.rest = [*self.columns[len(columns) :]]
        self.columns = columns

    def _fits(self, columns: list[Column]) -> bool:
        """Choose digits and widths for some columns; return whether names have room enough."""
        self._names_width = 0
        is_folded = any(len(fold.rows) > 1 for fold in self.folds)
        for self._digits, most in _FOLDED_STEPS if is_folded else _SINGLE_STEPS:
            self._picture_width = self.picture.width(most) if self.picture else 0
            self._widths = [
                max(*map(len, column.head), *(len(column.cell(fold.rows, self._digits)) for fold in self.folds))
                for column in columns
            ]
            gaps = len(columns) + 2 * bool(self._status_width) + 2 * bool(self._picture_width)
            taken = _LEFT + sum(self._widths) + gaps + self._status_width + self._picture_width
            self._names_width = min(self.width - taken, self._longest)
            if self._names_width == self._longest:
                return True
        return self._names_width >= _LEAST_NAME

    def lines(self) -> list[str]:
        """Return two lines of headings, and a line for each fold and stack."""
        names = self._names()
        self._names_width = max(_NAME_HEAD, *map(len, names))
        picture_head = self.picture.head(self._picture_width) if self.picture else ("", "")
        heads = [
            self._line(left, name, [column.head[i] for column in self.columns], status, picture_head[i])
            for i, left, name, status in ((0, "", "", ""), (1, "layer", "name", "status"))
        ]
        lines, stack = [], ""
        for index, (fold, name) in enumerate(zip(self.folds, names, strict=True)):
            if fold.stack != stack and fold.stack:
                lines.append(" " * _LEFT + self.headings[fold.stack])
            stack = fold.stack
            count = f"{fold.rows[0] + 1}" if len(fold.rows) == 1 else f"{len(fold.rows)}x"
            cells = [column.cell(fold.rows, self._digits) for column in self.columns]
            drawn = self.picture.draw(fold.rows, self._picture_width) if self.picture else ""
            lines.append(self._line(count, name, cells, self.status[index] if self.status else "", drawn))
        if len(lines) > _MAX_LINES:
            left_out = len(lines) - _MAX_LINES
            lines[_MAX_LINES // 2 : -_MAX_LINES // 2] = [f"  ...  {left_out} lines more"]
        return heads + lines

    def _line(self, left: str, name: str, cells: list[str], status: str, picture: str) -> str:
        numbers = "".join(f" {cell:>{width}}" for cell, width in zip(cells, self._widths, strict=True))
        right = f"  {status:<{self._status_width}}" if self._status_width else ""
        return f"{left:>5}  {name:<{self._names_width}}{numbers}{right}  {picture}".rstrip()

    def _names(self) -> list[str]:
        """Shorten the names; those under different headings may be alike."""
        by_stack: dict[str, list[int]] = {}
        for index, fold in enumerate(self.folds):
            by_stack.setdefault(fold.stack, []).append(index)
        names = [""] * len(self.folds)
        for stack, indices in by_stack.items():
            indent = 2 * bool(stack)
            short = short_names([self.folds[index].name for index in indices], max(self._names_width - indent, 6))
            for index, name in zip(indices, short, strict=True):
                names[index] = " " * indent + name
        return names
