"""What the ensemble launcher does with the jobs of a sweep. Hydra does not scan modules named with an underscore."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, configure_log, env_override, run_job, setup_globals
from omegaconf import DictConfig, open_dict

from gradexp import ensemble
from gradexp.cli import ahead_of_its_job, to_config
from gradexp.config import Config, ConfigError
from gradexp.experiment import run_stack
from gradexp.progress import Progress
from gradexp.result import Result


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
    """Run jobs one after the other; the first of a chunk waits for the whole chunk's stack to be trained.

    Each then goes through Hydra's ``run_job`` like any other, and its task finds the result ready: folders, files and
    callbacks are those of the basic launcher.
    """
    setup_globals()
    settings = launcher.config.hydra
    configure_log(settings.hydra_logging, settings.verbose)
    Path(str(settings.sweep.dir)).mkdir(parents=True, exist_ok=True)
    loader: ConfigLoader = launcher.hydra_context.config_loader
    composed = [_compose(loader, launcher.config, own, initial_job_idx + i) for i, own in enumerate(job_overrides)]
    environments = [dict(one.hydra.job.env_set) for one in composed]
    configs = [_checked(one, environment) for one, environment in zip(composed, environments, strict=True)]
    chunk_of = _plan(configs, environments, launcher.max_members)

    ready: dict[int, Result] = {}
    runs: list[JobReturn] = []
    interruption: KeyboardInterrupt | None = None
    for index, config in enumerate(composed):
        chunk = chunk_of[index]
        if len(chunk) > 1 and index == chunk[0]:
            with env_override(environments[index]):
                try:
                    ready.update(zip(chunk, _train(configs, chunk), strict=False))
                except KeyboardInterrupt as raised:
                    interruption = raised
                    ready.update(zip(chunk, raised.args[0] if raised.args else [], strict=False))
        if interruption and index not in ready:
            continue
        with ensemble.handing_over(ready.pop(index, None)):
            end = run_job(
                hydra_context=launcher.hydra_context,
                task_function=launcher.task_function,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        end.cfg = end.hydra_cfg = None  # of hundreds of jobs they would add up
        runs.append(end)
        configure_log(settings.hydra_logging, settings.verbose)  # run_job leaves the job's own in place
    if interruption:
        raise interruption
    return runs


def _compose(loader: ConfigLoader, master: DictConfig, overrides: Sequence[str], number: int) -> DictConfig:
    composed = loader.load_sweep_config(master, list(overrides))
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    return composed


def _checked(composed: DictConfig, environment: dict[str, str]) -> Config | None:
    """Return the options of a job, or None if they cannot work, which its own run will tell."""
    try:
        with ahead_of_its_job(composed), env_override(environment):
            config: Config = to_config(composed)
            return config
    except Exception:
        return None


def _plan(
    configs: Sequence[Config | None], environments: Sequence[dict[str, str]], most: int | None
) -> dict[int, list[int]]:
    """Return the chunk of each job."""
    alike = [json.dumps(environment, sort_keys=True) for environment in environments]
    plan: dict[int, list[int]] = {}
    for stack in ensemble.stacks(configs, alike):
        config = configs[stack[0]]
        parts = [[index] for index in stack]
        if config is not None and len(stack) > 1:
            # Without the data or the device each job says so itself.
            with suppress(ConfigError, RuntimeError, AssertionError):
                parts = ensemble.chunks(stack, config, most)
        plan.update({index: part for part in parts for index in part})
    return plan


def _train(configs: Sequence[Config | None], chunk: Sequence[int]) -> list[Result]:
    """Return the results of a chunk, or none if it cannot be trained together: each job then runs alone."""
    together = [config for index in chunk if (config := configs[index]) is not None]
    try:
        return run_stack(together, [Progress(f"{len(chunk)} networks: ", together[0].quiet)])
    except ConfigError:  # of the data or the device, which each job will say
        return []
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        print(f"a stack of {len(chunk)} jobs failed, they run alone: {first_line}", file=sys.stderr)  # noqa: T201
        return []
