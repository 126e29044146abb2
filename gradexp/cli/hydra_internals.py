"""Every internal name of Hydra that is used, and all that differs between its releases 1.3 and 1.4.

The names exist in 1.3.2, the oldest that is supported, in 1.3.8 and in the pre-release 1.4.0rc3. A release that
renames one, or the end of 1.3's support, is this file's work, but for the base class of our sweeper in
``hydra_plugins``: a plug-in may load nothing of ours, and Hydra 1.3 makes that class anew when it looks for plug-ins.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import hydra
import yaml  # type: ignore[import-untyped]
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import _flush_loggers
from hydra.types import HydraContext
from hydra.version import setbase
from omegaconf import DictConfig
from omegaconf._utils import get_omega_conf_dumper

__all__ = ["Callbacks", "get_args_parser"]
# Callbacks (Hydra 1.1): Hydra's ``run_job`` wants them, also in a cluster's process. Without them: none there.
# get_args_parser (Hydra 1.0): knows the flags that a command line is checked for. Without it: list them.

CORE_PLUGINS = "hydra._internal.core_plugins."
"""The home of Hydra's own sweepers and launchers, which configs name (Hydra 1.0)."""

_IS_1_3 = hydra.__version__.startswith("1.3")
_VERSION_BASE = "1.3"

version_base: dict[str, Any] = {"version_base": _VERSION_BASE} if _IS_1_3 else {}
"""The argument of that name for ``hydra.main`` and ``initialize``: 1.3 warns where it is missing, 1.4 where it is."""


def set_version_base() -> None:
    """Make Hydra behave in a worker process as in the command."""
    if _IS_1_3:
        setbase(_VERSION_BASE)


def store(name: str, node: Any, **place: str) -> None:
    """Register a config, in place of one of that name: 1.3 does so by itself, 1.4 wants to be told.

    Args:
        name: The config's name.
        node: A dataclass, an object of one, or a dict.
        **place: Its ``group`` and ``provider``, if any.
    """
    replace: dict[str, Any] = {} if _IS_1_3 else {"replace": True}
    ConfigStore.instance().store(name=name, node=node, **place, **replace)


def split_sweep(overrides: Sequence[Override]) -> list[list[str]]:
    """Return the overrides of each job of a sweep (Hydra 1.0).

    Without it all combinations of the values would have to be made, and written as overrides again, here.

    Raises:
        ValueError: For values that cannot be listed, as of a range whose step is 0.
    """
    [jobs] = BasicSweeper.split_arguments(list(overrides), None)
    return [list(job) for job in jobs]


@contextmanager
def ahead_of_its_job(composed: DictConfig) -> Iterator[None]:
    """Let ``${hydra:...}`` in a job's composed config be resolved before the job runs (Hydra 1.0).

    Without it such a value would be known only when the job runs.
    """
    settings = HydraConfig.instance()
    before, settings.cfg = settings.cfg, cast(Any, composed)  # Hydra itself keeps a copy, which takes milliseconds
    try:
        yield
    finally:
        settings.cfg = before


def has_callbacks(context: HydraContext) -> bool:
    """Return whether somebody's own callbacks follow the jobs (Hydra 1.1). Without it: assume so."""
    return bool(context.callbacks.callbacks)


def flush_loggers() -> None:
    """Bring to its place what was logged (Hydra 1.1). Without it the few lines of that function would stand here."""
    _flush_loggers()


def to_yaml(plain: Any) -> str:
    """Return plain dicts and lists as ``OmegaConf.to_yaml`` writes a config of them (OmegaConf 2.0).

    Without it they would have to become a config first, which takes four times as long.
    """
    options: dict[str, Any] = {"default_flow_style": False, "allow_unicode": True, "sort_keys": False}
    return str(yaml.dump(plain, Dumper=get_omega_conf_dumper(), **options))


def without_hydra_node(composed: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own options; the others are now nodes of both (OmegaConf 2.0).

    Without it all would be copied, and most of it removed again, which takes fifty times as long.
    """
    content, composed.__dict__["_content"] = composed.__dict__["_content"], {}
    try:
        options = copy.deepcopy(composed)  # its type and flags
    finally:
        composed.__dict__["_content"] = content
    options.__dict__["_content"] = {key: node for key, node in content.items() if key != "hydra"}
    options._re_parent()
    return options


def is_group(loader: ConfigLoader, name: str) -> bool:
    """Return whether a name is that of a group of configs, of which an option chooses one (Hydra 1.0).

    Without it a group could not be told from an option whose value is a text.
    """
    return bool(cast(ConfigLoaderImpl, loader).repository.group_exists(name))


def set_options(composed: DictConfig, options: Sequence[Override]) -> None:
    """Set options in a config that was composed without them, with Hydra's own last step of composing (Hydra 1.0).

    Without it each job of a sweep would have to be composed from all files anew, which takes forty times as long.

    Raises:
        ConfigCompositionException: For an option that does not exist, or whose value does not fit.
    """
    ConfigLoaderImpl._apply_overrides_to_config(list(options), composed)


def name_of_job(composed: DictConfig, overrides: Sequence[Override]) -> str:
    """Return a job's ``override_dirname`` from the overrides that are not Hydra's own (Hydra 1.0).

    Without it the few lines of that function would stand here.
    """
    style = composed.hydra.job.config.override_dirname
    name: str = get_overrides_dirname(list(overrides), style.exclude_keys, style.item_sep, style.kv_sep)
    return name


@contextmanager
def checked_configs(check: Callable[[DictConfig], None]) -> Iterator[None]:
    """Let a function see each composed config before Hydra uses it (Hydra 1.0).

    Without it a config could be seen only when the code that it names has run.
    """
    load = ConfigLoaderImpl.load_configuration

    def checked(self: ConfigLoaderImpl, *args: Any, **options: Any) -> DictConfig:
        composed = load(self, *args, **options)
        check(composed)
        return composed

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]
