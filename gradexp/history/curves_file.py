"""The curves of a training in a CSV file: a row for each step, written as a whole and at once."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradexp.atomic_write import replacing
from gradexp.history.finding import Finding, one_line

_FIRST, _LAST = "step", "findings"


class CurvesFile:
    """A CSV file with the columns ``step``, one for each tag, and ``findings``; an empty cell means none.

    A file that is there already goes on, for a training that does. What a killed training has left of a row is cut
    off. Only when a layer is seen for the first time, whose columns are new, is the file written anew.

    Args:
        path: The file. Its folder is made if it is missing.

    Raises:
        ValueError: If the file is there, and none of this kind.
        OSError: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tags: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            length = file.tell()
        if length:
            _cut_last_row(path)
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                header = next(csv.reader(file), [])
            if header and (header[0] != _FIRST or header[-1] != _LAST or len(header) < 2):
                raise ValueError(f"log: {path} is there already, and is no file of a probe's curves")
            self._tags = header[1:-1]

    def write(self, step: int, numbers: Mapping[str, float], findings: Sequence[Finding]) -> None:
        """Append a step."""
        known = set(self._tags)
        new = [tag for tag in numbers if tag not in known]
        if new:
            self._widen(new)
        cells = [repr(x) if math.isfinite(x := numbers.get(tag, math.nan)) else "" for tag in self._tags]
        row = _written([str(step), *cells, "; ".join(one_line(finding) for finding in findings)])
        with self._path.open("a", newline="", encoding="utf-8") as file:
            file.write(row)

    def _widen(self, new: list[str]) -> None:
        """Add columns behind those of the tags, in a file that takes the place of the old one."""
        with (
            self._path.open(newline="", encoding="utf-8") as old,
            replacing(self._path) as neighbour,
            neighbour.open("w", newline="", encoding="utf-8") as file,
        ):
            file.write(_written([_FIRST, *self._tags, *new, _LAST]))
            rows = csv.reader(old)
            next(rows, None)
            for row in rows:
                file.write(_written([*row[:-1], *[""] * len(new), row[-1]]))
        self._tags += new


def _written(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cut_last_row(path: Path) -> None:
    """Cut off a last row that has no end; no cell holds the end of a line."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        begin = end
        while begin > 0:
            begin = max(0, begin - 4096)
            file.seek(begin)
            at = file.read(end - begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
        else:
            end = 0
        file.truncate(end)
