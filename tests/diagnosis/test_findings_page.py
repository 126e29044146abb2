"""docs/findings.md explains every kind of finding, and shows what is really found."""

import importlib
import re
from pathlib import Path
from typing import get_args

import pytest
from cases import few

from gradexp.history.finding import Kind

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
EXPLAINED = re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE)


@pytest.fixture
def page(monkeypatch):
    """The script that fills the page."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("findings_page")


def test_every_kind_that_the_code_can_give_is_explained():
    assert sorted(get_args(Kind)) == sorted(EXPLAINED)  # a type checker knows that there are no others


def test_every_kind_that_is_explained_can_be_given():
    files = [path for path in (ROOT / "gradexp").rglob("*.py") if path.name != "finding.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    assert [kind for kind in EXPLAINED if f'"{kind}"' not in text] == []


def test_the_table_names_each_kind_once_in_order():
    assert re.findall(r"^\| \[([\w ]+)\]\(#", PAGE, flags=re.MULTILINE) == list(dict.fromkeys(EXPLAINED))


def test_every_link_leads_to_a_heading():
    anchors = {head.lower().replace(" ", "-") for head in re.findall(r"^#+ (.+)$", PAGE, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) - anchors == set()


@pytest.mark.parametrize("kind", few(EXPLAINED, 8))
def test_an_example_has_its_finding_until_it_is_cured(page, kind):
    assert f"\n```text\n{kind}: " in PAGE.partition(f"### {kind}\n")[2]
    assert kind in {finding.kind for finding in page.findings(kind)}
    assert kind not in {finding.kind for finding in page.findings(kind, is_cured=True)}


@pytest.mark.parametrize("kind", EXPLAINED)
def test_each_section_says_how_it_is_decided_what_helps_and_what_it_is_not(kind):
    section = PAGE.partition(f"### {kind}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
    parts = re.findall(r"^\*\*(.+?)\.\*\*", section, flags=re.MULTILINE)
    assert parts == ["How it is decided", "What helps", "What it is not"]
