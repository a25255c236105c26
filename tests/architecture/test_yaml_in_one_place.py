"""YAML is parsed, and its faults are put into words, in `foveate.yamltext` only."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "foveate"


def _imports_yaml(path: Path) -> bool:
    names: set[str | None] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return any((name or "").split(".")[0] == "yaml" for name in names)


def test_one_module_imports_yaml() -> None:
    users = [p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*.py") if _imports_yaml(p)]
    assert users == ["yamltext.py"]
