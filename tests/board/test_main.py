"""TensorBoard as it is started for runs: its address, its settings, and what is said if it cannot start."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import numpy as np
import pytest
from sweep_processes import LIMIT, until
from torch.utils.tensorboard import FileWriter

from gradexp.board import __main__ as board
from gradexp.board.view import View
from gradexp.history.scalars import layer_points
from gradexp.sinks.tensorboard import write_points

pytestmark = pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")  # while TensorBoard loads

DEPTH = 12_000


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of 12,000 layers."""
    folder = tmp_path_factory.mktemp("runs")
    writer = FileWriter(str(folder / "deep"))
    write_points(writer, layer_points({"log10_output_grad": np.linspace(-3000, 0, DEPTH)}))
    writer.close()
    return folder


@contextmanager
def started(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    """The command, once it has said where to look, with what it has printed."""
    command = [sys.executable, "-m", "gradexp.board", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, [process.stdout.readline() for _ in range(3)]
        finally:
            process.kill()


def test_it_serves_every_layer_on_a_free_port_and_ends_with_ctrl_c(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has just ended
        is_held = False
        with suppress(OSError):  # it is taken by somebody else, who may give it back meanwhile
            taken.bind(("127.0.0.1", 6006))
            taken.listen()
            is_held = True
        with started(str(runs)) as (process, said):
            assert said[0] == f"showing   {runs} (1 run)\n"
            assert said[2] == "stop      Ctrl-C\n"
            address = re.fullmatch(r"look      (http://127\.0\.0\.1:(\d+)/)\n", said[1])
            assert address is not None
            assert address[2] != "6006" or not is_held
            tag = quote("profile/log10_output_grad")
            curve = f"{address[1]}data/plugin/scalars/scalars?run=deep&tag={tag}"
            until(lambda: _points(curve) >= DEPTH, process)  # it reads the files in a thread
            assert _points(curve) == DEPTH
            for path in ("", "?runFilter=x"):
                assert '<head><script src="gradexp.js">' in _text(address[1] + path)
            assert '"ignoreOutliers": false' in _text(f"{address[1]}gradexp.js")
            assert "scalars" not in json.loads(_text(f"{address[1]}data/plugins_listing"))
            assert json.loads(_text(f"{address[1]}data/environment"))["data_location"] == str(runs)
            assert len(list(tmp_path.glob("gradexp-board-*/deep/events*"))) == 1
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=LIMIT) == 130
            assert not list(tmp_path.glob("gradexp-board-*"))


def _text(address: str) -> str:
    with urlopen(address, timeout=LIMIT) as reply:
        text: str = reply.read().decode()
    return text


def _points(curve: str) -> int:
    """Return how many points of a curve are served so far."""
    try:
        with urlopen(curve, timeout=LIMIT) as reply:
            return len(json.load(reply))
    except HTTPError:  # the run is not known yet
        return 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["missing"], "missing does not exist; name the folder of a run"),
        (["file"], "file is no folder; name the folder of a run"),
        (["empty"], "empty holds no runs yet; make one with python -m gradexp.run hydra.run.dir=empty/first"),
        ([], "outputs does not exist; name the folder of a run"),
        (["empty", "--port", "0"], "port must be from 1 to 65535, got 0"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    assert _refused(arguments, monkeypatch, capsys).startswith(text)


@pytest.mark.slow
def test_a_taken_port_is_told_in_one_line(runs: Path) -> None:
    # A process of its own, since TensorBoard leaves its reading server behind.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "gradexp.board", str(runs), "--port", port]
        end = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert end.returncode == 1
    assert end.stderr.splitlines()[-1].startswith("cannot start: ")
    assert end.stderr.endswith("; without --port a free one is taken\n")
    assert port in end.stderr
    assert "Traceback" not in end.stderr


def test_a_server_that_cannot_start_is_told_in_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_view: View, port: int | None) -> str:
        raise OSError(f"port {port} is taken")

    monkeypatch.setattr(board, "launch", refuse)
    line = _refused([str(runs), "--port", "6006"], monkeypatch, capsys)
    assert line == "cannot start: port 6006 is taken; without --port a free one is taken"


@pytest.mark.slow
def test_a_missing_tensorboard_is_told_in_one_line(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.program", None)
    line = _refused([str(runs)], monkeypatch, capsys)
    assert line.startswith("TensorBoard cannot be loaded (")
    assert line.endswith("install it with pip install tensorboard")


def _refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["gradexp.board", *arguments])
    with pytest.raises(SystemExit) as end:
        board.main()
    assert end.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("found", "told"), [(True, ""), (False, "no browser was found; open the address above\n")])
def test_it_opens_a_browser_if_asked_to(
    runs: Path,
    found: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(board, "launch", lambda _view, _port: "http://127.0.0.1:1/")
    monkeypatch.setattr(board, "_follow", lambda _view: None)
    monkeypatch.setattr(board.webbrowser, "open", lambda address: opened.append(address) or found)
    before = signal.getsignal(signal.SIGINT)
    for arguments in ([str(runs)], [str(runs), "--open"]):
        monkeypatch.setattr(sys, "argv", ["gradexp.board", *arguments])
        board.main()
    assert opened == ["http://127.0.0.1:1/"]
    assert capsys.readouterr().err == told
    assert signal.getsignal(signal.SIGINT) is before


def test_what_tensorboard_does_not_draw_by_itself_is_told(tmp_path: Path) -> None:
    def said(folder: Path, names: list[str]) -> str:
        for name in names:
            (folder / name / "theory").mkdir(parents=True)
            for own in (folder / name, folder / name / "theory"):
                (own / "events.out.tfevents.1700000000.vm.1.0").touch()
        (tmp_path / f"links of {folder.name}").mkdir()
        view = View(folder, tmp_path / f"links of {folder.name}")
        view.look()
        return "\n".join(board._said(folder, view, "http://127.0.0.1:6006/"))

    assert "\nmany " not in said(tmp_path / "few", [f"{number}_a={number}" for number in range(20)])
    many = said(tmp_path / "my runs", [f"{number}_a={number}" for number in range(501)])
    assert "many      501 lines: if none is drawn, tick the box above the list of runs, or " in many
    assert many.splitlines()[2].endswith(f"python -m gradexp.report '{tmp_path / 'my runs'}'")
    assert "left out  theory, of so many runs" in many
