"""Tensors that functions take and return have their axes in their types.

``tests/conftest.py`` has them checked at every call in the tests. The product checks nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "foveate"
KINDS = {"Float", "Int", "Bool", "Shaped", "Float64", "Int64", "UInt16"}
_AXIS = re.compile(r"\.\.\.|\*?_?[a-z][a-z0-9_]*|\d+")


def _signatures(node: ast.AST, name: str) -> Iterator[tuple[str, ast.expr]]:
    """Yield the annotated arguments and results of all functions, private and inner ones too."""
    for inner in ast.iter_child_nodes(node):
        place = name
        if isinstance(inner, ast.ClassDef | ast.FunctionDef):
            place = f"{name}.{inner.name}"
        if isinstance(inner, ast.FunctionDef):
            arguments = inner.args
            for argument in [
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                *filter(None, (arguments.vararg, arguments.kwarg)),
            ]:
                if argument.annotation is not None:
                    yield f"{place}({argument.arg})", argument.annotation
            if inner.returns is not None:
                yield f"{place}()", inner.returns
        yield from _signatures(inner, place)


def _axes(annotation: ast.AST) -> list[str | None]:
    """Return the axes of every tensor in an annotation; None for a tensor without axes."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in KINDS:
        axes = annotation.slice.elts[1] if isinstance(annotation.slice, ast.Tuple) else None
        return [str(axes.value) if isinstance(axes, ast.Constant) else None]
    if ast.unparse(annotation) in ("Tensor", "torch.Tensor"):
        return [None]
    return [axes for child in ast.iter_child_nodes(annotation) for axes in _axes(child)]


def _tensors() -> dict[str, list[str | None]]:
    tensors: dict[str, list[str | None]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, annotation in _signatures(tree, str(path.relative_to(SOURCE))):
            if axes := _axes(annotation):
                tensors[name] = axes
    return tensors


def test_tensors_have_axes_in_their_types() -> None:
    tensors = _tensors()
    without = [name for name, axes in tensors.items() if None in axes]
    assert len(tensors) > 800
    assert len(without) <= 0.01 * len(tensors), without


def test_axes_are_of_a_form_that_is_checked() -> None:
    """Jaxtyping leaves out an annotation that it cannot read, without a word."""
    for name, all_axes in _tensors().items():
        for axes in filter(None, all_axes):
            words = axes.split()
            assert all(_AXIS.fullmatch(word) for word in words), f"{name}: '{axes}'"
            assert sum(word[0] in ".*" for word in words) <= 1, f"{name}: '{axes}'"


def test_the_product_checks_nothing_itself() -> None:
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"beartype|jaxtyped|install_import_hook", text), path
