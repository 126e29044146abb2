"""Slurm, through submitit, which writes and submits the scripts, and ``squeue``, which tells what has ended.

Submitit itself asks ``sacct``, and waits for ever for a task that was killed where Slurm keeps no accounts.
"""

import getpass
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradexp.choices import ConfigError
from gradexp.launch.cluster import Task

# Slurm's MaxArraySize is 1001 unless its administrators say otherwise.
_LARGEST_ARRAY = 1000
# Options that all of submitit's executors have; the others are asked for with a prefix.
_SHARED = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")
# Seconds between two looks at the queue: soon at first, then seldom, as others use it too.
_SHORTEST, _LONGEST = 1.0, 15.0
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}


class Slurm:
    """Tasks as elements of a job array.

    Args:
        options: Those of submitit for Slurm, such as ``partition`` and ``timeout_min``.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options: dict[str, Any] = dict(options)
        self._waiting: dict[str, int] = {}
        self._arrays: list[str] = []
        self._pause = _SHORTEST
        self._unreachable = False

    def submit(self, run: Callable[[Task], None], tasks: Sequence[Task], folder: Path) -> str:
        """Submit the tasks.

        Raises:
            ConfigError: If Slurm is not there or refuses, or an earlier start of the sweep is still in its queue.
        """
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError("hydra/launcher=slurm submits with sbatch, which is not there: is this a login node?")
        try:
            import submitit  # an extra
        except ImportError:
            raise ConfigError("hydra/launcher=slurm needs submitit; install it with pip install submitit") from None
        logs = folder / ".submitit"
        self._refuse_a_second(logs)
        try:
            executor = submitit.AutoExecutor(logs / "%j", cluster="slurm", slurm_max_num_timeout=0)
            executor.update_parameters(
                **{key if key in _SHARED else f"slurm_{key}": value for key, value in self.options.items()}
            )
            for at in range(0, len(tasks), _LARGEST_ARRAY):
                sent = executor.map_array(run, tasks[at : at + _LARGEST_ARRAY])
                self._waiting |= {job.job_id: index for index, job in enumerate(sent, at)}
                self._arrays.append(sent[0].job_id.partition("_")[0])
        except (AssertionError, NameError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: {error}".partition("\n")[0]) from error
        except submitit.core.utils.FailedJobError as error:
            raise ConfigError(f"Slurm refuses the sweep: {_last_line(str(error))}") from error
        count = f"{len(tasks)} task{'s' * (len(tasks) > 1)}"
        return f"slurm     {count} as job {', '.join(self._arrays)}, output in {logs}"

    def poll(self) -> Iterator[tuple[int, str | None]]:
        """Wait for some seconds; then yield each task that has ended, and why if not by itself."""
        time.sleep(self._pause)
        self._pause = min(_LONGEST, 1.2 * self._pause)
        states = self._states()
        if states is None:
            return
        for name in list(self._waiting):
            # Slurm forgets a task minutes after its end, and at once if it is cancelled before it has begun.
            state = states.get(name, "gone from its queue")
            if state in _ENDED or name not in states:
                yield self._waiting.pop(name), None if state == "COMPLETED" else f"ended by Slurm ({state})"

    def cancel(self) -> None:
        """Send every task SIGTERM, and SIGKILL after Slurm's KillWait."""
        self._pause = _SHORTEST
        if self._arrays:
            _run("scancel", *self._arrays)

    def close(self) -> None:
        """Nothing is held open."""

    def _states(self) -> dict[str, str] | None:
        """Return the state of each task that Slurm still knows; None if it cannot be asked."""
        arrays = f"--jobs={','.join(self._arrays)}"
        done = _run("squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", arrays)
        if done.returncode and "Invalid job id" not in done.stderr:
            if not self._unreachable:
                print(f"squeue: {_last_line(done.stderr)}; waiting for it", file=sys.stderr)  # noqa: T201
            self._unreachable = True
            return None
        self._unreachable = False
        lines = (line.partition("|") for line in done.stdout.splitlines())
        return {name.strip(): state.strip() for name, _, state in lines}

    @staticmethod
    def _refuse_a_second(logs: Path) -> None:
        """Check that no tasks of an earlier start of the sweep are still in the queue."""
        ours = {path.name for path in logs.glob("*")}
        queue = _run("squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}").stdout.split()
        if left := sorted({name.partition("_")[0] for name in queue if name in ours}):
            raise ConfigError(
                f"tasks of this sweep are still in Slurm's queue; wait for their end, or scancel {' '.join(left)}"
            )


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  ours


def _last_line(text: str) -> str:
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"])[-1]
