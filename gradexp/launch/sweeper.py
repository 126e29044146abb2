"""The resumable sweeper: runs the jobs that a sweep's folder does not hold yet, and compares them all."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from gradexp.choices import ConfigError
from gradexp.cli.composing import expand, hash_of_job
from gradexp.cli.errors import error_line
from gradexp.history.sentences import counted
from gradexp.launch.composer import Composer
from gradexp.runs.sweep_bar import count_job, sweep_bar
from gradexp.runs.terminal import Terminal
from gradexp.sweeps.folder import alone_in, job_folder_name, mark_interrupted, plan


def sweep(sweeper: Any, arguments: list[str]) -> None:
    """Run the jobs that are not complete yet, whatever the launcher, and make the comparison.

    Raises:
        ConfigError: If the folder is in use or of another version, or no job can work.
        CompactHydraException: If a job has failed, after all others have run, or the launcher.
    """
    from gradexp.sweeps.report import report  # not when a worker process loads this module

    folder = Path(str(sweeper.config.hydra.sweep.dir))
    console = Terminal()
    with (
        alone_in(folder, "sweep", "wait for its end, or choose another one with hydra.sweep.dir=FOLDER"),
        _how_to_go_on(folder),
    ):
        jobs = expand(sweeper.params, arguments, sweeper.hydra_context.config_loader)
        for key, most, or_null in (
            ("hydra.sweeper.max_batch_size", sweeper.max_batch_size, ", or null"),
            ("hydra.launcher.max_members", getattr(sweeper.launcher, "max_members", None), ", or null"),
            ("hydra.launcher.jobs_per_task", getattr(sweeper.launcher, "jobs_per_task", 1), ""),
        ):
            if not (most is None and or_null) and not (isinstance(most, int) and most >= 1):
                raise ConfigError(f"{key} must be at least 1{or_null}, got {most}")
        loader = sweeper.hydra_context.config_loader = Composer(sweeper.hydra_context.config_loader)
        names = _names(sweeper, jobs)

        def known() -> Iterator[tuple[str, Callable[[int], str]]]:
            """Yield each job's hash and name; one whose options cannot work says so itself, unless all are such."""
            mistakes = []
            for overrides, name in zip(jobs, names, strict=True):
                job = loader.compose(sweeper.config, overrides, name)
                job_hash, mistake = hash_of_job(job)
                mistakes += [mistake] if mistake else []
                yield job_hash, partial(_folder_of, job)
            if len(mistakes) == len(jobs):
                raise ConfigError(mistakes[0])

        planned = plan(folder, known())
        again = f", {planned.again} to run again" if planned.again else ""
        done = f"{planned.complete} complete{again}, " if planned.complete or planned.again else ""
        total = planned.complete + len(planned.folders)
        left_out = _left_out(jobs, total)
        console.print(
            f"sweep     {counted(total, 'job')} in {folder}: {done}{planned.new} new{left_out}",
            markup=False,
            soft_wrap=True,
        )
        OmegaConf.save(sweeper.config, folder / "multirun.yaml")
        batch = [loader.place(jobs[index], name, names[index]) for index, name in planned.folders.items()]
        # Lines of other processes would not stay above the bar, and clusters have their own.
        in_process = type(sweeper.launcher).__name__ in ("BasicLauncher", "EnsembleLauncher")
        try:
            with sweep_bar(len(batch), console, in_process and not sweeper.config.get("quiet")):
                failed = _launch(sweeper, batch, folder)
        except ConfigError:  # of the launcher's options
            raise
        except Exception as error:  # not of a job: no folder can be made, or the system killed a worker process
            mark_interrupted(folder)
            with suppress(OSError, ConfigError):
                report(folder, console)
            first_line = error_line(error).partition("\n")[0]
            again = f"the same command with {_option(folder)} goes on"
            raise CompactHydraException(f"{first_line}\n{again}") from error
        # Somebody may remove folders while the sweep works.
        gone = [name for name in planned.folders.values() if not (folder / name / "summary.json").exists()]
        failed = max(failed, len(gone))
        if len(gone) < total:
            report(folder, console)
    if failed:
        raise CompactHydraException(
            f"{failed} of {total} jobs did not complete; the same command with {_option(folder)} runs them again"
        )


def _left_out(jobs: Sequence[Sequence[str]], total: int) -> str:
    """Say why fewer jobs run than were asked for: some are typed alike, some differ in what changes no number.

    Examples:
        >>> _left_out([["seed=0"], ["seed=0"]], 1)
        ' (1 more is a duplicate)'
    """
    typed = len(set(map(tuple, jobs)))
    twice, alike = len(jobs) - typed, typed - total
    reasons = [f"{twice} more {'is a duplicate' if twice == 1 else 'are duplicates'}"] * bool(twice)
    reasons += [f"{alike} more {'changes' if alike == 1 else 'change'} no number"] * bool(alike)
    return f" ({', '.join(reasons)})" if reasons else ""


def _option(folder: Path) -> str:
    """Return the option that names a sweep's folder, as it is typed in a shell."""
    return shlex.quote(f"hydra.sweep.dir={folder}")


@contextmanager
def _how_to_go_on(folder: Path) -> Iterator[None]:
    """Add to an interruption how to go on with the sweep."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        interruption.add_note(f"the same command with {_option(folder)} goes on")
        raise


def _launch(sweeper: Any, batch: list[list[str]], folder: Path) -> int:
    """Run the jobs, and return how many have failed."""
    _share_cores(sweeper)
    # The basic launcher keeps the configs of all jobs that it is given until the last has run: it is given one.
    # By name, since Hydra makes its classes anew whenever one of its programs starts in the same process.
    alone = type(sweeper.launcher).__name__ == "BasicLauncher"
    most = 1 if alone else sweeper.max_batch_size or max(1, len(batch))
    failed = 0
    try:
        for at in range(0, len(batch), most):
            ends: Sequence[JobReturn] = sweeper.launcher.launch(batch[at : at + most], at)
            failed += sum(end.status is not JobStatus.COMPLETED for end in ends)
            if alone:  # an ensemble counts its own
                count_job()
    except KeyboardInterrupt:
        mark_interrupted(folder)
        raise
    return failed


def _folder_of(job: DictConfig, number: int) -> str:
    """Return the name of a job's folder, if that is its number."""
    with open_dict(job):
        job.hydra.job.num = number
    return job_folder_name(str(job.hydra.sweep.subdir))


def _names(sweeper: Any, jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return the options of each job in which it differs from others, or all if there is no other, sorted.

    The list of runs in TensorBoard is narrow: options that all jobs share would push those that tell them apart out.
    """
    left_out = set(sweeper.config.hydra.job.config.override_dirname.exclude_keys)
    shared = set(jobs[0]).intersection(*jobs[1:])
    if len(jobs) == 1:
        shared = {text for text in jobs[0] if text.partition("=")[0] in left_out}
    differing = ([text for text in job if text not in shared] for job in jobs)
    return [",".join(sorted(texts)).replace("\\:", ":") for texts in differing]  # as own parts are typed


def _share_cores(sweeper: Any) -> None:
    """Let joblib start as many workers as there are cores for, unless it was told how many."""
    settings = getattr(sweeper.launcher, "joblib", None)
    if settings is not None and settings.get("n_jobs") in (None, -1):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        settings["n_jobs"] = max(1, cores // (sweeper.config.get("threads") or 1))
