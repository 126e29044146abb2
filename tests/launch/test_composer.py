"""The configs of a sweep's jobs are those that Hydra itself composes, to the last node."""

from typing import Any

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Container

from gradexp.cli.composing import _merged, _plain_config, ahead_of_its_job, config_of_job
from gradexp.config import Config
from gradexp.launch.composer import Composer

# Choices whose subtrees differ, presets, lists, texts with signs, values that refer to others, that are missing, or
# that must be converted, and overrides that only Hydra itself can tell: added, removed, Hydra's own, wrong.
JOBS = [
    [],
    ["seed=3"],
    ["init=he", "seed=3"],
    ["seed=4", "init=he"],
    ["init=normal", "init.std=0.1"],
    ["init.std=0.1", "init=normal"],
    ["init=orthogonal", "optimizer=adam", "data=gaussian", "data.samples=99", "optimizer.lr=1e-3"],
    ["optimizer=adam", "optimizer.lr=1e-3", "init=sparse", "init.sparsity=0.5", "width=8"],
    ["experiment=cure"],
    ["experiment=critical_line", "depth=5"],
    ["widths=[3,4,5]"],
    ["widths=null", "record.profile_steps=[1,2]", "record.every=1"],
    ["data=file", "data.path='a b,c=d.npz'"],
    ["data=file", "data.path=${oc.env:HOME}/x.npz"],
    ["depth=${width}", "width=7"],
    ["batch_size=${hydra:job.num}"],
    ["seed=${hydra.job.num}"],
    ["depth=???"],
    ["quiet=yes", "bias=false", "device=cpu", "threads=2"],
    ["depth='12'", "optimizer.lr=1"],
    ["+hydra.job.env_set.A=b", "seed=1"],
    ["hydra.sweep.subdir=x", "seed=1"],
    ["~experiment"],
    ["++depth=9", "init=he"],
    ["verdict={decades: 4}"],
    ["hydra/launcher=ensemble", "seed=1"],
    ["seed=1", "seed=2"],
]
WRONG = [
    ["init@data=he"],
    ["+experiment=cure"],
    ["experiment=null", "depth=5"],
    ["depth=deep"],
    ["deepth=3"],
    ["init=hee"],
    ["init=[he,xavier]"],
    ["init=he", "init=xavier"],
    ["seed=1,2"],
    ["+unknown=3"],
    ["init.gain=[1]"],
    ["record=null"],
    ["~depth"],
]
SWEEPS = [["width=16"], [], ["experiment=depth_sweep"], ["hydra.sweep.dir=here", "hydra/launcher=ensemble"]]
_SLOW = pytest.mark.slow  # Hydra takes 60 ms for a config


def outcome(function: Any, *arguments: Any) -> Any:
    """Return what a function returns, or how it fails."""
    try:
        return function(*arguments)
    except Exception as error:
        return type(error), str(error), type(error.__cause__), str(error.__cause__)


def nodes(node: Any) -> Any:
    """Return all that a config holds: kinds of nodes, types, flags and values."""
    data = node._metadata
    facts = (type(node), data.ref_type, data.object_type, data.optional, data.key, data.flags or {})
    if not isinstance(node, Container) or node._is_none() or node._is_missing():
        return *facts, node._value()
    inside = node.items_ex(resolve=False) if isinstance(node, DictConfig) else enumerate(node._iter_ex(resolve=False))
    content = {key: nodes(node._get_node(key)) for key, _ in inside}
    return *facts, getattr(data, "resolver_cache", None), content


@pytest.mark.parametrize(
    ("sweep", "share"), [(SWEEPS[0], 8), *(pytest.param(sweep, 1, marks=_SLOW) for sweep in SWEEPS)]
)
def test_a_job_is_composed_as_hydra_does(loader: ConfigLoader, sweep: list[str], share: int) -> None:
    master = loader.load_configuration("config", sweep, RunMode.MULTIRUN)
    composer = Composer(loader)
    for overrides in (JOBS + WRONG)[::share]:
        expected = outcome(loader.load_sweep_config, master, overrides)
        for _ in range(2):  # the second comes from a template, if there is one
            found = outcome(composer.compose, master, overrides)
            if isinstance(expected, DictConfig):
                assert isinstance(found, DictConfig), (overrides, found)
                assert nodes(found) == nodes(expected), overrides
            else:
                assert found == expected, overrides


@pytest.mark.slow
def test_hydra_composes_only_one_job_of_a_kind(loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    composer = Composer(loader)
    composed: list[list[str]] = []
    load = loader.load_sweep_config
    monkeypatch.setattr(
        loader, "load_sweep_config", lambda one, overrides: composed.append(list(overrides)) or load(one, overrides)
    )
    for init in ("he", "xavier"):
        for seed in range(20):
            composer.compose(master, [f"init={init}", f"seed={seed}", f"depth={seed + 2}"])
    assert composed == [["init=he"], ["init=xavier"]]


@pytest.mark.slow
def test_jobs_do_not_share_what_they_change(loader: ConfigLoader) -> None:
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    composer = Composer(loader)
    first = composer.compose(master, ["seed=1", "widths=[2,3]"])
    first.widths.append(4)
    first.hydra.job.num = 7
    second = composer.compose(master, ["seed=2"])
    assert nodes(second) == nodes(loader.load_sweep_config(master, ["seed=2"]))


@pytest.mark.slow
@pytest.mark.parametrize("share", [6, pytest.param(1, marks=_SLOW)])
def test_options_are_the_same_by_the_short_way_and_by_the_schema(loader: ConfigLoader, share: int) -> None:
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    composer = Composer(loader)
    shortened = 0
    for overrides in JOBS[::share]:
        job = composer.compose(master, overrides)
        with ahead_of_its_job(job):
            expected = outcome(_merged, job, Config)
        assert outcome(config_of_job, job) == expected, overrides
        shortened += outcome(_plain_config, job, Config) is not None
    assert shortened >= len(JOBS[::share]) - 6  # those with values that refer to others, are missing, or cannot work


def test_an_added_key_is_refused(loader: ConfigLoader) -> None:
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    job = loader.load_sweep_config(master, ["+init.unknown=3"])
    assert OmegaConf.select(job, "init.unknown") == 3
    assert "unknown" in str(outcome(config_of_job, job))
