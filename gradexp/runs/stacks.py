"""Jobs of a sweep as stacks of networks: which can be stacked, how many at a time, and how each gets its result.

torch is imported inside ``stack_size``: ``experiment`` and the launchers use this file before torch is loaded.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import TypeVar

from gradexp.config import Config, as_dict
from gradexp.runs.device import find_device
from gradexp.runs.memory import free_memory
from gradexp.runs.result import Result

_Item = TypeVar("_Item")

FREE = ("init", "sigma_b2", "seed")
"""Options in which the jobs of one stack may differ. Others change its operations or the one optimizer's settings."""

# On a CPU a layer's outputs, over all networks of a stack, should stay in its cache: more networks at a time are no
# faster, and below 8 or above 64 the best number hardly depends on the machine.
_CACHED = 1 << 16
_FEWEST, _MOST = 8, 64
# Share of the free memory that a stack may take.
_SHARE = 0.5
# Copies that training holds of each weight (itself, gradient, its value before the update, two of an optimizer) and
# of each output (z, φ(z), and a gradient in transit).
_WEIGHTS, _OUTPUTS = 5, 3
# Bytes of a recorded number with its status, while a History is put together from its steps.
_RECORDED = 2 * 9
_QUANTITIES = 5


def stackable_groups(configs: Sequence[Config | None], alike: Sequence[str] | None = None) -> list[list[int]]:
    """Group jobs that can run as one stack, in the order of the first of each.

    Args:
        configs: The options of each job; None where it cannot be stacked.
        alike: A further text per job, which those of one stack share.

    Returns:
        Indices of the jobs, each once.
    """
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        key = str(index)
        if config is not None and config.model.name == "mlp":  # others have no stacked form
            shared = {name: value for name, value in as_dict(config).items() if name not in FREE}
            key = json.dumps([shared, alike[index] if alike else ""], sort_keys=True)
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def cluster_tasks(configs: Sequence[Config | None], most: int, alike: Sequence[str] | None = None) -> list[list[int]]:
    """Group jobs into tasks of a cluster; jobs of one stack stay together.

    Args:
        configs: The options of each job; None where it cannot be stacked.
        most: The largest number of jobs of a task.
        alike: A further text per job, which those of one stack share.

    Returns:
        Indices of the jobs, each once.
    """
    grouped: list[list[int]] = []
    for stack in stackable_groups(configs, alike):
        for chunk in split(stack, -(-len(stack) // most)):
            if grouped and len(grouped[-1]) + len(chunk) <= most:
                grouped[-1] += chunk
            else:
                grouped.append(list(chunk))
    return sorted(grouped)


def chunks(jobs: Sequence[int], config: Config, most: int | None = None) -> list[list[int]]:
    """Split the jobs of a stack into chunks of about equal size that fit into memory and are fast.

    Args:
        jobs: Their indices.
        config: The options of any of them.
        most: The largest size of a chunk; None: worked out.
    """
    return [list(chunk) for chunk in split(jobs, -(-len(jobs) // max(1, most or stack_size(config))))]


def split(items: Sequence[_Item], count: int) -> list[Sequence[_Item]]:
    """Split a sequence into ``count`` pieces of about equal size."""
    ends = [len(items) * index // count for index in range(count + 1)]
    return [items[first:last] for first, last in pairwise(ends)]


def count_weights(widths: Sequence[int]) -> int:
    """Return how many weights and biases a network of these widths has."""
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(widths))


def stack_size(config: Config) -> int:
    """Return how many runs of this shape to train at a time: what fits into half of the free memory.

    On a CPU also no more than 65536 / (batch · width), within 8 to 64, from where on a core is busy with arithmetic.
    """
    import torch

    from gradexp.runs.data import load

    data = load(config.data, config.width)
    widths = [data.input_width, *config.hidden_widths, data.output_width]
    weights = count_weights(widths)
    # Evaluation keeps nothing for a way back, but takes more samples at a time.
    outputs = max(config.batch_size * sum(widths), min(1024, len(data.x_train)) * max(widths))
    numbers = _WEIGHTS * weights + _OUTPUTS * outputs
    recorded = _RECORDED * _QUANTITIES * config.depth * (config.steps // config.record.every + 1)
    size = numbers * (8 if config.dtype == "float64" else 4) + recorded
    device = find_device(config.device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, int(_SHARE * free / size))
    fast = _CACHED // (config.batch_size * max(widths[1:-1], default=1))
    return max(1, min(int(_SHARE * free_memory() / size), max(_FEWEST, min(_MOST, fast))))


_ready: ContextVar[Result | None] = ContextVar("gradexp_ready", default=None)


@contextmanager
def handing_over(result: Result | None) -> Iterator[None]:
    """Keep the result that a stack has computed ready for a job to ``take``."""
    token = _ready.set(result)
    try:
        yield
    finally:
        _ready.reset(token)


def take(config: Config) -> Result | None:
    """Return the result that is ready for a job, if there is one and it is of these very options."""
    result = _ready.get()
    return result if result is not None and result.config == config else None
