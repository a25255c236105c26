"""Reading a JSON object field by field: type, range and presence, before anything is built."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError, why

_MOST_BYTES = 64 << 20
_REMEDY = "Restore the file from a copy, or train again"


class Fields:
    """The fields of one JSON object; whatever does not fit is refused by name.

    Args:
        content: the object as read.
        where: the file, and within it the place, for messages.

    Raises:
        CheckpointError: it is no object.
    """

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{where}: got {_told(content)}, expected keys and values. {_REMEDY}"
            )
        self.where = where
        self._content: dict[str, Any] = content

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def only(self, known: Sequence[str]) -> None:
        """Refuse keys that are not known."""
        for key in self._content:
            if key not in known:
                raise CheckpointError(f"{self.where}: unknown key {_told(key)}. {_REMEDY}")

    def text(
        self, key: str, allowed: Sequence[str] | None = None, *, may_be_empty: bool = False
    ) -> str:
        """A text, one of `allowed` where there are some."""
        value = self._value(key)
        fits = isinstance(value, str) and (value or may_be_empty)
        if not fits or (allowed and value not in allowed):
            raise self._wrong(key, f"one of {', '.join(allowed)}" if allowed else "a text")
        return str(value)

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number in a range."""
        value = self._value(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(key, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """A finite number in a range."""
        value = self._value(key)
        if not is_number(value) or not low <= value <= high:
            raise self._wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def maybe_number(self, key: str, low: float, high: float) -> float | None:
        """A number, or None where the field is null or absent."""
        return None if self._content.get(key) is None else self.number(key, low, high)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def texts(self, key: str, least: int = 1) -> tuple[str, ...]:
        """Different texts, at least so many."""
        value = self._value(key)
        fits = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
        if not fits or len(value) < least or len(set(value)) < len(value):
            raise self._wrong(key, f"a list of at least {least} different names")
        return tuple(value)

    def numbers(self, key: str, low: float, high: float, n: int | None = None) -> list[float]:
        """Finite numbers in a range, as many as asked for."""
        value = self._value(key)
        fits = isinstance(value, list) and all(is_number(v) and low <= v <= high for v in value)
        if not fits or (n is not None and len(value) != n):
            many = "numbers" if n is None else f"{n} numbers"
            raise self._wrong(key, f"{many} from {low:g} to {high:g}")
        return list(value)

    def part(self, key: str) -> Fields:
        """An object within."""
        return Fields(self._value(key), f"{self.where}: {key}")

    def items(self, key: str) -> list[Any]:
        """A list."""
        value = self._value(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list")
        return value

    def options(self, key: str) -> dict[str, Any]:
        """Plain values by name: texts, finite numbers, true or false, null, and lists of these."""
        inner = self.part(key)._content
        for name, value in inner.items():
            for each in value if isinstance(value, list) else [value]:
                if not (each is None or isinstance(each, str | bool) or is_number(each)):
                    raise CheckpointError(
                        f"{self.where}: {key}.{name} is {_told(value)}, expected a plain value. "
                        f"{_REMEDY}"
                    )
        return inner

    def plain(self) -> dict[str, Any]:
        """The object as it is."""
        return self._content

    def _value(self, key: str) -> Any:
        if key not in self._content:
            raise CheckpointError(f"{self.where}: '{key}' is missing. {_REMEDY}")
        return self._content[key]

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        got = _told(self._content[key])
        return CheckpointError(f"{self.where}: '{key}' is {got}, expected {expected}. {_REMEDY}")


def read_fields(path: Path) -> Fields:
    """The JSON object in a file.

    Raises:
        CheckpointError: missing, not JSON, or no object.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path} is larger than any such file. {_REMEDY}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {why(error)}. {_REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no JSON. {_REMEDY}") from error
    return Fields(content, str(path))


def is_number(value: Any) -> bool:
    """Whether this is a finite number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return "keys and values"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
