"""python -m gradexp.lesson writes one file, opens it on a desktop only, and replaces nothing but a lesson."""

import sys
from pathlib import Path

import pytest
from command_line import call, mistake
from lessons import small_trainings

from gradexp.lesson import MARK, trainings
from gradexp.lesson import __main__ as lesson


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train small networks, and see which addresses would be opened."""
    addresses: list[str] = []
    monkeypatch.setattr(trainings, "train", lambda sinks: small_trainings())
    monkeypatch.setattr(lesson.webbrowser, "open", addresses.append)
    for name in ("SSH_CONNECTION", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    return addresses


def test_a_lesson_is_written_here_named_and_opened(
    opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(lesson.main, monkeypatch) == 0
    assert capsys.readouterr().out.endswith("lesson: lesson.html\n")
    assert opened == [(tmp_path / "lesson.html").as_uri()]
    assert [path.name for path in tmp_path.iterdir()] == ["lesson.html"]
    assert MARK in (tmp_path / "lesson.html").read_text(encoding="utf-8")
    assert call(lesson.main, monkeypatch) == 0  # it may be written again


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, True),
        ("linux", {"DISPLAY": ""}, False),
        ("linux", {"DISPLAY": "", "WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"SSH_CONNECTION": "a b c d"}, False),
        ("darwin", {"DISPLAY": ""}, True),
        ("win32", {"DISPLAY": ""}, True),
        ("darwin", {"SSH_CONNECTION": "a b c d"}, False),
    ],
)
def test_only_a_desktop_has_a_browser(
    platform: str, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert lesson.has_desktop() == expected


def test_it_need_not_be_opened(opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "für Anna & <Ben>.html"
    assert call(lesson.main, monkeypatch, "--no-open", "--out", str(path)) == 0
    assert path.exists()
    assert not opened


def test_a_mistake_is_told_in_a_line_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text("years of work")
    monkeypatch.setattr(trainings, "train", lambda sinks: pytest.fail("it has trained"))
    for arguments, message in (
        (["--out", str(tmp_path)], f"{tmp_path} is a folder; name a file, such as {tmp_path}/lesson.html"),
        (
            ["--out", str(thesis)],
            "thesis.html is there already and is no lesson; choose another name with --out FILE",
        ),
        (["--out", str(tmp_path / "a" / "b.html")], f"there is no folder {tmp_path}/a to write b.html to"),
        (["--out", str(tmp_path / ("a" * 300))], "File name too long"),
        (["--out", "/dev/null"], "/dev/null is no file"),
        (["--out"], "argument --out: expected one argument"),
        (["--depth=3"], "unrecognized arguments: --depth=3 (python -m gradexp.lesson --help lists what there is)"),
    ):
        assert message in mistake(lesson.main, monkeypatch, capsys, arguments)
    assert thesis.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.html"]


def test_a_full_disk_leaves_the_last_lesson(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lesson.html"
    path.write_text(f"the last {MARK}")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left on device" in mistake(lesson.main, monkeypatch, capsys, ["--out", str(path)])
    assert path.read_text() == f"the last {MARK}"
    assert len(list(tmp_path.iterdir())) == 1
