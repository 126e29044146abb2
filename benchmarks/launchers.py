"""What each launcher costs on the same sweep: seconds to start, seconds for every further job, jobs per minute.

``python benchmarks/launchers.py [--jobs 32] [--launcher "NAME OPTION..."]...``

Two sweeps over seeds are run by each launcher, one after the other: of jobs that do next to nothing (2 layers, no
training), and of real ones (150 relu layers of width 16, 50 steps, every 10th recorded). Printed per launcher:

start       wall time of a sweep of one empty job
per job     what each further empty job adds
jobs/min    of the real sweep
x basic     how many times as many as with the basic launcher

Slurm and Ray must be running, and be named with their options, for example
``--launcher basic --launcher "ray_cluster hydra.launcher.address=HOST:PORT hydra.launcher.jobs_per_task=16"``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import date

EMPTY = ["depth=2", "width=4", "steps=0"]
REAL = ["depth=150", "width=16", "steps=50", "batch_size=32", "record.every=10"]


def sweep(launcher: list[str], jobs: int, options: list[str]) -> float:
    """Run a sweep, and return its wall time."""
    name, *own = launcher
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "gradexp.run", "-m", f"hydra/launcher={name}", *own, *options]
        command += [f"seed=range(0,{jobs})", "quiet=true", f"hydra.sweep.dir={folder}/sweep"]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=32)
    parser.add_argument("--launcher", action="append", help="name and options, in one word; basic comes first")
    given = parser.parse_args()

    from importlib.metadata import version

    from machine import machine

    print(f"{date.today()}, torch {version('torch')}, {machine('cpu')}, {os.cpu_count()} cores")
    print(f"\n{given.jobs} jobs {'start':>44}{'per job':>10}{'jobs/min':>10}{'x basic':>9}")
    basic = None
    for launcher in given.launcher or ["basic", "joblib", "ensemble"]:
        words = launcher.split()
        start = sweep(words, 1, EMPTY)
        each = (sweep(words, given.jobs, EMPTY) - start) / (given.jobs - 1)
        rate = 60 * given.jobs / sweep(words, given.jobs, REAL)
        basic = basic or rate
        named = " ".join(word.removeprefix("hydra.launcher.") for word in words if "address" not in word)
        print(f"{named:<44}{start:>7.1f} s{each:>8.2f} s{rate:>10.1f}{rate / basic:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
