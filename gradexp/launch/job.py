"""One job of a sweep in this process, as Hydra's ``run_job`` runs it, in a third of the time.

Hydra copies a job's config four times, for callbacks and for whoever holds it meanwhile, and writes it as YAML, most
of which is the same text for each job of a sweep.
"""

import os
import pickle
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core import utils
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gradexp.cli.hydra_internals import ahead_of_its_job, flush_loggers, has_callbacks, to_yaml, without_hydra_node


def run_job(context: HydraContext, task: TaskFunction, job: DictConfig) -> JobReturn:
    """Run a job: its folder, the files in ``.hydra``, its log and environment are those of Hydra.

    Where callbacks would see more than that, or the job has a working directory of its own, Hydra runs it.

    Args:
        context: Hydra's context.
        task: What a job does.
        job: Its composed config, which nobody uses any more.

    Returns:
        What became of it, without its config.
    """
    own = job.hydra
    if has_callbacks(context) or own.job.chdir or own.output_subdir is None:
        end: JobReturn = utils.run_job(
            hydra_context=context,
            task_function=task,
            config=job,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        end.cfg = end.hydra_cfg = None  # of hundreds of jobs they would add up
        return end
    OmegaConf.set_readonly(own, True)
    with ahead_of_its_job(job):
        folder = Path(str(own.sweep.dir), str(own.sweep.subdir))
        with read_write(own.runtime), open_dict(own.runtime):
            own.runtime.output_dir = os.path.abspath(folder)  # noqa: PTH100  as Hydra does, links stay
        options = without_hydra_node(job)
        texts: Any = OmegaConf.to_container(own.overrides.task)
        end = JobReturn(overrides=texts, working_dir=str(Path.cwd()))
        folder.mkdir(parents=True, exist_ok=True)
        configure_log(own.job_logging, own.verbose)
        _save(job, Path(own.runtime.output_dir, own.output_subdir))
        with env_override(own.job.env_set):
            try:
                end.return_value = task(options)
                end.status = JobStatus.COMPLETED
            except Exception as error:
                end.return_value = error
                end.status = JobStatus.FAILED
        end.task_name = JobRuntime.instance().get("name")
        flush_loggers()
    return end


def _save(job: DictConfig, folder: Path) -> None:
    """Write the three files in which Hydra keeps a job's config."""
    content = OmegaConf.to_container(job, resolve=False, enum_to_str=True)
    assert isinstance(content, dict)
    own = content.pop("hydra")
    texts = own["overrides"]["task"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("config", content), ("hydra", {"hydra": own})):
        (folder / f"{name}.yaml").write_text(_yaml(part), encoding="utf-8")
    overrides = "".join(map(_override, texts or []))
    (folder / "overrides.yaml").write_text(overrides or to_yaml(texts), encoding="utf-8")


@lru_cache(maxsize=2048)
def _override(text: str) -> str:
    return to_yaml([text])


def _yaml(content: dict[Any, Any], *inside: Any) -> str:
    """Return a config as YAML, entry by entry, since most entries have been written for another job.

    Args:
        content: Its options.
        *inside: The keys that lead to them.
    """
    return "".join(_yaml_of(pickle.dumps((key, value)), *inside) for key, value in content.items())


@lru_cache(maxsize=2048)
def _yaml_of(entry: bytes, *inside: Any) -> str:
    key, value = pickle.loads(entry)  # noqa: S301
    is_group = isinstance(value, dict) and value
    nested: Any = {key: {"": 0} if is_group else value}
    for outer in reversed(inside):
        nested = {outer: nested}
    lines = to_yaml(nested).splitlines(keepends=True)[len(inside) :]
    return lines[0] + _yaml(value, *inside, key) if is_group else "".join(lines)
