"""Jobs of a sweep in one process, those that can be stacked together."""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, configure_log, env_override, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from gradexp.choices import ConfigError
from gradexp.cli.composing import config_of_job
from gradexp.config import Config
from gradexp.launch.job import run_job
from gradexp.runs import stacks
from gradexp.runs.experiment import run_stack
from gradexp.runs.progress import Progress
from gradexp.runs.result import Result
from gradexp.runs.sweep_bar import count_job


def composed(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> Callable[[int], DictConfig]:
    """Return a function that composes the config of a job that Hydra hands to a launcher, numbered from ``first`` on.

    They are not kept, since those of 2,000 jobs would fill a gigabyte.
    """
    loader: ConfigLoader = launcher.hydra_context.config_loader

    def job_of(index: int) -> DictConfig:
        job = loader.load_sweep_config(launcher.config, list(job_overrides[index]))
        with open_dict(job):
            job.hydra.job.id = str(first + index)
            job.hydra.job.num = first + index
        return job

    return job_of


def run_jobs(
    context: HydraContext,
    task: TaskFunction,
    job_of: Callable[[int], DictConfig],
    count: int,
    most: int | None = None,
) -> list[JobReturn]:
    """Run jobs one after the other; the first of a chunk waits for the whole chunk's stack to be trained.

    Each is then run like any other, and its task finds the result ready: folders, files and callbacks are those of
    the basic launcher.

    Args:
        context: Hydra's context.
        task: What a job does.
        job_of: A function that returns the composed config of each.
        count: How many there are.
        most: The largest number of jobs of a stack; None: worked out from the free memory.
    """
    setup_globals()
    settings = job_of(0).hydra
    configure_log(settings.hydra_logging, settings.verbose)
    configs, environments = [], []
    for index in range(count):
        job = job_of(index)
        configs.append(checked(job))
        environments.append(_environment(job))
    chunk_of = _plan(configs, list(map(_text, environments)), most)

    ready: dict[int, Result] = {}
    runs: list[JobReturn] = []
    interruption: KeyboardInterrupt | None = None
    for index in range(count):
        chunk = chunk_of[index]
        if len(chunk) > 1 and index == chunk[0]:
            results: list[Result] = []
            with env_override(environments[index]):
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
                runs.append(run_job(context, task, job_of(index)))
            except KeyboardInterrupt as raised:  # jobs whose results are ready get their files all the same
                interruption = interruption or raised
                continue
            finally:
                count_job()
        configure_log(settings.hydra_logging, settings.verbose)  # the job has left its own in place
    if interruption:
        raise interruption
    return runs


def checked(job: DictConfig) -> Config | None:
    """Return the options of a job, or None if they cannot work, which its own run will tell."""
    try:
        with env_override(_environment(job)):
            config: Config = config_of_job(job)
            return config
    except Exception:
        return None


def alike(jobs: Sequence[DictConfig]) -> list[str]:
    """Return a text for each job, which those of one stack share: its environment variables."""
    return [_text(_environment(job)) for job in jobs]


def _text(environment: dict[str, str]) -> str:
    return json.dumps(environment, sort_keys=True)


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
    progress = Progress(f"{len(chunk)} networks: ", together[0].quiet, jobs=len(chunk))
    try:
        run_stack(together, [progress], results)
    except ConfigError:  # of the data or the device, which each job will say
        results.clear()
    except Exception as error:
        results.clear()
        first_line = str(error).partition("\n")[0]
        print(f"a stack of {len(chunk)} jobs failed, they run alone: {first_line}", file=sys.stderr)  # noqa: T201
