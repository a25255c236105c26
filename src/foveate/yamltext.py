"""Reading and writing YAML: the only module that parses it and words what is wrong with it.

The size is bounded: aliases cannot expand a few lines to more than memory holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from foveate.errors import CheckpointError, OptionError, explain_os_error

_MAX_LETTERS = 1 << 18
_MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """A loader for plain values, with a bounded number of merged keys (``<<``)."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys, and refuse too many; each level of nesting may double their number.

        Raises:
            yaml.constructor.ConstructorError: there are more than 100,000 keys.
        """
        super().flatten_mapping(node)
        if len(node.value) > _MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "too many keys", node.start_mark)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text into plain values.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: the text is no YAML, is nested too deeply, or
            holds more than 100,000 values; a value that aliases (``*a``) repeat counts each time.
    """
    if len(text) > _MAX_LETTERS:
        raise ValueError(f"{len(text)} letters")
    content = yaml.load(text, _Loader)
    waiting, n = [content], 0
    while waiting:
        value = waiting.pop()
        n += 1
        if n > _MAX_VALUES:
            raise ValueError("too many values")
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return content


_FAULTS = (ValueError, RecursionError, yaml.YAMLError)
"""What `parse_yaml` and decoding raise."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file that foveate wrote.

    Raises:
        CheckpointError: the file cannot be read, is not YAML, or holds something else.
    """
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {explain_os_error(error)}") from error
    except _FAULTS as error:
        raise CheckpointError(
            f"{path} is damaged: it is not YAML. Restore it from a copy, or begin a new run"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is damaged: it holds no keys and values. Restore it from a copy, or begin a "
            "new run"
        )
    return content


def read_config(path: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML file that the user gave as ``--config``.

    Raises:
        OptionError: there is no such file, or it cannot be read, is not YAML, or holds no sections.
    """
    if not path.is_file():
        raise OptionError(f"--config {path}: no such file; give a YAML file, or flags alone")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"--config {path} cannot be read: {explain_os_error(error)}") from error
    except _FAULTS as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise OptionError(
            f"--config {path}{where}: not YAML; compare it with the config.yaml of a run"
        ) from error
    if not isinstance(content, dict):
        raise OptionError(f"--config {path}: expected sections such as 'train:'")
    return content


def write_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML text, keys in their order."""
    text: str = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return text
