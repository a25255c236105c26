"""Finding methods, readers, tasks and encoders by name, and turning signatures into options.

A name is found, in this order, in a folder that the user names (``--plugins DIR`` holding
``methods/``, ``readers/``, ``tasks/``, ``encoders/``), among installed packages' entry points
(groups ``foveate.methods`` and so on), and among foveate's own files. A file holds one part and the
part carries the file's name; files beginning with ``_`` and ``base.py`` are no parts.

Nothing read from a model or run folder is ever imported: folders are named on the command line.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import inspect
import math
import sys
import threading
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

from foveate.errors import OptionError, UnknownName, did_you_mean

PartKind = Literal["methods", "readers", "tasks", "encoders"]

_folders: list[Path] = []
_loading = threading.RLock()


def add_plugin_folder(folder: Path) -> None:
    """Look for parts in this folder first.

    A folder that is a package (it holds ``__init__.py``) can be imported by its name, so that its
    parts may share files.

    Raises:
        OptionError: the folder does not exist.
    """
    if not folder.is_dir():
        raise OptionError(f"--plugins {folder}: no such folder")
    folder = folder.resolve()
    if folder not in _folders:
        _folders.insert(0, folder)
    if (folder / "__init__.py").is_file() and str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))


def plugin_folders() -> tuple[Path, ...]:
    """The folders named so far, the one that is asked first first."""
    return tuple(_folders)


def names(kind: PartKind) -> list[str]:
    """Every name of a kind, sorted. Imports nothing."""
    found = {_name(p) for p in _own_files(kind)}
    found |= {_name(p) for folder in _folders for p in _part_files(folder / kind)}
    found |= {entry.name for entry in entry_points(group=f"foveate.{kind}")}
    return sorted(found)


def find(kind: PartKind, name: str) -> type[Any]:
    """The class of a part.

    Raises:
        UnknownName: nothing of this name; the message names the nearest.
        OptionError: the file holds no part, or more than one.
    """
    for folder in _folders:
        for path in _part_files(folder / kind):
            if _name(path) == name:
                return _only_class(_load_file(path, kind), kind, str(path))
    for entry in entry_points(group=f"foveate.{kind}", name=name):
        loaded: type[Any] = entry.load()
        return loaded
    for path in _own_files(kind):
        if _name(path) == name:
            module = importlib.import_module(f"foveate.{kind}.{path.stem}")
            return _only_class(module, kind, str(path))
    raise UnknownName(f"no {kind.removesuffix('s')} '{name}'.{did_you_mean(name, names(kind))}")


def _name(path: Path) -> str:
    return path.stem.rstrip("_")


def _own_files(kind: PartKind) -> list[Path]:
    return _part_files(Path(__file__).parent / kind)


def _part_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    skip = {"base.py", "__init__.py"}
    return sorted(
        p for p in folder.glob("*.py") if p.name not in skip and not p.name.startswith("_")
    )


def _load_file(path: Path, kind: PartKind) -> types.ModuleType:
    name = f"foveate_plugins.{kind}.{path.stem}"
    # Images are opened by several threads: none may see a module that another is still running.
    with _loading:
        if name in sys.modules and sys.modules[name].__file__ == str(path):
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise OptionError(f"{path} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def _only_class(module: types.ModuleType, kind: PartKind, where: str) -> type[Any]:
    base_module = importlib.import_module(f"foveate.{kind}.base")
    base = base_module.BASE
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise OptionError(
            f"{where} must hold exactly one public {base.__name__}, found {len(found)}"
        )
    return found[0]


# -- signatures as option schemas -------------------------------------------------------------


@dataclass(frozen=True)
class Within:
    """The limits of an option's numbers, declared with its type: ``Annotated[int, Within(1, 9)]``.

    Without a declaration, options of parts lie in `PART`, keys of the config in `SECTION`, which
    have rules of their own.
    """

    low: float
    high: float

    def check(self, number: float, key: str) -> None:
        """Assert that a number lies within.

        Raises:
            OptionError: it does not, or is not finite.
        """
        if isinstance(number, float) and not math.isfinite(number):
            raise OptionError(f"{key}: got '{number}', expected a number")
        if number < self.low:
            raise OptionError(f"{key}: got {number}, expected {self.low:g} or more")
        if number > self.high:
            raise OptionError(f"{key}: got {number}, expected at most {self.high:g}")


PART = Within(0, 1e6)
COMMON = {
    **dict.fromkeys(("chunk", "attention_heads", "k", "samples", "grid", "draws"), Within(1, 1e5)),
    **dict.fromkeys(("width", "dim", "hidden", "landmarks"), Within(1, 16384)),
    **dict.fromkeys(("dropout", "glimpse_dropout", "drop"), Within(0, 0.99)),
    **dict.fromkeys(("layers", "looks", "iterations"), Within(0, 1000)),
    "smoothing": Within(0, 1),
}
"""Limits of options that mean the same in every part; where a part's are narrower it says so."""
SECTION = Within(-1e9, 1e12)


@dataclass(frozen=True)
class Option:
    """One option: a keyword of a constructor with a default."""

    name: str
    annotation: Any
    default: Any

    def parse(self, value: Any, key: str, limits: Within = PART) -> Any:
        """A value of the right type from text (or from JSON).

        Args:
            value: as given.
            key: for messages.
            limits: of numbers, where the option declares none.

        Raises:
            OptionError: the text does not fit; the message names the key and what is allowed.
        """
        return _parse(value, self.annotation, key, limits)


def options(part: Callable[..., Any]) -> dict[str, Option]:
    """The options of a part: the keyword arguments of its constructor that have defaults."""
    written = part.__init__ if inspect.isclass(part) else part
    hints = typing.get_type_hints(written, include_extras=True)
    signature = inspect.signature(part)
    return {
        p.name: Option(p.name, hints.get(p.name, str), p.default)
        for p in signature.parameters.values()
        if p.default is not inspect.Parameter.empty
    }


def parse_options(part: Callable[..., Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check and convert options against a signature; `where` prefixes the keys in messages.

    Raises:
        OptionError: an unknown key (with the nearest known one) or a value that does not fit.
    """
    known = options(part)
    limits = SECTION if is_dataclass(part) else PART
    parsed = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise OptionError(f"no option '{where}.{key}'.{did_you_mean(name, known)}")
        parsed[name] = known[name].parse(
            value, f"{where}.{key}", limits if limits is SECTION else COMMON.get(name, limits)
        )
    return parsed


def _parse(value: Any, kind: Any, key: str, limits: Within) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        own = next((extra for extra in args[1:] if isinstance(extra, Within)), limits)
        return _parse(value, args[0], key, own)
    if origin in (typing.Union, types.UnionType):
        empty = value is None or (isinstance(value, str) and value.lower() == "none")
        if empty and type(None) in args:
            return None
        return _parse(value, next(a for a in args if a is not type(None)), key, limits)
    if origin is Literal:
        if not isinstance(value, bool) and str(value) in map(str, args):
            return next(a for a in args if str(a) == str(value))
        raise OptionError(
            f"{key}: got '{value}'.{did_you_mean(str(value), [str(a) for a in args])}"
        )
    if origin is tuple:
        return tuple(_parse(p, args[0], key, limits) for p in _items(value, key))
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return _member(kind, value, key)
    if kind is bool:
        return _parse_bool(value, key)
    if kind in (int, float):
        number = _parse_number(value, kind, key)
        limits.check(number, key)
        return number
    return _parse_text(value, key) if kind is str else value


def _items(value: Any, key: str) -> list[Any]:
    """The items of a list, or of a text such as ``1,2`` or ``1024x1024``."""
    if isinstance(value, str):
        return value.replace("x", ",").split(",")
    if isinstance(value, list | tuple) and len(value) <= _MOST_ITEMS:
        return list(value)
    raise OptionError(f"{key}: got '{value}', expected a list such as 1,2")


_MOST_ITEMS = 1000


def _member(kind: Any, value: Any, key: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        allowed = [str(member.value) for member in kind]
        raise OptionError(f"{key}: got '{value}'.{did_you_mean(str(value), allowed)}") from None


def _parse_bool(value: Any, key: str) -> bool:
    word = str(value).lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise OptionError(f"{key}: got '{value}', expected true or false")


def _parse_number(value: Any, kind: type, key: str) -> Any:
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
    """A text; a number or a date that YAML made of one is text again."""
    if value is None or isinstance(value, bool | list | tuple | dict):
        raise OptionError(f"{key}: got '{value}', expected text")
    return str(value)
