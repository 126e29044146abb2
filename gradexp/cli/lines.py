"""What every command says in a line, and flags without Hydra, which takes long to load."""

import argparse
import re
import sys
from typing import NoReturn

# Letters of a word beyond which it is cut.
_LONGEST_WORD = 400


def print_error(line: str) -> None:
    """Print a line to standard error."""
    print(line, file=sys.stderr)  # noqa: T201


def shortened(text: str) -> str:
    """Return a text, and of words that fill a screen only their beginning and end."""
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda match: f"{match[0][:60]}...{match[0][-20:]}", text)


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, with the exit code of all other mistakes."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end the program."""
        print_error(f"{shortened(message)} ({self.prog} --help lists what there is)")
        sys.exit(1)
