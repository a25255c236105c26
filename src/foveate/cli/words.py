"""Exit codes, flags of the form ``--section.key``, and flags that several commands share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from foveate.errors import OptionError, did_you_mean

OK, USER_ERROR, PARTIAL, INTERRUPTED = 0, 1, 2, 130
_PARTS = ("method", "encoder", "task")
_SECTIONS = ("train", "view", "split", "table", "reader", *_PARTS)


class Sectioned(click.Command):
    """A command that also takes ``--section.key value`` for every key of the config."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remove the section flags from the arguments, and parse the rest.

        Raises:
            OptionError: a section flag has no value, or its section is unknown.
        """
        plain: list[str] = []
        rest = list(args)
        ctx.obj = {}
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or "." not in word.partition("=")[0]:
                plain.append(word)
                continue
            key, equals, value = word.partition("=")
            if not equals:
                if not rest:
                    raise OptionError(f"{key} needs a value")
                value = rest.pop(0)
            _put_section(ctx.obj, key, value)
        return super().parse_args(ctx, plain)


def _put_section(into: dict[str, Any], key: str, value: str) -> None:
    section, _, name = key.removeprefix("--").partition(".")
    if section not in _SECTIONS:
        raise OptionError(f"no option '{key}': no section '{section}'.{_suggest_section(section)}")
    if section == "reader":
        _put_reader(into, key, name, value)
        return
    if section in _PARTS:
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


def _add_plugins(_: click.Context, __: click.Parameter, folders: Sequence[Path]) -> None:
    from foveate.parts import add_plugin_folder

    for folder in folders:
        add_plugin_folder(folder)


plugins_flag = click.option(
    "--plugins",
    type=click.Path(path_type=Path),
    multiple=True,
    expose_value=False,
    callback=_add_plugins,
    is_eager=True,
    help="Folder with methods/, readers/, tasks/, encoders/ or exports/ of your own, which is run.",
)


spacing_flag = click.option(
    "--spacing-um",
    "--view.assume-spacing-um",
    "assume_spacing_um",
    type=click.FloatRange(min=0, min_open=True),
    help="Of slides that state none (micrometres per pixel).",
)
files_flag = click.option(
    "--files",
    type=click.Path(path_type=Path),
    help="Second table, one row an image, where TABLE has one row a patient.",
)
export_flag = click.option(
    "--export",
    help="Kinds of pictures, comma-separated.  [default: png,geojson]",
)
device_flag = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
)


workers_flag = click.option(
    "--workers",
    type=click.IntRange(0),
    default=0,
    help="So many processes predict, each with its own models.  [default: this one]",
)
ray_flag = click.option(
    "--ray",
    is_flag=False,
    flag_value="auto",
    metavar="[ADDRESS]",
    help="Predict on a cluster of Ray: auto, local (one on this machine), or its address.",
)
part_flag = click.option(
    "--part",
    help="Predict this part only, such as 2/5; `array` takes it from a job array. The same command "
    "without --part collects the parts.",
)


def nest_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the flags that were set, by section and key of the config."""
    nested: dict[str, Any] = {}
    places = {
        "table": ("table", "path"),
        "column": ("table", "image"),
        "label": ("table", "label"),
        "patient": ("table", "patient"),
        "files": ("table", "files"),
        "images": ("table", "images"),
        "classes": ("table", "classes"),
        "folds": ("split", "folds"),
        "epochs": ("train", "epochs"),
        "devices": ("train", "devices"),
    }
    for name, value in flags.items():
        if value is None or value is False:
            continue
        if name in places:
            section, key = places[name]
            nested.setdefault(section, {})[key] = str(value) if isinstance(value, Path) else value
        elif name == "seed":
            nested.setdefault("train", {})["seed"] = value
            nested.setdefault("split", {})["seed"] = value
        else:
            nested[name] = value
    return nested


def merge_into(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Merge `more` into `into`, section by section; change `into`."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            into[key] |= value
        else:
            into[key] = value


def parse_pairs(texts: Iterable[str], flag: str) -> dict[str, str]:
    """Parse texts of the form ``OLD=NEW`` into a dictionary.

    Raises:
        OptionError: a text has no ``=``, or one side is empty.
    """
    parsed = {}
    for text in texts:
        old, mark, new = text.partition("=")
        if not (mark and old.strip() and new.strip()):
            raise OptionError(f"{flag}: got '{text}', expected OLD=NEW")
        parsed[old.strip()] = new.strip()
    return parsed


def parse_exports(flag: str | None) -> tuple[str, ...]:
    """Return the names of exports in a flag; the default names where it was not set.

    Raises:
        UnknownName: there is no export of this name.
    """
    from foveate.exports import DEFAULT, build_exports

    names = DEFAULT if flag is None else tuple(name.strip() for name in flag.split(","))
    build_exports(names)
    return names
