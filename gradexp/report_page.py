"""report.html: a sweep on one page that needs no other file and no network."""

import base64
import html
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gradexp._version import __version__
from gradexp.comparison import Comparison, Row
from gradexp.replacing import replacing

DEFINITIONS = {
    "gradient": "by the output gradient of layer 1 over that of the last layer, at initialisation: "
    "vanishing below 10^-3, exploding above 10^+3 (verdict.decades)",
    "training": "trained, stuck near the loss of guessing, or diverged (a loss or weight that is not finite)",
    "theory": "whether log_chi is within three standard errors of what is predicted",
    "log_chi": "slope of the log squared norm of the output gradient per layer, towards the input: "
    "positive explodes, negative vanishes",
    "z": "distance of log_chi from theory in standard errors",
    "log10_first_over_last": "log10 of the output gradient's norm at layer 1 over that at the last layer",
    "depth_scale": "1 / |log_chi| in layers",
    "diverged_at": "first step whose loss or weights are not finite",
}
_MARKS = {
    "vanishing": "↘",
    "exploding": "↗",
    "dead": "✕",
    "stable": "→",
    "diverged": "↗",
    "stuck": "–",
    "trained": "✓",
}


def write_page(comparison: Comparison, figures: Mapping[str, Path]) -> Path:
    """Write the page into the sweep's folder, and return its path.

    Args:
        comparison: What it shows.
        figures: Title -> PNG file, which the page holds a copy of.
    """
    page = comparison.folder / "report.html"
    with replacing(page) as path:
        path.write_text(_page(comparison, figures), encoding="utf-8")
    return page


def _page(comparison: Comparison, figures: Mapping[str, Path]) -> str:
    rows = comparison.rows
    name = html.escape(comparison.folder.resolve().name)
    counts = ", ".join(f"{number} {status}" for status, number in comparison.statuses.items())
    versions = f"gradexp {__version__}, torch {rows[0].job.summary['torch']}, {datetime.now():%Y-%m-%d %H:%M}"
    swept = ", ".join(comparison.keys) or "nothing"
    pictures = "".join(_picture(title, path) for title, path in figures.items())
    failed = "".join(
        f"<li>{html.escape(row.job.name)}: {html.escape(str(row.job.summary['error']))}</li>"
        for row in rows
        if row.job.status == "failed"
    )
    head = "".join(
        f'<th title="{html.escape(DEFINITIONS.get(key, ""))}">{html.escape(key)}</th>'
        for key in ["job", "status", *comparison.keys, *rows[0].numbers]
    )
    body = "\n".join(_line(row) for row in rows)
    terms = "".join(f"<dt>{key}</dt><dd>{html.escape(text)}</dd>" for key, text in DEFINITIONS.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: {len(rows)} runs</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{name}</h1>
<p>{len(rows)} jobs ({html.escape(counts)}), swept over {html.escape(swept)}. {html.escape(versions)}</p>
{f"<h2>Failed</h2><ul>{failed}</ul>" if failed else ""}
<div class="pictures">{pictures}</div>
<h2>All jobs</h2>
<p><input id="filter" type="search" placeholder="filter, such as init=he vanishing"> <span id="shown"></span>
A click on a column's name sorts by it.</p>
<div class="table"><table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<h2>What the columns mean</h2><dl>{terms}</dl>
<script>{_SCRIPT}</script></body></html>
"""


def _picture(title: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(title)
    return f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="data:image/png;base64,{data}"></figure>'


def _line(row: Row) -> str:
    """Return a job as a line of the table; ``data-words`` is what the filter looks at."""
    job = row.job
    words = [f"{key}={_text(value)}" for key, value in row.swept.items()]
    words += [str(value) for value in (job.name, job.status, *row.numbers.values()) if isinstance(value, str)]
    link = f'<td data-value="{job.number if job.number is not None else ""}">'
    link += f'<a href="{html.escape(job.name)}/" title="{html.escape(job.name)}">{job.number}</a></td>'
    cells = [_cell(value) for value in (job.status, *row.swept.values(), *row.numbers.values())]
    return f'<tr data-words="{html.escape(" ".join(words).lower())}">{link}{"".join(cells)}</tr>'


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        mark = _MARKS.get(value, "") if isinstance(value, str) else ""
        kind = f' class="{value}"' if mark else ""
        return f"<td{kind}>{mark} {html.escape(str(value))}</td>" if mark else f"<td>{html.escape(str(value))}</td>"
    return f'<td class="n" data-value="{value!r}" title="{value!r}">{_text(value)}</td>'


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


_STYLE = """
:root{color-scheme:light dark;--line:#8884;--head:#f3f3f3;--bad:#b33c00;--up:#8a5a00;--good:#00694a}
@media(prefers-color-scheme:dark){:root{--head:#2a2a2a;--bad:#ff9a63;--up:#f0c060;--good:#6fd3ae}}
body{font:14px/1.4 system-ui,sans-serif;margin:1.5rem;max-width:1500px}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem}
.pictures{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;flex:1 1 560px;max-width:900px}figcaption{font-weight:600;margin-bottom:.3rem}
img{max-width:100%;background:#fff}
.table{overflow:auto;max-height:85vh;border:1px solid var(--line)}
table{border-collapse:collapse;font-size:12px;white-space:nowrap}
th{position:sticky;top:0;background:var(--head);cursor:pointer;text-align:left}
th,td{padding:.15rem .5rem;border-bottom:1px solid var(--line)}
th[aria-sort=ascending]::after{content:" ▲"}th[aria-sort=descending]::after{content:" ▼"}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.vanishing,.stuck,.dead{color:var(--bad)}.exploding,.diverged{color:var(--up)}.stable,.trained{color:var(--good)}
dt{font-weight:600}dd{margin:0 0 .3rem 1rem}#filter{width:22rem}
"""

_SCRIPT = """
const body=document.querySelector('tbody'),rows=[...body.rows],heads=[...document.querySelectorAll('th')];
const value=(row,i)=>{const c=row.cells[i];return c.dataset.value?+c.dataset.value:c.textContent};
heads.forEach((head,i)=>head.addEventListener('click',()=>{
  const up=head.getAttribute('aria-sort')!=='ascending';
  heads.forEach(h=>h.removeAttribute('aria-sort'));head.setAttribute('aria-sort',up?'ascending':'descending');
  rows.sort((a,b)=>{const x=value(a,i),y=value(b,i);
    if(x===''||y==='')return (x==='')-(y==='');
    const order=typeof x==='number'&&typeof y==='number'?x-y:String(x).localeCompare(String(y));
    return up?order:-order});
  body.append(...rows)}));
const filter=document.querySelector('#filter'),shown=document.querySelector('#shown');
const apply=()=>{const words=filter.value.toLowerCase().split(/\\s+/).filter(Boolean);let n=0;
  rows.forEach(r=>{const fits=words.every(w=>r.dataset.words.includes(w));r.hidden=!fits;n+=fits});
  shown.textContent=n+' of '+rows.length+' jobs.'};
filter.addEventListener('input',apply);apply();
"""
