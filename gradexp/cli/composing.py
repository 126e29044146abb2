"""Hydra: schema, overrides, jobs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from typing import Any

import hydra
from hydra.conf import HydraConf, RunDir, SweepDir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from gradexp import own_parts
from gradexp.choices import GROUPS, ConfigError
from gradexp.cli.about import CONFIG_DIR, RUN, Command
from gradexp.cli.hydra_internals import (
    checked_configs,
    restored_globals,
    split_sweep,
    store,
    version_base,
)
from gradexp.cli.targets import check_targets
from gradexp.config import Config
from gradexp.folder_names import folder_name


def hash_of_job(composed: DictConfig) -> tuple[str, str | None]:
    """Return the ``config_hash`` of a job of a sweep, and in one line what is wrong with its options, if anything.

    Raises:
        OmegaConfBaseException: For an unknown key, which is no job but a mistake.
    """
    from gradexp.runs.summary import config_hash, hash_of, recorded  # loads numpy

    try:
        return config_hash(to_config(composed)), None
    except ConfigError as error:
        return hash_of(recorded(without_hydra(composed))), str(error)


@contextmanager
def ahead_of_its_job(composed: DictConfig) -> Iterator[None]:
    """Let ``${hydra:...}`` in a job's composed config be resolved before the job runs."""
    with restored_globals():
        HydraConfig.instance().set_config(composed)
        OmegaConf.set_readonly(composed.hydra, None)  # which that has set
        yield


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

    Merging it into the schema once more also refuses keys that were added with ``+``.

    Raises:
        ConfigError: For a value that cannot work, or a part of somebody's own that was not typed.
        OmegaConfBaseException: For an unknown key or a wrong type.
    """
    options = without_hydra(composed)
    if schema is Config:
        own_parts.check_typed(options)
        options |= {group: own_parts.gathered(options[group], kind) for group, kind in _group_schemas(options)}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), options))


def _group_schemas(options: Mapping[str, Any]) -> list[tuple[str, type]]:
    """Return the groups of a config, with the dataclass of each."""
    types = {entry.name: entry.type for entry in fields(Config)}
    return [(group, types[group]) for group in GROUPS if isinstance(options.get(group), dict)]  # type: ignore[misc]


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
_UNNAMED = ("quiet", "device", "threads", "objective")  # they change nothing that is computed


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
