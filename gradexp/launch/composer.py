"""The configs of a sweep's jobs: Hydra composes one of a kind, and the others differ from it in some values.

Composing reads every file of the defaults list and merges a hundred nodes: 60 ms. Jobs with the same choices of
groups, such as ``init=he``, share all of that, and what is left takes 1 ms.
"""

import pickle
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict

from gradexp.cli.hydra_internals import is_group, name_of_job, set_options

# Kinds of jobs that are kept, of about 15 kB each.
_MOST = 256
# Texts of overrides, of about 2 kB each when parsed.
_MOST_TEXTS = 4096


class Composer:
    """A config loader that composes the jobs of a sweep, and knows the folders that the sweeper has given them.

    Args:
        loader: Hydra's own, which does all else.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._templates: dict[tuple[str, ...], bytes] = {}
        self._groups: dict[str, bool] = {}
        self._parser = OverridesParser.create()
        self._overrides: dict[str, Override] = {}  # jobs share most of them
        self._placed: dict[tuple[str, ...], tuple[int, str, str]] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __reduce__(self) -> Any:
        """Leave everything behind: a worker process composes its own job only."""
        return Composer, (self._loader,)

    def compose(self, master: DictConfig, overrides: Sequence[str], name: str | None = None) -> DictConfig:
        """Return what Hydra would compose for a job.

        Args:
            master: The config of the sweep.
            overrides: Those of the job.
            name: What it differs in from other jobs; None: Hydra's name for it.

        Raises:
            HydraException: As Hydra's, for overrides that cannot work.
        """
        try:
            job = self._from_template(master, overrides, name)
        except Exception:  # which Hydra tells better
            job = None
        if job is None:
            job = self._loader.load_sweep_config(master, list(overrides))
            if name is not None:
                with open_dict(job):
                    job.hydra.job.override_dirname = name
        return job

    def place(self, overrides: Sequence[str], folder: str, name: str) -> list[str]:
        """Give a job its folder, and return the overrides by which a launcher then asks for it.

        Args:
            overrides: Those of the job.
            folder: Name of its folder.
            name: What it differs in from other jobs.
        """
        asked = [*overrides, f"hydra.sweep.subdir={QuotedString(folder, Quote.single).with_quotes()}"]
        self._placed[tuple(asked)] = (len(overrides), name, folder)
        return asked

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        """Return the config of a job, as launchers ask for it."""
        placed = self._placed.get(tuple(sweep_overrides))
        if placed is None:
            return self.compose(master_config, sweep_overrides)
        count, name, folder = placed
        job = self.compose(master_config, sweep_overrides[:count], name)
        with open_dict(job):
            job.hydra.sweep.subdir = folder
        return job

    def _from_template(self, master: DictConfig, overrides: Sequence[str], name: str | None) -> DictConfig | None:
        """Return a job's config made from that of another job, or None where it would be no sure thing."""
        if master.hydra.searchpath:  # there may be groups in it that this loader does not see
            return None
        parsed = list(map(self._parsed, overrides))
        if not all(map(_is_plain, parsed)):
            return None
        choices = tuple(each.input_line or "" for each in parsed if self._is_group(each.key_or_group))
        if choices not in self._templates:
            template = self._loader.load_sweep_config(master, list(choices))
            if len(self._templates) >= _MOST:
                self._templates.clear()
            self._templates[choices] = pickle.dumps(template, pickle.HIGHEST_PROTOCOL)
        job: DictConfig = pickle.loads(self._templates[choices])  # noqa: S301  four times as fast as a deep copy
        set_options(job, [each for each in parsed if not self._is_group(each.key_or_group)])
        job.hydra.overrides.task = [each.input_line for each in parsed]
        job.hydra.job.override_dirname = name_of_job(job, parsed) if name is None else name
        OmegaConf.copy_cache(from_config=master, to_config=job)  # as Hydra does: of the time, for one
        return job

    def _parsed(self, text: str) -> Override:
        if text not in self._overrides:
            if len(self._overrides) >= _MOST_TEXTS:
                self._overrides.clear()
            [self._overrides[text]] = self._parser.parse_overrides([text])
        return self._overrides[text]

    def _is_group(self, name: str) -> bool:
        if name not in self._groups:
            self._groups[name] = is_group(self._loader, name)
        return self._groups[name]


def _is_plain(override: Override) -> bool:
    """Return whether an override changes one of the run's own options, or chooses one of a group.

    What adds or removes keys may do so in what others change, and Hydra's own options may be looked at early.
    """
    return (
        override.type is OverrideType.CHANGE
        and override.package is None
        and not override.is_sweep_override()
        and not override.is_hydra_override()
        and not isinstance(override.value(), dict)
    )
