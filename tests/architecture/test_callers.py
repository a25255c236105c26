"""Every public name of the package has a caller in the package, the benchmarks or the docs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from foveate import parts

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"

FOUND_BY_NAME = ("methods", "readers", "tasks", "encoders", "exports", "aggregators")
"""Packages whose public classes `foveate.parts` finds by the names of their files."""

EXEMPT = {
    "foveate.cli.main",  # the console script of pyproject.toml
}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT / "src" if SOURCE in path.parents else ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _defined(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """Names at the top level of a module, with the statement that defines each."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, node) for t in targets if isinstance(t, ast.Name))


def _used(tree: ast.AST, but: ast.stmt | None = None) -> Iterator[str]:
    """What code reads, as ``name`` or ``name.attribute``, outside one statement.

    Imports are no use, and neither are the strings of ``__all__``.
    """
    if tree is but:
        return
    if isinstance(tree, ast.Name) and isinstance(tree.ctx, ast.Load):
        yield tree.id
    if isinstance(tree, ast.Attribute) and isinstance(tree.value, ast.Name):
        yield f"{tree.value.id}.{tree.attr}"
    for child in ast.iter_child_nodes(tree):
        yield from _used(child, but)


def _bound(tree: ast.Module) -> dict[str, str]:
    """What the imports of a file call the modules and names that they import."""
    bound = {}
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
BOUND = {path: _bound(tree) for path, tree in TREES.items()}
DEFINED = {_module(path): dict(_defined(tree)) for path, tree in TREES.items()}
IMPORTED = {_module(path): bound for path, bound in BOUND.items()}


def _home(name: str) -> str:
    """Where a dotted name is defined, through the packages that pass it on."""
    module, _, last = name.rpartition(".")
    if last in DEFINED.get(module, {}):
        return name
    passed_on = IMPORTED.get(module, {}).get(last)
    return name if passed_on is None or passed_on == name else _home(passed_on)


def _callers() -> set[str]:
    """Every name, by its home, that some code reads."""
    homes = set()
    for path, tree in TREES.items():
        for use in set(_used(tree)):
            name, _, rest = use.partition(".")
            if name in BOUND[path]:
                homes |= {_home(BOUND[path][name]), _home(".".join([BOUND[path][name], rest]))}
    return homes


def _in_docs() -> set[str]:
    """Names in code in the docs; a plain word such as ``log`` may be anything."""
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
    names = parts.names(kind) if kind in FOUND_BY_NAME else []
    is_part = module.rpartition(".")[2].rstrip("_") in names
    return is_part and isinstance(node, ast.ClassDef)


def test_every_public_name_has_a_caller() -> None:
    callers, words = _callers(), _in_docs()
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
            if name not in set(_used(tree, but=node)):
                alone.append(full)
    assert not alone, f"nobody calls {', '.join(alone)}: delete them, or make them private"


def _attributes() -> set[str]:
    """Every attribute that some code reads, of whatever."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    return {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_every_public_method_has_a_caller() -> None:
    """By its name alone, and of classes whose bases are foveate's: others override a library's."""
    known = _attributes() | _in_docs()
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
