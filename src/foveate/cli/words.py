"""Exit codes, and the parsing of flags of the form ``--section.key``."""

from __future__ import annotations

from typing import Any

import click

from foveate import defaults
from foveate.errors import OptionError
from foveate.wording import did_you_mean

OK, USER_ERROR, PARTIAL = 0, 1, 2
_SECTIONS = (*defaults.SECTIONS, "reader", *defaults.PARTS)


class Sectioned(click.Command):
    """A command that also takes ``--section.key value`` for every key of the config.

    Flags of this form that the command declares are its own.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remove the section flags from the arguments, and parse the rest.

        Raises:
            OptionError: a section flag has no value, or its section is unknown.
        """
        plain: list[str] = []
        declared = {flag for parameter in self.params for flag in parameter.opts}
        rest = list(args)
        ctx.obj = {}
        while rest:
            word = rest.pop(0)
            key, equals, value = word.partition("=")
            if not key.startswith("--") or "." not in key or key in declared:
                plain.append(word)
                continue
            if not equals:
                if not rest:
                    raise OptionError(f"{key} needs a value")
                value = rest.pop(0)
            _put_section(ctx.obj, key, value)
        return super().parse_args(ctx, plain)


def take_sections(ctx: click.Context, *names: str) -> dict[str, Any]:
    """Return the section flags of a command that takes few sections.

    Args:
        ctx: context of the command, which is `Sectioned`.
        names: the sections that it takes, as keys of its options.

    Raises:
        OptionError: another section was given.
    """
    sections: dict[str, Any] = ctx.obj
    for name in sections:
        if name not in names:
            raise OptionError(
                f"no section '{name.removesuffix('_options')}' here: see `{ctx.command_path} "
                "--help`"
            )
    return sections


def _put_section(into: dict[str, Any], key: str, value: str) -> None:
    section, _, name = key.removeprefix("--").partition(".")
    if section not in _SECTIONS:
        raise OptionError(f"no option '{key}': no section '{section}'.{_suggest_section(section)}")
    if section == "reader":
        _put_reader(into, key, name, value)
        return
    if section in defaults.PARTS:
        section += "_options"
    into.setdefault(section, {})[name.replace("-", "_")] = value


def _put_reader(into: dict[str, Any], key: str, name: str, value: str) -> None:
    """Store ``--reader.NAME.option value`` among the options of that reader."""
    reader, dot, option = name.partition(".")
    if not dot:
        raise OptionError(f"{key}: expected a reader and its option, --reader.NAME.option")
    options = into.setdefault("reader_options", {}).setdefault(reader.replace("-", "_"), {})
    options[option.replace("-", "_")] = value


def _suggest_section(section: str) -> str:
    return did_you_mean(section, _SECTIONS)
