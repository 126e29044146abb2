"""The options of one choice, as of init=mean_field: unset ones take its defaults, others are refused."""

import dataclasses
import math
from typing import Any, NoReturn

from gradexp.choices import GROUPS, OF_EVERY_OPTIMIZER, ConfigError, require
from gradexp.own_parts import REQUIRED, OwnPart, hint, is_plain, options_of

AUTO = "auto"
"""An init that is chosen once the family of networks is known."""


def options_of_choice(group: str, name: str) -> dict[str, Any]:
    """Return the options of a choice with their defaults."""
    options = options_of(group, name)
    return options | OF_EVERY_OPTIMIZER if group == "optimizer" else options


def resolve(group: str, config: Any) -> None:
    """Give the unset options of a group's choice their defaults, and check that it has those that are set.

    Args:
        group: Model, init, data or optimizer.
        config: Its options; ``name`` is the choice.

    Raises:
        ConfigError: For a choice that is not there, an option that it lacks, or a value that is not like its default.
    """
    if group == "init" and config.name == AUTO:
        return
    is_own = isinstance(config.name, OwnPart)
    text = f"one of {', '.join(GROUPS[group])}"
    require(is_own or config.name in GROUPS[group], group, config.name, text, hint(group, config.name))
    defaults = options_of_choice(group, config.name)
    for entry in dataclasses.fields(config):
        if entry.name in ("name", "own"):
            continue
        value = getattr(config, entry.name)
        if value is None and entry.name in defaults:
            value = defaults[entry.name]
            _require_option(group, config.name, entry.name, value)
            setattr(config, entry.name, value)
        elif value is not None and entry.name not in defaults:
            refuse_option(group, config.name, entry.name, defaults)
    if is_own:
        _resolve_own(group, config, defaults)
    elif config.own:
        refuse_option(group, config.name, next(iter(config.own)), defaults)


def _resolve_own(group: str, config: Any, defaults: dict[str, Any]) -> None:
    """Do the same for the options that no built-in choice has."""
    known = {entry.name for entry in dataclasses.fields(config)}
    for key, value in config.own.items():
        if key in known or (key not in defaults and not config.name.takes_any):
            refuse_option(group, config.name, key, defaults)
        allowed = is_plain(value) and not (isinstance(value, float) and not math.isfinite(value))
        require(allowed, f"{group}.{key}", value, "a finite number, a truth value, a text or a list of such")
        require(_is_like(value, defaults.get(key)), f"{group}.{key}", value, f"like its default, {defaults.get(key)}")
    unset = {key: value for key, value in defaults.items() if key not in known and value is not None}
    for key, value in unset.items():
        _require_option(group, config.name, key, config.own.get(key, value))
    config.own = unset | config.own


def _is_like(value: Any, default: Any) -> bool:
    """Return whether a value is a number where the default is one, and a truth value where that is one."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    return not isinstance(default, int | float) or (isinstance(value, int | float) and not isinstance(value, bool))


def _require_option(group: str, name: str, key: str, value: Any) -> None:
    if value is REQUIRED:
        raise ConfigError(f"{group} '{name}' needs {group}.{key}, which has no default")


def refuse_option(group: str, name: str, key: str, allowed: dict[str, Any]) -> NoReturn:
    """Say which options a choice takes instead.

    Raises:
        ConfigError: Always.
    """
    raise ConfigError(f"{group} '{name}' has no option '{key}'; it takes {', '.join(allowed) or 'none'}")


def check_fields(group: str, schema: type) -> None:
    """Check that a group's schema, and with it the command line, knows every option of every choice.

    Raises:
        ConfigError: For one that it lacks.
    """
    for name, options in GROUPS[group].items():
        for option in options.keys() - {entry.name for entry in dataclasses.fields(schema)}:
            raise ConfigError(
                f"{group} '{name}' has an option '{option}', which {schema.__name__} in config.py lacks: "
                f"give it a field there, '{option}: TYPE | None = None', and a line of help"
            )
