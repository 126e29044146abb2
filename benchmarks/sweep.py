"""What a sweep costs with each launcher on one machine, and where the time goes.

``python benchmarks/sweep.py [--device cuda] [--rounds 1] [--seeds 16] [--launchers basic,joblib,ensemble]
[--settings 16x50,64x50,16x1000]``

The same 64 jobs (4 initialisations x 16 seeds, 150 relu layers, batch 32, SGD, every 10th step recorded) are run as
one command by ``hydra/launcher=basic``, ``joblib`` and ``ensemble``, in turn: 50 steps at widths 16 and 64, and 1,000
steps at width 16. Times are processor seconds, which other programs change less than wall time; with a GPU, which is
waited for, they are wall time. Printed per launcher:

whole       time of the command, and how many times faster that is than the first launcher
train       training and its recording, over all jobs
measure     weights, profile at initialisation, theory
per job     what is left of the command beside torch's import and both of these, divided by 64, and its parts:
            composing configs, TensorBoard files, other files, the comparison at the end, and the rest

joblib's jobs run in processes of their own, of which only the whole time is known.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from typing import Any

INITS, SEEDS = "he,xavier,lecun,orthogonal", 16
LAUNCHERS = ("basic", "joblib", "ensemble")
SETTINGS = "16x50,64x50,16x1000"


def clock(device: str) -> float:
    """Return the seconds on a clock: of this process, or on the wall where a GPU is waited for."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def timed(found: dict[str, float], part: str, function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Return the function, with its time added to a part."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        begin = clock(device)
        try:
            return function(*arguments, **options)
        finally:
            found[part] += clock(device) - begin

    return wrapped


def sweep(launcher: str, width: int, steps: int, device: str, seeds: int) -> dict[str, float]:
    """Run the sweep in this process, and return the seconds of its parts."""
    begin = clock(device)
    found: dict[str, float] = defaultdict(float)
    from gradexp.cli.interruptions import leave_at_once

    leave_at_once()  # as the command does
    import torch  # noqa: F401

    found["torch"] = clock(device) - begin
    from gradexp.launch.composer import Composer
    from gradexp.run import main
    from gradexp.runs import stages
    from gradexp.sinks import files, tensorboard
    from gradexp.sweeps import report

    Composer.compose = timed(found, "composing", Composer.compose, device)
    for method in ("write", "close"):
        for sink, part in ((tensorboard.TensorBoard, "tensorboard"), (files.Files, "files")):
            setattr(sink, method, timed(found, part, getattr(sink, method), device))
    report.report = timed(found, "comparison", report.report, device)
    stages._train = timed(found, "train", stages._train, device)
    for name in ("_measure", "_judge"):
        setattr(stages, name, timed(found, "measure", getattr(stages, name), device))
    with tempfile.TemporaryDirectory() as folder:
        options = [f"hydra/launcher={launcher}", f"init={INITS}", f"seed=range(0,{seeds})", f"device={device}"]
        options += [f"width={width}", f"steps={steps}", "depth=150", "batch_size=32", "record.every=10"]
        sys.argv = ["gradexp", "-m", *options, "quiet=true", f"hydra.sweep.dir={folder}/sweep"]
        main()
    return found


def in_a_process(*arguments: object) -> dict[str, float]:
    """Run ``sweep`` in a fresh process, on one thread each as gradexp does, and add the time of the whole command."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, __file__, "--one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found["whole"] = processor if "cpu" in arguments else wall
    return found


def table(rounds: list[dict[str, dict[str, float]]], jobs: int) -> None:
    first = next(iter(rounds[0]))
    print(f"{'':<10}{'whole':>9}{'faster':>9}{'train':>9}{'faster':>9}{'measure':>9}{'per job':>9}", end="")
    print("   of it composing, TensorBoard, files, comparison, rest")
    for launcher in rounds[0]:
        middle = {
            part: statistics.median(one[launcher].get(part, 0.0) for one in rounds) for part in rounds[0][first]
        }

        def times(part: str, own: str = launcher) -> float:
            return statistics.median(one[first][part] / one[own][part] for one in rounds)

        line = f"{launcher:<10}{middle['whole']:>7.1f} s{times('whole'):>9.1f}"
        if launcher != "joblib":
            left = middle["whole"] - middle["torch"] - middle["train"] - middle["measure"]
            parts = [middle[part] for part in ("composing", "tensorboard", "files", "comparison")]
            shown = " ".join(f"{1e3 * part / jobs:.0f}" for part in [*parts, left - sum(parts)])
            line += f"{middle['train']:>7.1f} s{times('train'):>9.1f}{middle['measure']:>7.1f} s"
            line += f"{1e3 * left / jobs:>6.0f} ms   {shown} ms"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="a quarter of the jobs")
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    parser.add_argument("--settings", default=SETTINGS, help="WIDTHxSTEPS,...")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        launcher, width, steps, device, seeds = given.one
        print(json.dumps(sweep(launcher, int(width), int(steps), device, int(seeds))))
        return

    from importlib.metadata import version

    from machine import compile_sources, machine

    print(f"{date.today()}, torch {version('torch')}, {machine(given.device)}, {os.cpu_count()} cores")
    compile_sources()
    launchers = given.launchers.split(",")
    for setting in given.settings.split(","):
        width, steps = map(int, setting.split("x"))
        rounds = []
        for _ in range(given.rounds):
            rounds.append({own: in_a_process(own, width, steps, given.device, given.seeds) for own in launchers})
        print(f"\n{4 * given.seeds} jobs, 150 layers of width {width}, {steps} steps", flush=True)
        table(rounds, 4 * given.seeds)


if __name__ == "__main__":
    main()
