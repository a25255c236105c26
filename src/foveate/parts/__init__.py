"""Find methods, readers, tasks, encoders, … by name; `parts.options` reads their options.

A name is looked up, in this order, in a folder that the user names (``--plugins DIR``, with one
folder per `PartKind`, such as ``methods/``), among installed packages' entry points (groups
``foveate.methods`` and so on), and among foveate's own files. A file holds one part, which has the
file's name; files beginning with ``_`` and ``base.py`` are no parts.

Nothing is imported from a model or run folder: only the command line names folders of plug-ins.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import threading
import types
import typing
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar

from foveate.errors import OptionError, UnknownName
from foveate.parts.required import check_attributes, check_class
from foveate.wording import did_you_mean

PartKind = Literal["methods", "readers", "tasks", "encoders", "exports", "aggregators"]

Built = TypeVar("Built")

_folders: list[Path] = []
_loading = threading.RLock()


def add_plugin_folder(folder: Path | str) -> None:
    """Look for parts in a folder before all others.

    A folder that is a package (it holds ``__init__.py``) can be imported by its name, so that its
    parts may share files.

    Args:
        folder: holds folders of parts by kind (`PartKind`), whose code is run.

    Raises:
        OptionError: the folder does not exist.

    Example:
        >>> foveate.add_plugin_folder("my_parts")
        >>> foveate.list_methods()["own_method"]
        'patches on an even grid, and their mean'
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"--plugins {folder}: no such folder; check the name")
    folder = folder.resolve()
    if folder not in _folders:
        _folders.insert(0, folder)
    if (folder / "__init__.py").is_file() and str(folder.parent) not in sys.path:
        sys.path.append(str(folder.parent))


def list_kinds() -> str:
    """Return the folders of all kinds of parts as words: ``methods/, readers/, …``."""
    return ", ".join(f"{kind}/" for kind in typing.get_args(PartKind))


def plugin_folders() -> tuple[Path, ...]:
    """Return the folders of plug-ins, in the order in which they are searched."""
    return tuple(_folders)


def names(kind: PartKind) -> list[str]:
    """Return the names of all parts of a kind, sorted, without importing them."""
    available = {_name(p) for p in _package_files(kind)}
    available |= {_name(p) for folder in _folders for p in _part_files(folder / kind)}
    available |= {entry.name for entry in _installed(kind)}
    return sorted(available)


def find(kind: PartKind, name: str) -> type[Any]:
    """Find the class of a part.

    Args:
        kind: the kind of part.
        name: its name.

    Raises:
        UnknownName: there is no part of this name; the message gives the nearest name.
        OptionError: the file holds no part, or more than one; or the part lacks an attribute or a
            method that the contract of its kind requires.
    """
    for folder in _folders:
        for path in _part_files(folder / kind):
            if _name(path) == name:
                return _only_class(_load_file(path, kind), kind, str(path))
    for entry in _installed(kind).select(name=name):
        loaded: type[Any] = entry.load()
        check_class(loaded, _base(kind), f"entry point {entry.value}")
        return loaded
    for path in _package_files(kind):
        if _name(path) == name:
            module = importlib.import_module(f"foveate.{kind}.{path.stem}")
            return _only_class(module, kind, str(path))
    raise UnknownName(f"no {kind.removesuffix('s')} '{name}'.{did_you_mean(name, names(kind))}")


def check_built(kind: PartKind, part: Built) -> Built:
    """Return a part that was built, if it has all attributes that its contract requires.

    Args:
        kind: kind of the part.
        part: the part.

    Raises:
        OptionError: it lacks one; the message names its file, its class and the attribute.
    """
    check_attributes(part, _base(kind))
    return part


@functools.cache
def _installed(kind: PartKind) -> EntryPoints:
    """Return the entry points of installed packages, read once: that takes 50 ms."""
    return entry_points(group=f"foveate.{kind}")


def _base(kind: PartKind) -> type[Any]:
    """Return the class that defines the contract of a kind of parts."""
    base: type[Any] = importlib.import_module(f"foveate.{kind}.base").BASE
    return base


def _name(path: Path) -> str:
    """Return the name of the part in a file; a ``_`` at the end avoids names of libraries."""
    return path.stem.rstrip("_")


def _package_files(kind: PartKind) -> list[Path]:
    """Return the files of foveate's own parts of a kind."""
    return _part_files(Path(__file__).parents[1] / kind)


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
    base = _base(kind)
    public = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    concrete = [part for part in public if not inspect.isabstract(part)]
    if len(concrete) == 1 or len(public) == 1:
        (part,) = concrete or public
        check_class(part, base, where)
        return part
    raise OptionError(
        f"{where} must hold exactly one public {base.__name__}, found {len(concrete)}: put each "
        "in a file of its own, and begin names of helpers with _"
    )
