"""Options of the commands: fields of a dataclass, each with its type, default, meaning and flag.

The dataclass is the only declaration of an option. The command line makes its flags from it
(`foveate.cli.flags`), and the Python functions take an instance of it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from foveate.parts.options import NameOf, Within


@dataclass(frozen=True)
class CommandOption:
    """One option of a command.

    Attributes:
        name: name of the field.
        kind: its type, without None and without limits.
        default: its default.
        shown: the default that help shows.
        meaning: what it means, from the docstring of its class.
        flags: its flags on the command line.
        keys: keys of the config that it sets, such as ``split.folds``.
        limits: limits of its numbers; None where it declares none.
        part: the part that it names; None where it names none.
    """

    name: str
    kind: Any
    default: Any
    shown: Any
    meaning: str
    flags: tuple[str, ...]
    keys: tuple[str, ...]
    limits: Within | None = None
    part: NameOf | None = None


def option(
    default: Any, *, flags: tuple[str, ...] = (), keys: tuple[str, ...] = (), shown: Any = None
) -> Any:
    """Declare an option whose flag, config key or shown default does not follow from the field.

    Args:
        default: default of the field.
        flags: flags on the command line; by default ``--name``.
        keys: keys of the config that the option sets; by default its name.
        shown: default that help shows; by default that of the field.
    """
    return dataclasses.field(
        default=default, metadata={"flags": flags, "keys": keys, "shown": shown}
    )


def list_command_options(options: type[Any]) -> list[CommandOption]:
    """List the options that a dataclass declares, in the order of its fields.

    Args:
        options: a dataclass whose fields have defaults, described under ``Attributes``.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    meanings: dict[str, str] = {}
    for base in options.__mro__:
        meanings = read_entries(vars(base).get("__doc__") or "", "Attributes") | meanings
    return [
        _describe(field, hints[field.name], meanings[field.name])
        for field in dataclasses.fields(options)
    ]


def _describe(field: dataclasses.Field[Any], hint: Any, meaning: str) -> CommandOption:
    kind, *marks = _unwrap(hint)
    shown = field.metadata.get("shown")
    return CommandOption(
        name=field.name,
        kind=kind,
        default=field.default,
        shown=field.default if shown is None else shown,
        meaning=meaning,
        flags=field.metadata.get("flags") or (f"--{field.name.replace('_', '-')}",),
        keys=field.metadata.get("keys") or (field.name,),
        limits=next((mark for mark in marks if isinstance(mark, Within)), None),
        part=next((mark for mark in marks if isinstance(mark, NameOf)), None),
    )


def _unwrap(hint: Any) -> Iterator[Any]:
    """Yield the first type of a union, then what is declared with it."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is not Annotated:
        yield hint
        return
    inner, *marks = typing.get_args(hint)
    yield from _unwrap(inner)
    yield from marks


def read_entries(docstring: str, section: str) -> dict[str, str]:
    """Read the entries of a section of a docstring, such as ``Args``, by name.

    Args:
        docstring: the text, as it stands in the source.
        section: title of the section.
    """
    _, _, text = inspect.cleandoc(docstring).partition(f"{section}:\n")
    texts: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        start = re.match(r"^    (\w+): (.*)$", line)
        if start:
            name = start[1]
            texts[name] = start[2]
        elif name and line.startswith("     "):
            texts[name] += " " + line.strip()
        elif line.strip():
            break
    return texts
