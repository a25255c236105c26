"""The examples in docstrings run, in a folder with the files that they name."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shutil
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

import foveate as fv
from foveate import parts

ROOT = Path(__file__).resolve().parents[2]
SMALL = 'encoder="small", epochs=1, heatmaps=1'
SMALL_PARTS = "encoder__width=8, encoder__dim=16, view__patch_px=32"
REPLACED = {
    'method="glimpse", folds=5)': f'method="mil_mean", {SMALL})',
    "options, patches=32)": f"options, {SMALL_PARTS})",
    '"glimpse", folds=5, patches=32)': f'"mil_mean", {SMALL}, {SMALL_PARTS})',
    'methods=("abmil", "downsampled"))': (
        f'methods=("mil_mean", "mil_max"), {SMALL}, {SMALL_PARTS})'
    ),
    'demo("foveate-demo")': 'demo("foveate-demo", slides=8)',
}
"""Texts of the examples with others in their place, for a training of seconds."""
SLOW = {
    "foveate",
    "foveate.api.commands.demo",
    "foveate.api.commands.compare",
    "foveate.api.classifier.Classifier",
}
"""Examples of many seconds or minutes."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _find_examples() -> dict[str, doctest.DocTest]:
    """All docstrings with examples, by name."""
    found = {}
    for path in sorted((ROOT / "src" / "foveate").rglob("*.py")):
        if ">>> " not in path.read_text(encoding="utf-8"):
            continue
        name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        module = import_module(name.removesuffix(".__init__"))
        for test in doctest.DocTestFinder().find(module, globs={"foveate": fv}):
            if test.examples:
                found[test.name] = test
    return found


EXAMPLES = _find_examples()
TEXTS = [example.source for test in EXAMPLES.values() for example in test.examples]
"""The examples as they are written; a test that runs one replaces parts of it."""


@pytest.fixture(scope="module")
def prepared(picture_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tables, images, a folder of parts and a run, as the examples name them."""
    folder = tmp_path_factory.mktemp("docstrings")
    frame = pd.read_csv(picture_table)
    frame["label"] = frame["label"].map({"plain": "normal", "dark": "tumour"})
    shutil.copytree(picture_table.parent / "in", folder / "in")
    for name in ("labels.csv", "other.csv"):
        frame.to_csv(folder / name, index=False)
    for name in ("S1.svs", "S2.svs"):
        (folder / "new").mkdir(exist_ok=True)
        shutil.copy(folder / frame["path"][0], folder / "new" / name)
    (folder / "my_parts" / "methods").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "own_method.py", folder / "my_parts" / "methods")
    options = fv.RunOptions(method="mil_mean", encoder="small", epochs=1, heatmaps=1)
    small = {"encoder__width": 8, "encoder__dim": 16, "view__patch_px": 32}
    fv.train(folder / "labels.csv", folder / "runs" / "first", options, **small)
    return folder


def test_every_public_function_has_an_example() -> None:
    functions = {name: getattr(fv, name) for name in fv.__all__}
    functions = {name: f for name, f in functions.items() if inspect.isfunction(f)}
    assert len(functions) >= 11
    without = [n for n, f in functions.items() if f"{f.__module__}.{f.__name__}" not in EXAMPLES]
    assert not without


def test_every_example_of_the_code_is_run() -> None:
    """Examples stand in docstrings that doctest finds, not in those of inner functions."""
    written = 0
    for path in (ROOT / "src" / "foveate").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                written += len(re.findall(r"(?m)^\s*>>> ", ast.get_docstring(node) or ""))
    assert written == sum(len(test.examples) for test in EXAMPLES.values())
    for text in REPLACED:
        assert any(text in source for source in TEXTS), f"no example has {text}"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in EXAMPLES],
)
def test_an_example_runs(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_folders", list(parts.plugin_folders()))
    test = EXAMPLES[name]
    for example in test.examples:
        example.want = example.want.replace("…", "...")
        for text, small in REPLACED.items():
            example.source = example.source.replace(text, small)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=output.append)
    assert result.failed == 0, "".join(output)
