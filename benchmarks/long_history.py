"""How long ``probe.history`` takes after a long recording, and its memory: ``python benchmarks/long_history.py``.

A record of some steps and rows, with all five quantities, is filled as a probe fills it. Printed are the processor
time of one history, the memory of its arrays and of the record, and the most that was held while it was made.
"""

import argparse
import time
import tracemalloc
from datetime import date

import numpy as np
from machine import machine

from gradexp.history.probe_steps import ProbeStep, Subject
from gradexp.history.step import QUANTITIES
from gradexp.probe.record import Record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=500)
    options = parser.parse_args()
    names = [f"layers.{row}" for row in range(options.rows)]
    rows = [(name, 0) for name in names]
    record = Record(Subject(names, [*QUANTITIES], 1, [0]))
    record.keep_order(rows)
    record.rows_of(names)
    tracemalloc.start()
    for step in range(options.steps):
        reading = ProbeStep(options.rows, 1)
        for quantity in QUANTITIES:
            reading.log10[quantity] = np.full((1, options.rows), float(step))
            reading.status[quantity] = np.zeros((1, options.rows), np.int8)
        record.add(step, reading)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    history = record.history()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    arrays = sum(values.nbytes for part in (history.log10, history.status) for values in part.values())
    del history
    begin = time.process_time()
    record.history()
    seconds = time.process_time() - begin
    print(
        f"{date.today()}, {machine('cpu')}, {options.steps:,} steps of {options.rows} rows, "
        f"{len(QUANTITIES)} quantities"
    )
    print(f"one history {seconds:.2f} s; its arrays {arrays / 1e6:.0f} MB, the record {held / 1e6:.0f} MB")
    print(f"at most {most / 1e6:.0f} MB with the record, {most / arrays:.2f} times the arrays")


if __name__ == "__main__":
    main()
