"""The runs of a folder, and what they are called on the board."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradexp.folder_names import folder_name
from gradexp.runs.summary import UNHASHED
from gradexp.runs.summary_file import NAME as SUMMARY

# Runs of the run above them: its theory, and profiles of some steps of its training. Older runs have a band as well.
_SUBRUN = re.compile(r"(.*)/(theory|theory/lower|theory/upper|step_\d+)")
_TIME = re.compile(r"\d\d-\d\d-\d\d-\d{6}")  # all that older single runs were called by
_BEFORE, _VALUE = "(?:^|[/_,])", "([^,/]+)"
_OPTION = re.compile(f"{_BEFORE}([a-z][\\w.]*)={_VALUE}")
_COLOURS = 7  # that TensorBoard has


@dataclass
class Run:
    """A run, or what somebody else's program has left for TensorBoard.

    Args:
        folder: Its folder.
        name: What it is called on the board.
        subruns: Names of the folders of its theory and its steps.
    """

    folder: Path
    name: str
    subruns: list[str] = field(default_factory=list)


def find_runs(folder: Path) -> list[Run]:
    """Return the runs in a folder or below it, under the names that TensorBoard gives them, but for three things.

    A run that is the folder itself has the folder's name instead of a dot, what all names begin with is left out, and
    an older run that has nothing but a time in its name has its options behind it.
    """
    found: dict[str, Run] = {}
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != ".hydra")
        if any("events.out.tfevents." in name for name in files):
            name = Path(path).relative_to(folder).as_posix()
            of_run = _SUBRUN.fullmatch(f"./{name}")
            above = of_run and (of_run[1].removeprefix("./") or ".")
            if of_run and above in found:
                found[above].subruns.append(of_run[2])
            else:
                found[name] = Run(Path(path), name)
    shared = _shared(list(found))
    taken: set[str] = set()
    for name, run in found.items():
        run.name = folder.resolve().name if name == "." else _said(run, name.removeprefix(shared))
        while run.name in taken:
            run.name += "_"
        taken.add(run.name)
    return list(found.values())


def _shared(names: Sequence[str]) -> str:
    """Return the folders that all names begin with."""
    above = [name.rpartition("/")[0] for name in names if name != "."]
    shared = os.path.commonpath(above) if above and all(above) and "." not in names else ""
    return f"{shared}/" if shared else ""


def _said(run: Run, name: str) -> str:
    if not _TIME.fullmatch(run.folder.name):
        return name
    overrides = _summary(run.folder).get("overrides")
    options = ",".join(map(str, overrides)) if isinstance(overrides, list) else ""
    return f"{name}_{folder_name(options)}" if options else name


def _summary(folder: Path) -> dict[str, Any]:
    """Return what the summary.json of a run holds, whichever version wrote it; nothing if it cannot be read."""
    path = folder / SUMMARY
    try:
        return _read(path, path.stat().st_mtime_ns) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}


@lru_cache(maxsize=10_000)  # the board looks again every few seconds
def _read(path: Path, _changed: int) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def varying_options(runs: Iterable[Run]) -> set[str] | None:
    """Return the options that change results and have two or more values among runs, named as they are typed.

    Returns:
        None if the options of fewer than two runs are known.
    """
    values: dict[str, set[str]] = {}
    known = [config for run in runs if isinstance(config := _summary(run.folder).get("config"), dict)]
    for config in known:
        for key, value in _flat(config):
            if value is not None and key.partition(".")[0] not in UNHASHED:  # None is of another scheme
                values.setdefault(key, set()).add(json.dumps(value))
    return {key for key, own in values.items() if len(own) > 1} if len(known) > 1 else None


def _flat(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flat(value, f"{key}.")
        else:
            yield key.removesuffix(".name"), value


def options_of(name: str) -> dict[str, str]:
    """Return the options in a run's name.

    Examples:
        >>> options_of("0_depth=10,init=he")
        {'depth': '10', 'init': 'he'}
    """
    return dict(_OPTION.findall(name))


def colour_groups(names: Iterable[str]) -> str:
    """Return a regular expression whose groups are the same in the names of runs that are to have one colour.

    These are runs with the same options but for the seed. Where there are more than colours, it is those with the
    same init, or else with the same value of the first option that differs, as hundreds of runs would otherwise share
    a few colours at random. Where names hold no options it is a run and its theory, unless there is no other run to
    be told from.

    Examples:
        >>> colour_groups(["0_depth=10,init=he,seed=0", "1_depth=10,init=xavier,seed=0"])
        '^(?=.*(?:^|[/_,])init=([^,/]+))'
    """
    options = [options_of(name) for name in names]
    if len(options) == 1:
        return "^(.*)$"
    values = {key: [run.get(key) for run in options] for run in options[:1] for key in run if key != "seed"}
    differ = {key: own for key, own in values.items() if len(set(own)) > 1 and None not in own}
    if not differ:
        return "^(.*?)(?:/(?:theory(?:/lower|/upper)?|mean.*))?$"
    if len(set(zip(*differ.values(), strict=True))) > _COLOURS:
        differ = {key: differ[key] for key in ("init" if "init" in differ else next(iter(differ)),)}
    return "^" + "".join(f"(?=.*{_BEFORE}{re.escape(key)}={_VALUE})" for key in differ)
