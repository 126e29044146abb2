"""The same benchmark with another checkout of the package, lap by lap beside this one."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


class OtherTree:
    """A process that runs laps of a benchmark with the package of another checkout.

    Args:
        tree: The checkout's folder.
        arguments: Those of this script, with which the other process prepares the same laps.
    """

    def __init__(self, tree: str, arguments: list[str]) -> None:
        script = Path(sys.argv[0]).resolve()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tree).resolve()), str(script.parent)])}
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments, "--serve"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def lap(self, name: str) -> float:
        """Return what a lap of a name measures over there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())


def serve(laps: Mapping[str, Callable[[], float]]) -> None:
    """Run the laps whose names come on standard input, and print what each measures."""
    for line in sys.stdin:
        print(laps[line.strip()](), flush=True)
