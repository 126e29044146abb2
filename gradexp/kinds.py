"""The kinds of options that are set in Python, checked and converted; Hydra checks those of a command line."""

import functools
import operator
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any


class WrongKindError(Exception):
    """A value is of another kind than its option; its text says of which kind it must be."""


def convert(config: Any, choices: Sequence[str] = ()) -> None:
    """Convert each field of a dataclass of options to a plain value of its kind, such as numpy's integers to int.

    Args:
        config: The options, changed in place.
        choices: Fields whose dataclass may be given by its ``name`` alone.

    Raises:
        WrongKindError: For a value of another kind.
    """
    for entry in fields(config):
        kind = _hints(config.__class__)[entry.name]
        value = getattr(config, entry.name)
        by_name = entry.name in choices
        if by_name and isinstance(value, str):
            value = kind(value)
        try:
            setattr(config, entry.name, _converted(value, kind))
        except TypeError:
            name = ", or the name of a choice" if by_name else ""
            raise WrongKindError(f"{entry.name} must be {_described(kind)}{name}, got {value!r}") from None
        if is_dataclass(kind):
            try:
                convert(value)
            except WrongKindError as error:
                raise WrongKindError(f"{entry.name}.{error}") from None


def texts(name: str, value: Any, what: str) -> list[str]:
    """Return one text, or several, as a list.

    Args:
        name: The argument.
        value: What was given.
        what: What the texts are, in the plural.

    Raises:
        TypeError: If that is no text, or not of texts.

    Examples:
        >>> texts("skip", "head", "names"), texts("skip", ("head", "stem"), "names")
        (['head'], ['head', 'stem'])
    """
    several = [value] if isinstance(value, str) else value
    if isinstance(several, bytes) or not isinstance(several, Iterable):
        raise TypeError(f"{name} must be {what}, one or a list of them, got {value!r}")
    listed = list(several)
    for entry in listed:
        if not isinstance(entry, str):
            raise TypeError(f"{name} must be {what}, one or a list of them, got {entry!r} in it")
    return listed


def whole_numbers(name: str, value: Any) -> list[int]:
    """Return a list of whole numbers as integers.

    Raises:
        TypeError: If it is no such list.
    """
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return [_converted(entry, int) for entry in value]
    except TypeError:
        raise TypeError(f"{name} must be a list of whole numbers, got {value!r}") from None


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _converted(value: Any, kind: Any) -> Any:
    """Return a value as its kind.

    Raises:
        TypeError: If it is of another.
    """
    if isinstance(kind, types.UnionType):  # with None
        return None if value is None else _converted(value, typing.get_args(kind)[0])
    if typing.get_origin(kind) is list:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError
        return [_converted(entry, typing.get_args(kind)[0]) for entry in value]
    if typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return dict(value)
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        whole: Any = value
        return operator.index(whole) if kind is int else float(value)
    if not isinstance(value, kind):
        raise TypeError
    return value


def _described(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return f"{_described(typing.get_args(kind)[0])}, or None"
    if typing.get_origin(kind) is list:
        return "a list of whole numbers" if typing.get_args(kind)[0] is int else "a list of numbers"
    if typing.get_origin(kind) is dict:
        return "a dict of options"
    if is_dataclass(kind):
        name = kind.__name__ if isinstance(kind, type) else ""
        return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"
    return {bool: "True or False", str: "a text", int: "a whole number"}.get(kind, "a number")
