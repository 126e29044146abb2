"""The folder of a sweep: one sub-folder per job, each with its summary.json."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradexp.choices import ConfigError
from gradexp.folder_names import folder_name
from gradexp.runs.summary_file import NAME, DamagedSummaryError, read_summary
from gradexp.sinks.files import write_summary


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its folder describes it.

    Args:
        folder: The job's own folder; its name begins with the job's number.
        summary: Content of its summary.json.
    """

    folder: Path
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, which is the run's name in TensorBoard."""
        return self.folder.name

    @property
    def number(self) -> int | None:
        """The number at the beginning of the folder's name; None for a folder that was named by hand."""
        return number_of(self.name)

    @property
    def config_hash(self) -> str:
        """The hash by which the job is recognised."""
        return str(self.summary["config_hash"])

    @property
    def status(self) -> str:
        """``running``, ``complete``, ``interrupted`` or ``failed``."""
        return str(self.summary["status"])


def read_jobs(folder: Path, damaged: list[str] | None = None) -> list[Job]:
    """Return the jobs of a sweep that have begun, by their numbers.

    Args:
        folder: The sweep's folder.
        damaged: List to which a line about each damaged summary is added; such jobs are then left out.

    Raises:
        ConfigError: If the folder does not exist, or a summary was written by another version, or is damaged and
            there is no list for it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    jobs = []
    for path in sorted(folder.glob(f"*/{NAME}")):
        try:
            job = read_job(path.parent)
        except DamagedSummaryError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
        else:
            jobs += [job] if job else []
    return sorted(jobs, key=lambda job: (job.number is None, job.number or 0, job.name))


def read_job(folder: Path) -> Job | None:
    """Return the job of a folder, or None if it has not begun.

    Raises:
        DamagedSummaryError: If its summary is damaged.
        ConfigError: If it was written by another version.
    """
    summary = read_summary(folder)
    return None if summary is None else Job(folder, summary)


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a sweep: complete, to run again in their folders, or to run for the first time.

    Args:
        complete: Number of complete jobs, which are not run.
        again: Number of jobs that have begun before, and are run again in their folders.
        folders: Index of each job that is to run -> name of its folder.
    """

    complete: int
    again: int
    folders: dict[int, str]

    @property
    def new(self) -> int:
        """The number of jobs that are run for the first time."""
        return len(self.folders) - self.again


def plan(folder: Path, planned: Iterable[tuple[str, Callable[[int], str]]]) -> SweepPlan:
    """Compare the jobs of a sweep with what its folder holds.

    A job is known by its ``config_hash``, whatever its folder is called. A complete one stays as it is; one that
    failed, was interrupted or killed runs again in its folder; new ones take the next free numbers. Of jobs with
    the same options one is run.

    Args:
        folder: The sweep's folder; need not exist yet.
        planned: ``config_hash`` of each job, in the order of the command line, and a function that returns its
            folder's name from its number.

    Raises:
        ConfigError: If the folder is that of a run or holds results of another version, or if two jobs would
            share one.
    """
    if (folder / "summary.json").exists():
        raise ConfigError(f"{folder} is the folder of a single run; choose another one with hydra.sweep.dir=FOLDER")
    jobs = read_jobs(folder, damaged=[]) if folder.exists() else []
    # Of a job that was copied by hand the complete folder counts.
    jobs_by_hash = {job.config_hash: job for job in sorted(jobs, key=lambda job: job.status == "complete")}
    # A job that was killed before its first file has a folder all the same.
    has_summary = {path.name: (path / "summary.json").exists() for path in folder.glob("*/")}
    empty = {number_of(name): name for name, exists in has_summary.items() if not exists}
    taken = {number_of(name) for name in has_summary}
    complete, again, folders, seen = 0, 0, dict[int, str](), set[str]()
    for index, (config_hash, name) in enumerate(planned):
        if config_hash in seen:
            continue
        seen.add(config_hash)
        if config_hash in jobs_by_hash:
            if jobs_by_hash[config_hash].status == "complete":
                complete += 1
            else:
                again += 1
                folders[index] = jobs_by_hash[config_hash].name
            continue
        number = next(n for n in count() if n not in taken or (n in empty and name(n) == empty[n]))
        taken.add(number)
        empty.pop(number, None)
        folders[index] = name(number)
    for shared in (entry for entry, times in Counter(folders.values()).items() if times > 1):
        raise ConfigError(f"hydra.sweep.subdir gives two jobs the folder {shared}; put ${{hydra.job.num}} into it")
    return SweepPlan(complete, again, folders)


def number_of(name: str) -> int | None:
    """Return the number at the beginning of a folder's name, or None."""
    digits = name.partition("_")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 19 else None


def job_folder_name(text: str) -> str:
    """Return what ``hydra.sweep.subdir`` says as the name of one folder.

    Raises:
        ConfigError: If that is no folder of its own.
    """
    name = folder_name(text)
    if name.strip() in ("", ".", ".."):
        raise ConfigError(f"hydra.sweep.subdir must name a folder of each job's own, got '{text}'")
    return name


@contextmanager
def alone_in(folder: Path, who: str, remedy: str, wait: float = 0) -> Iterator[None]:
    """Keep others out of a folder; the lock is gone when this process is, however it ends.

    Args:
        folder: The folder, made if it does not exist.
        who: Name of what may be there only once, for the message.
        remedy: Advice about another one, for the message.
        wait: Seconds that another one has to come to its end.

    Raises:
        ConfigError: If another one is there.
        OSError: If the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=wait):
            yield
    except Timeout:
        raise ConfigError(f"another {who} is at work in {folder}; {remedy}") from None


def is_at_work(folder: Path) -> bool:
    """Return whether the process that runs a job holds its lock, or may do so where that cannot be seen here.

    The locks of other computers need not be seen here, and a script that calls ``run`` holds none.

    Args:
        folder: The job's folder, which says that it runs.
    """
    path = folder / ".hydra" / ".lock"
    if not path.exists() or _is_of_a_cluster(folder.parent):
        return True
    try:
        with FileLock(path, timeout=0):
            return False
    except (OSError, Timeout):
        return True


def _is_of_a_cluster(folder: Path) -> bool:
    """Return whether a sweep's jobs may be at work on another computer."""
    try:
        text = (folder / "multirun.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "SlurmLauncher" in text or "RayLauncher" in text


def mark_interrupted(folder: Path) -> None:
    """Correct the summaries of jobs that were ended from outside, such as joblib's when a sweep is interrupted.

    Args:
        folder: The sweep's folder.
    """
    for job in read_jobs(folder, damaged=[]):
        if job.status == "running":
            interrupt(job)


def interrupt(job: Job, reason: str | None = None) -> dict[str, Any]:
    """Correct the summary of a job that was ended from outside, and return it.

    Where that cannot be written it stays as it is; the job runs again all the same.

    Args:
        job: The job, as it was read.
        reason: Reason why it ended, for the summary's ``error``.
    """
    content = {**job.summary, "status": "interrupted", "error": reason}
    with suppress(ConfigError, OSError), alone_in(job.folder / ".hydra", "run", "", wait=5):
        write_summary(job.folder, content)
    return content
