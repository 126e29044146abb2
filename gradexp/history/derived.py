"""Numbers that follow from what was recorded: the relative update, and how much samples differ."""

from collections.abc import Mapping

import numpy as np

from gradexp.history.step import Array, Quantity


def update_ratio(log10: Mapping[Quantity, Array]) -> Array | None:
    """Return log10 of ‖update‖ / ‖weight‖, by which part of itself a step changes a weight, or None if unknown.

    About 10^-3 is usual; far below a layer stands still, near 1 it is thrown away at each step.

    Args:
        log10: Quantity -> array of any shape; ``update`` and ``weight`` must be there.
    """
    if "update" not in log10 or "weight" not in log10:
        return None
    return np.asarray(log10["update"] - log10["weight"])


def sample_spread(samples: Array | None) -> Array | None:
    """Return the standard deviation over samples of log10 of the norm of each one's output gradient, in decades.

    None for fewer than two samples. A sample without a number, such as one whose gradient is 0, does not count.

    Args:
        samples: Shape ``(..., sample)``.
    """
    if samples is None or samples.shape[-1] < 2:
        return None
    finite = np.isfinite(samples)
    count = finite.sum(axis=-1)
    divisor = np.maximum(count, 1)
    mean = np.where(finite, samples, 0).sum(axis=-1) / divisor
    square = np.where(finite, samples - mean[..., None], 0) ** 2
    return np.where(count > 1, np.sqrt(square.sum(axis=-1) / np.maximum(count - 1, 1)), np.nan)


def extras(log10: Mapping[Quantity, Array], stats: Mapping[str, Array], samples: Array | None) -> dict[str, Array]:
    """Return by name all numbers beside the sizes, of one step or of a history, all of one shape.

    ``log10_update_ratio`` is ``update_ratio``, ``samples_sd`` is ``sample_spread``, and each further statistic has
    its own name, such as ``output.dead``.
    """
    named = {"log10_update_ratio": update_ratio(log10), "samples_sd": sample_spread(samples)}
    return {name: values for name, values in named.items() if values is not None} | dict(stats)
