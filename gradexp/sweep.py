"""The folder of a sweep: one sub-folder per job, each with its summary.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradexp._version import __version__
from gradexp.config import ConfigError
from gradexp.result import SCHEMA


@dataclass(frozen=True)
class Job:
    """One job of a sweep, as its folder tells.

    Args:
        folder: The job's own folder; its name begins with the job's number.
        summary: What its summary.json holds.
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
        digits = self.name.partition("_")[0]
        return int(digits) if digits.isdecimal() else None

    @property
    def config_hash(self) -> str:
        """What the job is known by."""
        return str(self.summary["config_hash"])

    @property
    def status(self) -> str:
        """``running``, ``complete``, ``interrupted`` or ``failed``."""
        return str(self.summary["status"])


def read_jobs(folder: Path) -> list[Job]:
    """Return the jobs of a sweep that have begun, by their numbers.

    Raises:
        ConfigError: If the folder is none, or a summary was written by another version or is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    jobs = [Job(path.parent, _read(path)) for path in sorted(folder.glob("*/summary.json"))]
    return sorted(jobs, key=lambda job: (job.number is None, job.number or 0, job.name))


def _read(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); delete its folder to run that job again") from error
    found = (summary.get("schema"), summary.get("gradexp")) if isinstance(summary, dict) else (None, None)
    if found != (SCHEMA, __version__):
        raise ConfigError(
            f"{path} was written by gradexp {found[1]} (schema {found[0]}), this is {__version__} (schema {SCHEMA}); "
            "choose another folder"
        )
    return dict(summary)
