"""Names of files and folders of runs are defined once, in `foveate.files.run_layout`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from foveate.files import run_layout
from foveate.files.run_layout import AbstractLayout, RunLayout, fold_name

SOURCE = Path(__file__).resolve().parents[2] / "src" / "foveate"
OWNER = SOURCE / "files" / "run_layout.py"
OTHERS = {
    "pretrained/hub.py": {"model.safetensors", "checkpoints"},  # of Hugging Face and torch.hub
    "table/columns.py": {"fold_", "fold_0"},  # columns of tables by other programs
}


def layouts() -> list[type[AbstractLayout]]:
    members = vars(run_layout).values()
    return [m for m in members if isinstance(m, type) and issubclass(m, AbstractLayout)]


def names() -> set[str]:
    """Return all names, as layouts define them."""
    values = (getattr(c, key) for c in layouts() for key in vars(c) if not key.startswith("_"))
    return {value for value in values if isinstance(value, str)}


NAMES = names()
FILES = {name for name in NAMES if "." in name}


def spelt(tree: ast.AST) -> Iterator[str]:
    """Yield names of files that code spells out, and names of folders that it joins to a path.

    Texts for users may name a file among other words.
    """
    joined = {
        id(side)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        for side in (node.left, node.right)
    }
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            pieces = set(node.value.split("/")) if " " not in node.value else set()
            yield from pieces & FILES
            if id(node) in joined or "/" in node.value:
                yield from pieces & NAMES
            yield from (piece for piece in pieces if piece.startswith("fold_"))


def test_layouts_name_the_files_of_a_run() -> None:
    assert len(NAMES) > 30
    assert {"config.yaml", "answers.jsonl", "model", "refit", "heatmaps"} <= NAMES
    assert RunLayout.config == "config.yaml"
    run = RunLayout(Path("run"))
    assert run.fold(2).frozen.model.card == Path("run/fold_2/frozen/model/model.json")
    assert run.refit.checkpoints.best == Path("run/refit/checkpoints/best.safetensors")


def test_folds_are_listed_by_number(tmp_path: Path) -> None:
    for k in (10, 2, 0):
        (tmp_path / fold_name(k)).mkdir()
    (tmp_path / "fold_1").touch()
    listed = [fold.folder.name for fold in RunLayout(tmp_path).folds()]
    assert listed == ["fold_0", "fold_2", "fold_10"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("write(folder / 'metrics.json')", ["metrics.json"]),
        ("folder / 'model'", ["model"]),
        ("join(f'{fold}/predictions.csv')", ["predictions.csv"]),
        ("folder / f'fold_{k}'", ["fold_"]),
        ("find('parts/*/x')", ["parts"]),
        ("raise OptionError('see metrics.json of the run')", []),
        ("options['model']", []),
    ],
)
def test_spelt_names_are_recognised(line: str, expected: list[str]) -> None:
    assert sorted(set(spelt(ast.parse(line)))) == expected


def test_no_other_file_spells_these_names() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path != OWNER:
            allowed = OTHERS.get(str(path.relative_to(SOURCE)), set())
            tree = ast.parse(path.read_text(encoding="utf-8"))
            wrong += [f"{path.relative_to(SOURCE)}: {n}" for n in {*spelt(tree)} - allowed]
    assert not wrong
