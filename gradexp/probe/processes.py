"""Trainings of several processes: sharded weights, whose norms need all of them, and the one that writes."""

import itertools
import warnings
from datetime import timedelta
from typing import Any

import torch.distributed
from torch import nn

from gradexp.numerics.torch_internals import default_store

_PATIENCE = timedelta(seconds=60)
_WARN_AFTER = timedelta(seconds=5)

_attached = itertools.count()


def await_other_probes(
    model: nn.Module, patience: timedelta = _PATIENCE, warn_after: timedelta = _WARN_AFTER
) -> None:
    """Wait until every process that holds a part of the model's weights has attached a probe.

    The norm of a sharded weight is a collective operation: with a probe on some of the processes only, the first
    ``collect`` would wait for the others for ever.

    Args:
        model: Nothing is waited for unless it has sharded weights.
        patience: The time after which to give up.
        warn_after: The time after which to say what is waited for.

    Raises:
        RuntimeError: If some process has attached none.
    """
    meshes = [getattr(parameter, "device_mesh", None) for parameter in model.parameters()]
    ranks = sorted({int(rank) for mesh in meshes if mesh is not None for rank in mesh.mesh.flatten().tolist()})
    connection = default_store() if len(ranks) > 1 else None
    if connection is None:
        return
    number = next(_attached)
    rank, store = connection
    store.set(f"gradexp/probe/{number}/{rank}", "attached")
    missing: list[int] = []
    for limit in (warn_after, patience):
        missing = [other for other in ranks if not _has_come(store, f"gradexp/probe/{number}/{other}", limit)]
        if not missing:
            return
        if limit == warn_after:
            warnings.warn(f"the probe waits for one on the processes {missing}: {_WHY}", stacklevel=4)
    raise RuntimeError(f"no probe is attached on the processes {missing}: {_WHY}")


_WHY = "the model's weights are sharded, so that every process must attach a probe and collect at the same steps"


def is_first_process() -> bool:
    """Return whether this is the one process of a training that writes."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def _has_come(store: Any, key: str, limit: timedelta) -> bool:
    try:
        store.wait([key], limit)
    except Exception:  # torch raises one of several kinds when the time is over
        return False
    return True
