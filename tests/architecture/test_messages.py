"""Errors: one place catches all of them, and tests read the messages of those that are raised.

A message counts as read if a test compares a text with it that has five words in a row in common,
or all words of a shorter message. Only texts that decide whether a test fails count: those in an
assertion or in ``match=``, in a table or variable that one of these refers to, and those passed to
a helper of the tests that compares them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
MIN_SHARE = 0.9
_WORDS_IN_COMMON = 5
_MAX_WORDS_OF_A_VALUE = 12
_VALUE = "§"
"""Stands for a value between the literal parts of a text."""
_PASSES_ON = {
    *("all", "any", "compile", "count", "dict", "endswith", "enumerate", "escape", "format"),
    *("fullmatch", "index", "items", "join", "list", "match", "param", "removeprefix", "replace"),
    *("search", "set", "sorted", "startswith", "str", "tuple", "values", "zip"),
}
"""Functions whose result depends on the texts that they are called with, and that are followed."""

_ONE_TARGET = ast.AnnAssign | ast.AugAssign | ast.NamedExpr | ast.For | ast.comprehension


def _follow(node: ast.AST) -> Iterator[ast.expr]:
    """Yield the texts and names that an expression depends on; other calls are left out."""
    if isinstance(node, ast.JoinedStr | ast.Name):
        yield node
        if isinstance(node, ast.JoinedStr):
            for part in node.values:
                yield from _follow(part.value) if isinstance(part, ast.FormattedValue) else ()
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node
    elif isinstance(node, ast.Call) and _name(node.func) not in _PASSES_ON:
        return
    elif not isinstance(node, ast.Lambda):
        for inner in ast.iter_child_nodes(node):
            yield from _follow(inner)


def _text(node: ast.expr) -> str | None:
    """Return a text in the code, with `_VALUE` for values; None for another expression."""
    if isinstance(node, ast.JoinedStr):
        parts = [v.value if isinstance(v, ast.Constant) else _VALUE for v in node.values]
        return "".join(map(str, parts))
    value = getattr(node, "value", None)
    return value if isinstance(node, ast.Constant) and isinstance(value, str) else None


def _texts(node: ast.AST) -> list[str]:
    """Return the texts that an expression depends on."""
    return [text for inner in _follow(node) if (text := _text(inner)) is not None]


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


# -- messages of the product ------------------------------------------------------------------


def _messages() -> Iterator[tuple[str, str]]:
    """Yield each raise with a text: its place, and its text with `_VALUE` for values."""
    for path, tree in sorted(TREES.items()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                inner = [_text(v) or _VALUE.join(_texts(v)) for v in node.exc.args]
                if re.search(r"\w", text := _VALUE.join(inner)):
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", text


def _split(text: str) -> list[str]:
    return re.findall(rf"{_VALUE}|\w+", text.casefold())


def _is_read(message: str, compared: str) -> bool:
    words = _split(message)
    places = [i for i, word in enumerate(words) if word != _VALUE]
    n = min(_WORDS_IN_COMMON, len(places))
    value = rf"(?:\S+ ){{0,{_MAX_WORDS_OF_A_VALUE}}}"
    for first, last in zip(places, places[n - 1 :], strict=False):
        run = f" {' '.join(words[first : last + 1])} "
        if _VALUE not in run:
            if run in compared:
                return True
        elif re.search(run.replace(f"{_VALUE} ", value), compared):
            return True
    return False


# -- texts that tests compare -----------------------------------------------------------------


@dataclass
class _Function:
    """A function of the tests: its file, and the values that its names are bound to."""

    path: Path
    node: ast.FunctionDef
    bindings: dict[str, list[ast.expr]]

    def as_helper(self, names: set[str]) -> _Helper:
        """Return which parameters are compared, if `names` are; none for a test."""
        arguments = self.node.args
        positions = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
        rest = "" if arguments.vararg is None else arguments.vararg.arg
        known = {*positions, *(a.arg for a in arguments.kwonlyargs), rest} - {""}
        test = self.node.name.startswith("test_")
        return _Helper(positions, rest, set() if test else known & names)

    def compared(self, helpers: dict[str, _Helper]) -> tuple[list[str], set[str]]:
        """Return the texts that decide whether a test fails, and the names that do."""
        waiting = list(_seeds(self.node, helpers))
        texts: list[str] = []
        names: set[str] = set()
        while waiting:
            value = waiting.pop()
            texts += _texts(value)
            new = {n.id for n in _follow(value) if isinstance(n, ast.Name)} - names
            names |= new
            waiting += [bound for name in new for bound in self.bindings.get(name, [])]
        return texts, names


@dataclass
class _Helper:
    """A helper of the tests, and those of its parameters that it compares."""

    positions: list[str]
    rest: str
    compared: set[str]

    def pick(self, call: ast.Call) -> Iterator[ast.expr]:
        """Yield the arguments of a call that the helper compares."""
        for i, value in enumerate(call.args):
            if (self.positions[i] if i < len(self.positions) else self.rest) in self.compared:
                yield value
        yield from (k.value for k in call.keywords if k.arg in self.compared)


def _seeds(function: ast.FunctionDef, helpers: dict[str, _Helper]) -> Iterator[ast.expr]:
    """Yield what a function asserts, matches, or passes to a helper that compares it."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            yield node.test
        elif isinstance(node, ast.Call):
            yield from (k.value for k in node.keywords if k.arg == "match")
            if _name(node.func) in helpers:
                yield from helpers[_name(node.func)].pick(node)


def _bind(node: ast.AST, *, nested: bool) -> dict[str, list[ast.expr]]:
    """Return the values that are bound to each name, in a function or at the top of a file."""
    bindings: dict[str, list[ast.expr]] = {}
    for inner in ast.walk(node) if nested else ast.iter_child_nodes(node):
        targets: list[ast.expr] = []
        if isinstance(inner, ast.Assign):
            targets = inner.targets
        elif isinstance(inner, _ONE_TARGET):
            targets = [inner.target]
        value = getattr(inner, "iter", getattr(inner, "value", None))
        if isinstance(value, ast.expr):
            for name in (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)):
                bindings.setdefault(name, []).append(value)
    return bindings


def _bind_parameters(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """Yield the values that ``parametrize`` gives to each parameter of a test."""
    for call in function.decorator_list:
        if not (isinstance(call, ast.Call) and _name(call.func) == "parametrize"):
            continue
        names = [name for text in _texts(call.args[0]) for name in text.replace(" ", "").split(",")]
        rows = call.args[1].elts if isinstance(call.args[1], ast.List | ast.Tuple) else []
        if not rows:
            yield from ((name, call.args[1]) for name in names)
        for row in rows:
            cells = [row]
            if isinstance(row, ast.Call):
                cells = row.args
            elif len(names) > 1 and isinstance(row, ast.Tuple | ast.List):
                cells = row.elts
            yield from zip(
                names, cells if len(cells) == len(names) else [row] * len(names), strict=True
            )


def _functions() -> list[_Function]:
    """Return all functions of the tests but those of this file."""
    functions = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path == Path(__file__):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = _bind(tree, nested=False)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                bindings = top | _bind(node, nested=True)
                for name, value in _bind_parameters(node):
                    bindings.setdefault(name, []).append(value)
                functions.append(_Function(path, node, bindings))
    return functions


def _compared() -> str:
    """Return the words of all texts that tests compare, one text a line between spaces."""
    functions = _functions()
    shared: dict[str, _Helper] = {}  # those that tests import
    local: dict[Path, dict[str, _Helper]] = {function.path: {} for function in functions}
    texts: list[str] = []
    n, n_before = 0, -1
    while n > n_before:  # helpers may call helpers
        texts.clear()
        for function in functions:
            more, names = function.compared(shared | local[function.path])
            texts += more
            helper = function.as_helper(names)
            if helper.compared:
                local[function.path][function.node.name] = helper
                if function.path.name == "conftest.py" or function.path.parent.name == "helpers":
                    shared[function.node.name] = helper
        n_before, n = n, sum(len(h.compared) for known in local.values() for h in known.values())
    plain = [re.sub(r"\\[dDsSwW][+*]?|\.[*+]\??", f" {_VALUE} ", text) for text in texts]
    parts = [part for text in plain for part in re.sub(r"\\(.)", r"\1", text).split("|")]
    return "\n".join(f" {' '.join(_split(part))} " for part in parts)


def test_tests_read_the_messages_of_errors() -> None:
    messages, compared = list(_messages()), _compared()
    unread = [f"{place} {text}" for place, text in messages if not _is_read(text, compared)]
    share = 1 - len(unread) / len(messages)
    assert share >= MIN_SHARE, f"{share:.1%}; no test reads:\n" + "\n".join(unread)


def _catches_all(handler: ast.ExceptHandler) -> bool:
    names = (
        []
        if handler.type is None
        else [n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)]
    )
    return handler.type is None or bool({"Exception", "BaseException"} & set(names))


def test_only_one_place_catches_all_errors() -> None:
    places = {
        (path.relative_to(SOURCE).as_posix(), function.name)
        for path, tree in TREES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ExceptHandler) and _catches_all(node)
    }
    assert places == {("errors.py", "converting")}
