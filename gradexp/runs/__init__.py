"""One run from options to result: data, stages, training, recording, verdict, and what summary.json holds.

``run`` is what ``python -m gradexp.run`` calls, without Hydra: ``run(Config(depth=150, init=InitConfig("he")))``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradexp.runs.experiment import run as run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    # On first use: the files of this room are imported by commands that must not load numpy for their help.
    if name != "run":
        raise AttributeError(f"module 'gradexp.runs' has no attribute '{name}'")
    from gradexp.runs.experiment import run

    return run
