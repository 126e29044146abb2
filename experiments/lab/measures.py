"""Numbers that summarise several runs."""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import TypeVar

import numpy as np

from gradexp.config import Config
from gradexp.history.history import History
from gradexp.history.step import Array, Quantity, mean
from gradexp.runs.result import Result
from gradexp.runs.training import Training

Key = TypeVar("Key", bound=Hashable)

# Losses of single batches jump; their mean over so many steps is what counts.
WINDOW = 10
# Cross-entropy of ten digits: of a network that guesses, and one that only those reach that tell most of them apart.
GUESSING = math.log(10)
LEARNED = 1.5


def initial(result: Result) -> History:
    """Return the profile at initialisation of a run, which it has once it is complete."""
    assert result.initial is not None
    return result.initial


def training(result: Result) -> Training:
    """Return the record of a run's training."""
    assert result.training is not None
    return result.training


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
    return mean(np.concatenate([initial(result).at().log_chi_per_network(first, last) for result in results]))


def mean_profile(results: Sequence[Result], quantity: Quantity) -> Array:
    """Return log10 of a quantity per layer at initialisation, averaged over all networks of all runs."""
    return np.asarray(np.mean([initial(result).profile(quantity) for result in results], axis=0))


def smoothed(result: Result) -> Array:
    """Return the mean loss over the last ten steps, for each step from the tenth on; nan once it has diverged."""
    before = training(result).losses
    losses = np.array(before + [np.nan] * (result.config.steps - len(before)))
    if len(losses) < WINDOW:
        return np.empty(0)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.convolve(losses, np.full(WINDOW, 1 / WINDOW), mode="valid")


def steps_to(result: Result, loss: float = LEARNED) -> float:
    """Return after how many steps the mean loss over ten of them was first below ``loss``; inf if it never was.

    A loss that jumps up later has been reached all the same; that the network keeps it would be another question.
    """
    reached = np.flatnonzero(smoothed(result) < loss)
    return float(reached[0] + WINDOW) if reached.size else math.inf


def slowest_to(results: Sequence[Result], loss: float = LEARNED) -> float:
    """Return the largest ``steps_to`` over networks."""
    return max(steps_to(result, loss) for result in results)


def median_steps_to(results: Sequence[Result], loss: float = LEARNED) -> float:
    """Return the median of ``steps_to`` over networks."""
    return median(steps_to(result, loss) for result in results)


def ratio(steps: float, of: float) -> float:
    """Return one number of steps over another; nan, of which no claim holds, if that was never reached."""
    return steps / of if math.isfinite(of) else math.nan


def lowest_loss(results: Sequence[Result]) -> float:
    """Return the lowest mean loss over ten steps of any network; inf if all diverged before there was one."""
    return min(float(np.fmin.reduce(smoothed(result), initial=math.inf)) for result in results)
