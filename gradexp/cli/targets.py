"""Code that a config may name: Hydra's plug-ins, Optuna's samplers and the classes of loggers, and nothing else.

A run is repeated from the ``.hydra`` folder that somebody else has sent, whose config may name anything.
"""

import re
from importlib.util import find_spec
from typing import Any

from gradexp.choices import ConfigError
from gradexp.cli.hydra_internals import CORE_PLUGINS

_PLUGINS = ("hydra_plugins.", CORE_PLUGINS)
_SAMPLERS = re.compile(r"optuna\.samplers\.[A-Z]\w*")  # a part of the settings of Optuna's sweeper
_LOGGERS = re.compile(r"(logging(\.handlers)?|colorlog)\.[A-Z]\w*")
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")


def check_targets(settings: Any, key: str = "hydra") -> None:
    """Check that Hydra's settings name no code but plug-ins, as targets, callbacks or factories of loggers.

    Args:
        settings: A mapping, list or value.
        key: The key under which they stand.

    Raises:
        ConfigError: For the first that does.
    """
    if key == "hydra.callbacks" and settings:
        raise ConfigError("hydra.callbacks is refused, since it runs whatever code it names; leave it out")
    if key == "hydra.sweeper.custom_search_space" and settings:
        raise ConfigError(f"{key} is refused, since it runs whatever code it names; leave it out")
    if isinstance(settings, dict):
        for name, value in settings.items():
            is_sampler = key == "hydra.sweeper.sampler" and _SAMPLERS.fullmatch(str(value))
            if name == "_target_" and not is_sampler and not _is_plugin(str(value)):
                choice = f"; choose one with {key.replace('.', '/')}=NAME" if key.count(".") == 1 else ""
                raise ConfigError(f"{key}._target_ must be the class of a plug-in of Hydra, got '{value}'{choice}")
            if name in ("()", "class") and not _LOGGERS.fullmatch(str(value)):
                raise ConfigError(f"{key}.{name} must be a class of logging, got '{value}'")
            check_targets(value, f"{key}.{name}")
    elif isinstance(settings, list):
        for index, entry in enumerate(settings):
            check_targets(entry, f"{key}[{index}]")
    elif isinstance(settings, str) and settings.startswith("ext://") and settings not in _STREAMS:
        raise ConfigError(f"{key} must be one of {', '.join(_STREAMS)}, got '{settings}'")


def _is_plugin(target: str) -> bool:
    """Return whether a class is of a module of a plug-in, not of what such a module has imported."""
    module, _, name = target.rpartition(".")
    if not target.startswith(_PLUGINS) or not name.isidentifier():
        return False
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
