"""A job that runs in this process leaves, returns and sees what it would if Hydra had run it."""

import copy
from pathlib import Path
from typing import Any, cast

import pytest
from hydra.core import utils
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from gradexp.cli.hydra_internals import Callbacks
from gradexp.launch.composer import Composer
from gradexp.launch.job import run_job

# Values that refer to others, lists that are empty or not, long texts, texts with signs, and none.
JOBS = [
    ["seed=3", "init=he"],
    ["depth=${width}", "widths=null", "data=file", "data.path='a b: c, #d=e.npz'"],
    [],
    ["widths=[3,4,5]", "record.profile_steps=[]", f"+hydra.job.env_set.A='{'long words ' * 20}'"],
]


class Follower:
    """A callback of somebody's own, which does as little as possible."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self.seen.append(config.hydra.job.num)

    def on_job_end(self, job_return: JobReturn, **_: Any) -> None:
        self.seen.append(job_return.status)


def of_hydra(context: HydraContext, task: Any, job: DictConfig) -> JobReturn:
    keys = {"job_dir_key": "hydra.sweep.dir", "job_subdir_key": "hydra.sweep.subdir"}
    return utils.run_job(hydra_context=context, task_function=task, config=job, **keys)


@pytest.fixture
def jobs(loader: Any, tmp_path: Path) -> list[DictConfig]:
    utils.setup_globals()
    overrides = [f"hydra.sweep.dir={tmp_path}/sweep", "hydra.sweep.subdir=${hydra.job.num}_${seed}"]
    master = loader.load_configuration("config", overrides, RunMode.MULTIRUN)
    composed = [Composer(loader).compose(master, job) for job in JOBS]
    for number, job in enumerate(composed):
        OmegaConf.set_struct(job, False)
        job.hydra.job.num, job.hydra.job.id = number, str(number)
    return composed


@pytest.mark.slow
def test_files_and_what_the_task_sees_are_those_of_hydra(jobs: list[DictConfig], tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    def task(options: DictConfig) -> int:
        own = HydraConfig.get()
        with pytest.raises(Exception, match="read-only"):
            own.job.num = 5
        seen.append((OmegaConf.to_container(options, resolve=True), type(options), own.runtime.output_dir))
        seen.append((OmegaConf.get_type(options), OmegaConf.to_container(own, resolve=False)))
        if options.seed == 3:
            raise ValueError("seed 3")
        return int(options.steps)

    context = HydraContext(config_loader=cast(Any, None), callbacks=Callbacks())
    found: list[tuple[dict[str, str], list[Any], list[Any]]] = []
    for run in (of_hydra, run_job):
        ends = [run(context, task, copy.deepcopy(job)) for job in jobs]
        files = {str(path): path.read_text() for path in tmp_path.glob("sweep/*/.hydra/*.yaml")}
        facts = [(end.status, end.overrides, end.working_dir, end.task_name, str(end._return_value)) for end in ends]
        found.append((files, facts, seen[:]))
        seen.clear()
        for path in files:
            Path(path).unlink()
    assert found[0] == found[1]
    assert len(found[1][0]) == 3 * len(JOBS)
    assert [fact[0] for fact in found[1][1]] == [JobStatus.FAILED, *[JobStatus.COMPLETED] * 3]
    assert HydraConfig.instance().cfg is None


def test_callbacks_follow_a_job(jobs: list[DictConfig]) -> None:
    follower, callbacks = Follower(), Callbacks()
    callbacks.callbacks.append(follower)
    end = run_job(HydraContext(config_loader=cast(Any, None), callbacks=callbacks), lambda _: 1.0, jobs[2])
    assert follower.seen == [2, JobStatus.COMPLETED]
    assert end.return_value == 1.0
    assert end.cfg is None
