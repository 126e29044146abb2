"""``python -m gradexp.board``: show runs in TensorBoard, under names and with settings in which they are legible."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # the board has nothing to complete

import os
import shlex
import signal
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from gradexp.board.names import find_runs
from gradexp.board.server import launch
from gradexp.board.view import MOST, View
from gradexp.cli.lines import Parser, shortened
from gradexp.sinks.page import NAME as PAGE

_BETWEEN_LOOKS = 2.0  # seconds, or ten times what a look takes: a large folder on a slow disk is read less often
_SHARE = 10


def main() -> None:
    """Serve until Ctrl-C, or print one line that says what is wrong."""
    parser = Parser(
        prog="python -m gradexp.board",
        description="Start TensorBoard on this machine, and print the address at which the gradients are shown.",
        epilog="Ctrl-C stops it. On another machine: ssh -L 6006:127.0.0.1:6006 HOST.",
    )
    usual, help_text = Path("outputs"), "folder of one run or of several; unless set, outputs"
    parser.add_argument("folder", nargs="?", type=Path, default=usual, metavar="DIR", help=help_text)
    parser.add_argument("--port", type=int, help="exactly this one; unless set, the first free one from 6006 on")
    parser.add_argument("--open", action="store_true", help="open the address in a browser")
    asked = parser.parse_args()
    if asked.port is not None and not 1 <= asked.port <= 65535:
        _refuse(f"port must be from 1 to 65535, got {asked.port}")
    named = shortened(str(asked.folder))
    try:
        with os.scandir(asked.folder):
            pass
    except OSError as error:
        kinds = {FileNotFoundError: " does not exist", NotADirectoryError: " is no folder"}
        what = kinds.get(type(error), f": {error.strerror}")
        _refuse(f"{named}{what}; name the folder of a run, or one above several, such as outputs")
    if not find_runs(asked.folder):
        run = shlex.join(["python", "-m", "gradexp.run", f"hydra.run.dir={asked.folder / 'first'}"])
        _refuse(f"{named} holds no runs yet; make one with {run}")
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="gradexp-board-") as links:
        view = View(asked.folder, Path(links))
        try:
            view.look()
            address = launch(view, asked.port)
        except ImportError as error:
            _refuse(f"TensorBoard cannot be loaded ({error}); install it with pip install tensorboard")
        except OSError as error:
            _refuse(f"cannot start: {error}; without --port a free one is taken")
        print("\n".join(_said(asked.folder, view, address)), flush=True)  # noqa: T201
        if asked.open and not webbrowser.open(address):
            print("no browser was found; open the address above", file=sys.stderr)  # noqa: T201
        _follow(view)


def _said(folder: Path, view: View, address: str) -> list[str]:
    """Return what is printed: what is shown, where, and what TensorBoard does not show by itself."""
    runs, lines = len(view.runs), len(view.names)
    said = [f"showing   {folder} ({runs} {'run' if runs == 1 else 'runs'})", f"look      {address}"]
    if view.filter:
        said.append('seeds     mean and mean ± sd over seeds; each seed: clear "seeds/mean" above the list of runs')
    elif view.means:
        said.append("seeds     mean and mean ± sd of runs that differ in their seed only, as …/N seeds/mean")
    if lines > MOST:
        page = folder / PAGE
        report = f"open {page}" if page.exists() else f"python -m gradexp.report {shlex.quote(str(folder))}"
        said.append(f"many      {lines} lines: if none is drawn, tick the box above the list of runs, or {report}")
    if view.left_out:
        said.append(f"left out  {' and '.join(view.left_out)}, of so many runs; a run's own board has them")
    return [*said, "stop      Ctrl-C"]


def _follow(view: View) -> NoReturn:
    """Look again and again, until a signal ends it."""
    pause = _BETWEEN_LOOKS
    while True:
        time.sleep(pause)
        begin = time.monotonic()
        try:
            view.look()
        except OSError as error:  # a folder may go away between its listing and its reading
            if not view.folder.exists():
                _refuse(f"cannot go on: {error}")
        pause = max(_BETWEEN_LOOKS, _SHARE * (time.monotonic() - begin))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end the process in order, since there are links to remove."""

    def end(signum: int, _frame: object) -> NoReturn:
        for one in signums:
            signal.signal(one, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(128 + signum)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    signums = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {one: signal.signal(one, end) for one in signums if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _refuse(line: str) -> NoReturn:
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(1)


if __name__ == "__main__":
    main()
