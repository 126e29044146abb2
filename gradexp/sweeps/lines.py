"""The jobs of a sweep as lines of the page's chart: one for those that differ in their seed only."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from gradexp.history.history import History
from gradexp.history.step import Quantity
from gradexp.page.lines import COLOURS, Line
from gradexp.runs.layers_file import NAME, read_layers
from gradexp.sinks.event_file import read_scalars
from gradexp.sinks.job_line import option_words
from gradexp.sinks.page import run_line
from gradexp.sweeps.compare import Row, SweepResults, seed_groups

MOST_TRAINED = 60
"""Lines up to which their trainings are shown: reading those of 300 jobs would take half a minute."""

_MOST_QUANTITIES = 12  # lines up to which outputs and weight gradients are shown too
_STEPS = 60


def sweep_lines(comparison: SweepResults) -> list[Line]:
    """Return the lines of a sweep, in the order of its jobs; jobs without a readable profile have none."""
    groups = seed_groups(comparison)
    colours = _colours([shared for shared, _ in groups])
    lines = []
    for (shared, rows), colour in zip(groups, colours, strict=True):
        line = _line(shared, rows, colour, len(groups))
        lines += [line] if line else []
    return lines


def _line(shared: Mapping[str, Any], rows: Sequence[Row], colour: int, count: int) -> Line | None:
    initials, gradients, trained = [], None, None
    for row in rows:
        wants = _STEPS if gradients is None and count <= MOST_TRAINED else 0
        with suppress(OSError, ValueError):  # not there yet, or damaged
            initial, training = read_layers(row.job.folder / NAME, wants)
            initials += [initial] if initial is not None else []
            if training is not None:
                gradients, trained = training, row
    if not initials:
        return None
    losses = read_scalars(trained.job.folder, "train/loss") if trained else {}
    return run_line(
        option_words(shared) or "measured",
        rows[0].job.summary["config"],
        _living(initials, None if count <= _MOST_QUANTITIES else "output_grad"),
        gradients,
        [losses[step] for step in sorted(losses)],
        guessing=trained.job.summary["training"].get("guessing_loss") if trained else None,
        words=tuple(word for key in ("gradient", "training") if (word := most(rows, key))),
        colour=colour,
    )


def _living(initials: Sequence[History], only: Quantity | None) -> History:
    """Join the networks that are not dead at some layer, which would hide the others or bend their mean.

    Args:
        initials: Profiles of one or more networks each.
        only: The quantity that is kept; None: all.
    """
    networks = [each.of_networks(slice(at, at + 1)) for each in initials for at in range(len(each.seeds))]
    networks = [each for each in networks if each.names == networks[0].names]
    living = [each for each in networks if np.isfinite(each.log10["output_grad"]).all()]
    joined = History.join(living or networks)
    if only is None:
        return joined
    return replace(joined, log10={only: joined.log10[only]}, status={only: joined.status[only]})


def most(rows: Sequence[Row], key: str) -> str | None:
    """Return the verdict of most jobs, None if none has one."""
    words = [row.numbers[key] for row in rows if row.numbers[key]]
    return str(Counter(words).most_common(1)[0][0]) if words else None


def _colours(shared: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return a colour for each line: its own, or of many lines that of the option with most values it can tell."""
    if len(shared) <= COLOURS:
        return list(range(len(shared)))
    values = {key: list(dict.fromkeys(json.dumps(each[key]) for each in shared)) for key in shared[0]}
    telling = [key for key in values if 1 < len(values[key]) <= COLOURS]
    if not telling:
        return [index % COLOURS for index in range(len(shared))]
    hue = max(telling, key=lambda key: len(values[key]))
    return [values[hue].index(json.dumps(each[hue])) for each in shared]
