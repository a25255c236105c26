"""The layers of docs/architecture.md and the README's figure, held against every import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"
UNLAYERED = {"__init__", "__main__", "_version"}
"""Files that have no layer: the first two import from all of them, the last imports nothing."""


PARTS = {"methods", "readers", "encoders", "tasks", "exports", "aggregators"}


def _rows() -> dict[int, list[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("<!-- layers -->")[1].split("<!-- /layers -->")[0]
    rows = re.findall(r"^\|\s*(\d+)\s*\|([^|]+)\|", table, re.MULTILINE)
    return {int(layer): names.split() for layer, names in rows}


def _order() -> list[str]:
    """All packages, each after those that it may import."""
    return [name for _, names in sorted(_rows().items()) for name in names]


def _part(path: Path) -> str:
    """The module or package right below foveate that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Full names of foveate modules that a file imports, wherever in the file, also for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.startswith("foveate")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foveate"):
            names = {f"{node.module}.{a.name}" for a in node.names}
            files = {n for n in names if _is_module(n)}
            found |= files | ({str(node.module)} if len(files) < len(names) else set())
    return found


def _is_module(name: str) -> bool:
    path = SOURCE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


FILES = sorted(p for p in SOURCE.rglob("*.py"))


def test_every_package_has_a_layer() -> None:
    present = {_part(p) for p in FILES} - UNLAYERED
    assert sorted(present) == sorted(_order())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    order, own = _order(), _part(path)
    if own in UNLAYERED:
        return
    for name in _imports(path):
        if name == "foveate":
            assert own == "cli", f"{path} imports the package itself, which stands on the api"
            continue
        target = name.split(".")[1]
        if target == "_version":
            continue
        if target != own:
            assert order.index(target) < order.index(own), f"{path.name} ({own}) imports {name}"
        elif own in PARTS and path.name != "__init__.py":
            first = name.split(".")[2]
            shared = (SOURCE / own / first).is_dir() or first == "base" or first.startswith("_")
            assert shared, f"{path} imports its sibling {name}"


def test_only_tasks_know_of_classes() -> None:
    """A task owns the whole life of a label: no other module counts classes or names their scores.

    `metrics` computes the scores that tasks ask for.
    """
    counted = re.compile(r"len\((?:\w+\.)*classes\)|auroc|confusion", re.IGNORECASE)
    texts = [p for p in SOURCE.rglob("*") if p.suffix in (".py", ".j2")]
    for path in texts:
        if _part(path) in ("tasks", "metrics"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found = [f"{path}:{n}: {line}" for n, line in enumerate(lines, 1) if counted.search(line)]
        assert not found


def test_no_two_modules_import_each_other() -> None:
    """The graph of all modules has no cycle; a package stands for its ``__init__``."""
    files = [path for path in FILES if path.name != "__main__.py"]
    graph = {_module(path): _imports(path) - {_module(path)} for path in files}
    while graph:
        leaves = {name for name, below in graph.items() if not below & graph.keys()}
        assert leaves, f"in cycles: {sorted(graph)}"
        graph = {name: below for name, below in graph.items() if name not in leaves}


def _module(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(["foveate", *(part for part in parts if part != "__init__")])


def test_the_figure_in_the_readme_is_the_table() -> None:
    """The README draws the same layers, top to bottom."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = text.split("<!-- architecture -->")[1].split("<!-- /architecture -->")[0]
    drawn = {
        int(layer): names.split()
        for layer, names in re.findall(r"^\s*(\d+)\s+│\s*([\w ]+?)\s*│", figure, re.MULTILINE)
    }
    assert drawn == _rows()


def test_files_and_functions_stay_small() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path.name} is longer than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_no_cycle_of_heavy_imports_at_the_top() -> None:
    """What ``import foveate`` and ``--help`` load stays light: no torch, numpy or pandas."""
    light = [SOURCE / "__init__.py", SOURCE / "errors.py", *(SOURCE / "cli").glob("*.py")]
    for path in light:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] not in {"torch", "numpy"} for a in node.names)
