"""What several runs tell together."""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import TypeVar

import numpy as np

from gradexp.config import Config
from gradexp.history import Array, mean
from gradexp.result import Result

Key = TypeVar("Key", bound=Hashable)

# Losses of single batches jump; their mean over so many steps is what counts.
WINDOW = 10


def grouped(results: Sequence[Result], key: Callable[[Config], Key]) -> dict[Key, list[Result]]:
    """Collect results by what their options have in common, in order."""
    groups: dict[Key, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result.config), []).append(result)
    return groups


def mean_log_chi(results: Sequence[Result], first: int | None = None, last: int | None = None) -> float | None:
    """Return the log of the factor of ‖δ‖² per layer towards the input, averaged over all networks of all runs.

    Args:
        results: The runs.
        first: First layer of the window; None: the first one.
        last: Last layer; None: the last one.
    """
    slopes = [result.initial.log_chi_per_network(first, last) for result in results if result.initial]
    return mean(np.concatenate(slopes))


def mean_profile(results: Sequence[Result], quantity: str) -> Array:
    """Return log10 of a quantity per layer at initialisation, averaged over all networks of all runs."""
    profiles = [result.initial.profile(quantity) for result in results if result.initial]
    return np.asarray(np.mean(profiles, axis=0))


def smoothed(result: Result) -> Array:
    """Return the mean loss over the last ten steps, for each step from the tenth on; nan once it has diverged."""
    assert result.training is not None
    losses = np.array(result.training.losses + [np.nan] * (result.config.steps - len(result.training.losses)))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.convolve(losses, np.full(WINDOW, 1 / WINDOW), mode="valid")


def steps_to(result: Result, loss: float) -> float:
    """Return after how many steps the mean loss over ten of them was below ``loss``; inf if it never was."""
    reached = np.flatnonzero(smoothed(result) < loss)
    return float(reached[0] + WINDOW) if reached.size else math.inf


def median_steps_to(results: Sequence[Result], loss: float) -> float:
    """Return the median of ``steps_to`` over networks."""
    return median(steps_to(result, loss) for result in results)


def lowest_loss(result: Result) -> float:
    """Return the lowest mean loss over ten steps; inf if training diverged before there was one."""
    return float(np.fmin.reduce(smoothed(result), initial=math.inf))


def at_best_rate(results: Sequence[Result], loss: float) -> list[Result]:
    """Return the results at the learning rate that reaches ``loss`` first, or comes nearest if none does."""
    rates = grouped(results, lambda config: config.optimizer.lr)
    return min(rates.values(), key=lambda own: (median_steps_to(own, loss), median(map(lowest_loss, own))))
