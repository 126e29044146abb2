"""What a start costs: processor seconds of commands, side by side in interleaved rounds.

``python benchmarks/startup.py [ROUNDS] [--phase]``

Printed are medians, and the ratio to what each is judged by in the same round: the help to a Hydra program that does
nothing, ``predict`` to importing torch and scipy, the default run up to its first table to importing torch and
reading the digits with scikit-learn. With ``--phase`` the phase diagram too.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version

import numpy as np
from machine import compile_sources, machine

NOTHING = """
import hydra
@hydra.main(version_base=None, config_path=None, config_name=None)
def main(_): pass
main()
"""
# name: arguments of Python, and what it is compared with
COMMANDS: dict[str, tuple[list[str], str]] = {
    "Hydra, nothing": (["NOTHING"], ""),
    "import torch": (["-c", "import torch"], ""),
    "torch, scipy": (["-c", "import torch, scipy.optimize, scipy.special"], ""),
    "torch, digits": (["-c", "import torch; from sklearn.datasets import load_digits; load_digits()"], ""),
    "help": (["-m", "gradexp.run", "--help"], "Hydra, nothing"),
    "predict": (["-m", "gradexp.predict"], "torch, scipy"),
    "predict tanh": (["-m", "gradexp.predict", "activation=tanh"], "torch, scipy"),
    "first table": (
        ["-m", "gradexp.run", "steps=0", "record.report=false", "record.figures=false", "hydra.run.dir=FOLDER/run"],
        "torch, digits",
    ),
}
PHASE = {"phase": (["-m", "gradexp.phase", "hydra.run.dir=FOLDER/phase"], "import torch")}


def processor_seconds(arguments: list[str]) -> float:
    """Run Python in a folder of its own, and return the processor time that it took."""
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "nothing.py")  # noqa: PTH118
        with open(program, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(NOTHING)
        words = [program if word == "NOTHING" else word.replace("FOLDER", folder) for word in arguments]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--phase", action="store_true")
    given = parser.parse_args()
    commands = COMMANDS | PHASE if given.phase else COMMANDS
    compile_sources()
    rounds = [{name: processor_seconds(words) for name, (words, _) in commands.items()} for _ in range(given.rounds)]
    print(f"{date.today()}, torch {version('torch')}, {machine('cpu')}; rounds: {given.rounds}")
    print(f"{'':<16}{'processor s':>12}   ratio to")
    for name, (_, to) in commands.items():
        line = f"{name:<16}{statistics.median(one[name] for one in rounds):12.2f}"
        if to:
            low, ratio, high = np.percentile([one[name] / one[to] for one in rounds], [25, 50, 75])
            line += f"   {ratio:5.2f} {to} ({low:.2f} to {high:.2f})"
        print(line)


if __name__ == "__main__":
    main()
