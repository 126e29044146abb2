"""What the commands share: the config folder, the schema, help, exit codes and one-line errors.

Hydra is imported here and in the commands only, and torch not at all.
"""

import ast
import difflib
import inspect
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Self

import hydra
from hydra.conf import HydraConf, RunDir, SweepDir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradexp import config as schema
from gradexp.config import Config, ConfigError

_HERE = Path(__file__).resolve().parent
# Installed from a wheel the YAML files lie inside the package, in a checkout beside it.
CONFIG_DIR = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"

_IS_HYDRA_1_3 = hydra.__version__.startswith("1.3")

_GROUPS = {"init": schema.INIT_OPTIONS, "data": schema.DATA_OPTIONS, "optimizer": schema.OPTIMIZER_OPTIONS}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM. It unwinds the run, so that its files are completed, and sets the exit code.

    A class of its own for Ctrl-C too: Python ends itself by SIGINT, with no exit code, after a plain
    KeyboardInterrupt that passed through an import, even if it was caught.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.exit_code = 128 + signum


class Interruptions:
    """Turn the first SIGINT or SIGTERM into ``Interrupted``, and ignore later ones while files are completed.

    It is a sink as well: an exception raised inside an import or a callback of a library may be swallowed there,
    and is then raised again at the next sign of life of the run.
    """

    def __init__(self) -> None:
        self.pending: Interrupted | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over both signals, unless they are ignored, as in a job that outlives its terminal."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def write(self, stage: str, _result: object) -> None:
        """Raise an interruption that was swallowed."""
        if self.pending is not None and stage != "end":
            raise self.pending

    def close(self) -> None:
        """Nothing is held open."""

    def _raise(self, signum: int, _frame: object) -> None:
        if self.pending is None:
            self.pending = Interrupted(signum)
            raise self.pending


def command(job: Callable[[Config, Path, list[str], Interruptions], None]) -> Callable[[], None]:
    """Turn a job into a command line: compose its config with Hydra, and report every mistake in a line or two.

    Exit codes are 0, 1 after an error, 130 after Ctrl-C and 143 after SIGTERM. With the environment variable
    HYDRA_FULL_ERROR=1 errors keep their traceback.

    Args:
        job: Given the checked options, the run's own folder, the overrides and a sink for interruptions.

    Returns:
        The command.
    """

    def main() -> None:
        interruptions = Interruptions()

        def from_hydra(composed: DictConfig) -> None:
            settings = HydraConfig.get()
            folder = Path(settings.runtime.output_dir)
            try:
                job(to_config(composed), folder, list(settings.overrides.task), interruptions)
            except KeyboardInterrupt:
                _say(f"interrupted; what was measured so far is in {folder}")
                raise

        # Hydra 1.3 warns where version_base is missing, 1.4 where it is there.
        base = {"version_base": "1.3"} if _IS_HYDRA_1_3 else {}
        with interruptions:
            _run_safely(hydra.main(config_path=str(CONFIG_DIR), config_name="config", **base)(from_hydra))

    return main


def to_config(composed: DictConfig) -> Config:
    """Check a composed config against the schema and return it as a ``Config``.

    Merging it into the schema once more also refuses keys that were added with ``+``.

    Raises:
        ConfigError: For a value that cannot work.
        OmegaConfBaseException: For an unknown key or a wrong type.
    """
    plain = OmegaConf.to_container(composed, resolve=True)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert isinstance(config, Config)
    return config


def _run_safely(run: Callable[[], Any]) -> None:
    wants_traceback = "HYDRA_FULL_ERROR" in os.environ
    # Hydra would print errors in its own way and leave; this makes it pass them on.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without unicode shows ? instead of failing

    try:
        run()
    except Interrupted as interruption:
        sys.exit(interruption.exit_code)
    except Exception as error:
        if wants_traceback:
            raise
        _say(error_line(error))
        sys.exit(1)
    finally:
        if not wants_traceback:
            del os.environ["HYDRA_FULL_ERROR"]


def error_line(error: BaseException) -> str:
    """Say in one or two lines what was wrong, what was given and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        return f"unknown {group} '{name}'; choose one of {', '.join(error.options)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    first_line = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if isinstance(cause, OmegaConfBaseException):
        key = cause.full_key or ""
        if re.search(r"Key '.*' (is not in struct|not in '\w+')|has no attribute", first_line) and key:
            return _unknown_key(key)
        return f"{key}: {first_line}" if key else first_line
    if isinstance(error, OSError) and error.filename:
        return f"cannot write to {error.filename}: {error.strerror}; choose another folder with hydra.run.dir=FOLDER"
    if match := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        return f"{match[1]} is several values: add -m to run one after another, or write a list as key=[1,2]"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, CompactHydraException | ConfigError):
        return "\n".join(lines[:2])
    # Not foreseen, for example too little memory.
    return f"{type(error).__name__}: {lines[0] if lines else ''}\nHYDRA_FULL_ERROR=1 shows where it happened"


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


def _unknown_key(key: str) -> str:
    known = [option.key for option in list_options()]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown option '{key}'{hint} (python -m gradexp.run --help lists them all)"


@dataclass(frozen=True)
class Option:
    """One option as the help shows it."""

    key: str
    default: Any
    text: str


def list_options() -> list[Option]:
    """List every option with its default and the string under its field in config.py."""
    return _options_of(Config, "")


def _options_of(cls: type, prefix: str) -> list[Option]:
    texts = _field_texts(cls)
    found = []
    for entry in fields(cls):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            found += _options_of(entry.type, f"{entry.name}.")
        else:
            found.append(Option(prefix + entry.name, entry.default, texts[entry.name]))
    return found


def _field_texts(cls: type) -> dict[str, str]:
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, follower in zip(body.body, body.body[1:], strict=False):
        match statement, follower:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[key] = text
    return texts


def _help_text() -> str:
    lines = ["Build, measure and train one very deep network.", "", "  python -m gradexp.run init=he depth=150", ""]
    lines += ["Choices, each with its own options (group=choice, group.option=value):", ""]
    for group, choices in _GROUPS.items():
        lines.append(f"  {group}")
        for name, own in choices.items():
            shown = " ".join(f"{group}.{key}={_yaml(value)}" for key, value in own.items())
            lines.append(f"    {group}={name:<17} {shown}".rstrip())
    presets = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
    lines += [f"  experiment (presets): {', '.join(presets)}", "", "Options:", ""]
    for option in list_options():
        if option.key.endswith(".name"):
            continue
        default = "" if option.key.partition(".")[0] in _GROUPS else f"={_yaml(option.default)}"
        lines.append(f"  {option.key + default:<26} {option.text}")
    lines += ["", f"Activations: {', '.join(schema.ACTIVATIONS)}", ""]
    lines += [
        "Sweep with -m: python -m gradexp.run -m init=he,xavier depth=10,50,150",
        "Hydra's own flags: --hydra-help",
    ]
    # Braces and dollars would be taken for parts of Hydra's template.
    return "\n".join(lines).replace("$", "$$")


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _store() -> None:
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    # A resolver, so that the text is put together for --help only and does not stand in every run's snapshot.
    # Hydra 1.4's omegaconf calls it by another name.
    register: Any = getattr(OmegaConf, "register_new_resolver" if _IS_HYDRA_1_3 else "register_resolver")
    register("gradexp_help", _help_text, replace=True)
    help_node = {"app_name": "gradexp.run", "header": "", "footer": "", "template": "${gradexp_help:}"}
    store.store(group="hydra/help", name="gradexp", node=help_node)
    # Hydra's own defaults, changed here rather than in config.yaml: they then also hold for a run that is repeated
    # from its snapshot. Microseconds give runs that start in the same second folders of their own; no job log is
    # kept, since the run writes its own files; and keys that would only lengthen a job's name are left out of it.
    settings = HydraConf(
        run=RunDir(dir="outputs/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}"),
        sweep=SweepDir(
            dir="multirun/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}",
            subdir="${hydra.job.num}_${hydra.job.override_dirname}",
        ),
    )
    settings.job.config.override_dirname.exclude_keys = ["experiment", "quiet", "device", "threads"]
    replaced = {"help": "gradexp", "job_logging": "none"}
    settings.defaults = [
        {key: replaced.get(key, choice) for key, choice in entry.items()} for entry in settings.defaults
    ]
    replace: dict[str, Any] = {} if _IS_HYDRA_1_3 else {"replace": True}  # 1.3 always replaces
    store.store(group="hydra", name="config", node=settings, provider="gradexp", **replace)


_store()
