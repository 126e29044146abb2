"""The pieces of HTML that a page is made of. Every text that comes from outside is escaped here."""

import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from gradexp.page.document import escape
from gradexp.page.lines import Line, colour_of

# Never by colour alone.
MARKS = {
    "vanishing": "↘",
    "exploding": "↗",
    "dead": "✕",
    "nonfinite": "✕",
    "unknown": "?",
    "stable": "→",
    "diverged": "↗",
    "stuck": "–",
    "trained": "✓",
    "agrees": "✓",
    "deviates": "≠",
    "failed": "✕",
    "interrupted": "–",
    "running": "…",
}
_SAID = {"nonfinite": "inf or nan", "agrees": "theory agrees", "deviates": "theory deviates"}


class Note(Protocol):
    """One thing that was found; ``gradexp.history.finding.Finding`` is one."""

    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def modules(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def remedy(self) -> str: ...  # noqa: D102
    @property
    def severity(self) -> int: ...  # noqa: D102


def badges(words: Iterable[str]) -> str:
    """Return verdicts as badges, each with a mark; ``none`` and ``unavailable`` say nothing."""
    shown = [word for word in words if word in MARKS]
    return "".join(f' <span class="badge {word}">{MARKS[word]} {_SAID.get(word, word)}</span>' for word in shown)


def header(title: str, words: Iterable[str], text: str, facts: Sequence[str]) -> str:
    """Return the headline with its badges, the reason below it, and what was measured."""
    lead = f'\n<p class="lead">{escape(text[:1].upper() + text[1:])}</p>' if text else ""
    small = "<br>".join(escape(fact) for fact in facts if fact)
    return f'<header><h1>{escape(title)}{badges(words)}</h1>{lead}\n<p class="facts">{small}</p></header>'


_SEVERITIES = ("harmless", "worth knowing", "slows training down", "stops training")


def findings(notes: Sequence[Note]) -> str:
    """Return what was found, each with its modules and what to try; empty if there is nothing."""
    if not notes:
        return ""
    return f'<section><h2>What was found</h2><ul class="findings">{"".join(map(_finding, notes))}</ul></section>'


def _finding(note: Note) -> str:
    severity = min(max(note.severity, 0), 3)
    advice = escape(note.remedy)
    if re.match(r"[\w.]+\(|python |\w+=", note.remedy):  # is to be typed
        advice = f"<code>{advice}</code>"
    remedy = f'<p class="remedy">Try {advice}</p>' if note.remedy else ""
    names = ", ".join(note.modules[:8]) + (f", … ({len(note.modules)} modules)" if len(note.modules) > 8 else "")
    modules = f'<p class="modules">in {escape(names)}</p>' if names else ""
    return (
        f'<li class="severity{severity}"><p><strong>{escape(note.kind)}</strong> '
        f"<small>{_SEVERITIES[severity]}</small></p><p>{escape(note.text)}</p>{modules}{remedy}</li>"
    )


def chart(lines: Sequence[Line], quantities: Sequence[tuple[str, str]]) -> str:
    """Return the place of the charts, and what they are steered with; the script fills it.

    Args:
        lines: The lines, each of which gets a tick.
        quantities: Pairs of a quantity and its name.
    """
    ticks = "".join(
        f'<label class="tick c{colour_of(line, index)}"><input type="checkbox" checked data-line="{index}">'
        f'<span class="swatch"></span><span class="name">{escape(line.name)}</span>{badges(line.words)}'
        f'<span class="end"></span></label>'
        for index, line in enumerate(lines)
    )
    few = " few" if len(lines) <= 12 else ""
    options = "".join(f'<option value="{escape(key)}">{escape(name)}</option>' for key, name in quantities)
    return f"""<section id="chart" hidden>
<div class="tools"><label id="which">Size of <select id="quantity">{options}</select></label>
<span id="many" hidden><button type="button" id="all">show all</button>
<button type="button" id="none">show none</button>
<input type="search" id="only" aria-label="show only lines with these words" placeholder="only lines with …"></span>
<label class="tick" id="theory-tick" hidden><input type="checkbox" id="theory" checked><span class="dash"></span>
theory</label></div>
<fieldset><legend class="unseen">Lines</legend><div class="ticks{few}">{ticks}</div></fieldset>
<div class="charts"><figure><div id="profile" class="plot"><svg></svg></div>
<figcaption id="reading"></figcaption></figure>
<div id="player" class="player" hidden><button type="button" id="play">▶ play</button>
<input type="range" id="step" min="0" value="0" step="1" aria-label="training step">
<output id="when" for="step"></output></div>
<figure id="loss-figure" hidden><div id="loss" class="plot"></div></figure></div>
</section>"""


def factor_slider(depth: int, factor: float) -> str:
    """Return the slider of λ for networks whose layers are λ times the identity, and the table of λ^layer."""
    layers = [layer for layer in (1, 2, 3, 10, 50, 150) if layer <= depth]
    layers += [depth] * (depth not in layers)
    heads = "".join(f'<th scope="col" class="n">layer {layer}</th>' for layer in layers)
    cells = "".join(f'<td class="n" data-power="{layer}"></td>' for layer in layers)
    return f"""<section id="factor" data-depth="{depth}" hidden><h2>What if every layer multiplied by λ?</h2>
<div class="player"><label for="lambda">λ</label>
<input type="range" id="lambda" min="0.5" max="1.5" step="0.001" value="{factor:g}">
<output id="lambda-value" for="lambda"></output></div>
<div class="scroll"><table><thead><tr><td></td>{heads}</tr></thead>
<tbody><tr id="outputs"><th scope="row">output λ^layer</th>{cells}</tr>
<tr id="gradients"><th scope="row">gradient λ^(depth − layer)</th>{cells}</tr></tbody></table></div>
<p id="formats" aria-live="polite"></p></section>"""


def _cut(text: str, most: int = 80) -> str:
    """Return a text without its middle if it is very long."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-most // 2 :]}"


def layer_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], most: int = 1000) -> str:
    """Return the numbers of each layer as a folded table, of which the middle is left out if there are too many.

    Args:
        caption: What the numbers are.
        heads: Column names; the first two columns are number and name of the layer.
        rows: Texts of each layer.
        most: Number of rows that are shown.
    """
    lines = ["".join(f"<td>{escape(_cut(text))}</td>" for text in row) for row in rows]
    count = len(lines)
    if count > most:
        lines[most // 2 : -most // 2] = [f'<td colspan="{len(heads)}">… {count - most} layers more</td>']
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<details><summary>All {count} layers</summary><div class="scroll"><table class="layers">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div></details>"
    )
