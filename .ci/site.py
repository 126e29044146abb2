"""Pages of the documentation that lie outside docs/, and links that lead there; mkdocs calls these functions."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# Where a file of the repository is on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/RESULTS.md": "experiments/RESULTS.md",
    "experiments/lesson.md": "experiments/lesson.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and the figures of the experiments."""
    for source, page in PAGES.items():
        text = relinked((ROOT / source).read_text(encoding="utf-8"), ROOT / source, page)
        files.append(File.generated(config, page, content=text))
    for figure in sorted((ROOT / "experiments" / "figures").iterdir()):
        files.append(File.generated(config, f"experiments/figures/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page of docs/ with its links as they are on the site."""
    source = ROOT / "docs" / page.file.src_uri
    return relinked(markdown, source, page.file.src_uri) if source.is_file() else markdown


def relinked(text: str, source: Path, page: str) -> str:
    """Return a text in which links to files lead to pages of the site; those to code keep their words only."""

    def moved(link: re.Match[str]) -> str:
        bang, words, target, anchor = link.groups(default="")
        path = (source.parent / target).resolve().relative_to(ROOT).as_posix()
        on_site = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if path.startswith("experiments/figures/"):
            on_site = path
        if on_site is None:
            return words
        return f"{bang}[{words}]({'../' * page.count('/')}{on_site}{anchor})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)", moved, text)
