"""File formats for ``save=`` compared: ``python benchmarks/save_formats.py [--rows 500] [--steps 2000]``.

Needs ``pip install pyarrow zarr h5py``, which the library does not. Each format appends the same steps of random
numbers, five quantities of each row with their statuses, one step to each format after the other in an order that
rotates, and hands each step to the system before the next one begins. Printed are the processor time to append a
step, its growth from the first quarter of the steps to the last, the bytes on disk, the processor time to load all
steps, and what is there after ``kill -9`` at random moments: how often the file opens and holds only whole steps, how
many of the steps that were made are missing at most, and how often it can be appended to.
"""

import argparse
import importlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from save_size import reading

from gradexp.history.probe_steps import ProbeStep, Row, Subject
from gradexp.history.record_file import RecordFile, Rows, SavedStep, read_record
from gradexp.history.step import QUANTITIES


class Npy:
    """What ``save=`` writes: a row of ``.npy`` arrays."""

    def __init__(self, path: Path, rows: int) -> None:
        names = [f"blocks.{row}" for row in range(rows)]
        seen: dict[Row, int] = {(name, 0): row for row, name in enumerate(names)}
        self._rows: Rows | None = Rows(seen, {}, set(), {})
        self._file = RecordFile(path, Subject(names, [*QUANTITIES], 1, [0]), lambda _: None)

    def append(self, number: int, step: ProbeStep) -> None:
        self._file.append(SavedStep(number, number, step, rows=self._rows))
        self._rows = None

    @staticmethod
    def load(path: Path) -> list[int]:
        return list(read_record(path)["steps"])


class Shards:
    """A folder with a file for each step."""

    ending = ""

    def __init__(self, path: Path, rows: int) -> None:  # noqa: ARG002
        path.mkdir(exist_ok=True)
        self._path = path

    def append(self, number: int, step: ProbeStep) -> None:
        self.write(self._path / f"{number:08}{self.ending}", _columns(number, step))

    @classmethod
    def load(cls, path: Path) -> list[int]:
        found = []
        for file in sorted(path.iterdir()):
            with suppress(Exception):  # the last one may be half written
                found.append(int(cls.read(file)))
        return found


class NpzShards(Shards):
    """One ``.npz`` for each step."""

    ending = ".npz"
    write = staticmethod(lambda path, columns: np.savez(path, **columns))

    @staticmethod
    def read(path: Path) -> Any:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}["step"][0]


class ParquetShards(Shards):
    """One Parquet file for each step."""

    ending = ".parquet"

    @staticmethod
    def write(path: Path, columns: dict[str, Any]) -> None:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    @staticmethod
    def read(path: Path) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(path).read().to_pydict()["step"][0]


class ParquetGroups:
    """One Parquet file with a row group for each step."""

    def __init__(self, path: Path, rows: int) -> None:  # noqa: ARG002
        self._path, self._writer = path, None

    def append(self, number: int, step: ProbeStep) -> None:
        import pyarrow.parquet

        table = pyarrow.table(_columns(number, step))
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def load(path: Path) -> list[int]:
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(path)
        return [int(file.read_row_group(group)["step"][0].as_py()) for group in range(file.num_row_groups)]


class Zarr:
    """Zarr arrays, of one step or of a hundred in each chunk."""

    chunk = 1

    def __init__(self, path: Path, rows: int) -> None:
        import zarr

        group = zarr.open_group(str(path), mode="a")
        for name, (kind, *shape) in _shapes(rows).items():
            if name not in group:
                group.create_array(name, shape=(0, *shape), chunks=(self.chunk, *shape), dtype=kind)
        self._arrays = [group[name] for name in _shapes(rows)]

    def append(self, number: int, step: ProbeStep) -> None:
        steps, log10, status = self._arrays
        log10.append(np.stack([step.log10[quantity] for quantity in QUANTITIES], axis=1))
        status.append(np.stack([step.status[quantity] for quantity in QUANTITIES], axis=1))
        steps.append(np.array([number]))

    @staticmethod
    def load(path: Path) -> list[int]:
        import zarr

        group = zarr.open_group(str(path), mode="r")
        steps = [int(step) for step in group["steps"][:]]
        assert all(len(group[name][:]) >= len(steps) for name in ("log10", "status"))
        return steps


class ZarrOfHundred(Zarr):
    """A hundred steps in each chunk, which each of them writes again."""

    chunk = 100


class Hdf5:
    """HDF5, flushed after each step."""

    is_swmr = False

    def __init__(self, path: Path, rows: int) -> None:
        import h5py

        self._file = h5py.File(path, "a", libver="latest")
        for name, (kind, *shape) in _shapes(rows).items():
            if name not in self._file:
                chunks = (1, *shape) if shape else (100,)
                self._file.create_dataset(name, (0, *shape), kind, maxshape=(None, *shape), chunks=chunks)
        self._arrays = [self._file[name] for name in _shapes(rows)]
        if self.is_swmr:
            self._file.swmr_mode = True

    def append(self, number: int, step: ProbeStep) -> None:
        values = [number] + [
            np.concatenate([of[quantity] for quantity in QUANTITIES]) for of in (step.log10, step.status)
        ]
        for array, value in zip(self._arrays, values, strict=True):
            array.resize(len(array) + 1, axis=0)
            array[-1] = value
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @classmethod
    def load(cls, path: Path) -> list[int]:
        import h5py

        with h5py.File(path, "r", libver="latest", swmr=cls.is_swmr) as file:
            assert all(len(file[name][:]) >= len(file["steps"]) for name in ("log10", "status"))
            return [int(step) for step in file["steps"][:]]


class Hdf5Swmr(Hdf5):
    """HDF5 in its mode for one writer and many readers."""

    is_swmr = True


FORMATS: dict[str, Any] = {
    "row of .npy": Npy,
    ".npz for each step": NpzShards,
    "Parquet, row groups": ParquetGroups,
    "Parquet for each step": ParquetShards,
    "Zarr, chunks of 1": Zarr,
    "Zarr, chunks of 100": ZarrOfHundred,
    "HDF5": Hdf5,
    "HDF5, one writer (SWMR)": Hdf5Swmr,
}


def _columns(number: int, step: ProbeStep) -> dict[str, Any]:
    """Return a step as a table: a column for each quantity and its status."""
    columns = {f"log10_{quantity}": step.log10[quantity][0] for quantity in QUANTITIES}
    columns |= {f"status_{quantity}": step.status[quantity][0] for quantity in QUANTITIES}
    return columns | {"step": np.full(len(columns["log10_output"]), number)}


def _shapes(rows: int) -> dict[str, tuple[Any, ...]]:
    """Return kind and shape of what a step has in each array."""
    return {"steps": ("i8",), "log10": ("f8", len(QUANTITIES), rows), "status": ("i1", len(QUANTITIES), rows)}


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def size(path: Path) -> int:
    """Return the bytes on disk, in whole blocks of the file system."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(512 * file.stat().st_blocks for file in files)


def write_until_killed(name: str, path: Path, rows: int) -> None:
    """Append steps, and say so after each."""
    writer = FORMATS[name](path, rows)
    step = reading(rows, np.random.default_rng(0))
    for number in range(10**6):
        writer.append(number, step)
        print(number, flush=True)


def after_kills(name: str, folder: Path, options: argparse.Namespace) -> str:
    """Return how often the file opens after a kill, how many steps are missing at most, and how often it goes on."""
    chance, missing, going_on = random.Random(0), [], 0
    step = reading(options.rows, np.random.default_rng(0))
    for kill in range(options.kills):
        path = folder / f"{kill}"
        command = [sys.executable, __file__, "--write", name, str(path), "--rows", str(options.rows)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            made, wanted = -1, chance.randrange(20, 200)
            assert process.stdout is not None
            while made < wanted:
                made = int(process.stdout.readline())
            time.sleep(chance.random() / 50)  # the moment within a step
            os.kill(process.pid, signal.SIGKILL)
            made = max([made, *map(int, process.stdout.read().splitlines())])
        with suppress(Exception):
            found = FORMATS[name].load(path)
            assert found == [*range(len(found))]
            missing.append(max(0, made + 1 - len(found)))
            writer = FORMATS[name](path, options.rows)
            writer.append(len(found), step)
            if hasattr(writer, "close"):
                writer.close()
            going_on += FORMATS[name].load(path) == [*range(len(found) + 1)]
    return f"{len(missing)} of {options.kills}, {max(missing, default='all')} missing, {going_on} go on"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--write", nargs=2, metavar=("FORMAT", "PATH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_until_killed(options.write[0], Path(options.write[1]), options.rows)
        return
    versions = ", ".join(
        f"{name} {importlib.import_module(name).__version__}" for name in ("pyarrow", "zarr", "h5py")
    )
    source = np.random.default_rng(0)
    names, times = [*FORMATS], {name: [0.0] * options.steps for name in FORMATS}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / str(number) for number, name in enumerate(names)}
        writers = {name: FORMATS[name](paths[name], options.rows) for name in names}
        for number in range(options.steps):
            step = reading(options.rows, source)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                times[name][number] = seconds(lambda: writers[name].append(number, step))  # noqa: B023
        for writer in writers.values():
            if hasattr(writer, "close"):
                writer.close()
        print(f"{machine('cpu')}, {date.today()}: {options.steps} steps, {options.rows} rows; {versions}")
        print(f"{'format':<24} {'ms/step':>8} {'growth':>7} {'kB/step':>8} {'load, s':>8}  after kill -9")
        for name in names:
            own, quarter = times[name], options.steps // 4
            first, last = (statistics.median(part) for part in (own[:quarter], own[-quarter:]))
            loading = seconds(lambda: FORMATS[name].load(paths[name]))  # noqa: B023
            print(
                f"{name:<24} {1e3 * statistics.fmean(own):8.2f} {last / first:7.2f} "
                f"{size(paths[name]) / options.steps / 1e3:8.1f} {loading:8.2f}",
                end="  ",
                flush=True,
            )
            kills = Path(folder) / f"kills {names.index(name)}"
            kills.mkdir()
            print(after_kills(name, kills, options), flush=True)


if __name__ == "__main__":
    main()
