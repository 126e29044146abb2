"""What the README points to is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_file_that_is_linked_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    assert "docs/tensorboard.png" in links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).exists()] == []


def test_every_section_that_is_linked_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) - anchors == set()
