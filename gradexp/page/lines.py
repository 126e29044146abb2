"""The lines of the chart: a size over layers, at initialisation and at each step of a training, as plain data."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

COLOURS = 7
"""How many colours a page has for lines."""

# What a page holds at most, in numbers: at initialisation, about 7 bytes each, and of trainings, 2.7 bytes each.
_MOST_FIRST, _MOST_COURSE = 70_000, 140_000
# More cannot be told apart on a screen.
_MOST_LAYERS, _MOST_STEPS, _MOST_LOSSES = 1000, 150, 300
# Whole numbers that stand for no number in what is packed: exactly 0, not seen, inf or nan.
_ZERO, _UNSEEN, _NONFINITE = -32768, -32767, 32767
_HUNDREDTHS = 32766


@dataclass(frozen=True)
class Line:
    """One line of the chart: log10 of sizes over layers.

    In all arrays -inf stands for a size of exactly 0, inf for one that is not finite, nan for one that was not seen.

    Args:
        name: The line's name.
        layers: Numbers of the layers, from 1, shape ``(layer,)``.
        initial: Quantity -> log10 of its size at initialisation, shape ``(layer,)``.
        theory: Quantity -> what theory predicts of that.
        spread: Standard deviation of the predicted gradient of one sample of one network, shape ``(layer,)``.
        low: Quantity -> smallest value over networks, shape ``(layer,)``.
        high: Quantity -> largest value over networks.
        steps: Labels of the recorded training steps.
        course: Quantity -> log10 of its size in training, shape ``(step, layer)``.
        losses: Loss of each training step from step 0; or of ``steps``, if there are as many.
        guessing: Loss of a network that ignores its input.
        words: Verdicts, such as ``("stable", "trained")``.
        depth: Number of layers of its network; None: the last of its own.
        colour: Index of its colour; None: its own.
        factor: λ of a network whose layers are λ times the identity.
    """

    name: str
    layers: Sequence[int]
    initial: Mapping[str, Array] = field(default_factory=dict)
    theory: Mapping[str, Array] = field(default_factory=dict)
    spread: Array | None = None
    low: Mapping[str, Array] = field(default_factory=dict)
    high: Mapping[str, Array] = field(default_factory=dict)
    steps: Sequence[int] = ()
    course: Mapping[str, Array] = field(default_factory=dict)
    losses: Sequence[float] = ()
    guessing: float | None = None
    words: tuple[str, ...] = ()
    depth: int | None = None
    colour: int | None = None
    factor: float | None = None


def pack(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return lines as plain data, of which there is only as much as a page holds."""
    first = sum(len(line.initial) + len(line.theory) + len(line.low) * 2 for line in lines)
    courses = sum(len(line.course) for line in lines)
    return [
        {
            "name": line.name,
            "colour": colour_of(line, index),
            "depth": line.depth or max(line.layers),
            **_pack_first(line, _MOST_FIRST // max(1, first)),
            **_pack_course(line, _MOST_COURSE // max(1, courses)),
            **_pack_losses(line),
        }
        for index, line in enumerate(lines)
    ]


def colour_of(line: Line, index: int) -> int:
    """Return the index of a line's colour, from its own place among the lines if it has none."""
    return index % COLOURS if line.colour is None else line.colour


def _pack_first(line: Line, most: int) -> dict[str, Any]:
    """Return the sizes at initialisation, with four decimals."""
    at = evenly(len(line.layers), max(16, min(most, _MOST_LAYERS)))
    packed: dict[str, Any] = {"layers": np.asarray(line.layers)[at].tolist()}
    for key in ("initial", "theory", "low", "high"):
        if sizes := getattr(line, key):
            packed[key] = {quantity: plain(values[at]) for quantity, values in sizes.items()}
    if line.spread is not None:
        packed["spread"] = plain(line.spread[at])
    return packed


def _pack_course(line: Line, most: int) -> dict[str, Any]:
    """Return the sizes in training, in hundredths of powers of ten: half the height of a line on a screen."""
    if not line.course or not len(line.steps):
        return {}
    layers = evenly(len(line.layers), max(8, min(_MOST_LAYERS, most // min(20, len(line.steps)))))
    steps = evenly(len(line.steps), max(2, min(_MOST_STEPS, most // len(layers))))
    return {
        "steps": np.asarray(line.steps)[steps].tolist(),
        "courseLayers": np.asarray(line.layers)[layers].tolist(),
        "course": {quantity: packed(values[np.ix_(steps, layers)]) for quantity, values in line.course.items()},
    }


def _pack_losses(line: Line) -> dict[str, Any]:
    if not len(line.losses):
        return {}
    at = evenly(len(line.losses), _MOST_LOSSES)
    steps = line.steps if len(line.steps) == len(line.losses) else range(len(line.losses))
    losses = np.asarray(line.losses, dtype=float)[at]
    texts = [None if not math.isfinite(loss) else float(f"{loss:.5g}") for loss in losses]
    return {"lossSteps": np.asarray(steps)[at].tolist(), "losses": texts, "guessing": line.guessing}


def evenly(count: int, most: int) -> Integers:
    """Return indices from first to last, evenly spread, at most so many.

    Examples:
        >>> evenly(5, 3).tolist()
        [0, 2, 4]
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def plain(values: Array) -> list[float | str | None]:
    """Return log10 sizes for JSON, which has neither inf nor nan.

    Examples:
        >>> plain(np.array([-1.23456, -np.inf, np.inf, np.nan]))
        [-1.2346, '0', 'inf', None]
    """
    rounded = np.round(values, 4).tolist()
    if np.isfinite(values).all():
        return list(rounded)
    return [
        value if math.isfinite(value) else "0" if value == -math.inf else "inf" if value == math.inf else None
        for value in rounded
    ]


def packed(values: Array) -> str:
    """Return log10 sizes as base64 of whole hundredths, 16 bits each, the smallest byte first.

    Examples:
        >>> packed(np.array([[-1.0, np.nan]]))
        'nP8BgA=='
    """
    hundredths = np.nan_to_num(np.clip(values * 100, -_HUNDREDTHS, _HUNDREDTHS).round())
    for where, code in ((values == -np.inf, _ZERO), (values == np.inf, _NONFINITE), (np.isnan(values), _UNSEEN)):
        hundredths[where] = code
    return base64.b64encode(hundredths.astype("<i2").tobytes()).decode()
