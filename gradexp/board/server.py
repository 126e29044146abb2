"""TensorBoard in this process, and what the board changes in its replies."""

import io
import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any

from gradexp.board.page import columns, script, tabs
from gradexp.board.view import View

if TYPE_CHECKING:
    from tensorboard.program import TensorBoard

# Points of a curve that TensorBoard hands out; its own limit of 1000 would thin a profile of 10,000 layers.
_POINTS = 20_000
_PICTURES = 100
# TensorBoard's advice on how to report its own mistakes, at every start, and on a library that it can do without.
_NOTE = re.compile(
    r"\s*NOTE: Using experimental fast data loading.*?/issues/\d+\s*|TensorFlow installation not found[^\n]*\n",
    re.DOTALL,
)
_SCRIPT = "gradexp.js"


def launch(view: View, port: int | None = None) -> str:
    """Start TensorBoard in a thread, on the loopback interface only, and return its address.

    Args:
        view: What it shows.
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
                return str(_configured(view, port).launch())
            except TensorBoardServerException:
                if port is not None:
                    raise
                return str(_configured(view, 0).launch())
    except TensorBoardServerException as error:
        raise OSError(str(error)) from error
    finally:
        print(_NOTE.sub("", printed.getvalue()), end="", file=sys.stderr)  # noqa: T201


def _configured(view: View, port: int | None) -> "TensorBoard":
    from tensorboard.program import TensorBoard, create_port_scanning_werkzeug_server

    def server(app: Any, flags: Any) -> Any:
        return create_port_scanning_werkzeug_server(_changed(app, view), flags)

    board = TensorBoard(server_class=server)
    options = {
        "logdir": str(view.folder),
        "host": "127.0.0.1",
        "samples_per_plugin": f"scalars={_POINTS},images={_PICTURES}",
        "window_title": "gradexp",
        **({} if port is None else {"port": str(port)}),
    }
    board.configure(argv=["gradexp", *(f"--{key}={value}" for key, value in options.items())])
    return board


def _changed(app: Any, view: View) -> Any:
    """Return TensorBoard's web application with the board's script in its page, and a few of its replies rewritten.

    A reply of another form than expected, as of another release, is passed on as it is.
    """
    from werkzeug.wrappers import Response

    def serve(environ: Any, start_response: Any) -> Any:
        path = environ.get("PATH_INFO", "")
        if path == f"/{_SCRIPT}":
            page = script(view.colours, view.filter)
            reply = Response(
                page, content_type="text/javascript; charset=utf-8", headers={"Cache-Control": "no-store"}
            )
        elif path in changes:
            environ.pop("HTTP_ACCEPT_ENCODING", None)  # what is compressed cannot be changed
            reply = Response.from_app(app, environ)
            reply.data = changes[path](reply.get_data())
        else:
            return app(environ, start_response)
        return reply(environ, start_response)

    def with_script(page: bytes) -> bytes:
        return page.replace(b"<head>", b'<head><script src="' + _SCRIPT.encode() + b'"></script>', 1)

    changes: dict[str, Callable[[bytes], bytes]] = {
        "/": with_script,
        "/index.html": with_script,
        "/data/environment": _of_json(lambda reply: {**reply, "data_location": str(view.source)}),
        "/data/plugins_listing": _of_json(tabs),
        "/data/plugin/hparams/experiment": _of_json(lambda reply: columns(reply, view.varying)),
    }
    return serve


def _of_json(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[bytes], bytes]:
    def changed(reply: bytes) -> bytes:
        try:
            return json.dumps(change(json.loads(reply))).encode()
        except (ValueError, KeyError, TypeError, AttributeError):
            return reply

    return changed
