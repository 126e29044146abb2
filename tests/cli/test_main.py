"""``gradexp COMMAND``: every command by its name, and what is no command."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cases import few
from command_line import call, mistake

from gradexp import __main__ as entry
from gradexp import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(in_a_folder_of_its_own: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("gradexp.__main__", "gradexp.cli.interruptions"):  # pytest's signals are its own
        monkeypatch.setattr(f"{place}.leave_at_once", lambda: None)
    monkeypatch.setenv("COMP_LINE", "")
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--version"], f"gradexp {__version__}\n"),
        (["--help"], "python -m gradexp.predict"),
        (["help"], "python -m gradexp.board"),
        (["run", "--help"], "Build, measure and train one very deep network."),
        (["depth=3", "--help"], "Build, measure and train one very deep network."),
        (["predict", "--help"], "without building it"),
        (["phase", "--help"], "Draw the phase diagram"),
        (["report", "--help"], "usage: python -m gradexp.report"),
        (["board", "--help"], "usage: python -m gradexp.board"),
        (["measure", "--help"], "usage: python -m gradexp.measure"),
        (["experiments"], "Run one with gradexp experiments NAME"),
    ],
)
def test_each_command_has_a_name(
    arguments: list[str], shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(entry.run, monkeypatch, *arguments) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("rnu", "unknown command 'rnu'; did you mean 'run'? (gradexp --help lists them)"),
        ("dance", "unknown command 'dance' (gradexp --help lists them)"),
    ],
)
def test_another_word_is_one_line(
    word: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mistake(entry.run, monkeypatch, capsys, [word]) == line


@pytest.mark.slow
def test_the_list_of_commands_fits_into_80_columns() -> None:
    assert max(map(len, entry.COMMANDS.splitlines())) <= 80


def test_options_alone_are_those_of_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["depth=3", "width=4", "steps=0", "quiet=true", "record.report=false", "record.figures=false"]
    assert call(entry.run, monkeypatch, *small, "hydra.run.dir=bare") == 0
    assert call(entry.run, monkeypatch, "run", *small, "hydra.run.dir=named") == 0
    assert Path("bare/layers.csv").read_bytes() == Path("named/layers.csv").read_bytes()


@pytest.mark.parametrize(
    ("line", "words"),
    few([("gradexp run ini", "init. init="), ("gradexp dep", "depth="), ("gradexp init=xa", "init=xavier")]),
)
def test_the_shell_completes_options(
    line: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert call(entry.run, monkeypatch, "--shell-completion", "query=bash") == 0
    assert capsys.readouterr().out.split() == words.split()


@pytest.mark.slow
def test_a_program_of_somebody_else_is_told_in_a_line_that_the_sweeper_is_not_for_it(tmp_path: Path) -> None:
    source = (
        "import hydra\n@hydra.main(version_base=None, config_path=None)\ndef app(config): print('ran', config)\napp()"
    )
    (tmp_path / "theirs.py").write_text(source, "utf-8")

    def theirs(arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "theirs.py", *shlex.split(arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
        )

    refused = theirs("-m hydra/sweeper=resumable +x=1,2")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[0] == (
        "hydra/sweeper=resumable is for the runs of gradexp; use hydra/sweeper=basic"
    )
    assert "Traceback" not in refused.stderr
    assert theirs("-m hydra/launcher=ensemble +x=1,2").stdout.count("ran {") == 2
