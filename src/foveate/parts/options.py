"""Options of a part: the keywords of its constructor, with types, limits and defaults."""

from __future__ import annotations

import enum
import inspect
import keyword
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, Unpack

from foveate.errors import OptionError
from foveate.parts import PartKind, find
from foveate.wording import did_you_mean


@dataclass(frozen=True)
class Within:
    """Limits of an option's numbers, declared with its type: ``Annotated[int, Within(1, 9)]``.

    Without a declaration, `PART` limits the options of parts, and `SECTION` the keys of the config.

    Attributes:
        low: the smallest allowed number.
        high: the largest allowed number.
    """

    low: float
    high: float

    def check(self, number: float, key: str) -> None:
        """Check that a number lies within the limits.

        Args:
            number: the number.
            key: the option's name, for the message.

        Raises:
            OptionError: the number lies outside, or is not finite.
        """
        if isinstance(number, float) and not math.isfinite(number):
            raise OptionError(f"{key}: got '{number}', expected a number")
        if number < self.low:
            raise OptionError(f"{key}: got {number}, expected {self.low:g} or more")
        if number > self.high:
            raise OptionError(f"{key}: got {number}, expected at most {self.high:g}")


@dataclass(frozen=True)
class NameOf:
    """An option that names a part: ``Annotated[str, NameOf("aggregators")]``.

    Attributes:
        kind: the kind of part.
    """

    kind: PartKind


PART = Within(0, 1e6)
"""Limits of an option of a part that declares none."""
SECTION = Within(-1e9, 1e12)
"""Limits of a key of the config, whose sections check their values themselves."""

Count = Annotated[int, Within(1, 1e5)]
"""A number of things, such as patches of a chunk or heads of an attention."""
Width = Annotated[int, Within(1, 16384)]
"""A length of vectors, or another width of a network."""
Depth = Annotated[int, Within(0, 1000)]
"""A number of layers or repetitions."""
DropoutRate = Annotated[float, Within(0, 0.99)]
"""The share of values that dropout sets to 0."""


@dataclass(frozen=True)
class Option:
    """One option of a part: a keyword argument of its constructor that has a default.

    Attributes:
        name: the keyword.
        annotation: its type annotation, by which values are parsed.
        default: its default.
    """

    name: str
    annotation: Any
    default: Any

    def parse(self, value: Any, key: str, limits: Within = PART) -> Any:
        """Parse a value from text, YAML or JSON to the type of the option.

        Args:
            value: the text or value.
            key: the option's full name, for messages.
            limits: limits of numbers, where the option declares none.

        Raises:
            OptionError: the value does not fit; the message names the key and what is allowed.
        """
        return _parse(value, self.annotation, key, limits)


def options(part: Callable[..., Any]) -> dict[str, Option]:
    """Return the options of a part: the keyword arguments of its constructor with defaults.

    Keywords that a constructor passes on to a base class, as ``**shared: Unpack[Shared]`` with a
    `TypedDict`, are options as well; the constructor of the base class has their defaults.
    """
    if not inspect.isclass(part):
        return _read_signature(part)[0]
    constructors = [vars(c)["__init__"] for c in part.__mro__ if "__init__" in vars(c)]
    result, passed_on = _read_signature(constructors[0])
    for constructor in constructors[1:] if passed_on else []:
        stated, _ = _read_signature(constructor)
        result |= {k: stated[k] for k in stated if k in passed_on and k not in result}
    return result


def _read_signature(function: Callable[..., Any]) -> tuple[dict[str, Option], set[str]]:
    """Return the options that a function states, and the names of those that it passes on."""
    hints = typing.get_type_hints(function, include_extras=True)
    stated: dict[str, Option] = {}
    passed_on: set[str] = set()
    for p in inspect.signature(function).parameters.values():
        hint = hints.get(p.name, str)
        if p.default is not inspect.Parameter.empty:
            stated[p.name] = Option(p.name, hint, p.default)
        elif p.kind is inspect.Parameter.VAR_KEYWORD and typing.get_origin(hint) is Unpack:
            passed_on = set(typing.get_type_hints(typing.get_args(hint)[0]))
    return stated, passed_on


def parse_options(
    part: Callable[..., Any], values: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Parse the values of options by the signature of a part.

    Args:
        part: the part's class, or a function.
        values: values by name; ``-`` stands for ``_`` in names, and words of Python such as
            ``from`` for names that end with ``_``.
        where: the prefix of keys in messages.

    Raises:
        OptionError: a key is unknown (the message gives the nearest one), or a value does not fit.
    """
    known = options(part)
    limits = SECTION if is_dataclass(part) else PART
    parsed = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        name = f"{name}_" if keyword.iskeyword(name) else name
        if name not in known:
            plain = [option.removesuffix("_") for option in known]
            raise OptionError(f"no option '{where}.{key}'.{did_you_mean(name, plain)}")
        parsed[name] = known[name].parse(value, f"{where}.{key}", limits)
    return parsed


def _parse(value: Any, kind: Any, key: str, limits: Within) -> Any:
    """Parse a value to the type `kind`; see `Option.parse`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        declared = next((extra for extra in args[1:] if isinstance(extra, Within)), limits)
        parsed = _parse(value, args[0], key, declared)
        for extra in args[1:]:
            if isinstance(extra, NameOf):
                find(extra.kind, parsed)
        return parsed
    if origin in (typing.Union, types.UnionType):
        empty = value is None or (isinstance(value, str) and value.lower() == "none")
        if empty and type(None) in args:
            return None
        return _parse(value, next(a for a in args if a is not type(None)), key, limits)
    if origin is Literal:
        return _choose(value, args, key)
    if origin is dict:
        return _parse_pairs(value, key)
    if origin is tuple:
        marks = "," if args[0] is str else "x,"
        return tuple(_parse(p, args[0], key, limits) for p in _items(value, key, marks))
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return _member(kind, value, key)
    if kind is bool:
        return _parse_bool(value, key)
    if kind in (int, float):
        number = _parse_number(value, kind, key)
        limits.check(number, key)
        return number
    return _parse_text(value, key) if kind is str else value


def parse_pairs(texts: Iterable[str], flag: str) -> dict[str, str]:
    """Parse texts of the form ``OLD=NEW`` into a dictionary.

    Args:
        texts: texts of the form ``OLD=NEW``; NEW may be empty.
        flag: the flag that took them, for messages.

    Raises:
        OptionError: a text has no ``=``, the left side is empty, or stands twice.
    """
    parsed: dict[str, str] = {}
    for text in texts:
        old, mark, new = text.partition("=")
        if not (mark and old.strip()):
            raise OptionError(f"{flag}: got '{text}', expected OLD=NEW")
        if parsed.setdefault(old.strip(), new.strip()) != new.strip():
            raise OptionError(f"{flag}: got two new names of '{old.strip()}', expected one")
    return parsed


def _parse_pairs(value: Any, key: str) -> dict[str, str]:
    """Parse pairs of texts: a section of YAML, or one text ``OLD=NEW``."""
    if isinstance(value, str):
        return parse_pairs([value], key)
    if not isinstance(value, Mapping):
        raise OptionError(f"{key}: got '{value}', expected a section of labels and new names")
    return {
        _parse_text(old, key): "" if new is None else _parse_text(new, key)
        for old, new in value.items()
    }


def _choose(value: Any, allowed: Sequence[Any], key: str) -> Any:
    """Return the allowed value that is written like `value`."""
    for choice in allowed:
        if not isinstance(value, bool) and str(choice) == str(value):
            return choice
    raise OptionError(f"{key}: got '{value}'.{did_you_mean(str(value), list(map(str, allowed)))}")


def _items(value: Any, key: str, marks: str) -> list[Any]:
    """Split a list, or a text such as ``1,2`` or ``1024x1024``, into its items.

    Args:
        value: the list or text.
        key: the option's name, for the message.
        marks: letters that separate the items of a text; blanks around items are removed.
    """
    if isinstance(value, str):
        return [part.strip() for part in re.split(f"[{marks}]", value)]
    if isinstance(value, list | tuple) and len(value) <= _MAX_ITEMS:
        return list(value)
    raise OptionError(f"{key}: got '{value}', expected a list such as 1,2")


_MAX_ITEMS = 1000


def _member(kind: Any, value: Any, key: str) -> Any:
    """Return the member of an enumeration for a value."""
    try:
        return kind(value)
    except ValueError:
        allowed = [str(member.value) for member in kind]
        raise OptionError(f"{key}: got '{value}'.{did_you_mean(str(value), allowed)}") from None


def _parse_bool(value: Any, key: str) -> bool:
    """Parse a truth value from words such as ``true``, ``no`` or ``1``."""
    word = str(value).lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise OptionError(f"{key}: got '{value}', expected true or false")


def _parse_number(value: Any, kind: type, key: str) -> Any:
    """Parse a number of the type `kind`, int or float."""
    word = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise OptionError(f"{key}: got '{value}', expected {word}")
    try:
        number = kind(value)
    except (ValueError, OverflowError):
        raise OptionError(f"{key}: got '{value}', expected {word}") from None
    if kind is int and isinstance(value, float) and value != number:
        raise OptionError(f"{key}: got {value}, expected a whole number")
    return number


def _parse_text(value: Any, key: str) -> str:
    """Parse a text; numbers and dates, which YAML makes of some texts, become text again."""
    if value is None or isinstance(value, bool | list | tuple | dict):
        raise OptionError(f"{key}: got '{value}', expected text")
    return str(value)
