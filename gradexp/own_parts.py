"""Parts of a run that are not built in: somebody's own function, by import path (``mine:phi``) or as it is.

A part is a text wherever a built-in's name is one, so that it prints, compares and is recorded like any other; it
carries the function. A program imports what it names. A command imports only what was typed: a config may come from
a folder that somebody else has sent, and importing is running.
"""

import difflib
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from gradexp.choices import GROUPS, ConfigError

PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
"""``MODULE:NAME``, with dots in both."""


class Role(NamedTuple):
    """What a run gives to the function of a part.

    Args:
        form: How it is called, in words for error messages.
        given: Number of arguments by position.
        facts: Arguments by name that a run gives to a function that has them; they are no options.
        takes_options: Whether its other arguments are options of the run.
    """

    form: str
    given: int
    facts: tuple[str, ...] = ()
    takes_options: bool = True


ROLES = {
    "model": Role("(features, outputs, **options)", 2),
    "init": Role("(weight, **options)", 1, ("generator", "activation", "negative_slope")),
    "activation": Role("(z)", 1, takes_options=False),
    "data": Role("(**options)", 0, ("width",)),
    "optimizer": Role("(parameters, **options)", 1),
    "loss": Role("(output, target)", 2, takes_options=False),
}

REQUIRED: Any = inspect.Parameter.empty
"""The default of an option that has none."""


class OwnPart(str):
    """Somebody's own function in place of a built-in, under the text that names it.

    Args:
        role: A key of ``ROLES``.
        text: ``MODULE:NAME``.
        value: The function, or a class: of an activation or a loss one that is made without arguments.
        digest: sha256 of the source; None if there is none to be read.

    Raises:
        ConfigError: If it is no function, or takes other arguments than a run gives.
    """

    role: str
    value: Any
    function: Callable[..., Any]
    digest: str | None
    options: dict[str, Any]
    takes_any: bool
    asks: frozenset[str]

    def __new__(cls, role: str, text: str, value: Any, digest: str | None) -> Self:
        """Make the text, and read from the signature which options there are."""
        part = super().__new__(cls, text)
        part.role, part.value, part.digest = role, value, digest
        if not callable(value):
            raise part.mistake(f"is {_kind(value)}, not a function {ROLES[role].form}")
        with part.named():
            is_made = inspect.isclass(value) and not ROLES[role].takes_options
            part.function = value() if is_made else value
        part.options, part.takes_any, part.asks = {}, False, frozenset()
        try:
            signature = inspect.signature(part.function)
        except (TypeError, ValueError):  # written in C without a signature, such as torch.tanh
            return part
        part._read_signature(signature)
        return part

    def __eq__(self, other: object) -> bool:
        """Return whether it is the same function under the same name, or the name alone."""
        return str.__eq__(self, other) is True and getattr(other, "value", self.value) is self.value

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __reduce__(self) -> Any:
        """Send the function along, not what was read from it."""
        return OwnPart, (self.role, str(self), self.value, self.digest)

    def __deepcopy__(self, _memo: object) -> Self:
        """Return itself: the function is not ours to copy."""
        return self

    @property
    def label(self) -> str:
        """The part in an error message."""
        return f"{self.role} '{self}'"

    def mistake(self, text: str) -> ConfigError:
        """Return an error that names the part."""
        return ConfigError(f"{self.label} {text}")

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the part, and its line, in whatever is raised inside.

        Raises:
            ConfigError: If anything is.
        """
        try:
            yield
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise self.mistake(raises(error)) from error

    def arguments(self, config: Any) -> dict[str, Any]:
        """Return the options of its group as keyword arguments, those without a plain default only where set."""
        known = {key: getattr(config, key, None) for key in self.options}
        own: dict[str, Any] = config.own
        return {key: value for key, value in known.items() if value is not None} | own

    def facts(self, **facts: Any) -> dict[str, Any]:
        """Return those facts of a run that the function has parameters for."""
        return {key: value for key, value in facts.items() if key in self.asks}

    def _read_signature(self, signature: inspect.Signature) -> None:
        """Find out what the run gives, what is an option, and that there is nothing else."""
        role, kinds = ROLES[self.role], inspect.Parameter
        parameters = list(signature.parameters.values())
        found = {one.kind for one in parameters}
        by_position = [one.name for one in parameters if one.kind in _BY_POSITION][: role.given]
        if len(by_position) < role.given and kinds.VAR_POSITIONAL not in found:
            raise self.mistake(f"must take {role.form}, its signature is {signature}")
        others = [one for one in parameters if one.name not in by_position and one.kind not in _VARIADIC]
        self.asks = frozenset(role.facts).intersection(one.name for one in others)
        options = {one.name: _default(one) for one in others if one.name not in self.asks}
        needed = [key for key, default in options.items() if default is REQUIRED]
        if role.takes_options:
            self.options, self.takes_any = options, kinds.VAR_KEYWORD in found
        elif needed:
            raise self.mistake(f"must take {role.form}, but needs {', '.join(needed)} too")


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _default(parameter: inspect.Parameter) -> Any:
    """Return the default of an option; None for one that cannot be recorded."""
    return parameter.default if parameter.default is REQUIRED or is_plain(parameter.default) else None


def own_part(role: str, value: Any) -> Any:
    """Return a value as a part if it is a function or an import path, which is imported; else as it is.

    Raises:
        ConfigError: If there is no such module or name, importing it fails, or it cannot play the role.
    """
    if isinstance(value, OwnPart):
        return value if value.role == role else OwnPart(role, str(value), value.value, value.digest)
    if isinstance(value, str):
        return _load(role, value) if PATH.fullmatch(value) else value
    if not callable(value):
        return value
    bare = getattr(value, "func", value)  # of a functools.partial
    name = getattr(bare, "__qualname__", None) or type(bare).__qualname__
    module = getattr(bare, "__module__", None) or type(bare).__module__
    return OwnPart(role, f"{module}:{name}", value, _digest_of(value))


def options_of(group: str, name: str) -> dict[str, Any]:
    """Return the options of a choice of a group, built in or not, with their defaults."""
    return name.options if isinstance(name, OwnPart) else GROUPS[group].get(name, {})


def is_plain(value: Any) -> bool:
    """Return whether a value can be recorded: None, a truth value, a number, a text, or a list of such."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _load(role: str, text: str) -> OwnPart:
    """Import a part, or take it from what is imported already."""
    module_name, _, path = text.partition(":")
    module = sys.modules.get(module_name) or _import(role, text, module_name)
    value: Any = module
    for name in path.split("."):
        owner = value
        try:
            value = getattr(owner, name)
        except AttributeError:
            near = difflib.get_close_matches(name, [one for one in dir(owner) if not one.startswith("__")], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            place = getattr(module, "__file__", None) or "built in"
            raise ConfigError(f"{role} '{text}': module {module_name} ({place}) has no '{name}'{hint}") from None
    known = _loaded.get((role, text))
    if known is None or known.value is not value:
        known = _loaded[role, text] = OwnPart(role, text, value, _digest(_files_of(module, value)))
    return known


# Read once, at the import: a file that is edited while a sweep runs is not what its later jobs compute.
_loaded: dict[tuple[str, str], OwnPart] = {}


def _import(role: str, text: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            file = Path(*name.split(".")).with_suffix(".py")
            raise ConfigError(
                f"{role} '{text}': there is no module '{error.name}', neither {file} in {Path.cwd()} nor installed"
            ) from None
        raise ConfigError(f"{role} '{text}': importing {name} {raises(error)}") from error


def raises(error: BaseException) -> str:
    """Return ``raises`` with what was raised, and where in code that is neither the library's nor installed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = type(error).__name__ + (f": {lines[0]}" if lines else "")
    package, place, trace = Path(__file__).parent, "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        is_theirs = package in file.parents or not {"site-packages", "importlib"}.isdisjoint(file.parts)
        if file.is_file() and not is_theirs:
            place = f" ({file.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"raises {what}{place}"


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _files_of(module: Any, function: Any) -> list[str]:
    """Return the file that was named, and the one that the function is from."""
    files = [getattr(module, "__file__", None)]
    with suppress(TypeError, OSError):
        files.append(inspect.getsourcefile(function))
    return [file for file in dict.fromkeys(files) if file]


def _digest_of(function: Any) -> str | None:
    """Return the digest of a function that has no import path: also of its line, code and plain surroundings."""
    bare = getattr(function, "func", function)
    code = getattr(bare, "__code__", None)
    cells = [cell.cell_contents for cell in getattr(bare, "__closure__", None) or ()]
    bound = [*getattr(function, "args", ()), *sorted(getattr(function, "keywords", {}).items())]
    plain = [value for value in [*cells, *bound] if is_plain(value)]
    facts = [code and (code.co_firstlineno, code.co_code.hex(), code.co_names), plain]
    return _digest(_files_of(inspect.getmodule(bare), bare), repr(facts))


def _digest(files: Iterable[str], facts: str = "") -> str | None:
    content = facts.encode()
    with suppress(OSError):
        content += b"".join(Path(file).read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest() if content else None


class Typed(NamedTuple):
    """What somebody has typed, and where: what a command may import.

    Args:
        paths: Import paths.
        options: Keys of the groups' options that were typed, such as ``init.alpha``.
        folder: Folder of the command, which is searched for modules first.
    """

    paths: frozenset[str]
    options: frozenset[str]
    folder: str

    def allow(self) -> None:
        """Let this process import them."""
        _allowed.update(dict.fromkeys(self.paths, self.folder))
        if self.paths and self.folder not in sys.path:
            sys.path.insert(0, self.folder)

    def widened(self, schema: Any) -> Any:
        """Return a schema whose groups have the typed options too, where there are own parts to have them."""
        groups = {}
        for entry in fields(schema) if self.paths else ():
            if entry.name in GROUPS:
                kind: Any = entry.type
                typed = {key.partition(".")[2] for key in self.options if key.startswith(f"{entry.name}.")}
                new = sorted(typed - {known.name for known in fields(kind)})
                groups[entry.name] = make_dataclass(kind.__name__, [(key, Any, None) for key in new], bases=(kind,))
        wide = [(name, group, field(default_factory=group)) for name, group in groups.items()]
        return make_dataclass(schema.__name__, wide, bases=(schema,)) if wide else schema


def gathered(options: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """Return the options of a group with those that only an own part can have under ``own``."""
    known = {entry.name for entry in fields(schema)}
    if not PATH.fullmatch(str(options.get("name"))):
        return {key: value for key, value in options.items() if key in known or value is not None}
    own = {key: value for key, value in options.items() if key not in known and value is not None}
    return {key: value for key, value in options.items() if key in known} | {
        "own": {**(options.get("own") or {}), **own}
    }


_allowed: dict[str, str] = {}  # with the folder of each


def allowed() -> Typed:
    """Return what this process may import, for a process on another machine."""
    return Typed(frozenset(_allowed), frozenset(), next(iter(_allowed.values()), ""))


def typed(overrides: Iterable[str]) -> Typed:
    """Return what a command line names.

    Examples:
        >>> sorted(typed(["init=he,mine:my_init_", "activation=mine:phi", "depth=5"]).paths)
        ['mine:my_init_', 'mine:phi']
    """
    settings = [(key.lstrip("+"), value) for key, _, value in (text.partition("=") for text in overrides)]
    values = " ".join(value for key, value in settings if key.removesuffix(".name") in ROLES).replace("\\:", ":")
    options = [key for key, _ in settings if re.fullmatch(rf"({'|'.join(GROUPS)})\.[A-Za-z_]\w*", key)]
    return Typed(frozenset(match[0] for match in PATH.finditer(values)), frozenset(options), str(Path.cwd()))


def check_typed(options: Mapping[str, Any]) -> None:
    """Check that the composed options of a command name nothing to import that was not typed.

    Raises:
        ConfigError: For the first part that a file has named.
    """
    for role in ROLES:
        value = options.get(role)
        name = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(name, str) and PATH.fullmatch(name) and name not in _allowed:
            key = f"{role}.name" if role in GROUPS else role
            raise ConfigError(
                f"{role} '{name}' is named by a file and would run code; if you trust it, type {key}={name} too"
            )


def hint(role: str, name: object) -> str:
    """Return how an own part is written, for a name that looks like one; else nothing.

    Examples:
        >>> hint("init", "mine.py:my_init_")
        '; your own is init=mine:my_init_'
    """
    near = re.fullmatch(r"(?:\./)?([\w./]*?[A-Za-z_]\w*?)(?:\.py)?[:.]([A-Za-z_]\w*)", str(name))
    return f"; your own is {role}={near[1].replace('/', '.')}:{near[2]}" if near and near[2] != "py" else ""
