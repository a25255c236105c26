"""Every import follows the layers of docs/architecture.md and of the README's figure."""

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


def _read_layers() -> dict[int, list[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("<!-- layers -->")[1].split("<!-- /layers -->")[0]
    rows = re.findall(r"^\|\s*(\d+)\s*\|([^|]+)\|", table, re.MULTILINE)
    return {int(layer): names.split() for layer, names in rows}


def _packages_by_layer() -> list[str]:
    """Return all packages, each after the packages that it may import."""
    return [name for _, names in sorted(_read_layers().items()) for name in names]


def _package_of(path: Path) -> str:
    """Return the name of the module or package directly below foveate that holds a file."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Return the full names of all foveate modules that a file imports, also for types."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {a.name for a in node.names if a.name.startswith("foveate")}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foveate"):
            names = {f"{node.module}.{a.name}" for a in node.names}
            files = {n for n in names if _is_module(n)}
            imported |= files | ({str(node.module)} if len(files) < len(names) else set())
    return imported


def _is_module(name: str) -> bool:
    path = SOURCE.joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


FILES = sorted(p for p in SOURCE.rglob("*.py"))

BELOW_ITS_ROW = {
    "errors": "every package raises one tree of errors",
    "wording": "every message is put into words by the same rules",
}
ABOVE_ITS_ROW = {
    "methods": "a method puts together what its row holds",
    "workflows": "a command puts together what its row holds",
}
SIBLINGS = {
    ("runtime", "memory"): "the precision depends on what the processor computes fast",
    ("batch", "encoders"): "a batch looks at glimpses with an encoder, and stores its features",
    ("encoders", "pretrained"): "weights and layers of published networks",
    ("readers", "formats"): "parsers of files, without the contract of an image",
    ("table", "formats"): "a list of images names each slide of several files once",
    ("table", "tasks"): "a task says which labels of a table it understands",
    ("aggregators", "bags"): "tokens are related as the patches of a bag are",
    ("attention_maps", "aggregators"): "the network of `glimpse` has an aggregator, chosen by name",
    ("attention_maps", "bags"): "patches that attention chose are embedded as a bag is",
    ("exports", "heatmaps"): "an export writes a heatmap as a file",
    ("runs", "exports"): "the config names exports, and checks the names",
    ("training", "runs"): "a training reads its options, and writes checkpoints",
    ("prediction", "runs"): "a prediction loads the models of a run",
    ("prediction", "exports"): "a prediction writes pictures of its answers",
    ("evaluation", "runs"): "the models whose answers are scored",
    ("evaluation", "prediction"): "the audit predicts images with shuffled layouts",
    ("reports", "runs"): "a report reads the folder of a run",
    ("checks", "runs"): "the options of a table, and the plan that a training would have",
    ("checks", "reports"): "the style of its page",
    ("cli", "api"): "every command is one function",
}
"""Packages of one row that import each other, importer first, and why; all others do not."""


def test_every_package_has_a_layer() -> None:
    present = {_package_of(p) for p in FILES} - UNLAYERED
    assert sorted(present) == sorted(_packages_by_layer())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    order, package = _packages_by_layer(), _package_of(path)
    if package in UNLAYERED:
        return
    for name in _imports(path):
        if name == "foveate":
            assert package == "cli", f"{path} imports the package itself, which stands on the api"
            continue
        target = name.split(".")[1]
        if target == "_version":
            continue
        if target != package:
            assert order.index(target) < order.index(package), (
                f"{path.name} ({package}) imports {name}"
            )
        elif package in PARTS and path.name != "__init__.py":
            first = name.split(".")[2]
            shared = (SOURCE / package / first).is_dir() or first == "base" or first.startswith("_")
            assert shared, f"{path} imports its sibling {name}"


def test_only_tasks_handle_classes() -> None:
    """Only tasks handle labels: no other module counts classes or names their scores.

    `metrics` computes the scores that tasks ask for.
    """
    counted = re.compile(r"len\((?:\w+\.)*classes\)|auroc|confusion", re.IGNORECASE)
    texts = [p for p in SOURCE.rglob("*") if p.suffix in (".py", ".j2")]
    for path in texts:
        if _package_of(path) in ("tasks", "metrics"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        counting_lines = [
            f"{path}:{n}: {line}" for n, line in enumerate(lines, 1) if counted.search(line)
        ]
        assert not counting_lines


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


def test_the_figure_in_the_readme_shows_the_layers() -> None:
    """The README draws the same layers, top to bottom."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    figure = text.split("<!-- architecture -->")[1].split("<!-- /architecture -->")[0]
    drawn = {
        int(layer): names.split()
        for layer, names in re.findall(r"^\s*(\d+)\s+│\s*([\w ]+?)\s*│", figure, re.MULTILINE)
    }
    assert drawn == _read_layers()


def test_files_and_functions_stay_small() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{path.name} is longer than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_startup_modules_import_nothing_heavy() -> None:
    """``import foveate`` and ``--help`` import neither torch nor numpy."""
    light = [SOURCE / "__init__.py", SOURCE / "errors.py", *(SOURCE / "cli").glob("*.py")]
    for path in light:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] not in {"torch", "numpy"} for a in node.names)


def test_packages_of_one_row_import_each_other_only_for_a_stated_reason() -> None:
    """Every stated pair is needed; a package that a row stands on, or that ties it, needs none."""
    row_of = {name: row for row, names in _read_layers().items() for name in names}
    pairs = set()
    for path in FILES:
        package = _package_of(path)
        targets = {name.split(".")[1] for name in _imports(path) if name != "foveate"}
        pairs |= {
            (package, target)
            for target in targets & row_of.keys() - BELOW_ITS_ROW.keys() - {package}
            if package not in ABOVE_ITS_ROW and row_of.get(package) == row_of[target]
        }
    assert pairs == SIBLINGS.keys()
