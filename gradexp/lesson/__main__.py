"""``python -m gradexp.lesson``: write a page to teach with, and open it."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before the imports; a page that is not whole is not written

import os
import sys
import webbrowser
from pathlib import Path
from typing import NoReturn

from gradexp._version import __version__
from gradexp.cli.lines import Parser, print_error, shortened
from gradexp.lesson import MARK

NAME = "lesson.html"


def main() -> None:
    """Write the page, print where it is, and open it on a desktop."""
    parser = Parser(
        prog="python -m gradexp.lesson",
        description="Write a page on vanishing gradients for students and teachers, and open it: sliders, exact "
        "numbers, trained networks, questions. It is one file, which needs no network.",
    )
    parser.add_argument("--out", type=Path, default=Path(NAME), metavar="FILE", help=f"where to; unless set, {NAME}")
    parser.add_argument("--no-open", action="store_true", help="do not open it in a browser")
    asked = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without unicode shows ? instead of failing
    path: Path = asked.out
    try:
        _check(path)
        print(f"gradexp {__version__}", flush=True)  # noqa: T201
        _write(path)
    except OSError as error:
        _refuse(f"cannot write to {path}: {error.strerror or error}")
    print(f"lesson: {path}")  # noqa: T201
    if not asked.no_open and has_desktop():
        webbrowser.open(path.absolute().as_uri())


def _check(path: Path) -> None:
    """Refuse, before anything is trained, a place where no page can be written or where something else is."""
    if path.is_dir():
        _refuse(f"{path} is a folder; name a file, such as {path / NAME}")
    if not path.parent.is_dir():
        _refuse(f"there is no folder {path.parent} to write {path.name} to")
    if not os.access(path.parent, os.W_OK):
        _refuse(f"cannot write to {path.parent}: permission denied")
    if path.exists() and not path.is_file():
        _refuse(f"{path} is no file; name one, such as {NAME}")
    if path.exists() and MARK.encode() not in path.read_bytes():
        _refuse(f"{path} is there already and is no lesson; choose another name with --out FILE")


def _write(path: Path) -> None:
    import torch  # slow to load, as are the other imports here; --help does not wait for them

    torch.set_num_threads(1)  # tensors are small
    from gradexp.atomic_write import replacing
    from gradexp.lesson.page import lesson_page
    from gradexp.lesson.trainings import train
    from gradexp.runs.progress import Progress

    page = lesson_page(train(sinks=[Progress()]))
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def has_desktop() -> bool:
    """Return whether there is a screen in front of this machine for a browser to open on."""
    if "SSH_CONNECTION" in os.environ:
        return False
    is_graphical = sys.platform in ("darwin", "win32")
    return is_graphical or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _refuse(line: str) -> NoReturn:
    print_error(shortened(line))
    sys.exit(1)


if __name__ == "__main__":
    main()
