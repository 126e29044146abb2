"""``python -m gradexp.predict``: print what a network will do at initialisation, without building it."""

from gradexp.cli.interruptions import leave_at_once

if __name__ == "__main__":
    leave_at_once()  # before the imports, which take half a second

from collections.abc import Callable
from pathlib import Path

from gradexp._version import __version__
from gradexp.cli.about import Command
from gradexp.cli.command import command
from gradexp.cli.interruptions import Interruptions
from gradexp.config import Config

ABOUT = Command(
    "predict",
    summary="Say what one very deep network will do at initialisation, and what to change, without building it.",
    example="init=he activation=tanh depth=150 width=128",
    sweep="init=he,xavier activation=relu,tanh",
    unused=(
        *("optimizer", "record", "seed", "seeds", "steps", "device", "threads", "quiet"),
        *("save_weights", "log"),
    ),
    keeps_files=False,
)


def job(config: Config, _folder: Path, overrides: list[str], _interruptions: Interruptions) -> None:
    """Print a forecast."""
    import torch  # slow to load, as are the other imports here; --help does not wait for them

    torch.set_num_threads(1)  # tensors are small
    from rich.text import Text

    from gradexp.history.table import terminal_width
    from gradexp.predict.forecast import forecast
    from gradexp.predict.text import describe
    from gradexp.runs.terminal import Terminal
    from gradexp.sinks.badges import COLOURS

    found = forecast(config)
    text = Text(describe(found, overrides, min(terminal_width(), 80)))
    begin = text.plain.index(word := found.verdict.gradient)
    text.stylize(f"bold reverse {COLOURS.get(word, '')}", begin, begin + len(word))
    console = Terminal()
    console.print(f"[bold]gradexp {__version__}[/bold]")
    console.print(text, soft_wrap=True)


main: Callable[[], None] = command(job, ABOUT)

if __name__ == "__main__":
    main()
