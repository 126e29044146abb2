"""``hydra/launcher=ensemble``, ``slurm`` and ``ray_cluster``: where the jobs of a sweep run.

Hydra imports this module whenever one of its programs starts, gradexp's or not: it must load nothing but Hydra,
and imports gradexp inside functions only.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gradexp_launchers.own_package import require_own_package


class _Launcher(Launcher, ABC):
    """Keeps what Hydra hands to a launcher."""

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep the arguments."""
        require_own_package()
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config


@dataclass
class EnsembleLauncherConf:
    """Options of the ensemble launcher. Those of clusters are in ``configs/hydra/launcher/``.

    Args:
        max_members: The largest number of jobs of a stack; null: worked out from the free memory.
    """

    _target_: str = "hydra_plugins.gradexp_launchers.launchers.EnsembleLauncher"
    max_members: int | None = None


class EnsembleLauncher(_Launcher):
    """Run all jobs in this process, those that can be stacked together (see ``gradexp.runs.stacks``)."""

    def __init__(self, max_members: int | None = None) -> None:
        self.max_members = max_members

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return what became of each, in their order."""
        from gradexp.launch.ensemble import composed, run_jobs

        job_of = composed(self, job_overrides, initial_job_idx)
        return run_jobs(self.hydra_context, self.task_function, job_of, len(job_overrides), self.max_members)


class _ClusterLauncher(_Launcher, ABC):
    """Run the jobs as tasks of a cluster."""

    def __init__(self, jobs_per_task: int = 1, **options: Any) -> None:
        self.jobs_per_task = jobs_per_task
        self.options = options

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Send the jobs off, wait for all and return what became of each, in their order."""
        from gradexp.launch.cluster import launch

        return launch(self, self.engine(), job_overrides, initial_job_idx)

    @abstractmethod
    def engine(self) -> Any:
        """Return the cluster (``gradexp.launch.cluster.Engine``)."""


class SlurmLauncher(_ClusterLauncher):
    """The tasks of a Slurm job array (see ``configs/hydra/launcher/slurm.yaml``)."""

    def engine(self) -> Any:
        """Return Slurm."""
        from gradexp.launch.slurm import Slurm

        return Slurm(self.options)


class RayLauncher(_ClusterLauncher):
    """The tasks of a Ray cluster (see ``configs/hydra/launcher/ray_cluster.yaml``)."""

    def engine(self) -> Any:
        """Return Ray."""
        from gradexp.launch.ray import Ray

        return Ray(**self.options)


ConfigStore.instance().store(
    group="hydra/launcher", name="ensemble", node=EnsembleLauncherConf, provider="gradexp_launchers"
)
