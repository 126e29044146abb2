"""What is printed of the examples in ``finding_examples.py``, and by the commands of README and docs.

``python benchmarks/findings_page.py`` prints the former. ``--write`` puts it into docs/findings.md, each kind below
its heading, and into all pages what their examples and commands print.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from finding_examples import EXAMPLES, alarm

from gradexp.history.finding import Finding
from gradexp.history.headline import wrapped

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "findings.md"
WIDTH = 80


def findings(kind: str, is_cured: bool = False) -> Sequence[Finding]:
    """Return all that is found in the example of one kind, broken or cured, worst first."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        history = EXAMPLES[kind](is_cured)
    return history.verdict().findings


def printed(kind: str) -> str:
    """Return the lines that show a finding of one kind."""
    found = next(finding for finding in findings(kind) if finding.kind == kind)
    lines = wrapped(f"{found.kind}: {found.text}", WIDTH)
    return "\n".join(lines + (wrapped(f"try: {found.remedy}", WIDTH, "  ") if found.remedy else []))


def alarmed() -> str:
    """Return the line of an alarm."""
    torch.manual_seed(0)
    return "\n".join(wrapped(alarm(), WIDTH))


def filled(text: str, before: str, printed_now: str) -> str:
    """Return a text in which what is printed now stands in the first block without a language after a line."""
    head, line, rest = text.partition(f"{before}\n")
    assert line, f"there is no line {before!r}"
    body = re.sub(
        r"^```text\n.*?^```$", lambda _: f"```text\n{printed_now}\n```", rest, count=1, flags=re.M | re.DOTALL
    )
    return head + line + body


def filled_page(page: str) -> str:
    """Return docs/findings.md with what is printed now below each kind's heading."""
    page = filled(page, "<!-- alarm -->", alarmed())
    for kind in EXAMPLES:
        page = filled(page, f"### {kind}", printed(kind))
    return page


def filled_with_prints(page: str) -> str:
    """Return a page, the README or another, with what its example, its commands and some others print now."""
    if code := re.search(r"^```python\n(import torch\n[^`]*?print\(measure.*?)^```$", page, flags=re.M | re.DOTALL):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code[1], {})
        whole = out.getvalue().rstrip("\n")
        for line, shown in (("printed", whole), ("the findings printed", whole.partition("\n\nloss ")[0])):
            if f"<!-- {line} by the example above -->" in page:
                page = filled(page, f"<!-- {line} by the example above -->", shown)
    if "<!-- alarm -->" in page:
        page = filled(page, "<!-- alarm -->", alarmed())
    for line, kinds in re.findall(r"^(<!-- findings: (.+) -->)$", page, flags=re.MULTILINE):
        page = filled(page, line, "\n\n".join(map(printed, kinds.split(", "))))
    for line, command in re.findall(r"^(<!-- prints: (.+) -->)$", page, flags=re.MULTILINE):
        page = filled(page, line, output(command))
    return page


def output(command: str) -> str:
    """Return what a command prints."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


def main() -> None:
    """Print the examples, or put them into the page and the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into README.md and docs")
    if parser.parse_args().write:
        os.environ["COLUMNS"] = "80"
        PAGE.write_text(filled_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
            path.write_text(filled_with_prints(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join([alarmed(), *map(printed, EXAMPLES)]))


if __name__ == "__main__":
    main()
