"""Signals: whenever they come, a command ends in order, in one line and with complete files."""

import atexit
import gc
import json
import os
import pickle
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import few
from command_line import call

from gradexp import run as run_module
from gradexp.cli import interruptions
from gradexp.cli.interruptions import Interrupted, Interruptions, leave_at_once
from gradexp.runs.result import Result
from gradexp.sinks.files import Files
from gradexp.sinks.tensorboard import TensorBoard
from gradexp.sweeps import report

SMALL = ["depth=3", "width=4", "steps=3", "data=ones", "record.figures=false", "save_weights=true"]


@pytest.fixture(autouse=True)
def _signals_as_a_shell_gives_them() -> Iterator[None]:
    """Signals that a background job would ignore are heard, and afterwards all is as before."""
    threshold = gc.get_threshold()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    gc.set_threshold(*threshold)


def at(stage: str, number: int, patch: pytest.MonkeyPatch, sink: type = Files) -> None:
    """Send this process a signal when a sink is told of a stage for the first time."""
    write = sink.write
    sent: list[int] = []

    def interrupted(self: Any, now: str, result: Result) -> None:
        if now == stage and not sent:
            sent.append(number)
            signal.raise_signal(number)
        write(self, now, result)

    patch.setattr(sink, "write", interrupted)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("stage", "sink", "status"),
    few(
        [
            ("step", TensorBoard, "interrupted"),
            ("end", Files, "complete"),
            ("start", Files, "interrupted"),
            ("end", TensorBoard, "complete"),
            ("initial", TensorBoard, "interrupted"),
        ],
        2,
    ),
)
@pytest.mark.parametrize(("number", "code"), few([(signal.SIGINT, 130), (signal.SIGTERM, 143)]))
def test_whatever_is_going_on_the_files_are_complete(
    stage: str,
    sink: type,
    status: str,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    at(stage, number, monkeypatch, sink)
    assert call(run_module.main, monkeypatch, *SMALL, "hydra.run.dir=one") == code
    error = capfd.readouterr().err
    assert error == f"interrupted; what was measured so far is in {Path('one').absolute()}\n"
    assert json.loads(Path("one/summary.json").read_text())["status"] == status
    assert Path("one/weights.pt").exists() == (status == "complete")
    assert not list(Path("one").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize(
    ("launcher", "stage", "statuses"),
    few(
        [
            ("basic", "initial", ["interrupted"]),
            ("ensemble", "initial", ["interrupted"]),
            ("basic", "end", ["complete"]),
            ("ensemble", "end", ["complete"]),
        ]
    ),
)
def test_a_sweep_ends_after_the_job_that_was_interrupted_and_goes_on_later(
    launcher: str,
    stage: str,
    statuses: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(report, "write_figures", lambda _: {})  # takes longer than the jobs
    sweep = ["-m", "seed=0,1", f"hydra/launcher={launcher}", *SMALL, "hydra.sweep.dir=my sweep"]
    with monkeypatch.context() as patch:
        at(stage, signal.SIGTERM, patch)
        assert call(run_module.main, monkeypatch, *sweep) == 143
    error = capfd.readouterr().err
    assert error == "interrupted; the same command with 'hydra.sweep.dir=my sweep' goes on\n"
    left = [json.loads(path.read_text())["status"] for path in sorted(Path("my sweep").glob("*/summary.json"))]
    # What an ensemble has trained is written whatever comes; of the others one is left.
    assert left == (["complete", "complete"] if launcher == "ensemble" else statuses)
    assert call(run_module.main, monkeypatch, *sweep) == 0
    left = [json.loads(path.read_text())["status"] for path in Path("my sweep").glob("*/summary.json")]
    assert left == ["complete", "complete"]


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_an_import_that_an_interruption_cut_short_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def swallow(*_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot import name 'x' from partially initialized module") from None

    monkeypatch.setattr("gradexp.runs.stages.measure_and_train", swallow)
    assert call(run_module.main, monkeypatch, *SMALL, "hydra.run.dir=one") == 130
    assert len(capfd.readouterr().err.splitlines()) == 1
    summary = json.loads(Path("one/summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("interrupted", None)


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_what_a_cut_import_breaks_later_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ImportError("partially initialized module")

    monkeypatch.setattr("gradexp.sinks.files.write_csv", broken)
    at("start", signal.SIGINT, monkeypatch)
    assert call(run_module.main, monkeypatch, *SMALL, "hydra.run.dir=one") == 130
    assert capfd.readouterr().err == f"interrupted; what was measured so far is in {Path('one').absolute()}\n"
    assert json.loads(Path("one/summary.json").read_text())["status"] == "interrupted"


def test_an_interruption_inside_a_finaliser_is_raised_later(capfd: pytest.CaptureFixture[str]) -> None:
    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with Interruptions() as taken:
        one = Finalised()
        del one
        assert capfd.readouterr().err == ""
        with pytest.raises(Interrupted):
            taken.write("step", None)


def test_signals_are_given_back_to_a_program_and_ignored_at_the_end_of_a_command() -> None:
    with Interruptions():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    leave_at_once()
    with Interruptions():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_command_seldom_looks_for_garbage_and_not_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    at_the_end: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_the_end.append)
    leave_at_once()
    assert at_the_end == [gc.freeze]
    assert gc.get_threshold()[0] == 10_000


def test_a_worker_process_gets_one_of_its_own() -> None:
    with Interruptions(waits_for_files=True) as taken:
        taken.hold()
        fresh = pickle.loads(pickle.dumps(taken))
    assert vars(fresh) == vars(Interruptions(waits_for_files=True))


def test_a_signal_that_the_parent_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_at_once()
    with Interruptions() as taken:
        signal.raise_signal(signal.SIGINT)
    assert taken.pending is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_there_is_work_to_end_a_signal_ends_the_process_in_a_line(number: int) -> None:
    script = "import signal, sys; from gradexp.cli.interruptions import leave_at_once\n"
    script += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += f"leave_at_once(); signal.raise_signal({int(number)})"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (128 + number, "interrupted\n")


@pytest.mark.parametrize("name", ["run", "board.__main__", "report", "predict.__main__", "phase.__main__"])
def test_every_command_takes_signals_before_it_imports_anything_slow(name: str) -> None:
    path = Path(interruptions.__file__).parents[1] / f"{name.replace('.', '/')}.py"
    statements = [line for line in path.read_text().split('"""', 2)[2].splitlines() if line]
    assert statements[:2] == ["from gradexp.cli.interruptions import leave_at_once", 'if __name__ == "__main__":']
    assert statements[2].startswith("    leave_at_once()")


def test_a_run_that_loses_its_terminal_goes_on() -> None:
    ours, theirs = pty.openpty()
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(theirs, stream)
        with Interruptions() as taken:
            os.close(theirs)
            signal.raise_signal(signal.SIGHUP)
            written = os.write(1, b"to nobody"), os.write(2, b"to nobody")
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(ours)
    assert written == (9, 9)
    assert taken.pending is None


def test_a_second_signal_changes_nothing() -> None:
    def handler_of(number: int) -> Callable[..., Any]:
        return signal.getsignal(number)  # type: ignore[return-value]

    with Interruptions() as taken:
        with pytest.raises(Interrupted):
            handler_of(signal.SIGTERM)(signal.SIGTERM, None)
        handler_of(signal.SIGINT)(signal.SIGINT, None)
    assert taken.pending is not None
    assert taken.pending.exit_code == 143
