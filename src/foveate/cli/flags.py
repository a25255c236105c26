"""Flags that several commands share, and flags whose help lists the names of parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from foveate import defaults
from foveate.parts import PartKind, add_plugin_folder, list_kinds
from foveate.parts import names as list_names

_Command = TypeVar("_Command", bound=Callable[..., Any])


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
        without: names that are left out.
        options: arguments of `click.Option`; ``help`` is a template, in which ``{names}`` becomes
            the names.
    """

    def __init__(
        self, names: Sequence[str], kind: PartKind, without: Sequence[str] = (), **options: Any
    ) -> None:
        super().__init__(names, **options)
        self._kind: PartKind = kind
        self._without = frozenset(without)
        self._template = self.help or "{names}"

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help text, with the names of the parts."""
        listed = (name for name in list_names(self._kind) if name not in self._without)
        self.help = self._template.replace("{names}", ", ".join(listed))
        return super().get_help_record(ctx)


def show_default(text: str, default: object) -> str:
    """Add a default to a help text, for a flag that overrides a config only where it is given.

    Args:
        text: help text of the flag.
        default: value where neither flag nor config sets the option.
    """
    return f"{text}  [default: {default}]"


files_flag = click.option(
    "--files",
    type=click.Path(path_type=Path),
    help="Second table with one row per image, where TABLE has one row per patient.",
)
images_flag = click.option(
    "--images", type=click.Path(path_type=Path), help="Folder that paths are relative to."
)
label_flag = click.option("--label", help="Column of labels, where it is not recognised.")
_EXPORT_HELP = "Kinds of pictures, comma-separated: {names}."
_EXPORT_DEFAULT = ",".join(defaults.EXPORT)


def _parse_exports(_: click.Context, __: click.Parameter, flag: str) -> tuple[str, ...]:
    """Return the names of exports in a flag.

    Raises:
        UnknownName: there is no export of this name.
    """
    from foveate.exports import build_exports

    names = tuple(name.strip() for name in flag.split(","))
    build_exports(names)
    return names


train_export_flag = click.option(
    "--export",
    cls=PartsOption,
    kind="exports",
    help=show_default(_EXPORT_HELP, _EXPORT_DEFAULT),
)


_PREDICT_FLAGS = (
    click.option(
        "--spacing-um",
        "--view.assume-spacing-um",
        "assume_spacing_um",
        type=click.FloatRange(min=0, min_open=True),
        help="Spacing of slides that state none, in micrometres per pixel.",
    ),
    click.option(
        "--export",
        cls=PartsOption,
        kind="exports",
        default=_EXPORT_DEFAULT,
        show_default=True,
        callback=_parse_exports,
        help=_EXPORT_HELP,
    ),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=defaults.WORKERS,
        help="Number of processes that predict, each with its own models; with 0, this process "
        f"does.  [default: {defaults.WORKERS}]",
    ),
    click.option(
        "--ray",
        is_flag=False,
        flag_value="auto",
        metavar="[ADDRESS]",
        help="Predict on a cluster of Ray: `auto`, `local` (one on this machine), or its address.",
    ),
    click.option(
        "--part",
        help="Predict one part of the images, such as 2/5; `array` takes the part from a job "
        "array. The same command without --part collects the parts.",
    ),
    click.option(
        "--device",
        type=click.Choice(get_args(defaults.Device)),
        default=defaults.DEVICE,
        show_default=True,
    ),
)


def predict_flags(*, heatmaps: int) -> Callable[[_Command], _Command]:
    """Build the flags of `foveate.prediction.options.PredictOptions`, for a command that predicts.

    Args:
        heatmaps: default number of images that get pictures.
    """
    flag = click.option(
        "--heatmaps",
        default=heatmaps,
        show_default=True,
        help="Number of images, from the first on, that get pictures.",
    )

    def add(command: _Command) -> _Command:
        for other in reversed(_PREDICT_FLAGS):
            command = other(command)
        return flag(command)

    return add
