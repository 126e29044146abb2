"""The record of a training on disk: one file, to which each step is appended as one array of numpy's ``.npy`` format.

Each array is a scalar of three fields: ``text``, JSON; ``numbers``, float64; ``codes``, int8, indices into
``STATUSES``. The text of the first one says what the record is of, that of each further one which step it is and what
its numbers are. A step takes the place of all earlier ones that are not before it: so a step is written again when
more is known of it, and a training that goes on from a checkpoint replaces what came after that.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from io import BytesIO
from itertools import zip_longest
from operator import index
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradexp.history.finding import Finding, finding_of
from gradexp.history.probe_steps import ProbeStep, Row, Subject, history_fields, layout_of

_MAGIC = b"\x93NUMPY"
_VERSION = 1
_FIELDS = ("text", "numbers", "codes")
_OPTIONAL = ("total_grad", "loss")
_BEGIN = re.compile(rb'{"place": (\d+), "label": (-?\d+), ')  # of the text of a step

Key = tuple[str, ...]


class Rows(NamedTuple):
    """Which rows were seen up to a step; see ``layout_of``."""

    numbers: dict[Row, int]
    order: dict[Row, None]
    feeds: set[tuple[Row, Row]]
    kinds: dict[str, str]


class SavedStep(NamedTuple):
    """One step in the file.

    Args:
        place: How many steps of the training come before it.
        label: Its label.
        reading: What was measured in it.
        findings: What was found in it beside the sizes.
        rows: The rows, if they are not those of the step that was written before; None if they are.
    """

    place: int
    label: int
    reading: ProbeStep
    findings: tuple[Finding, ...] = ()
    rows: Rows | None = None


class RecordFile:
    """A record to append to. What a killed training has written half is cut off.

    Args:
        path: The file; if there is none, it begins here.
        subject: What the record is of.
        restore: Is called with each step that is in the file.

    Raises:
        ValueError: If the file is no record, one of something else, or damaged.
        OSError: If it cannot be read or written.
    """

    def __init__(self, path: Path, subject: Subject, restore: Callable[[SavedStep], None]) -> None:
        self.path = path
        self._end = 0
        with path.open("a+b") as file:
            file.seek(0)
            arrays = _Arrays(file)
            first = next(arrays, None)
            if first is not None:
                self._check(_subject(path, first.text), subject)
                for array in arrays:
                    restore(_step(array))
            if arrays.is_damaged or (first is None and not _MAGIC.startswith(_start(file))):
                what = f"damaged at byte {arrays.end}" if arrays.end else "no record of a training"
                raise ValueError(f"save: {path} is {what}; give another path")
            file.truncate(arrays.end)
            self._end = arrays.end
        if first is None:
            self._write(_packed({"version": _VERSION, **subject._asdict()}, {}, {}))

    def append(self, step: SavedStep) -> None:
        """Add a step, or put it in the place of an earlier one and all that came after that.

        Raises:
            OSError: If it cannot be written; the file is then as before.
        """
        reading = step.reading
        text = {
            "place": step.place,
            "label": step.label,
            "rows": reading.rows,
            "networks": reading.networks,
            "dtypes": reading.dtypes,
            "findings": [asdict(finding) for finding in step.findings],
        }
        if step.rows is not None:
            numbers, order, feeds, kinds = step.rows
            text["seen"] = {"numbers": [*numbers], "order": [*order], "feeds": sorted(feeds), "kinds": kinds}
        self._write(_packed(text, _numbers(reading), _codes(reading)))

    def _write(self, data: bytes) -> None:
        with self.path.open("r+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) != self._end:
                raise OSError(f"{self.path} was changed by another program")
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):
                    file.truncate(self._end)
                raise
        self._end += len(data)

    def _check(self, there: Subject, here: Subject) -> None:
        """Raise a ValueError if the record is of something else."""
        for field, old, new in zip(Subject._fields, there, here, strict=True):
            if old == new or (field == "parameters" and None in (old, new)):
                continue
            if isinstance(old, list) and isinstance(new, list):
                pairs: Iterator[tuple[Any, Any]] = zip_longest(old, new)
                old, new = next((a, b) for a, b in pairs if a != b)
            raise ValueError(
                f"save: {self.path} is the record of another training ({field}: {old!r} there, {new!r} here); "
                "give another path"
            )


def is_record(path: Path) -> bool:
    """Return whether a file begins as a record does."""
    with path.open("rb") as file:
        return _start(file) == _MAGIC


def read_record(path: Path, every: int = 1) -> dict[str, Any]:
    """Return the fields of the history of a record, which may be growing; a step that is cut short is left out.

    Args:
        path: The file.
        every: The interval N: steps 0, N, 2N, ... of the record are returned, and the last one.

    Raises:
        ValueError: If it is no record, or one of a later version.
        OSError: If it cannot be read.
    """
    steps: list[SavedStep] = []
    latest: _Array | None = None  # which is wanted only if it is the last one
    rows = Rows({}, {}, set(), {})
    with path.open("rb") as file:
        arrays = _Arrays(file)
        first = next(arrays, None)
        if first is None:
            raise ValueError("no record")
        subject = _subject(path, first.text)
        for array in arrays:
            rows = _rows(array) or rows
            place = array.text["place"]
            while steps and steps[-1].place >= place:
                steps.pop()
            latest = array if place % every else None
            if latest is None:
                steps.append(_step(array))
    steps += [] if latest is None else [_step(latest)]
    if arrays.is_damaged:
        after = f"after step {steps[-1].label} " if steps else ""
        warnings.warn(f"{path} is damaged at byte {arrays.end}: what comes {after}is left out", stacklevel=3)
    return history_fields(
        subject,
        layout_of(subject.names, *rows, is_empty=not steps),
        [step.label for step in steps],
        [step.reading for step in steps],
        [step.findings for step in steps],
    )


class _Array(NamedTuple):
    """One array of a file."""

    text: Mapping[str, Any]
    numbers: NDArray[np.float64]
    codes: NDArray[np.int8]


class _Arrays:
    """The arrays of a file.

    Attributes:
        size: Bytes of the file when it was opened.
        end: Of the last array that was whole.
        is_damaged: Whether what comes then is not only cut short.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.end = 0
        self.is_damaged = False

    def __iter__(self) -> Iterator[_Array]:
        return self

    def __next__(self) -> _Array:
        if self.end == self.size:
            raise StopIteration
        try:
            np.lib.format.read_magic(self._file)
            length = self._file.read(2)
            dtype = _dtype(length + self._file.read(int.from_bytes(length, "little")))
        except ValueError:
            self.is_damaged = self._file.tell() < self.size
            raise StopIteration from None
        if dtype.names != _FIELDS:
            self.is_damaged = True
            raise StopIteration
        data = self._file.read(dtype.itemsize)
        if len(data) < dtype.itemsize:
            raise StopIteration
        array = np.frombuffer(data, dtype)[0]
        try:
            found = _Array(_parsed(array["text"]), array["numbers"], array["codes"])
        except ValueError:
            self.is_damaged = True
            raise StopIteration from None
        self.end = self._file.tell()
        return found


@lru_cache(128)  # to read a header takes longer than what follows it, and few are different
def _dtype(header: bytes) -> np.dtype[Any]:
    """Return what a header of ``.npy`` says of its array; ValueError if it is cut short or none."""
    return np.lib.format.read_array_header_1_0(BytesIO(header))[2]


def _parsed(text: bytes) -> Mapping[str, Any]:
    """Return what a text says, most of which is the same in all steps and is read once."""
    begin = _BEGIN.match(text)
    if begin is None:
        return _loaded(text)
    return {"place": int(begin[1]), "label": int(begin[2]), **_loaded(b"{" + text[begin.end() :])}


@lru_cache(16)
def _loaded(text: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def _start(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(len(_MAGIC))


def _packed(text: Mapping[str, Any], numbers: Mapping[Key, NDArray[Any]], codes: Mapping[Key, NDArray[Any]]) -> bytes:
    """Return the bytes of one array, with the header of ``.npy``."""
    shapes = {
        field: [(key, value.shape) for key, value in arrays.items()]
        for field, arrays in (("numbers", numbers), ("codes", codes))
    }
    data = json.dumps({**text, "shapes": shapes}, default=index).encode()
    flat = [np.concatenate([*map(np.ravel, arrays.values()), ()]) for arrays in (numbers, codes)]
    dtype = [("text", f"S{len(data)}"), ("numbers", "<f8", (len(flat[0]),)), ("codes", "i1", (len(flat[1]),))]
    file = BytesIO()
    np.lib.format.write_array(file, np.array((data, *flat), dtype), version=(1, 0))
    return file.getvalue()


def _numbers(step: ProbeStep) -> dict[Key, NDArray[Any]]:
    numbers: dict[Key, NDArray[Any]] = {("log10", quantity): values for quantity, values in step.log10.items()}
    numbers |= {("stats", name): values for name, values in step.stats.items()}
    numbers |= {("samples", str(row)): values for row, values in step.samples.items()}
    numbers |= {(name,): values for name in _OPTIONAL if (values := getattr(step, name)) is not None}
    for name, inner in step.over_time.items():
        numbers |= {("log10", quantity, name): values for quantity, values in inner.log10.items()}
    return numbers


def _codes(step: ProbeStep) -> dict[Key, NDArray[Any]]:
    codes: dict[Key, NDArray[Any]] = {(quantity,): values for quantity, values in step.status.items()}
    for name, inner in step.over_time.items():
        codes |= {(quantity, name): values for quantity, values in inner.status.items()}
    return codes


def _subject(path: Path, text: Mapping[str, Any]) -> Subject:
    if text["version"] > _VERSION:
        raise ValueError(f"{path} was written by a later version of gradexp")
    return Subject(*(text[field] for field in Subject._fields))


def _step(array: _Array) -> SavedStep:
    """Return the step that is in an array."""
    text = array.text
    reading = ProbeStep(text["rows"], text["networks"], dtypes={**text["dtypes"]})
    for (kind, *key), values in _split(array.numbers, text["shapes"]["numbers"]):
        if kind in _OPTIONAL:
            setattr(reading, kind, values)
        elif kind == "samples":
            reading.samples[int(key[0])] = values
        elif len(key) > 1:
            _over_time(reading, key[1], values).log10[key[0]] = values
        else:
            getattr(reading, kind)[key[0]] = values
    for (quantity, *name), values in _split(array.codes, text["shapes"]["codes"]):
        owner = _over_time(reading, name[0], values) if name else reading
        owner.status[quantity] = values
    return SavedStep(text["place"], text["label"], reading, tuple(map(finding_of, text["findings"])), _rows(array))


def _rows(array: _Array) -> Rows | None:
    """Return the rows, if an array says which they are."""
    seen = array.text.get("seen")
    if seen is None:
        return None
    return Rows(
        {_row(row): number for number, row in enumerate(seen["numbers"])},
        {_row(row): None for row in seen["order"]},
        {(_row(a), _row(b)) for a, b in seen["feeds"]},
        {**seen["kinds"]},
    )


def _split(flat: NDArray[Any], shapes: Sequence[Any]) -> Iterator[tuple[list[str], NDArray[Any]]]:
    flat, begin = flat.copy(), 0
    for key, shape in shapes:
        end = begin + math.prod(shape)
        yield key, flat[begin:end].reshape(shape)
        begin = end


def _over_time(step: ProbeStep, name: str, values: NDArray[Any]) -> ProbeStep:
    """Return the time steps of a recurrent layer."""
    return step.over_time.setdefault(name, ProbeStep(values.shape[1], step.networks))


def _row(pair: Sequence[Any]) -> Row:
    return pair[0], pair[1]
