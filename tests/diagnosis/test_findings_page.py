"""docs/findings.md explains every kind of finding, and shows what is really found."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import sources
from cases import few

from gradexp.probe.alarm import KINDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
EXPLAINED = re.findall(r"^### (.+)$", PAGE, flags=re.MULTILINE)


@pytest.fixture
def page(monkeypatch):
    """The script that fills the page."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("findings_page")


def kinds_in_the_code() -> list[str]:
    """Return the kind of each ``Finding(…)``, as a regular expression where a part of it is a variable."""
    found = []
    for tree in sources.trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                keyword = [word.value for word in node.keywords if word.arg == "kind"]
                found += [pattern for value in (*node.args[:1], *keyword) for pattern in patterns(value)]
    return found


def patterns(value: ast.expr) -> list[str]:
    if isinstance(value, ast.Constant):
        return [re.escape(value.value)]
    if isinstance(value, ast.IfExp):
        return patterns(value.body) + patterns(value.orelse)
    if isinstance(value, ast.JoinedStr):
        return ["".join(patterns(part)[0] if isinstance(part, ast.Constant) else r"\w+" for part in value.values)]
    assert isinstance(value, ast.Name), ast.unparse(value)
    return [re.escape(kind) for kind in KINDS]  # a variable holds a word of the verdict


@pytest.mark.slow
def test_every_kind_that_the_code_can_give_is_explained():
    assert {"cut", "dead\\ layer"} <= set(kinds_in_the_code())
    missing = [kind for kind in kinds_in_the_code() if not any(re.fullmatch(kind, head) for head in EXPLAINED)]
    assert missing == []


@pytest.mark.slow
def test_every_kind_that_is_explained_can_be_given():
    known = kinds_in_the_code()
    assert [head for head in EXPLAINED if not any(re.fullmatch(kind, head) for kind in known)] == []


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
