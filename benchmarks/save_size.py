"""What a record on disk takes: ``python benchmarks/save_size.py [--rows 282] [--steps 10000] [--keep 100]``.

Steps of random numbers in the five sizes of a probe with an optimizer, without a training, are recorded by what a
probe with ``save=`` and ``keep=`` records with. Printed are the highest memory in the first and the second half of
the steps, the bytes on disk, and the processor time to append a step, to go on in the file, and to load it.

``--long`` is for a million steps: one pass, of which after each quarter the time of a step, the memory of the whole
process and the bytes on disk are printed, so that one sees whether they grow; then some 1000 of the steps are loaded.
"""

import argparse
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
from machine import machine

from gradexp.history.history import History
from gradexp.history.probe_steps import ProbeStep, Subject
from gradexp.history.step import QUANTITIES
from gradexp.probe.record import Record
from gradexp.probe.saving import Saving


def reading(rows: int, random: np.random.Generator) -> ProbeStep:
    """Return what is measured in a step."""
    step = ProbeStep(rows, networks=1, dtypes=dict.fromkeys(QUANTITIES, "float32"))
    for quantity in QUANTITIES:
        step.log10[quantity] = random.normal(size=(1, rows))
        step.status[quantity] = np.zeros((1, rows), np.int8)
    step.loss = random.normal(size=1)
    return step


def seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def long(options: argparse.Namespace, subject: Subject, path: Path) -> None:
    """Print what each quarter of a long record takes."""
    random, record = np.random.default_rng(0), Record(subject)
    record.rows_of(subject.names)
    saving, quarter = Saving(path, options.keep, record), options.steps // 4
    same = [reading(options.rows, random) for _ in range(16)]  # to draw a step takes longer than to append it
    print(f"{machine('cpu')}, {date.today()}: {options.steps} steps, {options.rows} rows, keep={options.keep}")
    for number in range(4):
        appending = 0.0
        for step in range(number * quarter, (number + 1) * quarter):
            record.add(step, same[step % len(same)])
            appending += seconds(saving.hand_on)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(
            f"quarter {number + 1}: {1e3 * appending / quarter:.3f} ms to append a step; at most {most:.0f} MB of "
            f"the process; {path.stat().st_size / 1e6:.0f} MB on disk; {len(record.steps)} steps in memory",
            flush=True,
        )
    loading = seconds(lambda: History.load(path, every=max(1, options.steps // 1000)))
    going_on = seconds(lambda: Saving(path, options.keep, Record(subject)))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"to load a thousand steps: {loading:.1f} s; to go on: {going_on:.1f} s; at most {most:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=282)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--keep", type=int, default=100)
    parser.add_argument("--long", action="store_true")
    options = parser.parse_args()
    random = np.random.default_rng(0)
    subject = Subject([f"blocks.{row}" for row in range(options.rows)], [*QUANTITIES], 1, [0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record"
        if options.long:
            long(options, subject, path)
            return

        def append_all(keep: int | None) -> list[float]:
            """Return the highest memory in each half, in MB, as far as it is traced, and seconds for each step."""
            path.unlink(missing_ok=True)
            tracemalloc.reset_peak()
            record = Record(subject)
            record.rows_of(subject.names)
            saving, appending, peaks = Saving(path, keep, record), 0.0, []
            for step in range(options.steps):
                record.add(step, reading(options.rows, random))
                appending += seconds(saving.hand_on)
                if (step + 1) % (options.steps // 2) == 0:
                    peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
                    tracemalloc.reset_peak()
            return [*peaks, appending / options.steps]

        tracemalloc.start()
        every_step, bounded = append_all(None), append_all(options.keep)
        tracemalloc.stop()
        append = append_all(options.keep)[-1]
        going_on = seconds(lambda: Saving(path, options.keep, Record(subject)))
        loading = seconds(lambda: History.load(path))
        size = path.stat().st_size
    print(f"{machine('cpu')}, {date.today()}: {options.steps} steps, {options.rows} rows, one thread")
    print(
        f"memory with keep={options.keep}: {bounded[0]:.1f} MB in the first half, {bounded[1]:.1f} MB in the second"
    )
    print(f"memory of all steps: {every_step[0]:.1f} MB in the first half, {every_step[1]:.1f} MB in the second")
    print(f"on disk: {size / 1e6:.0f} MB, {size / options.steps:.0f} bytes a step")
    print(f"to append a step: {1e3 * append:.2f} ms; to go on: {going_on:.1f} s; to load: {loading:.1f} s")


if __name__ == "__main__":
    main()
