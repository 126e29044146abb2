"""``python -m gradexp.board``: TensorBoard on runs of gradexp, with the settings in which they are legible."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # the board has nothing to complete

import base64
import hashlib
import io
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gradexp.cli.lines import Parser, shortened

if TYPE_CHECKING:
    from tensorboard.program import TensorBoard

PINNED = "profile/log10_output_grad"
# Points of a curve that TensorBoard hands out; its own limit of 1000 would thin a profile of 10,000 layers.
_POINTS = 20_000
_PICTURES = 100
# TensorBoard's advice on how to report its own mistakes, four lines at every start.
_NOTE = re.compile(r"\s*NOTE: Using experimental fast data loading.*?/issues/\d+\s*", re.DOTALL)
_BETWEEN_LOOKS = 1.0  # seconds
_PLUGIN = "gradexp"
# What a page of TensorBoard keeps in the browser, under its key. Smoothing would run across layers, outliers are the
# runs that explode, a page that is not reloaded does not follow a training, a narrow list of runs hides their
# colours, and a step selector at layer 150 and the open pane of settings take the room of the charts.
_KEPT_BY = "_tb_global_settings"
_SETTINGS = {
    "scalarSmoothing": 0,
    "ignoreOutliers": False,
    "autoReload": True,
    "autoReloadPeriodInMs": 5000,
    "stepSelectorEnabled": False,
    "timeSeriesSettingsPaneOpened": False,
    "timeSeriesCardMinWidth": 500,
    "sideBarWidthInPercent": 28,
}
# The older tabs, such as Custom Scalars, keep theirs one by one, and smoothing in the address.
_KEPT_BY_OLDER_TABS = {"_ignoreYOutliers": "false"}
_CHARTS = "#custom_scalars&_smoothingWeight=0"
_BEFORE, _VALUE = "(?:^|[/_,])", "([^,/]+)"
_OPTION = re.compile(f"{_BEFORE}([a-z][\\w.]*)={_VALUE}")


def main() -> None:
    """Serve until Ctrl-C, or print one line that says what is wrong."""
    parser = Parser(
        prog="python -m gradexp.board",
        description="Start TensorBoard on this machine, and print the address at which the gradients are shown.",
        epilog="Ctrl-C stops it. On another machine: ssh -L 6006:127.0.0.1:6006 HOST.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("outputs"), metavar="DIR", help="a run, or many")
    parser.add_argument("--port", type=int, help="exactly this one; unless set, the first free one from 6006 on")
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
    if not run_names(asked.folder):
        run = shlex.join(["python", "-m", "gradexp.run", f"hydra.run.dir={asked.folder / 'first'}"])
        _refuse(f"{named} holds no runs yet; make one with {run}")
    try:
        address = launch(asked.folder, asked.port)
    except ImportError as error:
        _refuse(f"TensorBoard cannot be loaded ({error}); install it with pip install tensorboard")
    except OSError as error:
        _refuse(f"cannot start: {error}; without --port a free one is taken")
    print(f"showing   {asked.folder}")  # noqa: T201
    print(f"look      {address}data/plugin/{_PLUGIN}/start")  # noqa: T201
    print(f"charts    {address}{_CHARTS}\nstop      Ctrl-C", flush=True)  # noqa: T201
    try:
        while True:
            time.sleep(_BETWEEN_LOOKS)  # a signal that another thread got is seen by this one when it runs
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def _refuse(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(1)


def run_names(folder: Path) -> list[str]:
    """Return TensorBoard's names of the runs in a folder or below it: the paths to their event files."""
    return [
        str(Path(path).relative_to(folder))
        for path, _, names in os.walk(folder)
        if any("events.out.tfevents." in name for name in names)
    ]


def colour_groups(names: Sequence[str]) -> str:
    """Return a regular expression whose group is the same in the names of runs that are to have one colour.

    In a sweep these are the jobs with the same init, or else with the same value of the first option that differs,
    as hundreds of runs would otherwise share a few colours at random. Else these are a run and its theory, unless
    there is no other run to be told from.

    Examples:
        >>> colour_groups(["0_depth=10,init=he,seed=0", "1_depth=10,init=xavier,seed=0"])
        '(?:^|[/_,])init=([^,/]+)'
    """
    options = [dict(_OPTION.findall(name)) for name in names]
    values = {key: {run.get(key) for run in options} for run in options[:1] for key in run if key != "seed"}
    differ = [key for key, choices in values.items() if len(choices) > 1 and None not in choices]
    if differ:
        return f"{_BEFORE}{re.escape('init' if 'init' in differ else differ[0])}={_VALUE}"
    return "^(.*?)(?:(?:^|/)theory(?:/lower|/upper)?)?$"


def launch(folder: Path, port: int | None = None) -> str:
    """Start TensorBoard in a thread, on the loopback interface only, and return its address.

    Args:
        folder: Folder of a run, or of several.
        port: Port to listen at; None: the first free one from 6006 on, or any if many are taken.

    Raises:
        ImportError: If TensorBoard is not installed.
        OSError: If the port is taken.
    """
    from tensorboard.program import TensorBoardServerException  # may be missing, which main reports

    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            try:
                return str(_configured(folder, port).launch())
            except TensorBoardServerException:
                if port is not None:
                    raise
                return str(_configured(folder, 0).launch())
    except TensorBoardServerException as error:
        raise OSError(str(error)) from error
    finally:
        print(_NOTE.sub("", printed.getvalue()), end="", file=sys.stderr)  # noqa: T201


def _configured(folder: Path, port: int | None) -> "TensorBoard":
    from tensorboard import default  # slow to load, as is all of TensorBoard
    from tensorboard.program import TensorBoard

    server = TensorBoard(plugins=[*default.get_plugins(), _start_plugin(folder)])
    options = {
        "logdir": str(folder),
        "host": "127.0.0.1",
        "samples_per_plugin": f"scalars={_POINTS},images={_PICTURES}",
        **({} if port is None else {"port": str(port)}),
    }
    server.configure(argv=[_PLUGIN, *(f"--{key}={value}" for key, value in options.items())])
    return server


def profile_link(names: Sequence[str]) -> str:
    """Return what follows TensorBoard's address to show the profile of the gradient above all other cards.

    Args:
        names: Names of the runs, which decide on their colours.
    """
    pinned = quote(json.dumps([{"plugin": "scalars", "tag": PINNED}], separators=(",", ":")))
    colours = quote(f"regex:{colour_groups(names)}")
    return f"?pinnedCards={pinned}&smoothing=0&runColorGroup={colours}#timeseries"


def start_page(names: Sequence[str]) -> tuple[str, str]:
    """Return a page that leaves TensorBoard's settings in the browser and goes on, and the hash of its script.

    No address can carry all of these settings. The browser runs the script only if its hash is announced.

    Args:
        names: Names of the runs.
    """
    kept = f"JSON.parse(localStorage.getItem({json.dumps(_KEPT_BY)}) || '{{}}')"
    changed = f"JSON.stringify(Object.assign({kept}, {json.dumps(_SETTINGS)}))"
    store = f"localStorage.setItem({json.dumps(_KEPT_BY)}, {changed});"
    store += f" Object.assign(localStorage, {json.dumps(_KEPT_BY_OLDER_TABS)});"
    script = f"{store} location.replace({json.dumps('/' + profile_link(names))});"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"<!doctype html><title>gradexp</title><script>{script}</script>", digest


def _start_plugin(folder: Path) -> Any:
    """Return a plugin without a tab, which serves the start page from TensorBoard's own address."""
    from tensorboard.backend import http_util  # slow to load, as is all of TensorBoard
    from tensorboard.plugins.base_plugin import TBPlugin
    from werkzeug.wrappers import Request

    class StartPlugin(TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
        plugin_name = _PLUGIN

        def get_plugin_apps(self) -> dict[str, Any]:
            return {"/start": self._serve}

        def is_active(self) -> bool:
            return False

        def _serve(self, environ: Any, start_response: Any) -> Any:
            page, digest = start_page(run_names(folder))
            response = http_util.Respond(Request(environ), page, "text/html", csp_scripts_sha256s=[digest])
            return response(environ, start_response)

    return StartPlugin


if __name__ == "__main__":
    main()
