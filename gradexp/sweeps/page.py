"""report.html: a sweep on one page that needs no other file and no network."""

import base64
import html
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gradexp._version import __version__
from gradexp.atomic_write import replacing
from gradexp.sweeps.compare import Row, SweepResults

DEFINITIONS = {
    "job": "number at the beginning of the job's folder, which is the run's name in TensorBoard",
    "gradient": "by the output gradient of layer 1 over that of the last layer, at initialisation: "
    "vanishing below 10^-3, exploding above 10^+3 (verdict.decades), dead where it is exactly 0",
    "training": "trained, stuck near the loss of guessing, or diverged (a loss or weight that is not finite)",
    "theory": "whether log_chi is within three standard errors of what is predicted",
    "log_chi": "slope of the log squared norm of the output gradient per layer, towards the input: "
    "positive explodes, negative vanishes",
    "log_chi_theory": "what mean-field theory predicts for log_chi",
    "z": "distance of log_chi from theory in standard errors",
    "log10_first_over_last": "log10 of the output gradient's norm at layer 1 over that at the last layer",
    "depth_scale": "1 / |log_chi|: layers over which the squared norm changes by a factor e",
    "loss_first": "training loss of the first step",
    "loss_last": "training loss of the last step",
    "train_accuracy": "share of the training samples that are classified correctly, after training",
    "test_accuracy": "share of the test samples that are classified correctly, after training",
    "diverged_at": "first step whose loss or weights are not finite",
    "seconds": "wall time of the job",
}
# Never by colour alone.
_MARKS = {
    "vanishing": "↘",
    "exploding": "↗",
    "dead": "✕",
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


def write_page(comparison: SweepResults, figures: Mapping[str, Path]) -> Path:
    """Write the page into the sweep's folder, and return its path.

    Args:
        comparison: The jobs of the sweep.
        figures: Title -> PNG file, of which the page holds a copy.
    """
    page = comparison.folder / "report.html"
    with replacing(page) as path:
        path.write_text(_page(comparison, figures), encoding="utf-8", errors="replace")
    return page


def _page(comparison: SweepResults, figures: Mapping[str, Path]) -> str:
    rows, name = comparison.rows, _escape(comparison.folder.resolve().name)
    counts = ", ".join(f"{number} {status}" for status, number in comparison.statuses.items())
    swept = ", ".join(comparison.keys) or "nothing"
    # What no job has would only push the other columns off the page.
    metrics = [key for key in rows[0].numbers if any(row.numbers[key] is not None for row in rows)]
    failed = "".join(
        f"<li>{_link(row, row.job.name)}: {_escape(row.job.summary['error'])}</li>"
        for row in rows
        if row.job.status == "failed"
    )
    damaged = "".join(f"<li>{_escape(line)}</li>" for line in comparison.damaged)
    command = command_of(rows)
    columns = ["job", "status", *comparison.keys, *metrics]
    head = "".join(_head(key, rows) for key in columns)
    terms = "".join(f"<dt>{key}</dt><dd>{_escape(text)}</dd>" for key, text in DEFINITIONS.items() if key in columns)
    body = "\n".join(_line(row, metrics) for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: {len(rows)} jobs</title>
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{name}</h1>
<p>{len(rows)} jobs ({_escape(counts)}), swept over {_escape(swept)}.<br>{_escape(_versions(rows))}</p>
{f"<p>The same jobs again: <code>{_escape(command)}</code></p>" if command else ""}
{f'<h2>Failed</h2><ul class="failed">{failed}</ul>' if failed else ""}
{f'<h2>Left out</h2><ul class="failed">{damaged}</ul>' if damaged else ""}
<div class="pictures">{"".join(_picture(title, path) for title, path in figures.items())}</div>
<h2>All jobs</h2>
<p class="tools" hidden>
<input id="filter" type="search" aria-label="filter" placeholder="filter, such as {_hint(rows)}">
<span id="shown"></span>
A click on a column's name sorts by it; the pointer over a number shows all its digits.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
<h2>What the columns mean</h2><dl>{terms}</dl>
<script>{_SCRIPT}</script></body></html>
"""


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
    return _escape(" ".join([*words, str(first.numbers["gradient"] or first.job.status)]))


def _picture(title: str, path: Path) -> str:
    data = path.read_bytes()
    # A PNG's width and height, so that nothing moves while it loads.
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    text, code = _escape(title), base64.b64encode(data).decode()
    return (
        f'<figure style="flex:1 1 {width * 0.65:.0f}px;max-width:{width * 0.85:.0f}px">'
        f"<figcaption>{text}</figcaption>"
        f'<a href="{quote(path.name)}"><img alt="{text}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{code}"></a></figure>'
    )


def _head(key: str, rows: Sequence[Row]) -> str:
    values = [{**row.swept, **row.numbers}.get(key) for row in rows]
    kind = ' class="n"' if key == "job" or any(isinstance(value, int | float) for value in values) else ""
    # Long names take two lines: the page is to be no wider than a laptop's screen.
    name = _escape(key).replace("_", "_<wbr>") if len(key) > 12 else _escape(key)
    return f'<th{kind} title="{_escape(DEFINITIONS.get(key, ""))}">{name}</th>'


def _line(row: Row, metrics: Sequence[str]) -> str:
    """Return a job as a line of the table; the filter looks at ``data-words``."""
    job = row.job
    words = [f"{key}={_text(value)}" for key, value in row.swept.items()]
    words += [str(value) for value in (job.status, *row.numbers.values()) if isinstance(value, str)]
    number = "" if job.number is None else job.number
    link = f'<td class="n" data-value="{number}">{_link(row, str(number) or job.name)}</td>'
    cells = [_cell(value) for value in (job.status, *row.swept.values(), *(row.numbers[key] for key in metrics))]
    return f'<tr data-words=" {_escape(" ".join([*words, job.name]).lower())} ">{link}{"".join(cells)}</tr>'


def _link(row: Row, text: str) -> str:
    name = row.job.name
    return f'<a href="./{quote(name, safe=",=")}/" title="{_escape(name)}">{_escape(text)}</a>'


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="n" data-value="{value!r}" title="{value!r}">{_text(value)}</td>'
    text = _escape(value)
    mark = _MARKS.get(text)
    return f'<td class="{text}">{mark} {text}</td>' if mark else f"<td>{text}</td>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"
    return "none" if value is None else str(value)


def _escape(value: Any) -> str:
    return html.escape(str(value))


# The browser itself keeps the page from asking for anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root{color-scheme:light dark;--line:#8884;--head:#f0f0f0;--blue:#0059a8;--red:#b3261e;--good:#00694a;--warn:#8a5a00}
@media(prefers-color-scheme:dark){
:root{--head:#2a2a2a;--blue:#7db8f5;--red:#ff9a8f;--good:#6fd3ae;--warn:#f0c060}}
body{font:14px/1.4 system-ui,sans-serif;margin:1rem 1.2rem}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem}p{margin:.4rem 0}h1,li,code{overflow-wrap:anywhere}
.pictures{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
figure{margin:0}figcaption{font-weight:600;margin-bottom:.3rem}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}
.failed{max-height:20rem;overflow:auto}
table{border-collapse:collapse;font-size:12px;min-width:100%}
th{position:sticky;top:0;background:var(--head);vertical-align:bottom;line-height:1.15}
th:not(.n){text-align:left}
th,td{padding:.12rem .3rem;border-bottom:1px solid var(--line)}td{white-space:nowrap}
td:not(.n){max-width:16rem;overflow:hidden;text-overflow:ellipsis}
tbody tr:hover{background:#8882}
th[tabindex]{cursor:pointer}
th[aria-sort=ascending]::after{content:" ▲"}th[aria-sort=descending]::after{content:" ▼"}
.n{text-align:right}td.n{font-variant-numeric:tabular-nums}
.vanishing,.dead{color:var(--blue)}.exploding,.diverged,td.failed{color:var(--red)}
.stable,.trained,.agrees{color:var(--good)}.stuck,.deviates,.running,.interrupted{color:var(--warn)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{font-weight:600}dd{margin:0}
#filter{width:22rem;font:inherit}
"""

# A word with = has to be one of a line's words: depth=1 is not to find depth=10. Cells without a number stay last.
_SCRIPT = """
const body=document.querySelector('tbody'),rows=[...body.rows],heads=[...document.querySelectorAll('th')];
const value=(row,i)=>{const c=row.cells[i];return c.dataset.value?+c.dataset.value:c.textContent};
heads.forEach((head,i)=>{
  head.tabIndex=0;
  const sort=()=>{
    const up=head.getAttribute('aria-sort')!=='ascending';
    heads.forEach(h=>h.removeAttribute('aria-sort'));head.setAttribute('aria-sort',up?'ascending':'descending');
    rows.sort((a,b)=>{const x=value(a,i),y=value(b,i);
      if(x===''||y==='')return (x==='')-(y==='');
      const order=typeof x==='number'&&typeof y==='number'?x-y:String(x).localeCompare(String(y));
      return up?order:-order});
    body.append(...rows)};
  head.addEventListener('click',sort);
  head.addEventListener('keydown',e=>{if(e.key==='Enter')sort()})});
const filter=document.querySelector('#filter'),shown=document.querySelector('#shown');
const apply=()=>{const words=filter.value.toLowerCase().split(/\\s+/).filter(Boolean);let n=0;
  rows.forEach(r=>{
    const fits=words.every(w=>r.dataset.words.includes(w.includes('=')?' '+w+' ':w));r.hidden=!fits;n+=fits});
  shown.textContent=n+' of '+rows.length+' jobs.'};
filter.addEventListener('input',apply);apply();document.querySelector('.tools').hidden=false;
"""
