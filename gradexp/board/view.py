"""What TensorBoard is shown: a folder of links to event files, under the names of the board, and means over seeds."""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from gradexp.board.names import Run, colour_groups, find_runs, varying_options
from gradexp.board.seeds import FILTER, Series, mean_and_band, settings
from gradexp.sinks.event_file import event_files, read_all_scalars

if TYPE_CHECKING:
    from gradexp.sinks.event_file import EventFile

MOST = 500
"""Lines above which TensorBoard draws none until told to."""

# Runs up to which the theory of each is shown beside it. With more it only hides what was measured.
_FEW = 20
_AVERAGED = ("profile/", "gradient/log10", "train/", "test/")


@dataclass
class View:
    """A folder of links, brought up to date by ``look``.

    TensorBoard calls a run by the path to its folder, and draws whatever it finds there. Links let it find what is to
    be drawn, under other names, while the runs' own folders stay as they are.

    Args:
        source: The folder of a run, or of several.
        folder: The folder of links; empty, and nobody else's.
    """

    source: Path
    folder: Path
    runs: list[Run] = field(default_factory=list)
    means: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    _linked: dict[str, Path] = field(default_factory=dict)
    _averages: "dict[str, _Averages]" = field(default_factory=dict)
    _read: dict[str, tuple[float, Series]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of all lines, as TensorBoard lists them."""
        return [*self._linked, *(f"{name}/{line}" for name, own in self._averages.items() for line in own.files)]

    @property
    def colours(self) -> str:
        """A regular expression that tells which lines have one colour."""
        return colour_groups([run.name for run in self.runs])

    @property
    def filter(self) -> str:
        """A regular expression of the lines that are drawn at first: the means, if all runs are in one; else all."""
        averaged = {name for runs in self.means.values() for name in runs}
        are_written = bool(self.means) and self.means.keys() == self._averages.keys()
        return FILTER if are_written and len(averaged) == len(self.runs) else ""

    @property
    def varying(self) -> set[str] | None:
        """The options that differ between runs; None if that is not known, as of one run."""
        return varying_options(self.runs)

    def look(self) -> None:
        """Bring the links, and the means over seeds, up to what the runs' folders hold now.

        Raises:
            OSError: If the folder of links cannot be written to.
        """
        self.runs = find_runs(self.source)
        by_name = {run.name: run for run in self.runs}
        self._link(self._shown())
        self.means = settings(by_name)
        for name in [name for name, own in self._averages.items() if own.runs != self.means.get(name)]:
            self._averages.pop(name).close()
            rmtree(self.folder / name, ignore_errors=True)
        for name, runs in self.means.items():
            series = [self._series(by_name[run]) for run in runs]
            if all(series):
                own = self._averages.setdefault(name, _Averages(self.folder / name, runs))
                own.write(series)

    def close(self) -> None:
        """Close the files of the means."""
        for own in self._averages.values():
            own.close()

    def _shown(self) -> dict[str, Path]:
        """Return the folders that are shown, by name."""
        shown = {run.name: run.folder for run in self.runs}
        steps = [(run, name) for run in self.runs for name in run.subruns if name.startswith("step_")]
        theory = [(run, name) for run in self.runs for name in run.subruns if name == "theory"]
        self.left_out = []
        for what, found, fits in (
            ("theory", theory, len(self.runs) <= _FEW),
            ("steps in training", steps, len(shown) + len(steps) <= MOST),
        ):
            if found and fits:
                shown |= {f"{run.name}/{name}": run.folder / name for run, name in found}
            elif found:
                self.left_out.append(what)
        return shown

    def _link(self, shown: Mapping[str, Path]) -> None:
        """Make and remove links, so that there are those of some folders, by name, and no others."""
        for name in [name for name, path in self._linked.items() if shown.get(name) != path]:
            for link in (self.folder / name).glob("*"):
                if link.is_symlink():
                    link.unlink()
            del self._linked[name]
        for name, path in shown.items():
            own = self.folder / name
            if name not in self._linked:
                own.mkdir(parents=True, exist_ok=True)
            self._linked[name] = path
            files = {file.name: file for file in path.glob("*events.out.tfevents.*")}
            links = {link.name for link in own.iterdir() if link.is_symlink()}
            for gone in links - files.keys():
                (own / gone).unlink()
            for new in files.keys() - links:
                (own / new).symlink_to(files[new].resolve())

    def _series(self, run: Run) -> Series:
        """Return the scalars of a run, read again where its files have changed."""
        changed = max((path.stat().st_mtime for path in event_files(run.folder)), default=math.nan)
        if (known := self._read.get(run.name)) is None or known[0] != changed:
            known = self._read[run.name] = changed, read_all_scalars(run.folder, _AVERAGED)
        return known[1]


class _Averages:
    """The event files of a mean and its band; each step is written once.

    Args:
        folder: Their folder.
        runs: Names of the runs.
    """

    def __init__(self, folder: Path, runs: list[str]) -> None:
        self.folder = folder
        self.runs = runs
        self.files: dict[str, EventFile] = {}
        self._seen: list[Series] = []
        self._written: dict[str, set[int]] = {}

    def write(self, series: list[Series]) -> None:
        """Add the steps that every run has by now."""
        from gradexp.sinks.event_file import EventFile
        from gradexp.sinks.tensorboard import write_points

        if len(self._seen) == len(series) and all(map(operator.is_, self._seen, series)):
            return
        self._seen = series
        new: dict[str, set[int]] = {}
        for name, tags in mean_and_band(series).items():
            points: dict[int, dict[str, float]] = {}
            for tag, values in tags.items():
                new[tag] = values.keys() - self._written.get(tag, set())
                for step in new[tag]:
                    if math.isfinite(values[step]):
                        points.setdefault(step, {})[tag] = values[step]
            if name not in self.files:
                self.files[name] = EventFile(self.folder / name)
            file = self.files[name]
            write_points(file, iter(sorted(points.items())))
            file.flush()
        for tag, steps in new.items():
            self._written.setdefault(tag, set()).update(steps)

    def close(self) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()
