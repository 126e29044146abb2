"""A script that asks for it sees how far a run is, and one that does not sees nothing."""

import io

import pytest
from rich.console import Console

from gradexp.config import Config, DataConfig
from gradexp.runs import progress, run

SMALL = Config(depth=3, width=4, steps=3, batch_size=4, data=DataConfig("gaussian", samples=20))


def test_a_terminal_has_a_bar_while_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    terminal = Console(file=out, width=80, force_terminal=True)
    monkeypatch.setattr(progress, "Terminal", lambda: terminal)
    result = run(SMALL, progress=True)
    assert "training" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # and is gone at the end
    assert result.training.losses == run(SMALL).training.losses


@pytest.mark.parametrize("wish", [True, False, None])
def test_nothing_is_written_where_nobody_looks(wish: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    run(SMALL, progress=wish)
    assert capsys.readouterr() == ("", "")


def test_the_bar_is_gone_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    terminal = Console(file=out, width=80, force_terminal=True)
    monkeypatch.setattr(progress, "Terminal", lambda: terminal)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradexp.runs.stages.train", stop)
    with pytest.raises(KeyboardInterrupt):
        run(SMALL, progress=True)
    assert "profile" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")
