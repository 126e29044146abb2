"""An HTML file that holds its own style, scripts and data, and may ask for nothing."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
CHART = ("drawing.js", "axes.js", "chart.js")
"""The scripts that draw the chart."""


def document(
    title: str,
    body: str,
    data: Any = None,
    *,
    scripts: Sequence[str | Path] = (*CHART, "table.js"),
    styles: Sequence[str | Path] = ("page.css",),
) -> str:
    """Return a whole HTML file.

    Its policy keeps the browser from loading anything, and from running any script but the page's own.

    Args:
        title: The window's title, as plain text.
        body: The content, as HTML.
        data: What the scripts draw, of texts, finite numbers, lists and mappings; None: no chart.
        scripts: Files of this folder, or paths of others, in the order in which they run.
        styles: The same of style sheets.
    """
    code = [source(script) for script in scripts]
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in code)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    held = "" if data is None else f'<script type="application/json" id="data">{as_json(data)}</script>\n'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">
<style>{"".join(map(source, styles))}</style></head>
<body>
{body}
{held}{"".join(f"<script>{script}</script>" for script in code)}
</body></html>
"""


def as_json(data: Any) -> str:
    r"""Return data as JSON in which nothing can end the script that holds it: ``<`` is written as an escape.

    Examples:
        >>> as_json({"name": "</script>"})
        '{"name":"\\u003c/script>"}'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def escape(value: Any) -> str:
    """Return a value as text that is no markup, in an element and in an attribute."""
    return html.escape(str(value))


@cache
def source(name: str | Path) -> str:
    """Return the text of a style or script of this folder, or at a path."""
    return (_FOLDER / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
