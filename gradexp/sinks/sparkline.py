"""A profile at a glance: a character for some neighbouring layers, as high as their size is large."""

import numpy as np
from numpy.typing import NDArray

from gradexp.history.step import STATUSES, Array

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-~=+*#"
SPAN = 6.0
"""Powers of ten from the lowest to the highest character, at least: those within which a gradient is stable, ±3."""

# Layers without a number: exactly 0, inf or nan, or unseen.
_MARKS = {"nonfinite": "x", "zero": "0"}
_UNSEEN = "?"


def sparkline(
    log10: Array,
    status: NDArray[np.int8] | None = None,
    width: int = 24,
    blocks: str = BLOCKS,
    beside: Array | None = None,
) -> str:
    """Draw values over layers on a log scale of at least six decades, and mark layers without a number.

    A profile that stays the same is a level line at middle height, in all pictures alike.

    Args:
        log10: Values, shape ``(layer,)``, nan where there is no number.
        status: Index into ``STATUSES`` of each layer. ``0`` marks zero, ``x`` inf or nan, ``?`` unknown.
        width: Greatest number of characters; a mark stands for inf or nan in one of the layers that share a
            character, and for zero or unknown in at least half of them.
        blocks: Eight characters, from low to high.
        beside: Values that share the scale.

    Examples:
        >>> sparkline(np.array([0.0, -3.0, -6.0, np.nan]))
        '█▅▁?'
    """
    if not log10.size or width < 1:
        return ""
    values = log10 if beside is None else np.concatenate([log10, beside])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    top = len(blocks) - 1
    span = max(high - low, SPAN)
    # Rounding noise about the middle must not flicker between two characters: the middle is that of the fourth.
    level_of_middle = top / 2 if high - low > SPAN - span / top else top // 2
    middle = (low + high) / 2
    bars = []
    for layers in np.array_split(np.arange(log10.size), min(width, log10.size)):
        numbers = log10[layers]
        missing = layers[~np.isfinite(numbers)]
        words = {STATUSES[code] for code in status[missing]} if status is not None else set()
        if 2 * missing.size >= layers.size or "nonfinite" in words:
            bars.append(next((mark for word, mark in _MARKS.items() if word in words), _UNSEEN))
        else:
            mean = float(numbers[np.isfinite(numbers)].mean())
            level = int((mean - middle) / span * top + level_of_middle + 0.5)
            bars.append(blocks[min(max(level, 0), top)])
    return "".join(bars)
