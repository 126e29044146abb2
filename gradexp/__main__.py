"""``gradexp COMMAND`` and ``python -m gradexp COMMAND``: the commands by name, and their list."""

import difflib
import os
import runpy
import sys
from importlib import import_module
from pathlib import Path

from gradexp._version import __version__
from gradexp.cli.interruptions import leave_at_once
from gradexp.cli.lines import print_error, shortened

COMMANDS = f"""gradexp {__version__}: vanishing and exploding gradients, shown, measured, explained

  python -m gradexp.run                     measure and train 150 layers
  python -m gradexp.run init=he depth=150   the same, spelled out
  python -m gradexp.run --help              every option
  python -m gradexp.run -m init=he,xavier   a sweep, compared on one page
  python -m gradexp.report DIR              the page of a run or of a sweep
  python -m gradexp.predict depth=150       what theory says, before training
  python -m gradexp.phase activation=tanh   phase diagram and critical region
  python -m gradexp.measure train:example   your own model: what is wrong, where
  python -m gradexp.lesson                  a page with sliders, for students
  python -m gradexp.board outputs           your runs in TensorBoard
  python -m gradexp experiments             papers, reproduced and checked

The same, shorter: gradexp run init=he, gradexp report DIR, gradexp predict, ..."""

_PACKAGE = Path(__file__).resolve().parent
# Installed from a wheel the experiments lie inside the package, in a checkout beside it.
_PLACES = (_PACKAGE / "_beside", _PACKAGE.parent)
_EXPERIMENTS = next((place for place in _PLACES if (place / "experiments" / "lab").is_dir()), None)
_HELP = ("-h", "--help", "help")


def run() -> None:
    """Run a command by name, as the installed script ``gradexp`` does; options alone are those of ``run``."""
    leave_at_once()  # before the imports, which take half a second
    name = sys.argv[1] if len(sys.argv) > 1 else "run"
    if name in _HELP or name == "--version":
        print(f"gradexp {__version__}" if name == "--version" else COMMANDS)  # noqa: T201
        return
    if name in _modules():
        del sys.argv[1:2]
    elif "=" not in name and not name.startswith(("-", "~", "+")):
        near = difflib.get_close_matches(name, _modules(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        print_error(f"unknown command '{shortened(name)}'{hint} (gradexp --help lists them)")
        sys.exit(1)
    else:
        name = "run"
    if name == "run":
        from gradexp.run import main  # loads Hydra

        # The shell completes the options behind the command's name.
        if line := os.environ.get("COMP_LINE"):
            os.environ["COMP_LINE"] = line.replace(" run ", " ", 1)
        main()
        return
    if name == "experiments":
        sys.path.insert(0, str(_EXPERIMENTS))
        sys.exit(import_module("experiments.__main__").main())
    if name == "measure":  # whose name stands for the function, once it is imported
        runpy.run_module("gradexp.measure", run_name="__main__")
    else:
        import_module(_modules()[name]).main()


def _modules() -> dict[str, str]:
    """Return the commands that are there, with their modules."""
    places = {name: (_PACKAGE / f"{name}.py", _PACKAGE / name / "__main__.py") for name in _NAMES}
    modules = {}
    for name, (file, room) in places.items():
        if file.is_file() or room.is_file():
            modules[name] = f"gradexp.{name}" + (".__main__" if room.is_file() else "")
    return modules | ({"experiments": "experiments"} if _EXPERIMENTS is not None else {})


_NAMES = ("run", "report", "board", "predict", "phase", "measure", "lesson")

if __name__ == "__main__":
    if len(sys.argv) > 1:
        run()
    else:
        print(COMMANDS)  # noqa: T201
