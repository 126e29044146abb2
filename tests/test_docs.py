"""What README and docs point to is there; what they say of themselves is so."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from documents import PAGES, ROOT, blocks

import gradexp
from gradexp import theory


def slug(head: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_section_that_is_linked_exists(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = ((ROOT / page).parent / path) if path else ROOT / page
        if not target.exists():
            missing.append(link)
        elif anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            missing += [] if anchor in map(slug, heads) else [link]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    assert {block.language for block in blocks(page)} <= {"bash", "python", "text"}


@pytest.mark.parametrize("page", PAGES)
def test_every_example_is_python(page: str) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.body)


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 160


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert [page for page in PAGES if page.startswith("docs/") and page.removeprefix("docs/") not in navigation] == []


def test_the_reference_has_every_public_name_and_all_that_the_documentation_imports() -> None:
    listed = re.findall(r"^::: (.+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    listed += [f"{getattr(theory, name).__module__}.{name}" for name in theory.__all__ if is_shown_as_member(name)]
    used = {getattr(gradexp, name) for name in gradexp.__all__ if name not in ("theory", "__version__")}
    used |= {getattr(theory, name) for name in theory.__all__}
    for page in PAGES:
        for block in (block for block in blocks(page) if block.language == "python"):
            for node in (node for node in ast.walk(ast.parse(block.body)) if isinstance(node, ast.ImportFrom)):
                if node.module and node.module.startswith("gradexp.") and "integrations" not in node.module:
                    used |= {getattr(importlib.import_module(node.module), name.name) for name in node.names}
    assert {f"{each.__module__}.{each.__qualname__}" for each in used} <= set(listed)


def is_shown_as_member(name: str) -> bool:
    """Return whether the reference shows a name of theory with its package; a file of that name would hide it."""
    return not Path(theory.__file__).with_name(f"{name}.py").exists()


def test_nobody_is_told_to_install_the_package_of_that_name_from_the_index() -> None:
    # On the index gradexp is somebody else's.
    files = [
        path
        for room in ("gradexp", "configs", "docs", "experiments", "hydra_plugins")
        for path in (ROOT / room).rglob("*.*")
    ]
    told = [
        (path.name, line)
        for path in [*files, *ROOT.glob("*.md")]
        if path.suffix in {".py", ".md", ".yaml"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"pip install[^.]* ['\"]?gradexp(?![-\w])", line)
    ]
    assert told == []


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {gradexp.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## ([\d.]+)", changes, flags=re.MULTILINE)[1] == gradexp.__version__


def test_only_public_names_are_listed() -> None:
    assert dir(gradexp) == sorted(gradexp.__all__)
