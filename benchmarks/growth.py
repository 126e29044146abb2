"""How the cost of a probe grows: ``python benchmarks/growth.py [--laps 5] [--axes depth,width,members,rows]``.

One thing grows while the rest stays: the depth of a network of width 16, the width and the number of members of a
stack of 20 layers, and the rows of a record of 200 steps. Printed are, in processor time and as medians of laps of
bare and recorded steps in turn:

bare      a training step: forward, backward, SGD
recorded  one that a probe records, with the quantities that it records by default
probe     the difference
kept      memory that each recorded step keeps
history   time of ``probe.history``, for each of its steps, and memory of its arrays

Below is the line a + b x that fits each column best, by least squares of relative errors, and the largest of those:
cost that grows faster than x would show there. x is the axis, or for the width its square, as of the weights.
"""

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import date

import numpy as np
import torch
from machine import machine
from torch import nn

from gradexp import GradientProbe
from gradexp.history.history import History
from gradexp.history.probe_steps import ProbeStep, Subject
from gradexp.history.step import QUANTITIES
from gradexp.networks.mlp import MLP
from gradexp.probe.record import Record

WIDTH, DEPTH, BATCH, STEPS = 16, 20, 16, 200
AXES = {
    "depth": (10, 30, 100, 300, 1_000, 3_000, 10_000),
    "width": (16, 32, 64, 128, 256, 512, 1_024),
    "members": (1, 4, 16, 64, 256),
    "rows": (100, 300, 1_000, 3_000),
}
COLUMNS = {"bare": "ms", "recorded": "ms", "probe": "ms", "kept": "kB", "history": "ms", "arrays": "kB"}


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def sequential(depth: int, width: int) -> nn.Module:
    """Return a plain network whose gradients neither vanish nor explode."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.orthogonal_(linear.weight)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers)


def arrays_of(history: History) -> int:
    return sum(values.nbytes for part in (history.log10, history.status) for values in part.values())


def of_training(model: nn.Module, width: int, laps: int) -> dict[str, float]:
    """Return what a training step costs, and what its record does."""
    x = torch.randn(BATCH, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step(after_backward: Callable[[], None]) -> None:
        model(x).square().mean().backward()
        after_backward()
        optimizer.step()
        optimizer.zero_grad()

    def bare() -> None:
        step(lambda: None)

    probe = GradientProbe(model)
    times: list[tuple[float, float]] = []
    for _ in range(2 + laps):  # the first two are for torch and the probe to get ready
        alone = seconds(bare)
        with probe:
            times.append((alone, seconds(lambda: step(probe.collect))))
        gc.collect()
    with probe:
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(3):
            step(probe.collect)
        gc.collect()
        kept = (tracemalloc.get_traced_memory()[0] - before) / 3
        tracemalloc.stop()
    steps = len(probe.history.steps)
    of_history = statistics.median(seconds(lambda: probe.history) for _ in range(3)) / steps
    return {
        "bare": 1e3 * statistics.median(alone for alone, _ in times[2:]),
        "recorded": 1e3 * statistics.median(recorded for _, recorded in times[2:]),
        "probe": 1e3 * statistics.median(recorded - alone for alone, recorded in times[2:]),
        "kept": kept / 1e3,
        "history": 1e3 * of_history,
        "arrays": arrays_of(probe.history) / 1e3 / steps,
    }


def of_record(rows: int) -> dict[str, float]:
    """Return what a step of a record of some rows costs in memory and in the history."""
    names = [f"blocks.{row}" for row in range(rows)]
    record = Record(Subject(names, [*QUANTITIES], 1, [0]))
    record.keep_order([(name, 0) for name in names])
    record.rows_of(names)
    tracemalloc.start()
    for step in range(STEPS):
        reading = ProbeStep(rows, 1)
        for quantity in QUANTITIES:
            reading.log10[quantity] = np.full((1, rows), float(step))
            reading.status[quantity] = np.zeros((1, rows), np.int8)
        record.add(step, reading)
    kept = tracemalloc.get_traced_memory()[0] / STEPS
    tracemalloc.stop()
    of_history = statistics.median(seconds(record.history) for _ in range(3)) / STEPS
    return {"kept": kept / 1e3, "history": 1e3 * of_history, "arrays": arrays_of(record.history()) / 1e3 / STEPS}


def measured(axis: str, at: int, laps: int) -> dict[str, float]:
    torch.manual_seed(0)
    if axis == "rows":
        return of_record(at)
    if axis == "members":
        return of_training(MLP([WIDTH] * (DEPTH + 1), "tanh", networks=at), WIDTH, laps)
    depth, width = (at, WIDTH) if axis == "depth" else (DEPTH, at)
    return of_training(sequential(depth, width), width, laps)


def fit(x: Sequence[int], y: Sequence[float]) -> str:
    """Return the line that fits best, and its largest relative error."""
    at, values = np.array(x, float), np.array(y)
    terms = np.stack([np.ones_like(at), at], axis=1)
    (a, b), *_ = np.linalg.lstsq(terms / values[:, None], np.ones_like(values), rcond=None)
    worst = np.abs((a + b * at) / values - 1).max()
    return f"{a:.3g} + {b:.3g} x, within {100 * worst:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laps", type=int, default=5)
    parser.add_argument("--axes", default=",".join(AXES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{date.today()}, torch {torch.__version__}, {machine('cpu')}, 1 thread")
    for axis in options.axes.split(","):
        found: list[dict[str, float]] = []
        for at in AXES[axis]:
            found.append(measured(axis, at, options.laps))
            if len(found) == 1:
                print(f"\n{axis:>8}" + "".join(f"{name + ', ' + COLUMNS[name]:>14}" for name in found[0]))
            print(f"{at:>8,}" + "".join(f"{value:>14.3f}" for value in found[-1].values()), flush=True)
        for name in found[0]:
            x = [at * at if axis == "width" else at for at in AXES[axis]]
            print(f"{name:>10} = {fit(x, [each[name] for each in found])}")


if __name__ == "__main__":
    main()
