"""``python -m gradexp.measure MODULE:FUNCTION``: measure the model that a function returns."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # measuring leaves nothing to complete

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

from gradexp.cli.lines import Parser, print_error, shortened
from gradexp.diagnosis.measure import measure

_RETURNS = (
    "(model, loss_fn, batch), or (model, closure), where the closure takes nothing and returns the loss; "
    "the optimizer may come last"
)


def main() -> None:
    """Print the table, and leave with 1 after a mistake, or for a finding if asked to check."""
    parser = Parser(
        prog="python -m gradexp.measure",
        description="Run one forward and one backward pass of your model: what is wrong, where, why, and what to do.",
        epilog=f"FUNCTION takes nothing and returns {_RETURNS}.",
    )
    parser.add_argument(
        "target", metavar="MODULE:FUNCTION", help="such as train:example, or path/to/train.py:example"
    )
    parser.add_argument("--check", action="store_true", help="exit code 1 if something is wrong, for your own CI")
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep the numbers; History.load reads them")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write a page to open in a browser, such as report.html"
    )
    asked = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without unicode shows ? instead of failing
    sys.path.insert(0, "")  # as in python -c: the folder in which the command is called
    function = _function(asked.target)
    try:
        parts = function()
    except Exception as error:
        _refuse(f"{asked.target} raised {_told(error)}")
    *parts, last = parts if isinstance(parts, tuple | list) and parts else (parts,)
    optimizer = last if isinstance(last, torch.optim.Optimizer) else None
    parts += [] if optimizer is not None else [last]
    if len(parts) not in (2, 3):
        given = f"{len(parts)} values" if len(parts) != 1 else type(last).__name__
        _refuse(f"{asked.target} must return {_RETURNS}; it returned {given}")
    try:
        batch = {"batch": parts[2]} if parts[2:] else {}
        history = measure(parts[0], parts[1], optimizer=optimizer, **batch)
    except Exception as error:
        _refuse(f"{asked.target} cannot be measured: {_told(error)}")
    print(history)  # noqa: T201
    for path, write in ((asked.save, history.save), (asked.report, partial(history.to_html, title=asked.target))):
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            _refuse(f"cannot write to {path}: {error.strerror or error}")
        print(f"written to {path}")  # noqa: T201
    sys.exit(1 if asked.check and not history.verdict().is_calm else 0)


def _function(target: str) -> Callable[[], Any]:
    """Import what the user has named."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        _refuse(f"name a module and a function in it, such as train:example; got '{target}'")
    try:
        module = _module(place)
    except FileNotFoundError:
        _refuse(f"there is no file {place}")
    except ModuleNotFoundError as error:
        where = "" if error.name != place.partition(".")[0] else " (looked in this folder and what is installed)"
        _refuse(f"cannot import {place}: {error}{where}")
    except Exception as error:
        _refuse(f"cannot import {place}: {_told(error)}")
    found = getattr(module, name, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        names = [key for key in own if callable(getattr(module, key)) and not key.startswith("_")]
        what = f"has no function '{name}'" if found is None else f"holds no function '{name}' but {found!r}"
        _refuse(f"{place} {what}; it has {', '.join(names[:10]) or 'none'}")
    return found  # type: ignore[no-any-return]


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(place)
    sys.path.insert(0, str(path.parent))  # so that it finds its neighbours, as when it is run itself
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _told(error: Exception) -> str:
    """Return kind and text of an error in somebody's own code, and where it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    outside = [frame for frame in frames if not frame.filename.startswith(ours)]
    own = [frame for frame in outside if "site-packages" not in frame.filename and frame.filename[0] != "<"]
    place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {lines[0] if lines else ''}{place}"


def _refuse(line: str) -> NoReturn:
    print_error(shortened(line))
    sys.exit(1)


if __name__ == "__main__":
    main()
else:
    # The name gradexp.measure is that of the function, also after somebody has imported this file.
    sys.modules[__name__] = measure  # type: ignore[assignment]
