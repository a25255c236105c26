"""Find methods, readers, tasks, encoders, … by name; read options from signatures.

A name is looked up, in this order, in a folder that the user names (``--plugins DIR`` with
``methods/``, ``readers/``, ``tasks/``, ``encoders/``, ``exports/``, ``aggregators/``), among
installed packages' entry points (groups ``foveate.methods`` and so on), and among foveate's own
files. A file holds one part, which has the file's name; files beginning with ``_`` and ``base.py``
are no parts.

Nothing is imported from a model or run folder: only the command line names folders of plug-ins.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.util
import inspect
import math
import sys
import threading
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack

from foveate.errors import OptionError, UnknownName, did_you_mean

PartKind = Literal["methods", "readers", "tasks", "encoders", "exports", "aggregators"]

_folders: list[Path] = []
_loading = threading.RLock()


def add_plugin_folder(folder: Path | str) -> None:
    """Look for parts in a folder before all others.

    A folder that is a package (it holds ``__init__.py``) can be imported by its name, so that its
    parts may share files.

    Args:
        folder: with ``methods/``, ``readers/``, ``tasks/`` or ``encoders/`` in it, whose code is
            run.

    Raises:
        OptionError: the folder does not exist.

    Example:
        >>> foveate.add_plugin_folder("my_parts")
        >>> foveate.Classifier("own_method").fit("labels.csv")
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"--plugins {folder}: no such folder; check the name")
    folder = folder.resolve()
    if folder not in _folders:
        _folders.insert(0, folder)
    if (folder / "__init__.py").is_file() and str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))


def plugin_folders() -> tuple[Path, ...]:
    """Return the folders of plug-ins, in the order in which they are searched."""
    return tuple(_folders)


def names(kind: PartKind) -> list[str]:
    """Return the names of all parts of a kind, sorted, without importing them."""
    available = {_name(p) for p in _package_files(kind)}
    available |= {_name(p) for folder in _folders for p in _part_files(folder / kind)}
    available |= {entry.name for entry in entry_points(group=f"foveate.{kind}")}
    return sorted(available)


def find(kind: PartKind, name: str) -> type[Any]:
    """Find the class of a part.

    Args:
        kind: the kind of part.
        name: its name.

    Raises:
        UnknownName: there is no part of this name; the message gives the nearest name.
        OptionError: the file holds no part, or more than one.
    """
    for folder in _folders:
        for path in _part_files(folder / kind):
            if _name(path) == name:
                return _only_class(_load_file(path, kind), kind, str(path))
    for entry in entry_points(group=f"foveate.{kind}", name=name):
        loaded: type[Any] = entry.load()
        return loaded
    for path in _package_files(kind):
        if _name(path) == name:
            module = importlib.import_module(f"foveate.{kind}.{path.stem}")
            return _only_class(module, kind, str(path))
    raise UnknownName(f"no {kind.removesuffix('s')} '{name}'.{did_you_mean(name, names(kind))}")


def _name(path: Path) -> str:
    """Return the name of the part in a file; a ``_`` at the end avoids names of libraries."""
    return path.stem.rstrip("_")


def _package_files(kind: PartKind) -> list[Path]:
    """Return the files of foveate's own parts of a kind."""
    return _part_files(Path(__file__).parent / kind)


def _part_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold parts; none if it does not exist."""
    if not folder.is_dir():
        return []
    skip = {"base.py", "__init__.py"}
    return sorted(
        p for p in folder.glob("*.py") if p.name not in skip and not p.name.startswith("_")
    )


def _load_file(path: Path, kind: PartKind) -> types.ModuleType:
    """Import a plug-in from its file, once."""
    name = f"foveate_plugins.{kind}.{path.stem}"
    # Several threads open images: none may see a module that another is still importing.
    with _loading:
        if name in sys.modules and sys.modules[name].__file__ == str(path):
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None  # since its name ends with .py
        assert spec.loader is not None
        for package in ("foveate_plugins", f"foveate_plugins.{kind}"):  # pickle imports them
            sys.modules.setdefault(package, types.ModuleType(package))
        module = importlib.util.module_from_spec(spec)
        with contextlib.ExitStack() as undo:
            sys.modules[name] = module
            undo.callback(sys.modules.pop, name)
            spec.loader.exec_module(module)
            undo.pop_all()
        return module


def _only_class(module: types.ModuleType, kind: PartKind, where: str) -> type[Any]:
    """Return the only part that a module defines; `where` names its file in messages."""
    base_module = importlib.import_module(f"foveate.{kind}.base")
    base = base_module.BASE
    public = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and not inspect.isabstract(value)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(public) != 1:
        raise OptionError(
            f"{where} must hold exactly one public {base.__name__}, found {len(public)}: put each "
            "in a file of its own, and begin names of helpers with _"
        )
    return public[0]


# -- signatures as option schemas -------------------------------------------------------------


@dataclass(frozen=True)
class Within:
    """Limits of an option's numbers, declared with its type: ``Annotated[int, Within(1, 9)]``.

    Without a declaration, `PART` limits the options of parts, and `SECTION` the keys of the config,
    whose public check their values themselves.

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
COMMON = {
    **dict.fromkeys(("chunk", "attention_heads", "k", "samples", "grid", "draws"), Within(1, 1e5)),
    **dict.fromkeys(("width", "dim", "hidden", "landmarks"), Within(1, 16384)),
    **dict.fromkeys(("dropout", "glimpse_dropout", "drop"), Within(0, 0.99)),
    **dict.fromkeys(("layers", "looks", "iterations"), Within(0, 1000)),
    "smoothing": Within(0, 1),
}
"""Limits of options that have the same meaning in all parts; a part may declare narrower ones."""
SECTION = Within(-1e9, 1e12)


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
        values: values by name; ``-`` stands for ``_`` in names.
        where: the prefix of keys in messages.

    Raises:
        OptionError: a key is unknown (the message gives the nearest one), or a value does not fit.
    """
    known = options(part)
    limits = SECTION if is_dataclass(part) else PART
    parsed = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise OptionError(f"no option '{where}.{key}'.{did_you_mean(name, known)}")
        parsed[name] = known[name].parse(
            value, f"{where}.{key}", limits if limits is SECTION else COMMON.get(name, limits)
        )
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


def _choose(value: Any, allowed: Sequence[Any], key: str) -> Any:
    """Return the allowed value that is written like `value`."""
    for choice in allowed:
        if not isinstance(value, bool) and str(choice) == str(value):
            return choice
    raise OptionError(f"{key}: got '{value}'.{did_you_mean(str(value), list(map(str, allowed)))}")


def _items(value: Any, key: str) -> list[Any]:
    """Split a list, or a text such as ``1,2`` or ``1024x1024``, into its items."""
    if isinstance(value, str):
        return value.replace("x", ",").split(",")
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
