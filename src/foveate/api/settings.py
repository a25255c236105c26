"""Conversion of Python keywords to the nested values of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate import defaults
from foveate.errors import OptionError
from foveate.parts.fields import list_command_options
from foveate.runs.config import load_yaml
from foveate.runs.options import RunOptions

_SECTIONS = (*defaults.SECTIONS, *defaults.PARTS)
_KEYS = {option.name: option.keys for option in list_command_options(RunOptions)}
"""Keys of the config that each option without a section sets."""


def nest_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert keywords to the sections of a config.

    ``train__lr`` is the key ``lr`` of the section ``train``; ``encoder__width`` is an option of
    the encoder. A keyword without a section is a field of `RunOptions`, or else an option of the
    method.

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
            raise OptionError(
                f"no option '{name}': sections are {', '.join(_SECTIONS)}; take one of these"
            )
        elif name in _KEYS:
            for path in _KEYS[name]:
                _put(nested, path, value)
        else:
            nested.setdefault("method_options", {})[name] = value
    return nested


def _put(nested: dict[str, Any], path: str, value: Any) -> None:
    """Set a key such as ``split.folds``, or one without a section."""
    section, dot, key = path.rpartition(".")
    (nested.setdefault(section, {}) if dot else nested)[key] = value


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
