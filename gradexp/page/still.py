"""The charts as pictures that need no script: in notebooks, and on a page where scripts are off.

Their colours are those of ``page.css``, and in notebooks of ``cell.css``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradexp.page.document import escape
from gradexp.page.lines import Array, Line, colour_of, evenly

_WIDTH, _LEFT, _RIGHT, _TOP = 456, 134, 388, 12
_BOTTOM, _LOSS_BOTTOM, _BELOW = 290, 90, 40
_MOST_LINES, _MOST_POINTS = 9, 120
_ROOM, _LONGEST = 30, 18  # of two lines of text, and the most characters of a name
# Layers whose size is no power of ten: exactly 0 at the lower edge, inf or nan at the upper one.
_MARKS = ((-math.inf, _BOTTOM, "l-4 -7h8z"), (math.inf, _TOP, "l-4 7h8z"))

_Scale = Callable[[Any], Any]


def still(lines: Sequence[Line], decades: float, quantity: str = "output_grad") -> str:
    """Return the first lines of the chart, and their theory, as SVG; empty if there is nothing to draw.

    Of a training it is the last recorded step that is drawn, and the first one beside it, dotted.

    Args:
        lines: The lines.
        decades: Powers of ten between first and last layer within which a gradient is stable.
        quantity: The quantity that is drawn.
    """
    found = [(line, index, sizes(line, quantity)) for index, line in enumerate(lines)]
    drawn = [each for each in found if not np.isnan(each[2]).all()][:_MOST_LINES]
    if not drawn:
        return ""
    shown = np.concatenate([each for line, _, _ in drawn for each in _all_sizes(line, quantity)])
    finite = shown[np.isfinite(shown)].tolist()
    centre = _centre([log10 for _, _, log10 in drawn]) if quantity == "output_grad" else None
    edges = [] if centre is None else [centre - decades, centre + decades]
    low, high = _at_least(min([*edges, *finite], default=0.0), max([*edges, *finite], default=0.0), 2 * decades)
    depth = max(line.depth or max(line.layers) for line, _, _ in drawn)
    x, y = _scale(1, max(2, depth), _LEFT, _RIGHT), _scale(low, high, _BOTTOM, _TOP)

    parts = []
    if edges:
        bottom, top = y(edges)
        place = f'x="{_LEFT}" y="{top:.1f}" width="{_RIGHT - _LEFT}" height="{bottom - top:.1f}"'
        parts.append(f'<rect class="stable-band" {place}/>')
    every = max(1, math.ceil((high - low) / 7))
    ticks = range(math.ceil(low / every) * every, math.floor(high) + 1, every)
    parts += [_tick(y(tick), f"10^{tick}") for tick in ticks]
    drawn.sort(key=lambda each: -_end(each[2])[1])
    beside = _apart([float(y(_end(last)[1])) for _, _, last in drawn])
    for (line, index, last), height in zip(drawn, beside, strict=True):
        colour, layers = f"c{colour_of(line, index)}", np.asarray(line.layers, dtype=float)
        parts += _theory(line, quantity, colour, x(layers), y)
        for log10, kind in ((_first(line, quantity), "past"), (last, "run")):
            parts.append(_path(x(layers), y(np.where(np.isfinite(log10), log10, np.nan)), kind, colour))
        parts += [_marks(x(layers[last == value]), edge, shape, colour) for value, edge, shape in _MARKS]
        row, size = _end(last)
        parts.append(f'<circle class="mark {colour}" cx="{_LEFT - 9}" cy="{height - 8:.1f}" r="4"/>')
        parts.append(_label(line.name[:_LONGEST], _LEFT - 17, height - 4, f"label-name {colour}"))
        parts.append(
            _label(f"{_power(size)} at layer {line.layers[row]}", _LEFT - 5, height + 10, f"label-value {colour}")
        )
    parts += [_number(x(layer), _BOTTOM, layer) for layer in sorted({1, depth})]
    return _svg("size of the gradient over layers", "layer (1 = input side)", _BOTTOM, parts)


def loss_still(lines: Sequence[Line]) -> str:
    """Return the loss of the first lines over steps, and that of guessing, as SVG; empty if there is none."""
    found = [(line, index, np.asarray(line.losses, dtype=float)) for index, line in enumerate(lines)]
    drawn = [each for each in found if np.isfinite(each[2]).any()][:_MOST_LINES]
    if not drawn:
        return ""
    steps = [np.asarray(line.steps if len(line.steps) == len(own) else range(len(own))) for line, _, own in drawn]
    guess = next((line.guessing for line, _, _ in drawn if line.guessing), None)
    finite = np.concatenate([own[np.isfinite(own)] for _, _, own in drawn]).tolist() + ([guess] if guess else [])
    low, last = min(0.0, *finite), max(1, *(int(own[-1]) for own in steps))
    high = max(low + 1e-9, *finite)
    x, y = _scale(0, last, _LEFT, _RIGHT), _scale(low, high, _LOSS_BOTTOM, _TOP)

    parts = [_tick(y(value), f"{value:.3g}") for value in (low, high)]
    for (line, index, losses), own in zip(drawn, steps, strict=True):
        parts.append(_path(x(own), y(losses), "run", f"c{colour_of(line, index)}"))
    if guess:
        parts.append(f'<path class="guess" d="M{_LEFT} {y(guess):.1f}H{_RIGHT}"/>')
    parts += [_number(x(step), _LOSS_BOTTOM, step) for step in (0, last)]
    return _svg("loss over training steps", "training step", _LOSS_BOTTOM, parts)


def sizes(line: Line, quantity: str) -> Array:
    """Return what is drawn of a line: sizes at initialisation, of the last step, or predicted ones; empty without."""
    course = line.course.get(quantity)
    last = course[-1] if course is not None and len(course) else np.empty(0)
    return line.initial.get(quantity, last if len(last) else line.theory.get(quantity, last))


def _first(line: Line, quantity: str) -> Array:
    """Return the first of several steps of a training; nan if it is not drawn."""
    course = line.course.get(quantity)
    is_drawn = quantity not in line.initial and course is not None and len(course) > 1
    return course[0] if course is not None and is_drawn else np.full(len(line.layers), np.nan)


def _all_sizes(line: Line, quantity: str) -> list[Array]:
    """Return everything that is drawn of a line, theory's band too."""
    theory = line.theory.get(quantity) if quantity not in line.course else None
    spread = 0.0 if line.spread is None or quantity != "output_grad" else 2 * line.spread
    edges = [] if theory is None else [theory - spread, theory + spread]
    return [sizes(line, quantity), _first(line, quantity), *edges]


def _end(log10: Array) -> tuple[int, float]:
    """Return the first row that has a number, or else is 0 or not finite, and its size."""
    numbers = np.flatnonzero(np.isfinite(log10))
    row = int((numbers if numbers.size else np.flatnonzero(~np.isnan(log10)))[0])
    return row, float(log10[row])


def _centre(profiles: Sequence[Array]) -> float | None:
    """Return the middle of the stable band: the gradient at the output; None where no profile has a number."""
    ends = sorted(float(own[np.isfinite(own)][-1]) for own in profiles if np.isfinite(own).any())
    return ends[len(ends) // 2] if ends else None


def _at_least(low: float, high: float, wide: float) -> tuple[float, float]:
    """Widen a range to at least so much, or noise would look like a trend."""
    more = max(0.0, wide - (high - low)) / 2
    return low - more, high + more


def _power(size: float) -> str:
    if math.isfinite(size):
        return f"10^{round(size, 1) + 0.0:+.1f}"  # no -0.0
    return "0" if size < 0 else "inf or nan"


def _apart(heights: list[float]) -> list[float]:
    """Return heights from top to bottom moved so that each has room for its label, and none is below the axis.

    Examples:
        >>> _apart([20.0, 25.0, 290.0])
        [20.0, 50.0, 275.0]
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + _ROOM if placed else _ROOM / 2))
    below = _BOTTOM + _ROOM / 2
    for at in range(len(placed))[::-1]:
        placed[at] = below = min(placed[at], below - _ROOM)
    return placed


def _scale(low: float, high: float, begin: float, end: float) -> _Scale:
    """Return a function from numbers to places in the picture, which keeps what is beyond at the edge."""

    def place(values: Any) -> Any:
        inside = np.clip(np.asarray(values, dtype=float), low, high)
        return begin + (end - begin) * (inside - low) / (high - low)

    return place


def _theory(line: Line, quantity: str, colour: str, x: Array, y: _Scale) -> list[str]:
    """Return the predicted line, and the band of two standard deviations of one sample of one network."""
    if quantity not in line.theory or quantity in line.course:  # which are sizes of another loss
        return []
    theory, parts = line.theory[quantity], []
    if line.spread is not None and quantity == "output_grad" and np.isfinite(theory).all():
        at = evenly(len(x), _MOST_POINTS)
        edges = [*zip(x[at], y(theory + 2 * line.spread)[at], strict=True)]
        edges += [*zip(x[at], y(theory - 2 * line.spread)[at], strict=True)][::-1]
        parts = [f'<path class="band {colour}" d="M{"L".join(f"{a:.1f} {b:.1f}" for a, b in edges)}z"/>']
    return [*parts, _path(x, y(theory), "theory", "")] if quantity in line.initial else parts


def _path(x: Array, y: Array, kind: str, colour: str) -> str:
    """Return a line that is broken where there is no number; a number alone is a dot."""
    pieces, dots = "", ""
    at = evenly(len(x), _MOST_POINTS)
    for before, here, after in zip([-1, *at], at, [*at[1:], -1], strict=False):
        begins, ends = before < 0 or not math.isfinite(y[before]), after < 0 or not math.isfinite(y[after])
        if math.isfinite(y[here]) and begins and ends:
            dots += f'<circle class="mark {colour}" cx="{x[here]:.1f}" cy="{y[here]:.1f}" r="3"/>'
        elif math.isfinite(y[here]):
            pieces += f"{'M' if begins else 'L'}{x[here]:.1f} {y[here]:.1f}"
    line = f'<path class="{kind} {colour}" d="{pieces}"/>' if pieces else ""
    return line + dots


def _marks(x: Array, edge: int, shape: str, colour: str) -> str:
    marks = "".join(f"M{place:.1f} {edge}{shape}" for place in x[evenly(len(x), _MOST_POINTS)])
    return f'<path class="mark {colour}" d="{marks}"/>' if marks else ""


def _tick(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text x="{_RIGHT + 8}" y="{y + 4:.1f}">{text}</text>'


def _label(text: str, x: int, y: float, kind: str) -> str:
    return f'<text class="{kind}" text-anchor="end" x="{x}" y="{y:.1f}">{escape(text)}</text>'


def _number(x: float, bottom: int, number: int) -> str:
    return f'<text text-anchor="middle" x="{x:.1f}" y="{bottom + 16}">{number}</text>'


def _svg(label: str, title: str, bottom: int, parts: list[str]) -> str:
    below = f'<text text-anchor="middle" x="{(_LEFT + _RIGHT) / 2}" y="{bottom + 34}">{title}</text>'
    box = f'viewBox="0 0 {_WIDTH} {bottom + _BELOW}"'
    return f'<svg {box} role="img" aria-label="{label}">{"".join(parts)}{below}</svg>'
