"""Every public name of the package has a caller in the package, the benchmarks or the docs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from foveate import parts

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"

FOUND_BY_NAME = ("methods", "readers", "tasks", "encoders", "exports", "aggregators")
"""Packages whose public classes `foveate.parts` finds by the names of their files."""

EXEMPT = {
    "foveate.cli.main",  # the console script of pyproject.toml
    *(f"foveate.formats.dicom_codec.{name}" for name in ("DECODER_DEPENDENCIES", "is_available")),
    "foveate.formats.dicom_codec.decode_frame",  # these three are called by pydicom
}


def _module(path: Path) -> str:
    root = ROOT / "src" if SOURCE in path.parents else ROOT
    names = path.relative_to(root).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the names defined at the top level of a module, with their statements."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, node) for t in targets if isinstance(t, ast.Name))


def _names_read(tree: ast.AST, but: ast.stmt | None = None) -> Iterator[str]:
    """Yield each ``name`` and ``name.attribute`` that code reads, except in one statement.

    Imports and the strings of ``__all__`` do not count.
    """
    if tree is but:
        return
    if isinstance(tree, ast.Name) and isinstance(tree.ctx, ast.Load):
        yield tree.id
    if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
        yield f"{tree.value.id}.{tree.attr}"
    for child in ast.iter_child_nodes(tree):
        yield from _names_read(child, but)


def _imported_names(tree: ast.Module) -> dict[str, str]:
    """Map each imported name of a file to the full name that it stands for."""
    bound: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return bound


TREES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for folder in (SOURCE, ROOT / "benchmarks", ROOT / "examples")
    for path in sorted(folder.rglob("*.py"))
}
BOUND = {path: _imported_names(tree) for path, tree in TREES.items()}
DEFINED = {_module(path): dict(_definitions(tree)) for path, tree in TREES.items()}
IMPORTED = {_module(path): bound for path, bound in BOUND.items()}


def _defining_module(name: str) -> str:
    """Return the full name of a definition, following re-exports of packages."""
    module, _, last = name.rpartition(".")
    if last in DEFINED.get(module, {}):
        return name
    passed_on = IMPORTED.get(module, {}).get(last)
    return name if passed_on is None or passed_on == name else _defining_module(passed_on)


def _callers() -> set[str]:
    """Return the full names of all definitions that some code reads."""
    homes = set()
    for path, tree in TREES.items():
        for use in set(_names_read(tree)):
            name, _, rest = use.partition(".")
            if name in BOUND[path]:
                homes |= {
                    _defining_module(BOUND[path][name]),
                    _defining_module(".".join([BOUND[path][name], rest])),
                }
    return homes


def _names_in_docs() -> set[str]:
    """Return the names in code in the docs, without plain words such as ``log``."""
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(code)))
    return {word for word in words if "_" in word or word != word.lower()}


def _is_found_by_name(module: str, node: ast.stmt) -> bool:
    kind = module.split(".")[1]
    names = parts.names(cast(parts.PartKind, kind)) if kind in FOUND_BY_NAME else []
    is_part = module.rpartition(".")[2].rstrip("_") in names
    return is_part and isinstance(node, ast.ClassDef)


def test_every_public_name_has_a_caller() -> None:
    callers, words = _callers(), _names_in_docs()
    alone = []
    for path, tree in TREES.items():
        module = _module(path)
        if SOURCE not in path.parents:
            continue
        for name, node in DEFINED[module].items():
            full = f"{module}.{name}"
            if name.startswith("_") or name == "BASE" or full in EXEMPT | callers:
                continue
            if name in words or _is_found_by_name(module, node):
                continue
            if name not in set(_names_read(tree, but=node)):
                alone.append(full)
    assert not alone, f"nobody calls {', '.join(alone)}: delete them, or make them private"


def _attributes_read() -> set[str]:
    """Return the name of every attribute that some code reads."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_every_public_method_has_a_caller() -> None:
    """Methods are compared by name; classes with a library's base class are left out."""
    known = _attributes_read() | _names_in_docs()
    alone = []
    for path, tree in TREES.items():
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for owner in classes if SOURCE in path.parents else []:
            if any(isinstance(base, ast.Attribute) for base in owner.bases):
                continue
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                    continue
                if node.name not in known:
                    alone.append(f"{_module(path)}.{owner.name}.{node.name}")
    assert not alone, f"nobody calls {', '.join(alone)}: delete them, or make them private"
