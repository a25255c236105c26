"""Read a JSON object field by field, and check presence, type and range of each value."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError, explain_os_error

_MAX_BYTES = 64 << 20
_REMEDY = "Restore the file from a copy, or delete it and repeat the `foveate train` command"


class Fields:
    """The fields of one JSON object, each checked when it is read.

    The message of every error names the file and the field.

    Args:
        content: the parsed JSON.
        where: the file and the place within it, for messages.

    Raises:
        CheckpointError: the content is no object.
    """

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{where}: got {_describe(content)}, expected keys and values. {_REMEDY}"
            )
        self.where = where
        self._content: dict[str, Any] = content

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def only(self, known: Sequence[str]) -> None:
        """Check that the object has no other keys than `known`.

        Raises:
            CheckpointError: the object has a key that is not in `known`.
        """
        for key in self._content:
            if key not in known:
                raise CheckpointError(f"{self.where}: unknown key {_describe(key)}. {_REMEDY}")

    def text(
        self, key: str, allowed: Sequence[str] | None = None, *, may_be_empty: bool = False
    ) -> str:
        """Return a text.

        Args:
            key: the field.
            allowed: the allowed texts; None allows any.
            may_be_empty: whether the empty text is allowed.

        Raises:
            CheckpointError: the field is missing, or is no allowed text.
        """
        value = self._value(key)
        fits = isinstance(value, str) and (value or may_be_empty)
        if not fits or (allowed and value not in allowed):
            raise self._wrong(key, f"one of {', '.join(allowed)}" if allowed else "a text")
        return str(value)

    def integer(self, key: str, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`.

        Args:
            key: name of the field.
            low: smallest value that is allowed.
            high: largest value that is allowed.

        Raises:
            CheckpointError: the field is missing, or is no whole number from `low` to `high`.
        """
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """Return a finite number from `low` to `high`.

        Args:
            key: name of the field.
            low: smallest value that is allowed.
            high: largest value that is allowed.

        Raises:
            CheckpointError: the field is missing, or is no number from `low` to `high`.
        """
        value = self._value(key)
        if not is_number(value) or not low <= value <= high:
            raise self._wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def maybe_number(self, key: str, low: float, high: float) -> float | None:
        """Return a number from `low` to `high`, or None where the field is null or absent.

        Args:
            key: name of the field.
            low: smallest value that is allowed.
            high: largest value that is allowed.

        Raises:
            CheckpointError: the field is neither null nor a number from `low` to `high`.
        """
        return None if self._content.get(key) is None else self.number(key, low, high)

    def flag(self, key: str) -> bool:
        """Return a truth value.

        Raises:
            CheckpointError: the field is missing, or is no truth value.
        """
        value = self._value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def texts(self, key: str, min_n: int = 1) -> tuple[str, ...]:
        """Return a list of different texts, at least `min_n` of them.

        Args:
            key: name of the field.
            min_n: smallest number of texts.

        Raises:
            CheckpointError: the field is missing, or is no such list.
        """
        value = self._value(key)
        fits = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
        if not fits or len(value) < min_n or len(set(value)) < len(value):
            raise self._wrong(key, f"a list of at least {min_n} different names")
        return tuple(value)

    def numbers(self, key: str, low: float, high: float, n: int | None = None) -> list[float]:
        """Return a list of finite numbers from `low` to `high`; `n` of them unless it is None.

        Args:
            key: name of the field.
            low: smallest value that is allowed.
            high: largest value that is allowed.
            n: length of the list; None for any.

        Raises:
            CheckpointError: the field is missing, or is no such list.
        """
        value = self._value(key)
        fits = isinstance(value, list) and all(is_number(v) and low <= v <= high for v in value)
        if not fits or (n is not None and len(value) != n):
            many = "numbers" if n is None else f"{n} numbers"
            raise self._wrong(key, f"{many} from {low:g} to {high:g}")
        return list(value)

    def part(self, key: str) -> Fields:
        """Return the fields of an object within this one.

        Raises:
            CheckpointError: the field is missing, or is no object.
        """
        return Fields(self._value(key), f"{self.where}: {key}")

    def items(self, key: str) -> list[Any]:
        """Return a list of any values.

        Raises:
            CheckpointError: the field is missing, or is no list.
        """
        value = self._value(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def options(self, key: str) -> dict[str, Any]:
        """Return plain values by name: texts, numbers, truth values, null, or lists of these.

        Raises:
            CheckpointError: the field is missing, or is no object of plain values.
        """
        inner = self.part(key)._content
        for name, value in inner.items():
            for item in value if isinstance(value, list) else [value]:
                if not (item is None or isinstance(item, str | bool) or is_number(item)):
                    raise CheckpointError(
                        f"{self.where}: {key}.{name} is {_describe(value)}, expected a plain "
                        f"value. {_REMEDY}"
                    )
        return inner

    def plain(self) -> dict[str, Any]:
        """Return the object without any checks."""
        return self._content

    def _value(self, key: str) -> Any:
        """Return a field of any type."""
        if key not in self._content:
            raise CheckpointError(f"{self.where}: '{key}' is missing. {_REMEDY}")
        return self._content[key]

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        """Build the error for a field that does not fit."""
        got = _describe(self._content[key])
        return CheckpointError(f"{self.where}: '{key}' is {got}, expected {expected}. {_REMEDY}")


def read_fields(path: Path) -> Fields:
    """Read the JSON object in a file.

    Raises:
        CheckpointError: the file is missing, too large, or holds no JSON object.
    """
    try:
        is_small = path.stat().st_size <= _MAX_BYTES
        content = json.loads(path.read_text(encoding="utf-8")) if is_small else None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {explain_os_error(error)}. {_REMEDY}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no JSON. {_REMEDY}") from error
    if not is_small:
        raise CheckpointError(f"{path} is larger than any such file. {_REMEDY}")
    return Fields(content, str(path))


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; truth values are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _describe(value: object) -> str:
    """Describe a value for a message in at most 60 letters."""
    if isinstance(value, Mapping):
        return "keys and values"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
