"""What real loggers have on disk, read back without them where that is possible."""

import csv
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweep_processes import LIMIT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAG = "log10_output_grad/0"


def eventually(read: Callable[[], Any], is_there: Callable[[Any], bool]) -> Any:
    """Return what is read once it is what it must become."""
    end = time.monotonic() + LIMIT
    while not is_there(found := read()):
        assert time.monotonic() < end, f"still {found!r}"
        time.sleep(0.05)
    return found


def records_of_wandb(path: str | Path) -> list[Any]:
    """Return what an offline file holds so far: messages of protobuf in a log as LevelDB has it."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, records = Path(path).read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4) and at <= len(data):
            records.append(Record.FromString(parts))
            parts = b""
    return records


def rows_of_wandb(path: str | Path, has_end: bool = True) -> list[dict[str, str]]:
    """Return the rows of a run, of one that is finished once its process of its own has written the end."""
    records = eventually(
        lambda: records_of_wandb(path), lambda all_: not has_end or any(record.HasField("exit") for record in all_)
    )
    rows = [record.history.item for record in records if record.HasField("history")]
    return [{item.key or ".".join(item.nested_key): item.value_json for item in row} for row in rows]


def curve_of_wandb(rows: list[dict[str, str]], tag: str = TAG) -> dict[int, float]:
    return {int(row["gradient/step"]): float(row[tag]) for row in rows if tag in row}


def curve_of_mlflow(store: Path, run_id: str, tag: str = TAG) -> dict[int, float]:
    with sqlite3.connect(store) as connection:
        rows = connection.execute("select step, value from metrics where run_uuid = ? and key = ?", (run_id, tag))
        return dict(rows.fetchall())


def last_run_of_mlflow(store: Path) -> str:
    with sqlite3.connect(store) as connection:
        found = connection.execute("select run_uuid from runs order by start_time desc").fetchone()
        return str(found[0])


def events(folder: str | Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def curve_of_tensorboard(folder: str | Path, tag: str = TAG) -> dict[int, float]:
    return {event.step: event.value for event in events(folder).Scalars(tag)}


def curve_of_csv(path: Path, tag: str = TAG) -> dict[int, float]:
    """Return the rows that are whole."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return {int(row["step"]): float(row[tag]) for row in csv.DictReader(whole.splitlines())}
