"""YAML with bounded size: aliases cannot expand a few lines to more than memory holds."""

from __future__ import annotations

from typing import Any

import yaml

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
