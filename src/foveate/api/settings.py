"""Conversion of Python keywords to the nested values of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import defaults
from foveate.errors import OptionError
from foveate.runs.config import load_yaml

if TYPE_CHECKING:
    import pandas as pd

_SECTIONS = (*defaults.SECTIONS, *defaults.PARTS)
_TOP = (*defaults.PARTS, "heatmaps", "export", "permute_labels", "refit")
_SHORT = {
    "column": ("table", "image"),
    "label": ("table", "label"),
    "patient": ("table", "patient"),
    "images": ("table", "images"),
    "files": ("table", "files"),
    "classes": ("table", "classes"),
    "folds": ("split", "folds"),
    "epochs": ("train", "epochs"),
    "device": ("train", "device"),
    "devices": ("train", "devices"),
}
"""Section and key of each keyword that needs no section; the command line has the same flags."""


def nest_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert keywords to the sections of a config.

    ``train__lr`` is the key ``lr`` of the section ``train``; ``encoder__width`` is an option of
    the encoder. Any other keyword without a section is an option of the method.

    Args:
        options: keywords; those that are None are left out.

    Raises:
        OptionError: a keyword names an unknown section or flag.
    """
    nested: dict[str, Any] = {}
    for name, value in options.items():
        section, mark, key = name.partition("__")
        if value is None:
            continue
        if mark and section in _SECTIONS:
            where = f"{section}_options" if section in defaults.PARTS else section
            nested.setdefault(where, {})[key] = value
        elif mark:
            raise OptionError(f"no option '{name}': sections are {', '.join(_SECTIONS)}")
        elif name in _TOP:
            nested[name] = value
        elif name == "seed":
            for place in ("train", "split"):
                nested.setdefault(place, {})["seed"] = value
        elif name in _SHORT:
            place, key = _SHORT[name]
            nested.setdefault(place, {})[key] = value
        else:
            nested.setdefault("method_options", {})[name] = value
    return nested


def merge_config(
    config: Mapping[str, Any] | Path | str | None, more: dict[str, Any]
) -> dict[str, Any]:
    """Merge options into a config, section by section; return the result.

    Args:
        config: nested values, or the path of a YAML file.
        more: nested values that override those of `config`.
    """
    if isinstance(config, str | Path):
        config = load_yaml(Path(config))
    merged = {k: dict(v) if isinstance(v, Mapping) else v for k, v in (config or {}).items()}
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merged[key] | value
        else:
            merged[key] = value
    return merged


def store_table(table: pd.DataFrame | Path | str, beside: Path) -> dict[str, Any]:
    """Return the section ``table`` for a table; write a data frame to a file first.

    Args:
        table: a CSV, TSV or XLSX file, or a data frame, whose relative paths begin at the working
            folder.
        beside: folder of the run, beside which the file is written.
    """
    if isinstance(table, str | Path):
        return {"path": str(table)}
    path = beside.with_name(f"{beside.name}.labels.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return {"path": str(path), "images": str(Path.cwd())}
