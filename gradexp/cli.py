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
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf, RunDir, SweepDir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradexp import config as schema
from gradexp.config import Config, ConfigError

_HERE = Path(__file__).resolve().parent
# Installed from a wheel the YAML files lie inside the package, in a checkout beside it.
CONFIG_DIR = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"

_OTHER_FOLDER = "choose another folder with hydra.run.dir=FOLDER, or of a sweep with hydra.sweep.dir=FOLDER"

_IS_HYDRA_1_3 = hydra.__version__.startswith("1.3")
_VERSION_BASE = "1.3"

# Choices that come with an extra of the same name.
_EXTRAS = {"hydra/launcher": ("joblib",)}
_GROUPS = {"init": schema.INIT_OPTIONS, "data": schema.DATA_OPTIONS, "optimizer": schema.OPTIMIZER_OPTIONS}


@dataclass(frozen=True)
class Command:
    """What tells one command line from another.

    Args:
        name: What follows ``python -m gradexp.``.
        summary: What it does, the first line of its help.
        example: Options to begin with.
        sweep: Options of a sweep.
        schema: Dataclass of its options. Those of ``Config`` are composed from the config folder.
        unused: Options and groups that the help leaves out, since they change nothing here.
        keeps_files: Whether a job leaves files in a folder of its own.
    """

    name: str
    summary: str
    example: str
    sweep: str
    schema: type = Config
    unused: tuple[str, ...] = ()
    keeps_files: bool = True

    @property
    def compares(self) -> bool:
        """Whether a sweep can be gone on with and ends with a comparison: of runs, which leave a summary."""
        return self.keeps_files and self.schema is Config


RUN = Command(
    "run",
    summary="Build, measure and train one very deep network.",
    example="init=he depth=150",
    sweep="init=he,xavier depth=10,50,150",
)


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


def command(job: Callable[[Any, Path, list[str], Interruptions], None], about: Command = RUN) -> Callable[[], None]:
    """Turn a job into a command line: compose its config with Hydra, and report every mistake in a line or two.

    Exit codes are 0, 1 after an error, 130 after Ctrl-C and 143 after SIGTERM. With the environment variable
    HYDRA_FULL_ERROR=1 errors keep their traceback.

    Args:
        job: Given the checked options, the run's own folder, the overrides and a sink for interruptions.
        about: Name, help and schema.

    Returns:
        The command.
    """

    def main() -> None:
        interruptions = Interruptions()
        _fix_order_of_sums()
        wants_traceback = "HYDRA_FULL_ERROR" in os.environ

        def from_hydra(composed: DictConfig) -> None:
            settings = HydraConfig.get()
            folder = Path(settings.runtime.output_dir)
            overrides = list(settings.overrides.task)
            of_sweep = about.compares and settings.mode is RunMode.MULTIRUN
            try:
                job(
                    _checked(composed, about, folder if of_sweep else None, overrides),
                    folder,
                    overrides,
                    interruptions,
                )
            except KeyboardInterrupt:
                if not of_sweep:
                    in_folder = f"; what was measured so far is in {folder}" if about.keeps_files else ""
                    _say(f"interrupted{in_folder}")
                raise
            except Exception as error:
                if not of_sweep:
                    raise
                # The other jobs go on, and what a worker process raises must be of a kind that can be sent.
                line = error_line(error, about).partition("\n")[0]
                _say(f"{folder.name}: {traceback.format_exc() if wants_traceback else line}")
                raise ConfigError(line) from None

        def run() -> None:
            # Hydra always makes a folder. That of a command without files is gone when it ends.
            temporary = nullcontext() if about.keeps_files else tempfile.TemporaryDirectory(prefix="gradexp-")
            with temporary as scratch:
                _store(about, scratch)
                is_composed = about.schema is Config
                # Hydra 1.3 warns where version_base is missing, 1.4 where it is there.
                base = {"version_base": _VERSION_BASE} if _IS_HYDRA_1_3 else {}
                path, name = (str(CONFIG_DIR), "config") if is_composed else (None, about.name)
                hydra.main(config_path=path, config_name=name, **base)(from_hydra)()

        with interruptions:
            _run_safely(run, about, interruptions, wants_traceback)

    return main


def _checked(composed: DictConfig, about: Command, folder: Path | None, overrides: list[str]) -> Any:
    """Return the options as an object, or leave a summary of the failure in the folder of a job of a sweep."""
    try:
        return to_config(composed, about.schema)
    except (ConfigError, OmegaConfBaseException) as error:
        if folder is not None:
            from gradexp.result import unstarted
            from gradexp.sinks import write_summary

            write_summary(
                folder, unstarted(without_hydra(composed), overrides, error_line(error, about).partition("\n")[0])
            )
        raise


def hash_of_job(composed: DictConfig) -> tuple[str, str | None]:
    """Return the ``config_hash`` of a job of a sweep, and in one line what is wrong with its options, if anything.

    Raises:
        OmegaConfBaseException: For an unknown key, which is no job but a mistake.
    """
    from gradexp.result import config_hash, hash_of

    try:
        return config_hash(to_config(composed)), None
    except ConfigError as error:
        return hash_of(without_hydra(composed)), str(error)


@contextmanager
def ahead_of_its_job(composed: DictConfig) -> Iterator[None]:
    """Let ``${hydra:...}`` in a job's composed config be resolved before the job runs."""
    state = Singleton.get_state()
    try:
        HydraConfig.instance().set_config(composed)
        OmegaConf.set_readonly(composed.hydra, None)  # which that has set
        yield
    finally:
        Singleton.set_state(state)


def _fix_order_of_sums() -> None:
    """Get bit for bit the same numbers for a network alone and in a stack; MKL reads this when torch is loaded."""
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def prepare_worker() -> None:
    """Make a worker process compute, and Hydra in it behave, as in the command."""
    _fix_order_of_sums()
    if _IS_HYDRA_1_3:
        setbase(_VERSION_BASE)


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
        ConfigError: For a value that cannot work.
        OmegaConfBaseException: For an unknown key or a wrong type.
    """
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), without_hydra(composed)))


def expand(params: Mapping[str, Any] | None, overrides: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """Return the overrides of each job of a sweep: all combinations of values.

    Args:
        params: Options that a preset sweeps.
        overrides: The command line, which has the last word.
        loader: Hydra's, which knows the choices of ``glob``.

    Raises:
        ConfigError: If there is none.
    """
    given = [f"{key}={value}" for key, value in (params or {}).items()] + list(overrides)
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(given)
    [jobs] = BasicSweeper.split_arguments(parsed, None)
    if not jobs:
        raise ConfigError("a sweep over no values: a glob or a range of the command line is empty")
    return [list(own) for own in jobs]


def compose(overrides: Sequence[str], most: int | None = None) -> list[Config]:
    """Return the options that a command line of ``gradexp.run`` gives to each of its jobs, and run none.

    Values separated by commas sweep, as after ``-m``; a preset that sweeps does so here too.

    Args:
        overrides: The command line.
        most: Of so many jobs only, the first ones; None: of all.

    Raises:
        ConfigError: For a value that cannot work.
        CompactHydraException: For an unknown choice, or an override that cannot be read.
        OmegaConfBaseException: For an unknown key or a wrong type.

    Example:
        >>> [(config.init.name, config.depth) for config in compose(["init=he,xavier", "depth=10"])]
        [('he', 10), ('xavier', 10)]
    """
    _store(RUN, None)
    base = {"version_base": _VERSION_BASE} if _IS_HYDRA_1_3 else {}
    with hydra.initialize_config_dir(str(CONFIG_DIR), **base):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        plain = [text for text, own in zip(overrides, parsed, strict=True) if not own.is_sweep_override()]
        sweeper = hydra.compose("config", plain, return_hydra_config=True).hydra.sweeper
        return [to_config(hydra.compose("config", job)) for job in expand(sweeper.params, overrides, loader)[:most]]


def _run_safely(run: Callable[[], Any], about: Command, interruptions: Interruptions, wants_traceback: bool) -> None:
    # Hydra would print errors in its own way and leave; this makes it pass them on.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without unicode shows ? instead of failing

    try:
        run()
    except KeyboardInterrupt:
        # A library may have put a plain one in its place.
        sys.exit((interruptions.pending or Interrupted(signal.SIGINT)).exit_code)
    except Exception as error:
        if wants_traceback:
            raise
        _say(error_line(error, about))
        sys.exit(1)
    finally:
        if not wants_traceback:
            del os.environ["HYDRA_FULL_ERROR"]


def error_line(error: BaseException, about: Command = RUN) -> str:
    """Say in one or two lines what was wrong, what was given and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.removesuffix(".yaml").rpartition("/")
        extra = f", or install it with pip install 'gradexp[{name}]'" if name in _EXTRAS.get(group, ()) else ""
        return f"unknown {group} '{name}'; choose one of {', '.join(error.options)}{extra}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    first_line = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    if isinstance(cause, OmegaConfBaseException):
        key = cause.full_key or ""
        if re.search(r"Key '.*' (is not in struct|not in '\w+')|has no attribute", first_line) and key:
            return _unknown_key(key, about)
        if key and (match := re.search(r"Invalid value assigned: (\w+) is not a ListConfig", first_line)):
            return f"{key} must be a list such as {key}=[1,2], got {'a text' if match[1] == 'str' else 'one value'}"
        return f"{key}: {first_line}" if key else first_line
    if isinstance(error, OSError) and error.strerror and not error.filename:  # of a file that was open already
        return f"cannot write: {error.strerror}"
    if isinstance(error, OSError) and error.filename:
        return f"cannot write to {error.filename}: {error.strerror}; {_OTHER_FOLDER}"
    if match := re.match(r"Ambiguous value for argument '(.*)'", str(error)):
        return f"{match[1]} is several values: add -m to run one after another, or write a list as key=[1,2]"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, CompactHydraException | ConfigError):
        return "\n".join(lines[:2])
    # Not foreseen, for example too little memory.
    return f"{type(error).__name__}: {lines[0] if lines else ''}\nHYDRA_FULL_ERROR=1 shows where it happened"


def _say(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201


def _unknown_key(key: str, about: Command) -> str:
    known = [option.key for option in list_options(about.schema)]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown option '{key}'{hint} (python -m gradexp.{about.name} --help lists them all)"


@dataclass(frozen=True)
class Option:
    """One option as the help shows it."""

    key: str
    default: Any
    text: str


def list_options(schema: type = Config, prefix: str = "") -> list[Option]:
    """List every option with its default and the string under its field in the schema's source."""
    texts = _field_texts(schema)
    found = []
    for entry in fields(schema):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            found += list_options(entry.type, f"{entry.name}.")
        else:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            found.append(Option(prefix + entry.name, default, texts[entry.name]))
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


@cache  # OmegaConf asks for it several times while it composes a config, help or not
def _help_text(about: Command) -> str:
    shown = {group: choices for group, choices in _GROUPS.items() if group not in about.unused}
    lines = [about.summary, "", f"  python -m gradexp.{about.name} {about.example}", ""]
    if about.schema is Config:
        lines += ["Choices, each with its own options (group=choice, group.option=value):", ""]
        for group, choices in shown.items():
            lines.append(f"  {group}")
            for name, own in choices.items():
                options = " ".join(f"{group}.{key}={_yaml(value)}" for key, value in own.items())
                lines.append(f"    {group}={name:<17} {options}".rstrip())
        presets = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
        lines += [f"  experiment (presets): {', '.join(presets)}", ""]
    lines += ["Options:", ""]
    for option in list_options(about.schema):
        parts = option.key.split(".")
        if parts[-1] == "name" or parts[0] in about.unused:
            continue
        default = "" if parts[0] in _GROUPS else f"={_yaml(option.default)}"
        lines.append(f"  {option.key + default:<26} {option.text}")
    if about.unused:
        lines += ["", "The other options of gradexp.run are taken too, and change nothing here."]
    lines += ["", f"Activations: {', '.join(schema.ACTIVATIONS)}", ""]
    lines += [f"Sweep with -m: python -m gradexp.{about.name} -m {about.sweep}", "Hydra's own flags: --hydra-help"]
    # Braces and dollars would be taken for parts of Hydra's template.
    return "\n".join(lines).replace("$", "$$")


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _store(about: Command, scratch: str | None) -> None:
    """Give Hydra a command's schema, help and folders."""
    store = ConfigStore.instance()
    store.store(name="schema" if about.schema is Config else about.name, node=about.schema)
    # A resolver, so that the text is put together for --help only and does not stand in every run's snapshot.
    # Hydra 1.4's omegaconf calls it by another name.
    register: Any = getattr(OmegaConf, "register_new_resolver" if _IS_HYDRA_1_3 else "register_resolver")
    register("gradexp_help", lambda: _help_text(about), replace=True)
    help_node = {"app_name": f"gradexp.{about.name}", "header": "", "footer": "", "template": "${gradexp_help:}"}
    store.store(group="hydra/help", name="gradexp", node=help_node)
    # Hydra's own defaults, changed here rather than in config.yaml: they then also hold for a run that is repeated
    # from its snapshot. Microseconds give runs that start in the same second folders of their own; no job log is
    # kept, since the run writes its own files; and keys that would only lengthen a job's name are left out of it.
    settings = HydraConf(
        run=RunDir(dir=scratch or "outputs/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}"),
        sweep=SweepDir(
            dir=scratch or "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S-%f}",
            subdir="${hydra.job.num}_${hydra.job.override_dirname}",
        ),
    )
    settings.job.config.override_dirname.exclude_keys = ["experiment", "quiet", "device", "threads"]
    replaced = {"help": "gradexp", "job_logging": "none", "hydra_logging": "none"}
    if about.compares:
        replaced["sweeper"] = "resumable"
    settings.defaults = [
        {key: replaced.get(key, choice) for key, choice in entry.items()} for entry in settings.defaults
    ]
    replace: dict[str, Any] = {} if _IS_HYDRA_1_3 else {"replace": True}  # 1.3 always replaces
    store.store(group="hydra", name="config", node=settings, provider="gradexp", **replace)
