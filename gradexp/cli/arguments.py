"""Flags of the command lines: mistakes are told in a line, and what would run somebody's code is refused."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, QuotedString

from gradexp.choices import GROUPS, ConfigError
from gradexp.cli.about import Command
from gradexp.cli.help import choices, defaults
from gradexp.cli.hydra_internals import get_args_parser
from gradexp.cli.lines import shortened
from gradexp.own_parts import PATH, hint


def check_flags(arguments: Sequence[str], about: Command) -> bool:
    """Check the flags of a command line ahead of Hydra, and return whether the command's help is asked for.

    Args:
        arguments: What follows the command.
        about: The command.

    Raises:
        ConfigError: For flags that Hydra does not know, that exclude each other, or that are dangerous.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        left = message.removeprefix("unrecognized arguments: ").split()
        if any("=" in word and not word.startswith("-") for word in left):
            raise ConfigError("flags such as -m stand before all options, or after them, not in between")
        for name in (word.lstrip("-").partition("=")[0] for word in left):
            if name in defaults(about.schema):
                raise ConfigError(f"options have no dashes: write {name}=VALUE")
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
    if not flags.shell_completion:
        _check_overrides(flags.overrides, about)
    return bool(flags.help)


def _check_overrides(overrides: Sequence[str], about: Command) -> None:
    """Check what Hydra would take in silence, or tell badly.

    Raises:
        ConfigError: For the first mistake.
    """
    flags = [key for key, default in defaults(about.schema).items() if isinstance(default, bool)]
    for text, override in zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True):
        key, value = override.key_or_group, override.value()
        if not key:
            raise ConfigError(f"'{text}' has no name before the =; write key=value")
        if len(key) > _LONGEST_KEY:
            raise ConfigError(f"unknown option '{key}' (python -m gradexp.{about.name} --help lists them all)")
        if key == "hydra":
            raise ConfigError("hydra is no option; set one of Hydra's own with hydra.KEY=VALUE (see --hydra-help)")
        try:
            # What a glob finds is known later.
            is_list = override.is_discrete_sweep() and not isinstance(value, Glob)
            values = list(override.sweep_iterator()) if is_list else [value]
        except ValueError as error:  # of a range whose step is 0
            raise ConfigError(f"the values of {text} cannot be listed: {error}") from error
        for one in values:
            if isinstance(one, Glob):
                continue
            if key in (*GROUPS, "experiment") and not override.is_delete() and not _is_choice(one, key):
                raise ConfigError(
                    f"{key} must be the name of one choice, got {text.partition('=')[2]}; "
                    f"choose one of {', '.join(choices(key))}{_hint(key, text)}"
                )
            if key in flags and not isinstance(one, bool | str | QuotedString):
                raise ConfigError(f"{key} must be true or false, got {one}")
        if key in _FOLDERS and not override.is_sweep_override():
            _check_folder(key, str(value))


_LONGEST_KEY = 200  # longer ones are no names of files, in which Hydra looks for groups
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")


def _is_choice(value: Any, group: str) -> bool:
    if value is None:
        return group == "experiment"
    text = value.text if isinstance(value, QuotedString) else value
    is_own = group in GROUPS and isinstance(text, str) and PATH.fullmatch(text)
    return bool(is_own) or (isinstance(text, str) and ("${" in text or bool(re.fullmatch(r"\w+", text))))


def _hint(key: str, text: str) -> str:
    return hint(key, text.partition("=")[2].strip("'\"")) if key in GROUPS else ""


def _check_folder(key: str, text: str) -> None:
    if not text.strip():
        raise ConfigError(f"{key} must name a folder, got ''")
    folder = Path(text)
    if "${" not in text and folder.is_symlink() and not folder.exists():
        raise ConfigError(f"{key}={text} is a link to a folder that is not there: {folder.readlink()}")
