"""Flags of the command lines: mistakes are told in a line, and what would run somebody's code is refused."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from gradexp.choices import ConfigError
from gradexp.cli.about import Command
from gradexp.cli.errors import print_error, shortened


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, with the exit code of all other mistakes."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and end the program."""
        print_error(f"{shortened(message)} ({self.prog} --help lists what there is)")
        sys.exit(1)


def check_flags(arguments: Sequence[str], about: Command) -> None:
    """Check the flags of a command line ahead of Hydra.

    Args:
        arguments: What follows the command.
        about: The command.

    Raises:
        ConfigError: For flags that Hydra does not know, that exclude each other, or that are dangerous.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{shortened(message)} (python -m gradexp.{about.name} --help lists what there is)")

    parser.error = refuse  # type: ignore[method-assign]
    flags = parser.parse_args(list(arguments))
    if getattr(flags, "experimental_rerun", None) is not None:
        raise ConfigError(
            "--experimental-rerun is refused: it runs whatever code its file holds; to repeat a run use "
            "--config-path FOLDER/.hydra"
        )
    if flags.run and flags.multirun:
        raise ConfigError("--run and --multirun exclude each other; leave one out")
    if flags.shell_completion and not {"install", "uninstall", "query"} & {
        word.partition("=")[0] for word in flags.overrides
    }:
        raise ConfigError("--shell-completion takes install=SHELL, uninstall=SHELL or query=SHELL")
