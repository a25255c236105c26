"""Functions stay short and have few branches: nine of ten within the limits."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "foveate"
MAX_P90_LINES = 20
MAX_P90_BRANCHES = 4

Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


def list_functions(code: str) -> list[Function]:
    """List all functions and methods of a file, nested ones included."""
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, Function)]


def count_lines(function: Function) -> int:
    """Count the lines of a function from ``def``, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def count_branches(function: Function) -> int:
    """Count the conditions, loops and handlers of a function, without those of inner functions."""
    return sum(isinstance(node, BRANCHES) for node in _walk_own(function))


def _walk_own(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef):
            yield child
            yield from _walk_own(child)


def compute_p90(values: list[int]) -> float:
    """Compute the 90th percentile."""
    return statistics.quantiles(values, n=10)[-1]


def test_counts_on_code_of_known_size() -> None:
    (outer, inner) = list_functions(
        """
def outer(x):
    if x:
        return 1
    elif x is None:
        return 2
    for y in x:
        try:
            y()
        except ValueError:
            pass

    def inner():
        while True:
            pass
"""
    )
    assert (count_lines(outer), count_branches(outer)) == (14, 4)
    assert (count_lines(inner), count_branches(inner)) == (3, 1)
    assert compute_p90(list(range(1, 11)) * 10) == 9.9


def test_nine_of_ten_functions_are_short_and_simple() -> None:
    functions = [
        function
        for path in sorted(SOURCE.rglob("*.py"))
        for function in list_functions(path.read_text(encoding="utf-8"))
    ]
    lines, branches = map(count_lines, functions), map(count_branches, functions)
    assert compute_p90(list(lines)) <= MAX_P90_LINES
    assert compute_p90(list(branches)) <= MAX_P90_BRANCHES
