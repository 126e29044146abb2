"""The pages of the documentation, and the blocks of code in them."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r'^```(?P<language>\w*)(?: title="(?P<title>[\w.]+)")?\n(?P<body>.*?)^```$'
    r"|^<!-- given\n(?P<given>.*?)^-->$",
    re.MULTILINE | re.DOTALL,
)


ASKED_FOR = [
    pytest.mark.documentation,
    pytest.mark.skipif("GRADEXP_TEST_DOCS" not in os.environ, reason="set GRADEXP_TEST_DOCS=1 (takes minutes)"),
]
"""Marks of tests that run what the documentation shows."""


class Block(NamedTuple):
    """A block of a page: its language, text and line, the file that it is, and why it is not run, if it is not."""

    language: str
    body: str
    line: int
    title: str | None
    reason: str | None


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page in their order; a comment `given` holds Python that its examples need."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rest = re.search(r"^<!-- not run from here on: (.+) -->$", text, re.MULTILINE)
    return [
        Block(
            "python" if match["given"] else match["language"],
            match["given"] or match["body"],
            text[: match.start()].count("\n") + 1,
            match["title"],
            rest[1] if rest and match.start() > rest.start() else match["reason"],
        )
        for match in _BLOCK.finditer(text)
    ]
