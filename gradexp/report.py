"""``python -m gradexp.report``: a run, or the runs of a sweep, on one page, also while they go on or broke off."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before the imports, which take half a second

import signal
import sys
from pathlib import Path

from gradexp.choices import ConfigError
from gradexp.cli.interruptions import Interrupted, Interruptions
from gradexp.cli.lines import Parser, shortened
from gradexp.sweeps.report import report


def main() -> None:
    """Print the comparison, or one line that says what is wrong."""
    parser = Parser(
        prog="python -m gradexp.report",
        description="Write report.html, a page to open in a browser, of a run or of the runs of a sweep. "
        "Of a sweep also print a table, and write sweep.csv and figures.",
        epilog="It may be called at any time, also while runs go on.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder of a run or of several, such as multirun/DATE/TIME"
    )
    folder: Path = parser.parse_args().folder
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without unicode shows ? instead of failing
    with Interruptions() as interruptions:
        try:
            report(folder)
            interruptions.hold()
        except ConfigError as error:
            _refuse(shortened(str(error)))
        except OSError as error:
            # A full disk has no file name.
            _refuse(shortened(f"cannot write to {error.filename or folder}: {error.strerror or error}"))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)  # noqa: T201
            sys.exit((interruptions.pending or Interrupted(signal.SIGINT)).exit_code)


def _refuse(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
    sys.exit(1)


if __name__ == "__main__":
    main()
