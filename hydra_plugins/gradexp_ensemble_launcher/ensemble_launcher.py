"""``hydra/launcher=ensemble``: jobs that differ in init, sigma_b2 and seed only run as one stack of networks.

Hydra imports this module whenever one of its programs starts, gradexp's or not: it must load nothing but Hydra.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class EnsembleLauncherConf:
    """Options of the launcher.

    Args:
        max_members: Most jobs of a stack; null: worked out from the free memory.
    """

    _target_: str = "hydra_plugins.gradexp_ensemble_launcher.ensemble_launcher.EnsembleLauncher"
    max_members: int | None = None


class EnsembleLauncher(Launcher):
    """Run all jobs in this process, those that can be stacked together (see ``gradexp.ensemble``)."""

    def __init__(self, max_members: int | None = None) -> None:
        self.max_members = max_members

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands to a launcher."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return what became of each, in their order."""
        from hydra_plugins.gradexp_ensemble_launcher._jobs import launch

        return launch(self, job_overrides, initial_job_idx)


ConfigStore.instance().store(
    group="hydra/launcher", name="ensemble", node=EnsembleLauncherConf, provider="gradexp_ensemble_launcher"
)
