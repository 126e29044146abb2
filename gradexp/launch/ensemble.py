"""Jobs of a sweep in one process, those that can be stacked together."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, configure_log, env_override, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from gradexp.choices import ConfigError
from gradexp.cli.composing import ahead_of_its_job, to_config
from gradexp.config import Config
from gradexp.runs import stacks
from gradexp.runs.experiment import run_stack
from gradexp.runs.progress import Progress
from gradexp.runs.result import Result


def compose(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[DictConfig]:
    """Return the config of each job that Hydra hands to a launcher, numbered from ``first`` on."""
    loader: ConfigLoader = launcher.hydra_context.config_loader
    jobs = []
    for number, overrides in enumerate(job_overrides, first):
        job = loader.load_sweep_config(launcher.config, list(overrides))
        with open_dict(job):
            job.hydra.job.id = str(number)
            job.hydra.job.num = number
        jobs.append(job)
    return jobs


def run_jobs(
    context: HydraContext, task: TaskFunction, jobs: Sequence[DictConfig], most: int | None = None
) -> list[JobReturn]:
    """Run jobs one after the other; the first of a chunk waits for the whole chunk's stack to be trained.

    Each then goes through Hydra's ``run_job`` like any other, and its task finds the result ready: folders, files and
    callbacks are those of the basic launcher.

    Args:
        context: Hydra's context.
        task: What a job does.
        jobs: Their composed configs.
        most: The largest number of jobs of a stack; None: worked out from the free memory.
    """
    setup_globals()
    settings = jobs[0].hydra
    configure_log(settings.hydra_logging, settings.verbose)
    configs = [checked(job) for job in jobs]
    chunk_of = _plan(configs, alike(jobs), most)

    ready: dict[int, Result] = {}
    runs: list[JobReturn] = []
    interruption: KeyboardInterrupt | None = None
    for index, job in enumerate(jobs):
        chunk = chunk_of[index]
        if len(chunk) > 1 and index == chunk[0]:
            results: list[Result] = []
            with env_override(_environment(job)):
                try:
                    _train(configs, chunk, results)
                except KeyboardInterrupt as raised:
                    interruption = raised
            ready.update(zip(chunk, results, strict=False))
            del results  # each is to go once its job has its files
        if interruption and index not in ready:
            continue
        with stacks.handing_over(ready.pop(index, None)):
            try:
                end = run_job(
                    hydra_context=context,
                    task_function=task,
                    config=job,
                    job_dir_key="hydra.sweep.dir",
                    job_subdir_key="hydra.sweep.subdir",
                )
            except KeyboardInterrupt as raised:  # jobs whose results are ready get their files all the same
                interruption = interruption or raised
                continue
        end.cfg = end.hydra_cfg = None  # of hundreds of jobs they would add up
        runs.append(end)
        configure_log(settings.hydra_logging, settings.verbose)  # run_job leaves the job's own in place
    if interruption:
        raise interruption
    return runs


def checked(job: DictConfig) -> Config | None:
    """Return the options of a job, or None if they cannot work, which its own run will tell."""
    try:
        with ahead_of_its_job(job), env_override(_environment(job)):
            config: Config = to_config(job)
            return config
    except Exception:
        return None


def alike(jobs: Sequence[DictConfig]) -> list[str]:
    """Return a text for each job, which those of one stack share: its environment variables."""
    return [json.dumps(_environment(job), sort_keys=True) for job in jobs]


def _environment(job: DictConfig) -> dict[str, str]:
    return dict(job.hydra.job.env_set)


def _plan(configs: Sequence[Config | None], shared: Sequence[str], most: int | None) -> dict[int, list[int]]:
    """Return the chunk of each job."""
    plan: dict[int, list[int]] = {}
    for stack in stacks.stackable_groups(configs, shared):
        config = configs[stack[0]]
        chunks = [[index] for index in stack]
        if config is not None and len(stack) > 1:
            # Without the data or the device each job says so itself.
            with suppress(ConfigError, RuntimeError, AssertionError):
                chunks = stacks.chunks(stack, config, most)
        plan.update({index: chunk for chunk in chunks for index in chunk})
    return plan


def _train(configs: Sequence[Config | None], chunk: Sequence[int], results: list[Result]) -> None:
    """Fill a list with the results of a chunk; leave it empty, so that jobs run alone, if training together fails."""
    together = [config for index in chunk if (config := configs[index]) is not None]
    try:
        run_stack(together, [Progress(f"{len(chunk)} networks: ", together[0].quiet)], results)
    except ConfigError:  # of the data or the device, which each job will say
        results.clear()
    except Exception as error:
        results.clear()
        first_line = str(error).partition("\n")[0]
        print(f"a stack of {len(chunk)} jobs failed, they run alone: {first_line}", file=sys.stderr)  # noqa: T201
