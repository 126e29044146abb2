"""Errors in one line, with what is allowed."""

import difflib
import re

from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from gradexp.choices import ConfigError
from gradexp.cli.about import RUN, Command
from gradexp.cli.help import defaults
from gradexp.cli.lines import shortened

# Letters of a line beyond which it is cut.
_LONGEST = 1000

_OTHER_FOLDER = "choose another folder with hydra.run.dir=FOLDER, or of a sweep with hydra.sweep.dir=FOLDER"

# Types, as OmegaConf calls them.
_KINDS = {"Integer": "a whole number", "Float": "a number"}

# Choices that come with a package of their own.
_PACKAGES = {"hydra/launcher/joblib": "hydra-joblib-launcher", "hydra/sweeper/optuna": "hydra-optuna-sweeper"}


def error_line(error: BaseException, about: Command = RUN) -> str:
    """Return in one or two lines what was wrong, what was given and what is allowed."""
    return "\n".join(line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in _lines(error, about))


def _lines(error: BaseException, about: Command) -> list[str]:
    return shortened(_text_of(error, about)).split("\n")[:2]


def _text_of(error: BaseException, about: Command) -> str:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        package = _PACKAGES.get(f"{group}/{name}")
        extra = f", or install it with pip install {package}" if package else ""
        named = [option for option in error.options if option != "auto"]  # which is what one has without a choice
        return f"unknown {group} '{name}'; choose one of {', '.join(named)}{extra}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    first_line = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if isinstance(cause, OmegaConfBaseException):
        key = cause.full_key or ""
        if re.search(r"Key '.*' (is not in struct|not in '\w+')|has no attribute", first_line) and key:
            return _unknown_key(key, about)
        if key and (match := re.search(r"Invalid value assigned: (\w+) is not a ListConfig", first_line)):
            return f"{key} must be a list such as {key}=[1,2], got {'a text' if match[1] == 'str' else 'one value'}"
        if key and (match := re.match(r"(Value '.*') of type '\w+' could not be converted to (\w+)", first_line)):
            return f"{key} must be {_KINDS.get(match[2], match[2])}, got {match[1].removeprefix('Value ')}"
        return f"{key}: {first_line}" if key else first_line
    if isinstance(error, OSError) and error.strerror and not error.filename:  # of a file that was open already
        return f"cannot write: {error.strerror}"
    if isinstance(error, OSError) and error.filename:
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", [])[:1])
        return f"cannot write to {error.filename}: {error.strerror}{notes}; {_OTHER_FOLDER}"
    if match := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", str(error)):
        return f"{match[1]} is several values: add -m to run one after another, or write a list as key=[1,2]"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if match := re.match(r"Error parsing override '(.*)'\s+missing EQUAL at '<EOF>'", str(error)):
        return f"'{match[1]}' has no =; write key=value, such as init=he"
    if isinstance(error, CompactHydraException | ConfigError):
        return "\n".join(lines[:2])
    if isinstance(error, MemoryError) or re.search(r"not enough memory|can't allocate|out of memory", str(error)):
        return "not enough memory; choose a smaller depth, width, batch_size or seeds, or fewer data"
    # Not foreseen.
    return f"{type(error).__name__}: {lines[0] if lines else ''}\nHYDRA_FULL_ERROR=1 shows where it happened"


def _unknown_key(key: str, about: Command) -> str:
    keys = list(defaults(about.schema))
    within = [name for name in keys if name.rpartition(".")[2] == key]  # such as heads, of model.heads
    close = within[:1] if len(within) == 1 else difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown option '{key}'{hint} (python -m gradexp.{about.name} --help lists them all)"
