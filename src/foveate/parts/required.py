"""Check that a part has the attributes and methods that the contract of its kind requires.

A contract requires its abstract methods, and the public attributes that it annotates without a
value: those of type `ClassVar` of the class, the others once the part is built.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from foveate.errors import OptionError


def check_class(part: type[Any], base: type[Any], where: str) -> None:
    """Check the methods and class attributes of a part.

    Args:
        part: the class of the part.
        base: the class that defines the contract.
        where: the file of the part, for the message.

    Raises:
        OptionError: the part lacks something.
    """
    if not inspect.isclass(part) or not issubclass(part, base):
        raise OptionError(f"{where}: {part!r} is no {base.__name__}; make it a subclass")
    if methods := sorted(getattr(part, "__abstractmethods__", ())):
        raise OptionError(
            f"{where}: {part.__name__} does not define {_quote(methods)}, as every "
            f"{base.__name__} must; see {base.__module__}"
        )
    missing = [name for name in _list_required(base, of_class=True) if not hasattr(part, name)]
    if missing:
        raise _incomplete(part, base, where, missing, set(dir(part)))


def check_attributes(part: object, base: type[Any]) -> None:
    """Check the attributes of a part that was built.

    Args:
        part: the part.
        base: the class that defines the contract.

    Raises:
        OptionError: the part lacks an attribute.
    """
    kind = type(part)
    missing = [
        name
        for name in _list_required(base, of_class=False)
        if name not in vars(part) and not _has_class_value(kind, name) and not hasattr(part, name)
    ]
    if missing:
        names = set(vars(part)) | set(dir(kind))
        raise _incomplete(kind, base, inspect.getfile(kind), missing, names)


def _list_required(base: type[Any], *, of_class: bool) -> list[str]:
    """Return the public attributes that a contract annotates without giving them a value."""
    return sorted(
        name
        for definition in base.__mro__
        if definition.__module__.startswith("foveate.")
        for name, annotation in inspect.get_annotations(definition).items()
        if not name.startswith("_")
        and not _has_class_value(base, name)
        and str(annotation).startswith("ClassVar") == of_class
    )


def _has_class_value(part: type[Any], name: str) -> bool:
    """Return whether a class or a base of it has an attribute; properties are not computed."""
    return any(name in vars(definition) for definition in part.__mro__)


def _incomplete(
    part: type[Any], base: type[Any], where: str, missing: list[str], names: set[str]
) -> OptionError:
    """Build the error about attributes that a part lacks.

    Args:
        part: the class of the part.
        base: the class that defines the contract.
        where: the file of the part.
        missing: the attributes.
        names: attributes that the part has, among which may be a misspelt one.
    """
    similar = difflib.get_close_matches(missing[0], sorted(names - set(dir(base))), n=1)
    hint = f"; it has '{similar[0]}'" if similar else ""
    return OptionError(
        f"{where}: {part.__name__} does not set {_quote(missing)}, as every {base.__name__} "
        f"must{hint}; see {base.__module__}"
    )


def _quote(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
