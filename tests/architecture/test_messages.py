"""Errors: one place catches all of them, and tests read the messages of those that are raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
MIN_SHARE = 0.9
_RUN = 3
"""Words in a row that a test and a message must have in common; fewer where a text is shorter."""


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _texts(node: ast.AST) -> list[str]:
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return [words for text in texts if isinstance(text, str) and (words := _words(text))]


def _messages() -> Iterator[tuple[str, list[str]]]:
    """Yield each raise with a text: its place, and the texts between its values."""
    for path, tree in sorted(TREES.items()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                texts = [text for value in node.exc.args for text in _texts(value)]
                if texts:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno} {max(texts, key=len)}", texts


def _read_by_tests() -> str:
    """Return all texts of tests, without docstrings and escapes of regular expressions."""
    texts = []
    for path in (ROOT / "tests").rglob("*.py"):
        if path == Path(__file__):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        loose = {
            id(n.value)
            for n in ast.walk(tree)
            if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in loose:
                text = re.sub(r"\\(.)", r"\1", str(node.value))
                texts += [_words(part) for part in re.split(r"\.[*+]|\|", text)]
    return "\n".join(f" {text} " for text in texts if text)


def _is_read(texts: list[str], tests: str) -> bool:
    longest = max(texts, key=len)
    for text in [t for t in texts if t == longest or len(t.split()) >= 2]:
        words = text.split()
        n = min(_RUN, len(words))
        runs = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        if any(f" {run} " in tests for run in runs):
            return True
    return False


def test_tests_read_the_messages_of_errors() -> None:
    messages, tests = list(_messages()), _read_by_tests()
    unread = [place for place, texts in messages if not _is_read(texts, tests)]
    share = 1 - len(unread) / len(messages)
    assert share >= MIN_SHARE, "no test reads:\n" + "\n".join(unread)


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
