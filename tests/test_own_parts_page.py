"""The examples of docs/own_parts.md work as they stand."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import call
from sweep_processes import summaries

from gradexp import __main__ as entry
from gradexp.sweeps import report

TEXT = (Path(__file__).parents[1] / "docs/own_parts.md").read_text("utf-8")


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def _mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(entry, "leave_at_once", lambda: None)
    monkeypatch.setenv("COMP_LINE", "")
    monkeypatch.setattr(report, "write_figures", lambda _: {})
    Path("mine.py").write_text(block("file: mine.py"), "utf-8")
    yield
    sys.modules.pop("mine", None)


@pytest.mark.slow
@pytest.mark.usefixtures("_mine")
def test_the_commands_of_the_page_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for line, further in zip(
        block("commands").splitlines(),
        (["hydra.run.dir=run"], ["hydra.sweep.dir=sweep", "hydra/launcher=ensemble"], []),
        strict=True,
    ):
        assert call(entry.run, monkeypatch, *shlex.split(line)[1:], *further) == 0
    assert len(summaries(Path("sweep"))) == 8
    assert all(job["status"] == "complete" for job in summaries(Path("sweep")).values())


@pytest.mark.slow
@pytest.mark.usefixtures("_mine")
def test_the_program_of_the_page_works(capsys: pytest.CaptureFixture[str]) -> None:
    exec(block("python"), {})
    assert "towards the input" in capsys.readouterr().out
