"""Public functions that raise an error say so in their docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from helpers.sources import CLASSES, MODULES


def _raises(node: ast.AST) -> bool:
    """Return whether a function raises an error itself, not in a function within it."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Raise) and inner.exc is not None:
            if "NotImplementedError" not in ast.unparse(inner.exc):
                return True
        elif not isinstance(inner, ast.FunctionDef | ast.Lambda | ast.ClassDef) and _raises(inner):
            return True
    return False


def _documented(function: ast.FunctionDef, owner: ast.ClassDef | None) -> bool:
    """Return whether the function, its class or a method that it overrides documents errors."""
    if "Raises:" in (ast.get_docstring(function) or ""):
        return True
    if owner is None:
        return False
    if function.name == "__init__" and "Raises:" in (ast.get_docstring(owner) or ""):
        return True
    for base in owner.bases:
        parent = CLASSES.get(ast.unparse(base).split("[")[0].rsplit(".", 1)[-1])
        for method in parent.body if parent else []:
            if isinstance(method, ast.FunctionDef) and method.name == function.name:
                return _documented(method, parent)
        if parent and _documented(function, parent):
            return True
    return False


def _raising(
    node: ast.AST, owner: ast.ClassDef | None = None
) -> Iterator[tuple[ast.FunctionDef, ast.ClassDef | None]]:
    """Yield the public functions and methods that raise; the help of a command has no errors."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef) and not inner.name.startswith("_"):
            yield from _raising(inner, inner)
        elif isinstance(inner, ast.FunctionDef):
            public = not inner.name.startswith("_") or inner.name == "__init__"
            command = any("click.command" in ast.unparse(d) for d in inner.decorator_list)
            if public and not command and _raises(inner):
                yield inner, owner


def test_public_functions_document_their_errors() -> None:
    raising = [(path, *pair) for path, tree in MODULES.items() for pair in _raising(tree)]
    missing = [
        f"{path}:{function.lineno} {function.name}"
        for path, function, owner in raising
        if not _documented(function, owner)
    ]
    assert len(raising) > 50
    assert len(missing) <= 0.05 * len(raising), missing
