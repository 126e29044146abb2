"""The text of ``--help``, read from the schema."""

import ast
import inspect
import json
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from gradexp.choices import ACTIVATIONS, GROUPS
from gradexp.cli.about import CONFIG_DIR, Command
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
    return values


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


def help_text(about: Command) -> str:
    """Return what ``--help`` prints of a command: summary, example, groups, options, activations."""
    groups = {group: named for group, named in GROUPS.items() if group not in about.unused}
    lines = [about.summary, "", f"  python -m gradexp.{about.name} {about.example}", ""]
    if about.schema is Config:
        lines += ["Choices, each with its own options (group=choice, group.option=value):", ""]
        for group, named in groups.items():
            lines.append(f"  {group}")
            for name, defaults in named.items():
                options = " ".join(f"{group}.{key}={_yaml(value)}" for key, value in defaults.items())
                lines.append(f"    {group}={name:<17} {options}".rstrip())
        lines += [f"  experiment (presets): {', '.join(choices('experiment'))}", ""]
        lines += ["A function of your own in place of a choice, or as activation, by the path of its import:", ""]
        lines += ["  init=mine:my_init_ init.alpha=0.3   def my_init_(weight, alpha=1.0) in mine.py here", ""]
    lines += ["Options:", ""]
    for option in list_options(about.schema):
        names = option.key.split(".")
        if names[-1] in ("name", "own") or names[0] in about.unused:
            continue
        default = "" if names[0] in GROUPS else f"={_yaml(option.default)}"
        lines.append(f"  {option.key + default:<26} {option.text}")
    if about.unused:
        lines += ["", "The other options of gradexp.run are taken too, and change nothing here."]
    lines += ["", f"Activations: {', '.join(ACTIVATIONS)}", ""]
    if about.keeps_files:
        lines += ["Ctrl-C and SIGTERM end it in order (exit codes 130, 143); without its terminal it goes on.", ""]
    lines += [f"Sweep with -m: python -m gradexp.{about.name} -m {about.sweep}", "Hydra's own flags: --hydra-help"]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
