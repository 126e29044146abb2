"""Hydra: schema, overrides, jobs."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import hydra
from hydra.conf import HydraConf, RunDir, SweepDir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from gradexp import own_parts
from gradexp.choices import CONFIG_DIR, GROUPS, ConfigError
from gradexp.cli.about import RUN, Command
from gradexp.cli.hydra_internals import (
    ahead_of_its_job,
    checked_configs,
    split_sweep,
    store,
    version_base,
)
from gradexp.cli.targets import check_targets
from gradexp.config import Config
from gradexp.folder_names import folder_name


def config_of_job(composed: DictConfig) -> Any:
    """Return the options of a job that does not run yet.

    Raises:
        ConfigError: For a value that cannot work.
        OmegaConfBaseException: For an unknown key or a wrong type.
    """
    config = _plain_config(composed, Config)
    if config is None:
        with ahead_of_its_job(composed):
            config = _merged(composed, Config)
    return config


def hash_of_job(composed: DictConfig) -> tuple[str, str | None]:
    """Return the ``config_hash`` of a job of a sweep, and in one line what is wrong with its options, if anything.

    Raises:
        OmegaConfBaseException: For an unknown key, which is no job but a mistake.
    """
    from gradexp.runs.summary import config_hash, hash_of, recorded  # loads numpy

    try:
        return config_hash(config_of_job(composed)), None
    except ConfigError as error:
        with ahead_of_its_job(composed):
            return hash_of(recorded(without_hydra(composed))), str(error)


def only_our_targets() -> AbstractContextManager[None]:
    """Check, before Hydra runs it, that each config names no code but plug-ins."""

    def check(composed: DictConfig) -> None:
        if composed.get("hydra") is not None:
            check_targets(OmegaConf.to_container(composed.hydra))

    return checked_configs(check)


def without_hydra(composed: DictConfig) -> dict[str, Any]:
    """Return the resolved options of a composed config, without Hydra's own."""
    names = [str(key) for key in composed if key != "hydra"]
    plain = OmegaConf.to_container(OmegaConf.masked_copy(composed, names), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def to_config(composed: DictConfig, schema: type = Config) -> Any:
    """Check a composed config against a schema and return it as an object of this dataclass.

    Raises:
        ConfigError: For a value that cannot work, or a part of somebody's own that was not typed.
        OmegaConfBaseException: For an unknown key or a wrong type.
    """
    config = _plain_config(composed, schema)
    return _merged(composed, schema) if config is None else config


def _merged(composed: DictConfig, schema: type) -> Any:
    """Return a composed config as an object: merging it into the schema once more refuses keys added with ``+``."""
    options = without_hydra(composed)
    if schema is Config:
        own_parts.check_typed(options)
        kinds = [(group, kind) for group, kind in _groups(schema).items() if isinstance(options.get(group), dict)]
        options |= {group: own_parts.gathered(options[group], kind) for group, kind in kinds if group in GROUPS}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), options))


def _plain_config(composed: DictConfig, schema: type) -> Any:
    """Return what ``_merged`` would, twenty times as fast; None where its values are not all those of the schema.

    What Hydra has composed holds the schema's own nodes, which have checked each value when it was set.
    """
    plain = {str(key): _plain(value) for key, value in composed.items_ex(resolve=False) if key != "hydra"}
    if schema is Config:
        own_parts.check_typed(plain)
    return _object(schema, plain) if _is_of(composed, schema) and _is_literal(plain) else None


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _is_of(node: Any, schema: type) -> bool:
    groups = _groups(schema)
    if OmegaConf.get_type(node) is not schema:
        return False
    inside = {key: child for key, child in node.items_ex(resolve=False) if key != "hydra"}
    return inside.keys() == {entry.name for entry in dataclasses.fields(schema)} and all(
        _is_of(inside[name], group) for name, group in groups.items()
    )


@cache
def _groups(schema: type) -> dict[str, type]:
    """Return the fields of a schema that are schemas themselves."""
    types = {entry.name: entry.type for entry in dataclasses.fields(schema)}
    return {name: kind for name, kind in types.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


def _is_literal(value: Any) -> bool:
    """Return whether nothing in a value is missing or refers to something else."""
    if isinstance(value, dict | list):
        return all(map(_is_literal, value.values() if isinstance(value, dict) else value))
    return not (isinstance(value, str) and ("${" in value or value == "???"))


def _object(schema: type, plain: Mapping[str, Any]) -> Any:
    return schema(**{**plain, **{name: _object(group, plain[name]) for name, group in _groups(schema).items()}})


def expand(params: Mapping[str, Any] | None, overrides: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """Return the overrides of each job of a sweep: all combinations of values.

    Args:
        params: Options that a preset sweeps.
        overrides: The command line, which has the last word.
        loader: Hydra's, which knows the choices of ``glob``.

    Raises:
        ConfigError: If there is none.
    """
    all_overrides = [f"{key}={value}" for key, value in (params or {}).items()] + list(overrides)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(all_overrides)
    try:
        jobs = split_sweep(parsed)
    except ValueError as error:  # of a range whose step is 0, for one
        raise ConfigError(f"the values of the sweep cannot be listed: {error}") from error
    if not jobs:
        raise ConfigError("a sweep over no values: a glob or a range of the command line is empty")
    return jobs


def compose(overrides: Sequence[str], most: int | None = None) -> list[Config]:
    """Return the options of each job of a command line of ``gradexp.run``, without running any.

    Values separated by commas sweep, as after ``-m``; a preset that sweeps does so here too.

    Args:
        overrides: The command line.
        most: The number of jobs, the first ones; None: all.

    Raises:
        ConfigError: For a value that cannot work.
        CompactHydraException: For an unknown choice, or an override that cannot be read.
        OmegaConfBaseException: For an unknown key or a wrong type.

    Examples:
        >>> [(config.init.name, config.depth) for config in compose(["init=he,xavier", "depth=10"])]
        [('he', 10), ('xavier', 10)]
    """
    named = own_parts.typed(overrides)
    named.allow()
    store_config(RUN, None, named)
    with hydra.initialize_config_dir(str(CONFIG_DIR), **version_base):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        plain = [text for text, override in zip(overrides, parsed, strict=True) if not override.is_sweep_override()]
        sweeper = hydra.compose("config", plain, return_hydra_config=True).hydra.sweeper
        return [to_config(hydra.compose("config", job)) for job in expand(sweeper.params, overrides, loader)[:most]]


_RUN_NAME = "gradexp.run_name"
_UNNAMED = ("quiet", "device", "threads", "log", "objective")  # they change nothing that is computed


def run_name(time: str, overrides: Sequence[str]) -> str:
    """Return the name of a run's folder: when it began, and the options that were typed, in their order.

    Examples:
        >>> run_name("21-16-01-015112", ["init=he", "depth=150", "quiet=true"])
        '21-16-01-015112_init=he,depth=150'
    """
    options = [text.lstrip("+") for text in overrides]
    named = [text for text in options if text.partition("=")[0] not in _UNNAMED and not text.startswith("record")]
    return folder_name("_".join(filter(None, [time, ",".join(named).translate(_NO_QUOTES)])))


_NO_QUOTES = str.maketrans("", "", "'\"")
# Here, since a worker process may resolve a config as well.
OmegaConf.register_new_resolver(_RUN_NAME, run_name, replace=True)


def store_config(about: Command, scratch: str | None, named: own_parts.Typed) -> None:
    """Register a command's schema, choices and folders with Hydra."""
    if about.schema is Config:
        store(name="schema", node=named.widened(Config))
        for group, choices in GROUPS.items():
            for choice, options in choices.items():
                store(group=group, name=choice, node={"name": choice, **options})
            if group == "init":
                store(group=group, name="auto", node={"name": "auto"})
            for path in named.paths:
                store(group=group, name=path, node={"name": path})
    else:
        store(name=about.name, node=about.schema)
    # Hydra's own defaults, changed here rather than in config.yaml: they then also hold for a run that is repeated
    # from its snapshot. Microseconds give runs that start in the same second folders of their own, and options tell
    # them apart; no job log is kept, since the run writes its own files; and keys that would only lengthen a job's
    # name are left out of it.
    name = f"${{{_RUN_NAME}:${{now:%H-%M-%S-%f}},${{hydra.overrides.task}}}}"
    settings = HydraConf(
        run=RunDir(dir=scratch or f"outputs/${{now:%Y-%m-%d}}/{name}"),
        sweep=SweepDir(
            dir=scratch or "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}",
            subdir="${hydra.job.num}_${hydra.job.override_dirname}",
        ),
    )
    settings.job.config.override_dirname.exclude_keys = ["experiment", *_UNNAMED]
    replaced = {"job_logging": "none", "hydra_logging": "none"}
    if about.compares:
        replaced["sweeper"] = "resumable"
    settings.defaults = [
        {key: replaced.get(key, choice) for key, choice in entry.items()} for entry in settings.defaults
    ]
    store(group="hydra", name="config", node=settings, provider="gradexp")
