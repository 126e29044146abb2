"""Folders as the jobs of a sweep leave them, made without running any."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from gradexp.config import Config, InitConfig
from gradexp.history.history import History, write_csv
from gradexp.history.verdict import Verdict
from gradexp.runs.result import Result
from gradexp.runs.summary import summary
from gradexp.sweeps.compare import SweepResults, compare


def leave(folder: Path, name: str, config: Config, overrides: list[str], slope: float = -1.0, **changes: Any) -> Path:
    """Make the folder of a job whose output gradient has this log_chi."""
    job = folder / name
    job.mkdir(parents=True)
    log10 = -slope / (2 * np.log(10)) * np.arange(config.depth, dtype=float)[None, None]
    status = {key: np.zeros(log10.shape, np.int8) for key in ("output", "output_grad", "weight_grad")}
    names = [f"layers.{layer}" for layer in range(config.depth)]
    history = History("init", names, [0], [config.seed], dict.fromkeys(status, log10), status)
    history.largest_log10 = dict.fromkeys(("output", "output_grad"), log10)
    result = Result(config, overrides, "complete", initial=history, verdict=Verdict("vanishing", "stuck", "agrees"))
    (job / "summary.json").write_text(json.dumps({**summary(result), **changes}))
    write_csv(job / "layers.csv", [history])
    return job


def grid(folder: Path) -> Path:
    """Make a sweep over two depths, two inits and three seeds; log_chi is -depth / 10 - seed."""
    number = 0
    for depth in (10, 4):
        for init in ("xavier", "he"):
            for seed in range(3):
                config = Config(depth=depth, init=InitConfig(init), seed=seed)
                given = [f"depth={depth}", f"init={init}", f"seed={seed}", "steps=100"]
                leave(folder, f"{number}_depth={depth},init={init},seed={seed}", config, given, -depth / 10 - seed)
                number += 1
    return folder


def cube(folder: Path, **counts: int) -> SweepResults:
    """Make a sweep over some numbers of depths, inits, widths and seeds."""
    inits = ["he", "xavier", "lecun", "orthogonal"]
    number = 0
    for d in range(counts.get("depth", 1)):
        for i in range(counts.get("init", 1)):
            for w in range(counts.get("width", 1)):
                config = Config(depth=d + 3, init=InitConfig(inits[i]), width=w + 5)
                given = [f"depth={d + 3}", f"init={inits[i]}", f"width={w + 5}"]
                leave(folder, f"{number}_x", config, given, -1.0 - d - 10 * i - 100 * w)
                number += 1
    return compare(folder)
