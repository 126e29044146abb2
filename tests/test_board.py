"""TensorBoard as it is started for runs: its address, its settings, and what is said if it cannot start."""

import base64
import hashlib
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
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
from sweep_processes import LIMIT, until
from torch.utils.tensorboard import FileWriter

from gradexp import board
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


def test_it_serves_every_layer_on_a_free_port_and_ends_with_ctrl_c(runs: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has just ended
        is_held = False
        with suppress(OSError):  # it is taken by somebody else, who may give it back meanwhile
            taken.bind(("127.0.0.1", 6006))
            taken.listen()
            is_held = True
        with started(str(runs)) as (process, said):
            assert said[0] == f"showing   {runs}\n"
            start, charts = said[1].split()[1], said[2].split()[1]
            address = re.match(r"http://127\.0\.0\.1:(\d+)/", start)
            assert address is not None
            assert address[1] != "6006" or not is_held
            assert charts == address[0] + "#custom_scalars&_smoothingWeight=0"
            tag = quote("profile/log10_output_grad")
            curve = f"{address[0]}data/plugin/scalars/scalars?run=deep&tag={tag}"
            until(lambda: _points(curve) >= DEPTH, process)  # it reads the files in a thread
            assert _points(curve) == DEPTH
            with urlopen(start, timeout=LIMIT) as reply:
                page, policy = reply.read().decode(), reply.headers["Content-Security-Policy"]
            script = re.search(r"<script>(.*)</script>", page)
            assert script is not None
            assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() in policy
            assert '"ignoreOutliers": false' in script[1]
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=LIMIT) == 130


SINGLE = ["he", "he/theory", "he/theory/lower", "he/theory/upper", "he/step_000099", "a/xavier", "a/xavier/theory"]
SWEEP = ["0_depth=10,init=he,seed=0", "1_depth=10,init=he,seed=1", "2_depth=10,init=xavier,seed=0"]
DEPTHS = ["x/0_depth=10,init=he,seed=0", "x/0_depth=10,init=he,seed=0/theory", "x/1_depth=50,init=he,seed=0"]
SCALES = ["0_init=normal,init.std=0.06", "1_init=normal,init.std=0.25"]


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (SINGLE, ["he", "he", "he", "he", "he/step_000099", "a/xavier", "a/xavier"]),
        ([".", "theory", "theory/lower"], [".", "", ""]),
        (SWEEP, ["he", "he", "xavier"]),
        (DEPTHS, ["10", "10", "50"]),
        (SCALES, ["0.06", "0.25"]),
        (["init=he", "init=he/theory", "init=xavier"], ["he", "he", "xavier"]),
        (["a/init=he", "b/init=xavier"], ["he", "xavier"]),
        (["my_batch_size=8", "my_batch_size=16"], ["8", "16"]),
        ([*SWEEP, "by_hand"], [*SWEEP, "by_hand"]),  # not all have it in their names
        (["0_seed=0", "1_seed=1"], ["0_seed=0", "1_seed=1"]),
    ],
)
def test_a_run_has_the_colour_of_its_theory_and_in_a_sweep_that_of_its_init(
    names: list[str], groups: list[str]
) -> None:
    pattern = board.colour_groups(names)
    found = [re.search(pattern, name) for name in names]
    assert [match and match[1] for match in found] == groups
    asked = parse_qs(urlsplit(board.profile_link(names)).query)
    assert asked["runColorGroup"] == [f"regex:{pattern}"]
    assert asked["smoothing"] == ["0"]
    assert json.loads(asked["pinnedCards"][0]) == [{"plugin": "scalars", "tag": "profile/log10_output_grad"}]


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
    def refuse(_folder: Path, port: int | None) -> str:
        raise OSError(f"port {port} is taken")

    monkeypatch.setattr(board, "launch", refuse)
    line = _refused([str(runs), "--port", "6006"], monkeypatch, capsys)
    assert line == "cannot start: port 6006 is taken; without --port a free one is taken"


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
