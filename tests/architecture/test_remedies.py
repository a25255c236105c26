"""Every error of foveate says what its reader can do.

A message has a remedy if one of its clauses begins with a verb that asks for something ("give
another --out"), if it suggests a name ("Did you mean"), or if it is about an argument and says
which values are expected. A message is read as far as it is literal: with the constants, local
variables and functions of foveate that it is put together from, each alternative alone. What is
known only at run time, such as the text of another error of foveate, counts as no remedy, unless
it is an error that the code has caught.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from foveate.streaming.trace import _ADVICE as ADVICE_OF_LAYERS
from helpers.sources import CLASSES, MODULES

_VERBS = (
    *(
        "add",
        "apply",
        "ask",
        "attend",
        "begin",
        "bring",
        "call",
        "change",
        "check",
        "close",
        "compare",
    ),
    *("convert", "copy", "correct", "cut", "define", "delete", "divide", "download", "export"),
    *(
        "fetch",
        "fill",
        "flatten",
        "give",
        "install",
        "keep",
        "leave",
        "look",
        "make",
        "mend",
        "name",
        "open",
        "pool",
        "return",
    ),
    *(
        "put",
        "quote",
        "raise",
        "read",
        "remove",
        "rename",
        "repeat",
        "report",
        "restore",
        "run",
        "save",
    ),
    *("say", "see", "set", "spell", "store", "take", "train", "unpack", "upgrade", "use", "wait"),
    *("wrap", "write"),
)
"""Verbs that ask the reader to do something, where a clause begins with them."""
_ASKS = re.compile(
    rf"(?:^|[;:.?] |\(|, (?=(?:or|so|take|give|train) ))"
    rf"(?:(?:or|and|so|then|best|please|otherwise) )*(?:{'|'.join(_VERBS)})\b",
    re.I,
)
_SUGGESTS = re.compile(r"Did you mean|\bAllowed: |\bcan be named with --|`foveate \w+` lists")
_EXPECTS = re.compile(r"\bexpected\b|\ballowed:|\bneeds? ")
_GOT_AND_EXPECTED = re.compile(r"\bgot\b.*\bexpected\b|\bexpected\b.*\bgot\b")
_ARGUMENT_ERRORS = {"OptionError", "ArrayError", "BoxError"}
"""Errors about an argument: its message names it, so that what is expected says what to give."""

WITHOUT_LITERALS = {
    ("errors.py", "_rebuild_error"): "the message that the error had in another process",
    ("loading/scan.py", "scan_cases"): "the message of the first image that failed",
    ("loading/together.py", "open_together"): "the messages of the images that failed",
    ("loading/together.py", "read_together"): "the messages of the images that failed",
    ("readers/__init__.py", "explain"): "caught at once; no reader sees it",
    ("streaming/trace.py", "make_refusal"): "advice by the kind of layer; a test reads it",
    ("table/__init__.py", "_check_labels"): "the message of a task, and details",
    ("table/builder.py", "_settle_identical"): "a note on the table, as an error",
}
"""Functions that raise the text of another message, and where that comes from."""

_MAX_DEPTH = 4
_MAX_ALTERNATIVES = 200


def _families() -> set[str]:
    """Return the names of all classes of the tree of errors."""
    families, before = {"FoveateError"}, 0
    while len(families) > before:
        before = len(families)
        families |= {
            name
            for name, node in CLASSES.items()
            if families & {ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases}
        }
    return families


FAMILIES = _families()
FUNCTIONS: dict[str, list[ast.FunctionDef]] = {}
CONSTANTS: dict[str, list[ast.expr]] = {}
for tree in MODULES.values():
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            FUNCTIONS.setdefault(node.name, []).append(node)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            CONSTANTS.setdefault(statement.targets[0].id, []).append(statement.value)

Scope = dict[str, list[ast.expr]]


class Site(NamedTuple):
    """A place where an error of foveate is made, and all texts that it may have there."""

    path: str
    function: str
    line: int
    kind: str
    texts: list[str]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _bind(function: ast.AST | None) -> Scope:
    """Return the values that a function assigns to its variables."""
    scope: Scope = {}
    for node in ast.walk(function) if function is not None else ():
        if isinstance(node, ast.For) and isinstance(node.target, ast.Tuple):
            # Rows of a constant table, such as (mark, reason).
            for name, column in zip(node.target.elts, _columns(node), strict=False):
                if isinstance(name, ast.Name):
                    scope.setdefault(name.id, []).extend(column)
        if isinstance(node, ast.Assign | ast.NamedExpr):
            target = node.target if isinstance(node, ast.NamedExpr) else node.targets[0]
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for variable, value in pairs:
                if isinstance(variable, ast.Name):
                    scope.setdefault(variable.id, []).append(value)
    return scope


def _columns(loop: ast.For) -> list[list[ast.expr]]:
    """Return the columns of the constant table that a loop goes through."""
    n = len(loop.target.elts) if isinstance(loop.target, ast.Tuple) else 0
    tables = CONSTANTS.get(_name(loop.iter), [])
    inner = [node for table in tables for node in ast.walk(table) if isinstance(node, ast.Tuple)]
    rows = [row.elts for row in inner if len(row.elts) == n]
    return [list(column) for column in zip(*rows, strict=True)]


def _join(parts: list[list[str]]) -> list[str]:
    return [
        "".join(texts) for texts in itertools.islice(itertools.product(*parts), _MAX_ALTERNATIVES)
    ]


def _read(node: ast.expr, scope: Scope, depth: int = 0) -> list[str]:
    """Return the texts that an expression may have; a value that is not literal is ``§``."""
    if _is_none(node):
        return []
    if isinstance(node, ast.Constant):
        return [node.value if isinstance(node.value, str) else "§"]
    if isinstance(node, ast.JoinedStr):
        return _join([_read(value, scope, depth) for value in node.values])
    if isinstance(node, ast.FormattedValue | ast.Starred):
        return _read(node.value, scope, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _join([_read(node.left, scope, depth), _read(node.right, scope, depth)])
    if isinstance(node, ast.IfExp):
        return _read(node.body, scope, depth) + _read(node.orelse, scope, depth)
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in _read(value, scope, depth)]
    values: list[tuple[ast.expr, Scope]] = []
    if depth < _MAX_DEPTH and isinstance(node, ast.Name):
        inner = {name: v for name, v in scope.items() if name != node.id}
        values = [(value, inner) for value in scope.get(node.id, CONSTANTS.get(node.id, []))]
    elif depth < _MAX_DEPTH and isinstance(node, ast.Call):
        for function in FUNCTIONS.get(_name(node.func), []):
            bound = _bind(function)
            returns = [n for n in ast.walk(function) if isinstance(n, ast.Return)]
            values += [(r.value, bound) for r in returns if r.value and not _is_none(r.value)]
    return [text for value, inner in values for text in _read(value, inner, depth + 1)] or ["§"]


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _sites() -> Iterator[Site]:
    """Yield all places where an error of foveate is made from a message."""
    for path, tree in MODULES.items():
        yield from _visit(path, tree, None, set())


def _visit(
    path: str, node: ast.AST, function: ast.FunctionDef | None, caught: set[str]
) -> Iterator[Site]:
    for inner in ast.iter_child_nodes(node):
        now = inner if isinstance(inner, ast.FunctionDef) else function
        passed = caught
        if isinstance(inner, ast.ExceptHandler) and inner.type is not None and inner.name:
            kinds = {n.id for n in ast.walk(inner.type) if isinstance(n, ast.Name)}
            passed = caught | {inner.name} if kinds <= FAMILIES else caught - {inner.name}
        if isinstance(inner, ast.Call) and _name(inner.func) in FAMILIES and inner.args:
            names = {n.id for arg in inner.args for n in ast.walk(arg) if isinstance(n, ast.Name)}
            if not names & passed:  # else it has the remedy of the error that was caught
                scope = _bind(now)
                texts = _join([_read(arg, scope) for arg in inner.args])
                where = "" if now is None else now.name
                yield Site(path, where, inner.lineno, _name(inner.func), texts)
        yield from _visit(path, inner, now, passed)


def _has_remedy(kind: str, text: str) -> bool:
    if _ASKS.search(text) or _SUGGESTS.search(text) or _GOT_AND_EXPECTED.search(text):
        return True
    return kind in _ARGUMENT_ERRORS and _EXPECTS.search(text) is not None


def test_every_error_says_what_to_do() -> None:
    sites = [site for site in _sites() if (site.path, site.function) not in WITHOUT_LITERALS]
    lacking = {
        f"{site.path}:{site.line} {site.kind}: {text}"
        for site in sites
        for text in site.texts
        if not _has_remedy(site.kind, text)
    }
    assert len(sites) > 300
    assert not lacking, "\n".join(sorted(lacking))


def test_exceptions_are_places_that_raise() -> None:
    assert set(WITHOUT_LITERALS) <= {(site.path, site.function) for site in _sites()}


def test_the_rule_tells_remedies_from_complaints() -> None:
    for complaint in ("a.tif: the image is closed", "the split has no folds", "a set, read whole"):
        assert not _has_remedy("CheckpointError", complaint)
    for advice in ADVICE_OF_LAYERS.values():
        assert _has_remedy("NotLocal", advice)
    for advice in ("a.tif: the image is closed; open it again", "Restore it", "x. Give another"):
        assert _has_remedy("CheckpointError", advice)
    assert _has_remedy("OptionError", "folds: 0, expected 1 or more")
    assert not _has_remedy("CheckpointError", "folds: 0, expected 1 or more")
