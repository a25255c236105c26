"""Flags that follow from the options of a command, and flags whose help lists names of parts."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from foveate.parts import PartKind, add_plugin_folder, list_kinds
from foveate.parts import names as list_names
from foveate.parts.fields import CommandOption, list_command_options
from foveate.parts.options import parse_pairs

_Command = TypeVar("_Command", bound=Callable[..., Any])
_HIDDEN: Mapping[str, Sequence[str]] = {"encoders": ("timm",)}
"""Parts that stand for others, by kind: ``timm`` stands for the names of its networks."""
_MORE: Mapping[str, Mapping[str, Any]] = {
    "ray": {"is_flag": False, "flag_value": "auto", "metavar": "[ADDRESS]"}
}
"""Arguments of `click.Option` that say how a flag is typed, by option."""


def _add_plugins(_: click.Context, __: click.Parameter, folders: Sequence[Path]) -> None:
    for folder in folders:
        add_plugin_folder(folder)


plugins_flag = click.option(
    "--plugins",
    type=click.Path(path_type=Path),
    multiple=True,
    expose_value=False,
    callback=_add_plugins,
    is_eager=True,
    help=f"Folder with your own parts, whose code is run: {list_kinds()}.",
)


class PartsOption(click.Option):
    """An option whose help lists the names of parts.

    The names are read from file names when help is shown, so that other commands need no time for
    it; a folder of plug-ins that stands before ``--help`` is included.

    Args:
        names: declarations of the option, such as ``--task``.
        kind: kind of the parts.
        options: arguments of `click.Option`; ``help`` is a template, in which ``{names}`` becomes
            the names.
    """

    def __init__(self, names: Sequence[str], kind: PartKind, **options: Any) -> None:
        super().__init__(names, **options)
        self._kind: PartKind = kind
        self._template = self.help or "{names}"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help text, with the names of the parts."""
        hidden = _HIDDEN.get(self._kind, ())
        listed = (name for name in list_names(self._kind) if name not in hidden)
        self.help = self._template.replace("{names}", ", ".join(listed))
        return super().get_help_record(ctx)


def option_flags(
    options: type[Any], *, without: Sequence[str] = ()
) -> Callable[[_Command], _Command]:
    """Return a decorator that gives a command a flag for each option that a dataclass declares.

    Args:
        options: a dataclass; see `foveate.parts.fields`.
        without: names of options that the command lacks.
    """
    flags = [_build_flag(o) for o in list_command_options(options) if o.name not in without]

    def add(command: _Command) -> _Command:
        for flag in reversed(flags):
            command = flag(command)
        return command

    return add


def _build_flag(option: CommandOption) -> Callable[[_Command], _Command]:
    """Build the flag of an option from its type, its default and its meaning."""
    kind, origin = option.kind, typing.get_origin(option.kind)
    arguments: dict[str, Any] = {"help": _write_help(option), "default": option.default}
    if kind is bool:
        arguments["is_flag"] = True
    elif origin is Literal:
        arguments["type"] = click.Choice(typing.get_args(kind))
    elif origin is not None and issubclass(origin, Mapping):
        arguments |= {"multiple": True, "metavar": "OLD=NEW", "callback": _parse_mapping}
        arguments["help"] += " The flag may be repeated."
    elif origin is not None and issubclass(origin, Sequence):
        default = None if option.default is None else ",".join(option.default)
        arguments |= {"default": default, "callback": _parse_exports}
    elif kind is Path:
        arguments["type"] = click.Path(path_type=Path)
    else:
        arguments["type"] = _choose_number_type(option) or kind
    if option.part is not None:
        arguments |= {"cls": PartsOption, "kind": option.part.kind}
    arguments |= _MORE.get(option.name, {})
    return click.option(*option.flags, option.name, **arguments)


def _choose_number_type(option: CommandOption) -> click.IntRange | click.FloatRange | None:
    """Choose the range of a number with limits; a length of 0 is not allowed."""
    if option.limits is None:
        return None
    high = None if option.limits.high == math.inf else option.limits.high
    if option.kind is int:
        return click.IntRange(int(option.limits.low), None if high is None else int(high))
    return click.FloatRange(option.limits.low, high, min_open=option.limits.low == 0)


def _write_help(option: CommandOption) -> str:
    """Write the help of a flag: the meaning, names of parts, and the default."""
    text = option.meaning.replace("``", "`").rstrip(".")
    text = f"{text[:1].upper()}{text[1:]}"
    if typing.get_origin(option.kind) is not None and option.part is not None:
        text += ", comma-separated"
    if option.part is not None:
        text += ". Names: {names}"
    if option.shown is None or isinstance(option.shown, bool):
        return f"{text}."
    shown = ",".join(option.shown) if isinstance(option.shown, tuple) else option.shown
    return f"{text}.  [default: {shown}]"


def _parse_mapping(
    _: click.Context, parameter: click.Parameter, texts: Sequence[str]
) -> dict[str, str] | None:
    """Return the pairs ``OLD=NEW`` of a repeated flag; None where it is not given."""
    return parse_pairs(texts, parameter.opts[0]) if texts else None


def _parse_exports(
    _: click.Context, __: click.Parameter, flag: str | None
) -> tuple[str, ...] | None:
    """Return the names of exports in a flag.

    Raises:
        UnknownName: there is no export of this name.
    """
    if flag is None:
        return None
    from foveate.exports import build_exports

    names = tuple(name.strip() for name in flag.split(","))
    build_exports(names)
    return names
