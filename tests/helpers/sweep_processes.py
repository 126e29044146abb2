"""Runs and sweeps as processes of their own, as several test files start and await them."""

import csv
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# float32 depends on the number of threads, and is the same every time on one.
EIGHT_JOBS = [
    "init=he,xavier",
    "seed=range(0,4)",
    "depth=12",
    "width=16",
    "steps=30",
    "threads=1",
    "save_weights=true",
]
# Four jobs of seconds each, in the middle of which something can be killed.
SLOW = ["seed=range(0,4)", "depth=20", "width=16", "steps=1500", "threads=1", "record.every=50"]
# Seconds that a test waits for a process before it fails. It stands only against waiting for ever: a busy machine is
# no reason to fail, and what is awaited is printed or written by the process itself.
LIMIT = 300
TAKES_MINUTES = "set GRADEXP_TEST_CLUSTERS=1 (takes minutes)"
TIMES = ("seconds", "seconds_training", "started")


# Makes a file once a step is done. The files of a run say nothing of its steps before it ends.
_TELLING_OF_STEPS = """
import runpy, sys
from gradexp.runs.progress import Progress
write, told = Progress.write, sys.argv.pop(1)
def tell(progress, stage, result):
    write(progress, stage, result)
    if stage == "step":
        open(told, "w").close()
Progress.write = tell
runpy.run_module("gradexp.run", {}, "__main__")
"""


def run_command(trained: Path | None = None) -> list[str]:
    """Return the words that run ``gradexp.run``, which makes a file after each step if one is named."""
    how = ["-m", "gradexp.run"] if trained is None else ["-c", _TELLING_OF_STEPS, str(trained)]
    return [sys.executable, *how]


def start(
    folder: Path,
    options: Sequence[str],
    *further: str,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    trained: Path | None = None,
) -> "subprocess.Popen[str]":
    """Start a sweep, which makes a file after each step if one is named."""
    command = [*prefix, *run_command(trained), "-m", *options, f"hydra.sweep.dir={folder}", *further]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env)


def finish(process: "subprocess.Popen[str]", timeout: float = LIMIT) -> tuple[int, str, str]:
    """Wait for its end, and return exit code, output and errors."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of sweep.csv but for the times."""
    with (folder / "sweep.csv").open() as file:
        return [{key: text for key, text in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def summaries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the content of each job's summary.json by the name of its folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))}


def statuses(folder: Path) -> list[str]:
    """Return the status of each job."""
    return [one["status"] for one in summaries(folder).values()]


def until(true: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait until something is true, while a process is at work on it."""
    deadline = time.monotonic() + LIMIT
    while True:
        ended = process is not None and process.poll() is not None
        if true():
            return
        assert not ended, "the process has ended before"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def until_under_way(folder: Path) -> None:
    """Wait until a job has measured its network, and trains it."""
    until(lambda: list(folder.glob("*/layers.csv")))


def assert_a_stack_is_equal_up_to_rounding(ours: Path, theirs: Path) -> None:
    """Compare two sweeps, of which one has run stacks, whose sums are of another order."""
    assert summaries(ours).keys() == summaries(theirs).keys()
    for mine, other in zip(table(ours), table(theirs), strict=True):
        for key, text in mine.items():
            assert text == other[key] or math.isclose(float(text), float(other[key]), rel_tol=1e-4), key


def assert_same_numbers(ours: Path, theirs: Path) -> None:
    """Compare two sweeps, bit for bit: summaries but for the times, every recorded number, and weights if saved."""
    assert table(ours) == table(theirs)
    expected = summaries(theirs)
    found = summaries(ours)
    assert found.keys() == expected.keys()
    for name, summary in found.items():
        assert {k: v for k, v in summary.items() if k not in TIMES} == {
            k: v for k, v in expected[name].items() if k not in TIMES
        }
        assert (ours / name / "layers.csv").read_bytes() == (theirs / name / "layers.csv").read_bytes()
        weights = [folder / name / "weights.pt" for folder in (ours, theirs)]
        if weights[1].exists():
            a, b = (torch.load(path) for path in weights)
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)


def job_lines(out: str) -> list[str]:
    """Return the lines that a sweep has printed of its jobs: number, options, verdicts, seconds."""
    return [line for line in out.splitlines() if re.match(r" *\d+  .* s$", line)]
