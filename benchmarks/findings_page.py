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
from finding_examples import EXAMPLES

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


def filled_page() -> str:
    """Return docs/findings.md with what is printed now in the first block below each kind's heading."""
    page = PAGE.read_text(encoding="utf-8")
    for kind in EXAMPLES:
        block = re.compile(rf"(?<=^### {kind}\n)(.*?^```\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
        text = printed(kind)
        page = block.sub(lambda found, text=text: f"{found[1]}{text}\n", page, count=1)
    return page


def filled_readme() -> str:
    """Return the README with what its example for ``measure`` prints now in the block below it."""
    readme = README.read_text(encoding="utf-8")
    section = readme.index("## Your own network, in one line")
    code, printed_now = list(re.finditer(r"^```(?:python)?\n(.*?)^```$", readme[section:], re.M | re.DOTALL))[:2]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code[1], {})
    return readme[: section + printed_now.start(1)] + out.getvalue() + readme[section + printed_now.end(1) :]


def main() -> None:
    """Print the examples, or put them into the page and the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/findings.md and README.md")
    if parser.parse_args().write:
        os.environ["COLUMNS"] = "80"
        PAGE.write_text(filled_page(), encoding="utf-8")
        README.write_text(filled_readme(), encoding="utf-8")
    else:
        print("\n\n".join(map(printed, EXAMPLES)))


if __name__ == "__main__":
    main()
