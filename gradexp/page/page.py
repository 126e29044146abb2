"""What is on a page: headline, chart, findings, tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradexp.atomic_write import replacing
from gradexp.numerics.formats import limits
from gradexp.page import parts
from gradexp.page.document import document
from gradexp.page.lines import Line, pack
from gradexp.page.still import still

NAMES = {
    "output_grad": "back-propagated gradient ∂L/∂z",
    "weight_grad": "weight gradient ∂L/∂W",
    "output": "output z",
    "update": "update of W",
}
"""The quantities that a page shows, in this order."""

# log10 of float32's smallest normal number, of the largest that becomes 0, and of the smallest that becomes inf.
_FLOAT32 = -126 * math.log10(2), *limits("float32")


@dataclass(frozen=True)
class Page:
    """One page.

    Args:
        title: What was measured, in a few words.
        words: The verdicts, beside the title.
        text: The verdict in a sentence.
        facts: Options and versions, a line each.
        lines: What the chart shows.
        names: Name of each layer's module; empty if the names say nothing.
        first: What the sizes without a training step are, such as ``at initialisation``.
        decades: Powers of ten between first and last layer within which a gradient is stable.
        findings: What was found, worst first.
        sections: Further pieces of HTML, from ``gradexp.page.parts``.
    """

    title: str
    words: Sequence[str] = ()
    text: str = ""
    facts: Sequence[str] = ()
    lines: Sequence[Line] = ()
    names: Sequence[str] = ()
    first: str = "at initialisation"
    decades: float = 3.0
    findings: Sequence[parts.Note] = ()
    sections: Sequence[str] = field(default_factory=list)

    def html(self) -> str:
        """Return the page as one HTML file."""
        pieces = [parts.header(self.title, self.words, self.text, self.facts)]
        quantities = [
            (key, name) for key, name in NAMES.items() if any(key in {**x.initial, **x.course} for x in self.lines)
        ]
        if quantities:
            pieces.append(parts.chart(self.lines, quantities))
            pieces.append(f"<noscript>{still(self.lines, self.decades)}</noscript>")
            factors = [(max(line.layers), line.factor) for line in self.lines if line.factor is not None]
            pieces += [parts.factor_slider(*factors[0])] if factors else []
        pieces += [parts.findings(self.findings), *self.sections]
        data = chart_data(self.lines, self.first, self.decades, self.names) if quantities else None
        return document(self.title, "\n".join(filter(None, pieces)), data)

    def write(self, path: Path) -> Path:
        """Write the page to a file, which is replaced as a whole, and return its path.

        Raises:
            OSError: If it cannot be written.
        """
        with replacing(path) as partial:
            partial.write_text(self.html(), encoding="utf-8", errors="replace")
        return path


def chart_data(
    lines: Sequence[Line],
    first: str = "at initialisation",
    decades: float = 3.0,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what the script of the chart draws; the arguments are those of ``Page``."""
    smallest, zero, infinite = _FLOAT32
    return {
        "first": first,
        "decades": decades,
        "names": list(names) if len(names) <= 2000 else [],
        "float32": {"smallest": smallest, "zero": zero, "infinite": infinite},
        "lines": pack(lines),
    }
