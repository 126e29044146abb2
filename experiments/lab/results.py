"""What is kept of an experiment: a table of its claims and its figures."""

import platform
import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from experiments import About
from experiments.lab.claims import Findings
from gradexp._version import __version__
from gradexp.plotting import save as save_figure

_TITLE = """# Results

Written by `python -m experiments NAME --publish`. Each section holds the claims of a source beside what was measured.
"""
# Pixels per inch of the figures: files for looking at, and small ones for the gallery.
_DPI, _DPI_OF_GALLERY = 150, 100


@dataclass(frozen=True)
class Record:
    """One experiment as it was run.

    Args:
        name: Name of the experiment.
        about: What was known before.
        findings: What it found.
        seconds: Seconds that it took.
        device: The device on which it ran.
        options: The options with which it was called.
    """

    name: str
    about: About
    findings: Findings
    seconds: float
    device: str
    options: list[str]

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.findings.claims)

    @property
    def outcome(self) -> str:
        """How many claims hold, in words."""
        return f"{sum(claim.holds for claim in self.findings.claims)} of {len(self.findings.claims)} claims hold"


def save(record: Record, folder: Path) -> Path:
    """Write the table and the figures into a folder of the experiment's name, and return that."""
    own_folder = folder / record.name
    own_folder.mkdir(parents=True, exist_ok=True)
    figures = record.findings.figures
    for name, figure in figures.items():
        save_figure(figure, own_folder / name, _DPI)
    (own_folder / "results.md").write_text(section(record, [f"{name}.png" for name in figures]), encoding="utf-8")
    return own_folder


def publish(record: Record, folder: Path) -> None:
    """Renew an experiment's section of ``RESULTS.md`` and its figures in ``figures/``."""
    (folder / "figures").mkdir(exist_ok=True)
    paths = []
    for name, figure in record.findings.figures.items():
        paths.append(f"figures/{name}.png")
        figure.savefig(folder / paths[-1], dpi=_DPI_OF_GALLERY)
    file = folder / "RESULTS.md"
    sections = _sections(file.read_text(encoding="utf-8")) if file.is_file() else {}
    sections[record.name] = section(record, paths)
    texts = [_TITLE, _overview(sections), *(sections[name] for name in sorted(sections))]
    file.write_text("\n".join(texts), encoding="utf-8")


def section(record: Record, figures: list[str]) -> str:
    """Return the results of an experiment in Markdown."""
    command = shlex.join(["python", "-m", "experiments", record.name, *record.options])
    lines = [
        f"## {record.name}",
        "",
        f"{record.about.question} {record.about.source}",
        "",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {record.seconds:.0f} s on {record.device}; gradexp "
        f"{__version__}, torch {version('torch')}, Python {platform.python_version()}: "
        f"{record.outcome}.",
        "",
        "| claim | measured | expected | |",
        "|---|---|---|---|",
    ]
    for claim in record.findings.claims:
        cells = (claim.text, claim.measured, claim.expected, "pass" if claim.holds else "**fail**")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", *(f"![{record.name}]({figure})" for figure in figures), ""]
    return "\n".join(lines)


def _overview(sections: dict[str, str]) -> str:
    """Return a table of the experiments, from what their sections say."""
    lines = ["| experiment | claims that hold | seconds |", "|---|---|---|"]
    totals = [0, 0, 0]
    for name in sorted(sections):
        counts = re.search(r", (\d+) s on .*: (\d+) of (\d+) claims hold", sections[name])
        assert counts is not None
        seconds, held, claims = map(int, counts.groups())
        totals = [total + count for total, count in zip(totals, (held, claims, seconds), strict=True)]
        lines.append(f"| [{name}](#{name}) | {held} of {claims} | {seconds} |")
    lines.append("| all | {} of {} | {} |".format(*totals))
    return "\n".join([*lines, ""])


def _sections(text: str) -> dict[str, str]:
    """Split a file of results into its sections by name."""
    pieces = re.split(r"^## (\S+)$", text, flags=re.MULTILINE)[1:]
    return {name: f"## {name}{body.rstrip()}\n" for name, body in zip(pieces[::2], pieces[1::2], strict=True)}
