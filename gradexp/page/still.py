"""The chart at initialisation as a picture that needs no script: where scripts are off, it is shown in its place."""

import math
from collections.abc import Sequence

import numpy as np

from gradexp.page.document import escape
from gradexp.page.lines import Array, Line, colour_of, evenly

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 400, 170, 660, 12, 360
_MOST_LINES, _MOST_POINTS = 12, 60
_LINE = 30  # of two lines of text


def still(lines: Sequence[Line], decades: float, quantity: str = "output_grad") -> str:
    """Return the first lines of the chart, and their theory, as SVG; empty if there is nothing to draw.

    Of a training it is the last recorded step that is drawn. The colours are those of ``page.css``.

    Args:
        lines: The lines.
        decades: Powers of ten between first and last layer within which a gradient is stable.
        quantity: The quantity that is drawn.
    """
    found = [(line, index, _sizes(line, quantity)) for index, line in enumerate(lines)]
    drawn = [each for each in found if np.isfinite(each[2]).any()][:_MOST_LINES]
    if not drawn:
        return ""
    finite = np.concatenate([sizes[np.isfinite(sizes)] for _, _, sizes in drawn])
    low, high = min(float(finite.min()), -decades), max(float(finite.max()), decades)
    depth = max(max(line.layers) for line, _, _ in drawn)

    def x(layer: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (layer - 1) / max(1, depth - 1)

    def y(size: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (size - low) / (high - low)

    def path(line: Line, sizes: Array, kind: str) -> str:
        """Draw a line, broken where there is no number."""
        pieces, begins = "", True
        for at in evenly(len(sizes), _MOST_POINTS):
            if math.isfinite(sizes[at]):
                pieces += f"{'M' if begins else 'L'}{x(line.layers[at]):.1f} {y(sizes[at]):.1f}"
            begins = not math.isfinite(sizes[at])
        return f'<path class="{kind}" d="{pieces}"/>'

    band = f'<rect class="stable-band" x="{_LEFT}" y="{y(decades):.1f}" width="{_RIGHT - _LEFT}" '
    parts = [f'{band}height="{y(-decades) - y(decades):.1f}"/>']
    every = max(1, math.ceil((high - low) / 7))
    for tick in range(math.ceil(low / every) * every, math.floor(high) + 1, every):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{_RIGHT + 8}" y="{y(tick) + 4:.1f}">10^{tick}</text>')
    free = 0.0
    for line, index, sizes in sorted(drawn, key=lambda each: -float(each[2][np.isfinite(each[2])][0])):
        colour = f"c{colour_of(line, index)}"
        parts.append(path(line, sizes, f"run {colour}"))
        if quantity in line.theory and quantity in line.initial:
            parts.append(path(line, line.theory[quantity], "theory"))
        first = int(np.flatnonzero(np.isfinite(sizes))[0])
        free = max(free, y(sizes[first]) - _LINE / 2)
        end = f"10^{round(float(sizes[first]), 1) + 0.0:+.1f} at layer {line.layers[first]}"
        for text, below, kind in ((line.name[:24], 11, "label-name"), (end, 25, "label-value")):
            parts.append(
                f'<g class="{colour}"><text class="{kind}" text-anchor="end" x="{_LEFT - 10}" y="{free + below:.1f}">'
                f"{escape(text)}</text></g>"
            )
        free += _LINE
    for layer in sorted({1, depth}):
        parts.append(f'<text text-anchor="middle" x="{x(layer):.1f}" y="{_BOTTOM + 16}">{layer}</text>')
    parts.append(
        f'<text text-anchor="middle" x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 34}">layer (1 = input side)</text>'
    )
    label = "size of the gradient over layers"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _sizes(line: Line, quantity: str) -> Array:
    if quantity in line.initial:
        return line.initial[quantity]
    course = line.course.get(quantity)
    return course[-1] if course is not None and len(course) else np.empty(0)
