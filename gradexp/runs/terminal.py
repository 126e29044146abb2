"""The terminal, or what stands in its place, such as a pipe."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style


class Terminal(RichConsole):
    """A console of rich whose lines do not end in spaces, and which colours nothing by itself.

    Args:
        options: Arguments of rich's own.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return what is printed of a text or a table."""
        return _without_spaces_at_ends(super().render(renderable, options))


def _without_spaces_at_ends(segments: Iterable[Segment]) -> Iterator[Segment]:
    held: list[Segment] = []  # spaces that may be the end of a line
    for segment in segments:
        if segment.control:
            yield from (*held, segment)
            held = []
            continue
        for index, piece in enumerate(segment.text.split("\n")):
            if index:
                held = []
                yield Segment("\n", segment.style)
            text = piece if _is_seen(segment.style) else piece.rstrip(" ")
            if text:
                yield from (*held, Segment(text, segment.style))
                held = []
            if text != piece:
                held.append(Segment(piece[len(text) :], segment.style))
    yield from held


def _is_seen(style: Style | None) -> bool:
    """Return whether a space of this style is more than a gap, as at the end of a badge."""
    return style is not None and bool(style.bgcolor or style.reverse or style.underline)
