"""Reading YAML of a bounded size: no few lines that unfold to more than memory holds."""

from __future__ import annotations

from typing import Any

import yaml

_MOST_LETTERS = 1 << 18
_MOST_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """Plain values only; what merge keys (``<<``) gather is bounded."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Gather merged keys, of which each level may double the number."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "too many keys", node.start_mark)


def parse_yaml(text: str) -> Any:
    """The values of a YAML text.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: it is no YAML, is nested too deeply, or holds
            more than 100,000 values, those counted again that an alias (``*a``) repeats.
    """
    if len(text) > _MOST_LETTERS:
        raise ValueError(f"{len(text)} letters")
    content = yaml.load(text, _Loader)
    waiting, n = [content], 0
    while waiting:
        value = waiting.pop()
        n += 1
        if n > _MOST_VALUES:
            raise ValueError("too many values")
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return content
