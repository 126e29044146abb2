"""A history as points of scalar charts: profiles over layers, ratios over steps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np

from gradexp.history.step import QUANTITIES, Array, Step

Values = Sequence[float | None] | Sequence[float] | Array

Points = Iterator[tuple[int, dict[str, float]]]
"""Pairs of a step and its numbers by tag."""


LARGEST_SCALAR = 3.4e38
"""TensorBoard stores float32, in which larger numbers are infinite and drawn as if they were 0."""


def points(steps: Iterable[int], series: Mapping[str, Values]) -> Points:
    """Yield each step with its drawable values; a series may be shorter than the steps."""
    for step, values in zip(steps, zip_longest(*map(or_none, series.values())), strict=False):
        drawable = {
            tag: value
            for tag, value in zip(series, values, strict=True)
            if value is not None and abs(value) < LARGEST_SCALAR
        }
        if drawable:
            yield step, drawable


def profile_points(step: Step, group: str = "profile") -> Points:
    """Yield the scalars ``profile/log10_…``, or those of another group, of one recorded step, with step = layer."""
    quantities = [quantity for quantity in QUANTITIES[:3] if quantity in step.log10]
    return layer_points({f"log10_{quantity}": step.profile(quantity) for quantity in quantities}, group)


def layer_points(profiles: Mapping[str, Array], group: str = "profile") -> Points:
    """Yield the scalars ``profile/…``, or those of another group, with step = layer."""
    # Rounded to what float32 shows, so that the log of 1 is 0 and not -0.
    series = {f"{group}/{key}": np.round(values, 9) + 0.0 for key, values in profiles.items()}
    return points(range(1, max(map(len, series.values()), default=0) + 1), series)


def or_none(values: Values) -> list[float | None]:
    """Return all numbers as one list, with None for those that are not finite."""
    array = np.asarray(values, dtype=float).ravel()  # None becomes nan
    finite = np.isfinite(array)
    numbers: list[float | None] = array.tolist()
    return numbers if finite.all() else [x if keep else None for x, keep in zip(numbers, finite, strict=True)]
