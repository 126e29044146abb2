"""What files and TensorBoard add to a run: ``python benchmarks/sink_cost.py [--widths 16,64] [ROUNDS]``.

150 tanh layers with orthogonal weights, so that every cell has a number, in batches of 32, recorded at every step.
A round makes the same run without sinks, with both, and without recording, one after the other in one process, in an
order that rotates. Printed are medians over rounds: wall time, processor time of all threads, and its ratio to the
run without sinks in the same round, which other programs disturb least. "in the sinks" is the wall time that the run
spent in their calls. Importing torch and tensorboard is not counted: startup.py tells what that takes. The last line
is the probe's own cost, which is no sink's. Targets: at most 5 % and 30 MB.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from machine import machine

from gradexp.config import Config, InitConfig, RecordConfig
from gradexp.runs.experiment import run
from gradexp.runs.result import Result, Sink, Stage
from gradexp.sinks.files import Files
from gradexp.sinks.tensorboard import TensorBoard

DEPTH, BATCH = 150, 32
NEVER = 10**9


class Time(NamedTuple):
    """Seconds on the clock, and of the processor."""

    wall: float
    processor: float


class Timed:
    """A sink whose calls are timed."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.seconds = 0.0

    def write(self, stage: Stage, result: Result) -> None:
        """Pass a stage on."""
        begin = time.perf_counter()
        self.sink.write(stage, result)
        self.seconds += time.perf_counter() - begin

    def close(self) -> None:
        """Close the sink."""
        begin = time.perf_counter()
        self.sink.close()
        self.seconds += time.perf_counter() - begin


def measure(width: int, steps: int, every: int = 1, sinks: Sequence[Sink] = ()) -> Time:
    config = Config(
        depth=DEPTH,
        width=width,
        activation="tanh",
        steps=steps,
        batch_size=BATCH,
        init=InitConfig("orthogonal"),
        record=RecordConfig(every=every),
    )
    gc.collect()
    begin = time.perf_counter(), time.process_time()
    run(config, sinks)
    return Time(time.perf_counter() - begin[0], time.process_time() - begin[1])


def megabytes(folder: Path, pattern: str) -> float:
    return sum(path.stat().st_size for path in folder.rglob(pattern)) / 1e6


def compare(width: int, steps: int, rounds: int) -> None:
    times: dict[str, list[Time]] = {"no sinks": [], "both sinks": [], "no recording": []}
    inside: dict[str, list[float]] = {"Files": [], "TensorBoard": []}
    sizes = {}
    for lap in range(rounds):
        names = [*times][lap % 3 :] + [*times][: lap % 3]
        for name in names:
            if name != "both sinks":
                times[name].append(measure(width, steps, NEVER if name == "no recording" else 1))
                continue
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                sinks = [Timed(Files(folder)), Timed(TensorBoard(folder, subruns=False))]
                times[name].append(measure(width, steps, sinks=sinks))
                for sink in sinks:
                    inside[type(sink.sink).__name__].append(sink.seconds)
                sizes = {pattern: megabytes(folder, pattern) for pattern in ("layers.csv", "events.*", "*")}
    print(f"\nwidth {width}, {steps} steps; rounds: {rounds}")
    print(f"{'':<16} {'wall s':>8} {'cpu s':>8}   {'x no sinks':>10}")
    for name, own in times.items():
        ratio = statistics.median(a.processor / b.processor for a, b in zip(own, times["no sinks"], strict=True))
        wall, processor = (statistics.median(values) for values in zip(*own, strict=True))
        print(f"{name:<16} {wall:8.2f} {processor:8.2f}   {ratio:10.3f}")
    total = [sum(both) for both in zip(*inside.values(), strict=True)]
    share = statistics.median(own / base.wall for own, base in zip(total, times["no sinks"], strict=True))
    parts = ", ".join(f"{name} {statistics.median(own):.2f}" for name, own in inside.items())
    print(f"{'in the sinks':<16} {statistics.median(total):8.2f} {'':8}   {share:10.1%}   ({parts})")
    print(f"layers.csv {sizes['layers.csv']:.1f} MB, event files {sizes['events.*']:.2f} MB, all {sizes['*']:.1f} MB")
    pairs = zip(times["no sinks"], times["no recording"], strict=True)
    cost = statistics.median(a.processor / b.processor for a, b in pairs)
    print(f"the probe itself, at every step: x{cost:.2f} of the run without recording")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    parser.add_argument("--widths", default="16,64")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    print(f"{date.today()}, torch {torch.__version__}, {machine('cpu')}, 1 thread, {DEPTH} layers, batch {BATCH}")
    with tempfile.TemporaryDirectory() as temporary:  # import everything
        measure(8, 2, sinks=[Files(Path(temporary)), TensorBoard(Path(temporary))])
    for width in map(int, options.widths.split(",")):
        compare(width, options.steps, options.rounds)


if __name__ == "__main__":
    main()
