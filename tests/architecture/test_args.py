"""Docstrings describe arguments: of public functions and methods with two or more of them.

All count, also methods that override a documented one and commands of the command line.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

from helpers.sources import MODULES

MIN_SHARE = 0.95
_ENTRY = re.compile(r"^    \*{0,2}(\w+):", re.MULTILINE)


class _Function(NamedTuple):
    place: str
    node: ast.FunctionDef


def list_public_functions(node: ast.AST, place: str) -> Iterator[_Function]:
    """Yield the public functions and methods of a module, without inner ones."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and inner.name.startswith("_"):
            continue
        if isinstance(inner, ast.FunctionDef):
            yield _Function(f"{place}.{inner.name}", inner)
        elif isinstance(inner, ast.ClassDef):
            yield from list_public_functions(inner, f"{place}.{inner.name}")


def list_arguments(function: ast.FunctionDef) -> list[str]:
    """List the names of the arguments that callers give and the function reads."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += filter(None, (arguments.vararg, arguments.kwarg))
    names = [argument.arg for argument in named]
    return [name for name in names if name not in ("self", "cls", "ctx") and name[0] != "_"]


def list_described(function: ast.FunctionDef) -> list[str] | None:
    """List the names in the section ``Args`` of a docstring; None without this section."""
    _, mark, rest = (ast.get_docstring(function) or "").partition("\nArgs:\n")
    section = re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return [name for name in _ENTRY.findall(section) if name != "ctx"] if mark else None


def _functions() -> list[_Function]:
    return [
        function
        for path, tree in MODULES.items()
        for function in list_public_functions(tree, path)
        if len(list_arguments(function.node)) > 1
    ]


def test_names_are_read_from_signatures_and_docstrings() -> None:
    (function,) = list_public_functions(
        ast.parse(
            '''
class Reader:
    def read(self, path, *, size=1, _hidden=None):
        """Read.

        Args:
            path: the file: with
                size: no entry.
            size: pixels.

        Returns:
            pixels: none.
        """

    def _private(self, x, y):
        pass
'''
        ),
        "m",
    )
    assert (function.place, list_arguments(function.node)) == ("m.Reader.read", ["path", "size"])
    assert list_described(function.node) == ["path", "size"]


def test_docstrings_describe_arguments() -> None:
    functions = _functions()
    without = [f.place for f in functions if list_described(f.node) is None]
    assert len(functions) > 600
    assert len(without) <= (1 - MIN_SHARE) * len(functions), without


def test_described_arguments_are_those_of_the_signature() -> None:
    different = [
        f"{f.place}: takes {', '.join(taken)}, describes {', '.join(described)}"
        for f in _functions()
        if (described := list_described(f.node)) is not None
        and sorted(described) != sorted(taken := list_arguments(f.node))
    ]
    assert not different, "\n".join(different)
