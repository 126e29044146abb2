"""The mean over seeds, and one standard deviation around it, as runs of their own: TensorBoard cannot draw them."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Series = Mapping[str, Mapping[int, float]]
"""Step -> value, by tag."""

MEAN, BELOW, ABOVE = "mean", "mean-sd", "mean+sd"
FILTER = "seeds/mean"
"""A regular expression of their names, which no run has."""

_JOB = re.compile(r"(?:(.*)/)?[\d-]+_([^/]*)")  # its number, or its time, and then its options
_SEED = re.compile(r"(?:^|,)seed=(\d+)(?=,|$)")


def settings(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the runs that differ in their seed only, where there are several, by the name of their means' folder.

    Examples:
        >>> settings(["0_init=he,seed=0", "1_init=he,seed=1", "2_init=xavier,seed=0"])
        {'init=he/2 seeds': ['0_init=he,seed=0', '1_init=he,seed=1']}
    """
    by_setting: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        job = _JOB.fullmatch(name)
        if job and (seed := _SEED.search(job[2])):
            shared = _SEED.sub("", job[2]).strip(",")
            by_setting.setdefault((job[1] or "", shared), {})[seed[1]] = name  # the last of those with one seed
    return {
        "/".join(filter(None, [*setting, f"{len(runs)} seeds"])): list(runs.values())
        for setting, runs in by_setting.items()
        if len(runs) > 1
    }


def mean_and_band(runs: Sequence[Series]) -> dict[str, dict[str, dict[int, float]]]:
    """Return the mean over runs, and the mean minus and plus one standard deviation, by name and tag.

    Only at steps at which every run has a number: the mean of those that have not diverged would be another one's.
    """
    lines: dict[str, dict[str, dict[int, float]]] = {name: {} for name in (MEAN, BELOW, ABOVE)}
    for tag in runs[0]:
        series = [run.get(tag, {}) for run in runs]
        steps = sorted(set(series[0]).intersection(*series[1:]))
        values = np.array([[own[step] for step in steps] for own in series])
        mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
        for name, line in ((MEAN, mean), (BELOW, mean - sd), (ABOVE, mean + sd)):
            lines[name][tag] = dict(zip(steps, line.tolist(), strict=True))
    return lines
