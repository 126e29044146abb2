"""Calling a command in this process, as several test files do."""

import sys
from collections.abc import Callable

import pytest


def call(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["gradexp", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def mistake(
    main: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    is_early: bool = False,
) -> str:
    """Run a command that must refuse its arguments in one or two lines, and return them.

    If ``is_early``, it must print nothing else but its version.
    """
    assert call(main, monkeypatch, *arguments) == 1
    shown = capsys.readouterr()
    assert not (is_early and shown.out.splitlines()[1:])
    error = shown.err.strip()
    assert len(error.splitlines()) <= 2
    assert "Traceback" not in error
    return error
