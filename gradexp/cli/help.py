"""The text of ``--help``, read from the schema."""

import ast
import inspect
import json
import shutil
import textwrap
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from gradexp.choices import ACTIVATIONS, CONFIG_DIR, GROUPS, INIT_OF_FAMILY, MODEL_TAKES
from gradexp.cli.about import Command
from gradexp.config import Config


@dataclass(frozen=True)
class Option:
    """One option as the help shows it."""

    key: str
    default: Any
    text: str


def choices(group: str) -> list[str]:
    """Return the names that a group has to choose from."""
    if group in GROUPS:
        return list(GROUPS[group])
    return sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))


def defaults(schema: type = Config, prefix: str = "") -> dict[str, Any]:
    """Return the default of every option by its key."""
    values: dict[str, Any] = {}
    for entry in fields(schema):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            values |= defaults(entry.type, f"{entry.name}.")
        else:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            values[prefix + entry.name] = default
    usual = MODEL_TAKES["mlp"]  # of the options whose default is that of the family
    return {key: usual.get(key) if value is None else value for key, value in values.items()}


def list_options(schema: type = Config) -> list[Option]:
    """List every option with its default and the string under its field in the schema's source."""
    texts = _field_texts(schema)
    return [Option(key, default, texts[key]) for key, default in defaults(schema).items()]


def _field_texts(schema: type, prefix: str = "") -> dict[str, str]:
    body = ast.parse(inspect.getsource(schema)).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for statement, follower in zip(body.body, body.body[1:], strict=False):
        match statement, follower:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[prefix + key] = text
    for entry in fields(schema):
        if isinstance(entry.type, type) and is_dataclass(entry.type):
            texts |= _field_texts(entry.type, f"{entry.name}.")
    return texts


def _own_defaults(family: str) -> list[str]:
    """Return the options of a run of which a family of networks has a default of its own, and its init."""
    usual = MODEL_TAKES["mlp"]
    own = {key: value for key, value in MODEL_TAKES[family].items() if value != usual.get(key)}
    own |= {"init": INIT_OF_FAMILY[family]} if family in INIT_OF_FAMILY else {}
    return [f"{key}={_yaml(value)}" for key, value in own.items()]


# What most command lines set.
_MOST_USED = ("depth", "width", "activation", "steps", "seed", "seeds", "batch_size", "quiet")
_WIDEST = 100  # longer lines are hard to read
_LABEL = 26


def help_text(about: Command, width: int | None = None) -> str:
    """Return what ``--help`` prints of a command: what people use, all choices, all options, activations.

    Args:
        about: The command.
        width: Characters of a line; None: those of the terminal.
    """
    width = min(width or shutil.get_terminal_size().columns, _WIDEST)
    groups = {group: named for group, named in GROUPS.items() if group not in about.unused}
    lines = [*textwrap.wrap(about.summary, width), "", f"  python -m gradexp.{about.name} {about.example}"]
    lines += [f"  python -m gradexp.{about.name} -m {about.sweep}   (a sweep)", ""]

    def entry(label: str, text: str) -> list[str]:
        return _entry(label, text, width)

    options = [
        option
        for option in list_options(about.schema)
        if (names := option.key.split("."))[-1] not in ("name", "own") and names[0] not in about.unused
    ]
    first = [option for option in options if option.key in _MOST_USED] if about.schema is Config else []
    if first:
        lines += ["Most used:", ""]
        for group, named in groups.items():
            lines += entry(f"{group}={next(iter(named))}", ", ".join(named))
        lines += [line for option in first for line in entry(f"{option.key}={_yaml(option.default)}", option.text)]
        lines += entry("experiment=NAME", f"a preset: {', '.join(choices('experiment'))}")
        text = "Choices, each with its own options (group=choice, group.option=value):"
        lines += ["", *textwrap.wrap(text, width), ""]
        for group, named in groups.items():
            for name, defaults in named.items():
                texts = [f"{group}.{key}={_yaml(value)}" for key, value in defaults.items()]
                lines += entry(
                    f"{group}={name}", " ".join([*texts, *(_own_defaults(name) if group == "model" else [])])
                )
        lines += [
            "",
            *textwrap.wrap("Your own function in place of a choice or activation, by the path of its import:", width),
        ]
        lines += ["", *entry("init=mine:my_init_ init.alpha=0.3", "def my_init_(weight, alpha=1.0), in mine.py here")]
        lines.append("")
    lines += ["All other options:" if first else "Options:", ""]
    for option in options:
        if option not in first:
            default = "" if option.key.split(".")[0] in GROUPS else f"={_yaml(option.default)}"
            lines += entry(option.key + default, option.text)
    if about.unused:
        text = "The other options of gradexp.run are taken too, and change nothing here."
        lines += ["", *textwrap.wrap(text, width)]
    lines += ["", *textwrap.wrap(f"Activations: {', '.join(ACTIVATIONS)}", width, subsequent_indent=" " * 13), ""]
    if about.keeps_files:
        text = "Ctrl-C and SIGTERM end it in order (exit codes 130, 143); without its terminal it goes on."
        lines += [*textwrap.wrap(text, width), ""]
    lines += ["Hydra's own flags: --hydra-help"]
    return "\n".join(lines)


def _entry(label: str, text: str, width: int) -> list[str]:
    """Return a label and its text, which goes on below itself."""
    head = f"  {label}"
    if len(head) > _LABEL:
        return [head, *_entry("", text, width)] if text else [head]
    indent = " " * (_LABEL + 1)
    return textwrap.wrap(
        f"{head:<{_LABEL}} {text}".rstrip(),
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
