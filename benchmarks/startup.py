"""What a run costs besides its own work: ``python benchmarks/startup.py [ROUNDS]``.

Measured side by side in interleaved rounds, as medians: the help, importing torch, and the default run's wall time
less importing torch and less its training. Targets: help under 1 s, the rest of the run at most 3 s.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(*arguments: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            bare = seconds("-c", "pass")
            measured = {
                "help": seconds("-m", "gradexp.run", "--help"),
                "import torch": seconds("-c", "import torch") - bare,
                "default run": seconds("-m", "gradexp.run", f"hydra.run.dir={folder}/run"),
            }
            summary = json.loads((Path(folder) / "run" / "summary.json").read_text())
        measured["its training"] = summary["seconds_training"]
        measured["the rest"] = measured["default run"] - measured["import torch"] - measured["its training"]
        for name, value in measured.items():
            times.setdefault(name, []).append(value)
    for name, values in times.items():
        print(f"{name:<13} {statistics.median(values):6.2f} s   ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
