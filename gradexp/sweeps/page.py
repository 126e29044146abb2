"""report.html of a sweep: its lines, figures and jobs."""

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gradexp._version import __version__
from gradexp.page.document import escape
from gradexp.page.lines import Line
from gradexp.page.page import Page
from gradexp.page.parts import MARKS
from gradexp.sweeps.compare import Row, SweepResults
from gradexp.sweeps.lines import MOST_TRAINED, sweep_lines
from gradexp.sweeps.table import VERDICTS, columns_of, complete_groups

DEFINITIONS = {
    "job": "number at the beginning of the job's folder, which is the run's name in TensorBoard",
    "gradient": "by the back-propagated gradient of layer 1 over that of the last layer, at initialisation: "
    "vanishing below 10^-3, exploding above 10^+3 (verdict.decades), dead where it is exactly 0",
    "training": "trained, stuck near the loss of guessing, or diverged (a loss or weight that is not finite)",
    "theory": "whether log_chi is within three standard errors of what is predicted",
    "log_chi": "slope of the log squared norm of the back-propagated gradient per layer, towards the input: "
    "positive explodes, negative vanishes",
    "log_chi_theory": "what mean-field theory predicts for log_chi",
    "z": "distance of log_chi from theory in standard errors",
    "log10_first_over_last": "log10 of the back-propagated gradient's norm at layer 1 over that at the last layer",
    "depth_scale": "1 / |log_chi|: layers over which the squared norm changes by a factor e",
    "loss_first": "training loss of the first step",
    "loss_last": "training loss of the last step",
    "train_accuracy": "share of the training samples that are classified correctly, after training",
    "test_accuracy": "share of the test samples that are classified correctly, after training",
    "diverged_at": "first step whose loss or weights are not finite",
    "seconds": "wall time of the job",
}


def write_page(comparison: SweepResults, figures: Mapping[str, Path]) -> Path:
    """Write the page into the sweep's folder, and return its path.

    Args:
        comparison: The jobs of the sweep.
        figures: Title -> PNG file, of which the page holds a copy.
    """
    return sweep_page(comparison, figures).write(comparison.folder / "report.html")


def sweep_page(comparison: SweepResults, figures: Mapping[str, Path]) -> Page:
    """Return a sweep on one page: which lines keep the gradient, all lines, figures, and a table of all jobs."""
    rows, lines = comparison.rows, sweep_lines(comparison)
    counts = ", ".join(f"{number} {status}" for status, number in comparison.statuses.items())
    name, swept = comparison.folder.resolve().name, ", ".join(comparison.keys) or "nothing"
    repeat = command_of(rows)
    facts = [
        f"{name}: {len(rows)} jobs ({counts}), swept over {swept}",
        f"To run these jobs again: {repeat}" if repeat else "",
        _versions(rows),
        "" if len(lines) <= MOST_TRAINED else "A run's own page shows its training: record.report=true writes one.",
    ]
    title, text = headline(comparison, lines)
    groups = _groups(comparison)
    return Page(
        title,
        text=text,
        facts=facts,
        lines=lines,
        decades=rows[0].job.summary["config"].get("verdict", {}).get("decades", 3.0),
        sections=[*_failures(comparison), groups, _pictures(figures), _jobs(rows, comparison.keys, not groups)],
    )


_MOST_NAMED = 8


def headline(comparison: SweepResults, lines: Sequence[Line]) -> tuple[str, str]:
    """Return which lines keep the gradient, in a few words, and what becomes of it in the others."""
    by_word: dict[str, list[Line]] = {}
    for line in lines:
        by_word.setdefault(line.words[0] if line.words else "", []).append(line)
    stable, count = by_word.get("stable", []), len(lines)
    # What a choice has for options is told with it.
    chosen = [
        key for key in comparison.keys if key != "seed" and key.partition(".")[0] not in {*comparison.keys} - {key}
    ]
    swept = " × ".join(chosen)
    seeds = {row.swept.get("seed") for row in comparison.rows}
    prefix = ", ".join(filter(None, [swept, f"{len(seeds)} seeds" if len(seeds) > 1 else ""]))
    prefix += ": " if prefix else ""
    if not any(by_word):
        return comparison.folder.resolve().name, ""
    if count == 1:
        title = f"The gradient is {lines[0].words[0]}"
    elif len(stable) in (0, count):
        title = f"{prefix}{'all' if stable else 'none of the'} {count} {'keep' if stable else 'keeps'} the gradient"
    elif len(stable) <= 3:
        keep = "keeps" if len(stable) == 1 else "keep"
        title = f"{prefix}only {' and '.join(line.name for line in stable)} {keep} the gradient"
    else:
        title = f"{prefix}{len(stable)} of {count} keep the gradient"
    parts = []
    for word in ("stable", "vanishing", "exploding", "dead"):
        some = by_word.get(word, [])
        named = "; ".join(f"{line.name}{_end(line)}" for line in some)
        if some:
            parts.append(f"{word}: {named if count <= _MOST_NAMED else f'{len(some)} of {count}'}")
    return title, ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _end(line: Line) -> str:
    """Return how much of the gradient is left at the first layer."""
    sizes = line.initial["output_grad"]
    ratio = sizes[0] - sizes[-1]
    return f" (10^{round(float(ratio), 1) + 0.0:+.1f} at layer 1)" if math.isfinite(ratio) else ""


def _failures(comparison: SweepResults) -> list[str]:
    failed = "".join(
        f"<li>{_job(row, row.job.name)}: {escape(row.job.summary['error'])}</li>"
        for row in comparison.rows
        if row.job.status == "failed"
    )
    damaged = "".join(f"<li>{escape(line)}</li>" for line in comparison.damaged)
    lists = {"Failed": failed, "Left out": damaged}
    return [f'<h2>{title}</h2><ul class="failed-list">{items}</ul>' for title, items in lists.items() if items]


def _pictures(figures: Mapping[str, Path]) -> str:
    pictures = "".join(_picture(title, path) for title, path in figures.items())
    return f'<div class="pictures">{pictures}</div>' if pictures else ""


_OPEN = 40  # jobs up to which their table is not folded


def _groups(comparison: SweepResults) -> str:
    """Return the table over seeds that the terminal shows; empty where each line would be of one job."""
    groups = complete_groups(comparison)
    if all(len(rows) == 1 for _, rows in groups):  # also of none
        return ""
    columns = {name: texts for name, texts in columns_of(groups).items() if set(texts) != {"-"}}
    kinds = {name: "" if name in VERDICTS else ' class="n"' for name in columns}
    heads = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in kinds.items())
    lines = "\n".join(
        f"<tr>{''.join(_outcome(text) for text in line)}</tr>" for line in zip(*columns.values(), strict=True)
    )
    return f"""<section><h2>Mean over seeds</h2><div class="scroll">
<table class="groups"><thead><tr>{heads}</tr></thead><tbody>
{lines}
</tbody></table></div></section>"""


def _outcome(text: str) -> str:
    word = text.partition(" ")[0]
    return (
        f'<td class="{word}">{MARKS[word]} {escape(text)}</td>'
        if word in MARKS
        else f'<td class="n">{escape(text)}</td>'
    )


def _jobs(rows: Sequence[Row], keys: Sequence[str], is_open: bool) -> str:
    # What no job has would only push the other columns off the page.
    metrics = [key for key in rows[0].numbers if any(row.numbers[key] is not None for row in rows)]
    columns = ["job", "status", *keys, *metrics]
    head = "".join(_head(key, rows) for key in columns)
    terms = "".join(f"<dt>{key}</dt><dd>{escape(text)}</dd>" for key, text in DEFINITIONS.items() if key in columns)
    body = "\n".join(_line(row, metrics) for row in rows)
    return f"""<details{" open" if is_open and len(rows) <= _OPEN else ""}><summary>All {len(rows)} jobs</summary>
<p id="jobs-tools" hidden>
<input id="filter" type="search" aria-label="filter" placeholder="filter, such as {_hint(rows)}">
<span id="shown" role="status"></span> Click a heading to sort; hover over a number for all its digits.</p>
<div class="scroll"><table class="jobs"><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div></details>
<details><summary>What the columns mean</summary><dl>{terms}</dl></details>"""


def command_of(rows: Sequence[Row]) -> str | None:
    """Return a command that runs the jobs of a sweep again; None if they are not all combinations of some values."""
    overrides = [dict(_split(text) for text in row.job.summary["overrides"]) for row in _by_number(rows)]
    keys = list(overrides[0])
    if any(set(values_of_job) != set(keys) for values_of_job in overrides):
        return None
    values = {key: list(dict.fromkeys(values_of_job[key] for values_of_job in overrides)) for key in keys}
    jobs = {tuple(values_of_job[key] for key in keys) for values_of_job in overrides}
    if len(jobs) != math.prod(map(len, values.values())):
        return None
    many = "-m " if len(jobs) > 1 else ""
    words = (shlex.quote(f"{key}={','.join(values[key])}") for key in keys)
    return f"python -m gradexp.run {many}{' '.join(words)}".rstrip()


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key, value


def _by_number(rows: Sequence[Row]) -> list[Row]:
    """Sort jobs as they were asked for, which is the order of the values in the command."""
    return sorted(rows, key=lambda row: (row.job.number is None, row.job.number or 0))


def _versions(rows: Sequence[Row]) -> str:
    """Return when and with what the jobs ran; summaries of several machines may differ."""
    summaries = [row.job.summary for row in rows]
    used = [
        f"{key} {', '.join(versions)}"
        for key in ("torch", "python", "hydra")
        if (versions := sorted({str(each[key]) for each in summaries if each[key]}))
    ]
    devices = sorted({str(each["device_name"] or each["device"]) for each in summaries if each["device"]})
    began = min(str(each["started"]) for each in summaries)[:16].replace("T", " ")
    facts = [f"gradexp {__version__}", *used, *([f"on {', '.join(devices)}"] if devices else [])]
    return f"{', '.join(facts)}; begun {began} UTC, this page {datetime.now():%Y-%m-%d %H:%M}"


def _hint(rows: Sequence[Row]) -> str:
    """Return words for which the filter finds a job."""
    first = rows[len(rows) // 2]
    words = [f"{key}={_text(value)}" for key, value in list(first.swept.items())[:1]]
    return escape(" ".join([*words, str(first.numbers["gradient"] or first.job.status)]))


def _picture(title: str, path: Path) -> str:
    data = path.read_bytes()
    # A PNG's width and height, so that nothing moves while it loads.
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    text, code = escape(title), base64.b64encode(data).decode()
    return (
        f'<figure style="flex:1 1 {width * 0.65:.0f}px;max-width:{width * 0.85:.0f}px">'
        f"<figcaption>{text}</figcaption>"
        f'<img alt="{text}" width="{width}" height="{height}" src="data:image/png;base64,{code}"></figure>'
    )


def _head(key: str, rows: Sequence[Row]) -> str:
    values = [{**row.swept, **row.numbers}.get(key) for row in rows]
    kind = ' class="n"' if key == "job" or any(isinstance(value, int | float) for value in values) else ""
    # Long names take two lines: the page is to be no wider than a laptop's screen.
    name = escape(key).replace("_", "_<wbr>") if len(key) > 9 else escape(key)
    return f'<th{kind} title="{escape(DEFINITIONS.get(key, ""))}">{name}</th>'


def _line(row: Row, metrics: Sequence[str]) -> str:
    """Return a job as a line of the table; the filter looks at ``data-words``."""
    job = row.job
    words = [f"{key}={_text(value)}" for key, value in row.swept.items()]
    words += [str(value) for value in (job.status, *row.numbers.values()) if isinstance(value, str)]
    number = "" if job.number is None else job.number
    link = f'<td class="n" data-value="{number}">{_job(row, str(number) or job.name)}</td>'
    cells = [_cell(value) for value in (job.status, *row.swept.values())]
    cells += [_cell(row.numbers[key], _FORMS.get(key)) for key in metrics]
    return f'<tr data-words=" {escape(" ".join([*words, job.name]).lower())} ">{link}{"".join(cells)}</tr>'


def _job(row: Row, text: str) -> str:
    """Return the text for a job; it is no link, which would be dead in a page that was sent to somebody."""
    return f'<span title="folder {escape(row.job.name)}">{escape(text)}</span>'


# As many decimals in all lines of a column, so that its numbers can be compared at a glance; z: no -0.0.
_FORMS = {
    **dict.fromkeys(("log_chi", "log_chi_theory"), "+z.3f"),
    **dict.fromkeys(("z", "log10_first_over_last"), "+z.1f"),
    **dict.fromkeys(("loss_first", "loss_last"), ".3f"),
    **dict.fromkeys(("train_accuracy", "test_accuracy"), ".0%"),
    **dict.fromkeys(("depth_scale", "seconds"), ".1f"),
}


def _cell(value: Any, form: str | None = None) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:{form}}" if form and abs(value) < 1e5 else _text(value)
        return f'<td class="n" data-value="{value!r}" title="{value!r}">{text}</td>'
    text = escape(value)
    mark = MARKS.get(text)
    return f'<td class="{text}">{mark} {text}</td>' if mark else f"<td>{text}</td>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"
    return "none" if value is None else str(value)
