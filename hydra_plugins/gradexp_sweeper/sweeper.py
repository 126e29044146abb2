"""``hydra/sweeper=resumable``, gradexp's own: Hydra's basic sweeper, which goes on where a sweep broke off.

Hydra imports this module whenever one of its programs starts, gradexp's or not: it must load nothing but Hydra,
and imports gradexp inside functions only.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.gradexp_launchers.own_package import require_own_package


@dataclass
class ResumableSweeperConf:
    """Options of the sweeper, as Hydra's basic one has them.

    Args:
        max_batch_size: The largest number of jobs that a launcher gets at a time; null: all.
        params: Options to sweep over, such as ``depth: 10,50,150``; the command line goes before them.
    """

    _target_: str = "hydra_plugins.gradexp_sweeper.sweeper.ResumableSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


class ResumableSweeper(BasicSweeper):
    """Run the jobs that a sweep's folder does not hold yet, and compare them all (see ``gradexp.launch.sweeper``)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Refuse to run the jobs of another program, which leave no summary to go on from.

        Raises:
            CompactHydraException: If it is another, or the package gradexp is somebody else's.
        """
        require_own_package()
        if task_function.__module__ != "gradexp.cli.command":
            raise CompactHydraException("hydra/sweeper=resumable is for the runs of gradexp; use hydra/sweeper=basic")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that the arguments make."""
        from gradexp.launch.sweeper import sweep

        return sweep(self, arguments)


ConfigStore.instance().store(
    group="hydra/sweeper", name="resumable", node=ResumableSweeperConf, provider="gradexp_sweeper"
)
