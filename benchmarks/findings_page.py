"""What is printed of the examples in ``finding_examples.py``, for docs/findings.md and the README.

``python benchmarks/findings_page.py`` prints it, ``--write`` puts it into the page, each kind below its heading, and
into the README what its example prints.
"""

import argparse
import contextlib
import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from finding_examples import EXAMPLES, alarm

from gradexp.history.finding import Finding
from gradexp.history.headline import wrapped

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "findings.md", ROOT / "README.md"
WIDTH = 100


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
    body = re.sub(r"^```\n.*?^```$", lambda _: f"```\n{printed_now}\n```", rest, count=1, flags=re.M | re.DOTALL)
    return head + line + body


def filled_page(page: str) -> str:
    """Return docs/findings.md with what is printed now below each kind's heading."""
    page = filled(page, "<!-- alarm -->", alarmed())
    for kind in EXAMPLES:
        page = filled(page, f"### {kind}", printed(kind))
    return page


def filled_readme(readme: str) -> str:
    """Return the README with what its example and some others print now."""
    code = re.search(r"^```python\n(import torch\n[^`]*?print\(measure.*?)^```$", readme, flags=re.M | re.DOTALL)
    assert code is not None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code[1], {})
    readme = filled(readme, "<!-- printed by the example above -->", out.getvalue().rstrip("\n"))
    readme = filled(readme, "<!-- alarm -->", alarmed())
    for line, kinds in re.findall(r"^(<!-- findings: (.+) -->)$", readme, flags=re.MULTILINE):
        readme = filled(readme, line, "\n\n".join(map(printed, kinds.split(", "))))
    return readme


def main() -> None:
    """Print the examples, or put them into the page and the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/findings.md and README.md")
    if parser.parse_args().write:
        os.environ["COLUMNS"] = "80"
        PAGE.write_text(filled_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        README.write_text(filled_readme(README.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print("\n\n".join([alarmed(), *map(printed, EXAMPLES)]))


if __name__ == "__main__":
    main()
