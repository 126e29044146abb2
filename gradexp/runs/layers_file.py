"""Reading layers.csv, as a run writes it: the profile at initialisation, and the gradients of a training."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gradexp.history.history import COLUMNS, History
from gradexp.history.step import QUANTITIES, STATUSES, Array, Codes, Phase, Quantity

NAME = "layers.csv"

_MEASURED = QUANTITIES[:3]
_THEORY = ("log10_output", "log10_output_grad", "log10_weight_grad", "sd_output_grad")

_Rows = Sequence[Sequence[str]]


def read_layers(path: Path, most_steps: int | None = None) -> tuple[History | None, History | None]:
    """Return what a layers.csv holds of the initialisation and of the training; None for what it does not hold.

    Largest elements, shares of dead samples and findings are not in the file.

    Args:
        path: The file.
        most_steps: Number of training steps that are read, evenly spread; None: all.

    Raises:
        ValueError: If it is not what a run of this version writes.
        OSError: If it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            if next(csv.reader(file), None) != list(COLUMNS):
                raise ValueError("other columns")
            first, trained = [], []
            for line in file:
                if not line.startswith("init,"):
                    trained = [line, *file.readlines()] if most_steps != 0 else []
                    break
                first.append(line)
        initial = _history("init", list(csv.reader(first)))
        if initial is not None and most_steps is not None:
            trained = _spread(trained, initial.depth, most_steps)
        return initial, _history("train", list(csv.reader(trained)))
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _spread(lines: list[str], depth: int, most: int) -> list[str]:
    """Return the lines of some steps, each of which has one line for each layer."""
    steps = len(lines) // depth
    if steps <= most:
        return lines
    chosen = np.unique(np.linspace(0, steps - 1, most).round().astype(int))
    return [line for step in chosen for line in lines[step * depth : (step + 1) * depth]]


def _history(phase: Phase, rows: _Rows) -> History | None:
    if not rows:
        return None
    places = {name: place for place, name in enumerate(COLUMNS)}

    def column(name: str) -> list[str]:
        return [row[places[name]] for row in rows]

    if set(column("phase")) != {phase}:
        raise ValueError(f"rows of another phase than {phase}")
    depth = max(map(int, column("layer")))
    steps = list(dict.fromkeys(map(int, column("step"))))
    seeds = list(dict.fromkeys(map(int, column("seed"))))
    shape = len(steps), len(seeds), depth
    if len(rows) != math.prod(shape):
        raise ValueError(f"{len(rows)} rows for {shape[0]} steps, {shape[1]} networks and {shape[2]} layers")

    def numbers(name: str) -> Array:
        return np.array([float(text) if text else math.nan for text in column(name)]).reshape(shape)

    codes: dict[str, int] = {status: code for code, status in enumerate(STATUSES)}
    log10: dict[Quantity, Array] = {}
    status: dict[Quantity, Codes] = {}
    for quantity in _MEASURED:
        texts = column(f"status_{quantity}")
        if any(texts):
            log10[quantity] = numbers(f"log10_{quantity}")
            status[quantity] = np.array([codes.get(text, -1) for text in texts], np.int8).reshape(shape)
            if (status[quantity] < 0).any():
                raise ValueError(f"an unknown status of {quantity}")
    theory = {key: numbers(f"theory_{key}")[0, 0] for key in _THEORY if any(column(f"theory_{key}")[:depth])}
    names, calls = column("name")[:depth], list(map(int, column("call")[:depth]))
    return History(phase, names, steps, seeds, log10, status, calls=calls, theory=theory)
