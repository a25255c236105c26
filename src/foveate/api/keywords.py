"""Keywords of public functions that are the fields of an options class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def show_keywords(options: type[Any]) -> Callable[[_Function], _Function]:
    """Show the fields of an options class in the signature and the help of a function.

    The function takes them as ``**options``; in its docstring, the entry ``options`` is replaced by
    the attributes that the class describes.

    Args:
        options: a dataclass whose fields have defaults.
    """

    def show(function: _Function) -> _Function:
        signature = inspect.signature(function)
        stated = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=field.type,
            )
            for field in fields(options)
        ]
        ordered = sorted([*added, *stated], key=lambda p: p.kind)
        function.__signature__ = signature.replace(parameters=ordered)  # type: ignore[attr-defined]
        text = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = re.sub(r"(?m)^    options: .*\n", _describe_fields(options), text)
        return function

    return show


def _describe_fields(options: type[Any]) -> str:
    """Return the Attributes of a class and of those that it inherits from, as entries of Args."""
    texts = (inspect.cleandoc(vars(c).get("__doc__") or "") for c in reversed(options.__mro__[:-1]))
    return "".join(text.partition("Attributes:\n")[2] + "\n" for text in texts)
