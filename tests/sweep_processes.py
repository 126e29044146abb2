"""Sweeps as processes of their own, as several test files start them."""

import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

TIMES = ("seconds", "seconds_training", "started")


def start(
    folder: Path,
    options: Sequence[str],
    *further: str,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> "subprocess.Popen[str]":
    """Start a sweep."""
    command = [*prefix, sys.executable, "-m", "gradexp.run", "-m", *options, f"hydra.sweep.dir={folder}", *further]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env)


def finish(process: "subprocess.Popen[str]", timeout: float = 120) -> tuple[int, str, str]:
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
