"""What the launchers of clusters share: jobs become tasks, tasks are sent off, and what became of the jobs is read.

The files in the jobs' folders are the only results, so that it makes no difference how a task came to its end.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from rich.console import Console

from gradexp import own_parts
from gradexp.choices import ConfigError
from gradexp.cli.command import prepare_worker
from gradexp.cli.composing import without_hydra
from gradexp.cli.hydra_internals import Callbacks
from gradexp.cli.interruptions import Interruptions
from gradexp.cli.objective import handed_over
from gradexp.config import Config, as_dict
from gradexp.launch.ensemble import alike, checked, composed, run_jobs
from gradexp.runs import stacks
from gradexp.runs.progress import Progress
from gradexp.runs.summary import unstarted_summary
from gradexp.runs.terminal import Terminal
from gradexp.sinks.files import write_summary
from gradexp.sinks.job_line import job_line
from gradexp.sweeps.folder import interrupt, read_job


@dataclass(frozen=True)
class Task:
    """Some jobs that one process of the cluster runs: what is sent there.

    Args:
        callbacks: Hydra's callbacks.
        function: What a job does.
        jobs: Their composed configs.
        directory: The folder in which the command was called; relative paths start there.
        typed: Somebody's own parts that the jobs may import.
    """

    callbacks: Callbacks
    function: TaskFunction
    jobs: Sequence[DictConfig]
    directory: Path
    typed: own_parts.Typed


def run_task(task: Task) -> None:
    """Run the jobs of a task; on SIGTERM, SIGINT or SIGUSR2 complete their files and come to an end."""
    prepare_worker()
    task.typed.allow()
    context = HydraContext(config_loader=cast(Any, None), callbacks=task.callbacks)  # all is composed
    with suppress(OSError):
        os.chdir(task.directory)
    with Interruptions():
        # Slurm's early sign that the time is over, or that others need the node.
        signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
        try:
            run_jobs(context, task.function, task.jobs.__getitem__, len(task.jobs))
        except KeyboardInterrupt:
            for job in task.jobs:  # the command may not be there any more to say so
                run = read_job(_folder(job))
                if run is not None and run.status == "interrupted":
                    interrupt(run, _STOPPED)


_STOPPED = "stopped by a signal, such as the one ahead of a time limit"


def _folder(job: DictConfig) -> Path:
    return Path(str(job.hydra.sweep.dir), str(job.hydra.sweep.subdir))


class Engine(Protocol):
    """A cluster, as a launcher uses it."""

    def submit(self, run: Callable[[Task], None], tasks: Sequence[Task], folder: Path) -> str:
        """Send tasks off; scripts and logs go to a folder of the sweep's. Return in a line what was done."""

    def poll(self) -> Iterable[tuple[int, str | None]]:
        """Wait for a moment; then yield the index of each task that has ended, and why if not by itself."""

    def cancel(self) -> None:
        """Ask all tasks to come to an end."""

    def close(self) -> None:
        """Leave the cluster."""


def launch(launcher: Any, engine: Engine, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Run jobs on a cluster, and print the outcome of each in a line when its task has ended.

    Raises:
        ConfigError: If there is no such cluster, or it refuses the tasks.
        KeyboardInterrupt: Passed on once the tasks have ended.
    """
    jobs = list(map(composed(launcher, job_overrides, first), range(len(job_overrides))))
    folder = Path(str(jobs[0].hydra.sweep.dir)).absolute()
    for job in jobs:
        with open_dict(job):
            job.hydra.sweep.dir = str(folder)  # whatever the directory of the process that runs it
    configs = [checked(job) for job in jobs]
    groups = stacks.cluster_tasks(configs, launcher.jobs_per_task, alike(jobs))
    shared = (launcher.hydra_context.callbacks, launcher.task_function)
    tasks = [Task(*shared, [jobs[index] for index in group], Path.cwd(), own_parts.allowed()) for group in groups]
    quiet = all(config is None or config.quiet for config in configs)
    console = Terminal()
    progress = Progress(quiet=quiet, console=console)
    ends: dict[int, JobReturn] = {}
    waiting: set[int] = set()
    try:
        announcement = engine.submit(run_task, tasks, folder)
        waiting.update(range(len(tasks)))
        if not quiet:
            console.print(announcement, markup=False, soft_wrap=True)
        while waiting:
            progress.advance("jobs", len(ends), len(jobs))
            for index, reason in engine.poll():
                waiting.remove(index)
                for number in groups[index]:
                    ends[number] = _settle(jobs[number], configs[number], reason, console)
    except BaseException:
        _end(engine, waiting)
        raise
    finally:
        progress.close()
        engine.close()
    return [ends[number] for number in range(len(jobs))]


# Seconds. Slurm kills what has not ended half a minute after it was asked to.
_UNTIL_ENDED = 60
# Until what another computer has written can be seen here; NFS looks anew after at most a minute.
_UNTIL_SEEN = 60


def _end(engine: Engine, waiting: set[int]) -> None:
    """Cancel tasks and give them time to complete their files."""
    engine.cancel()
    deadline = time.monotonic() + _UNTIL_ENDED
    while waiting and time.monotonic() < deadline:
        waiting.difference_update(index for index, _ in engine.poll())


def _settle(job: DictConfig, config: Config | None, reason: str | None, console: Console) -> JobReturn:
    """Read what became of a job whose task has ended; what it could not write itself is written here."""
    folder = _folder(job)
    deadline = time.monotonic() + (0 if reason else _UNTIL_SEEN)
    while ((run := read_job(folder)) is None or run.status == "running") and time.monotonic() < deadline:
        time.sleep(1)
    stopped = run is not None and run.status == "interrupted"
    if reason is None:
        nothing = f"left no result in {folder}: all nodes must share its file system"
        reason = _STOPPED if stopped else nothing
    if run is None:
        options = without_hydra(job) if config is None else as_dict(config)
        content = unstarted_summary(options, list(job.hydra.overrides.task), reason, "interrupted")
        folder.mkdir(parents=True, exist_ok=True)
        write_summary(folder, content)
    else:
        content = run.summary
        if run.status == "running" or stopped:
            content = interrupt(run, reason)
    if content["status"] != "complete":
        print(f"{folder.name}: {content['error']}", file=sys.stderr)  # noqa: T201
        return JobReturn(status=JobStatus.FAILED, _return_value=ConfigError(content["error"]))
    if config is None or not config.quiet:
        console.print(job_line(folder.name, content, console.width), soft_wrap=True)
    key = None if config is None else config.objective
    return JobReturn(status=JobStatus.COMPLETED, _return_value=handed_over(key, content, job.hydra.sweeper))
