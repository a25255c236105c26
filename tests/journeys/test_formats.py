"""docs/formats.md names every file, column and key that commands write."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from foveate.batch import View
from foveate.evaluation.scores import evaluate_rows
from foveate.files import run_layout
from foveate.parts import names
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model
from foveate.runs.folder import read_json, read_rows
from foveate.runs.models import find_models
from foveate.tasks.regression import RegressionTask
from helpers.commands import Completed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "formats.md"
VIEW = View(spacing_um=1.0, patch_px=32, glimpse_spacing_um=16.0)
TABLES = ("predictions.csv", "predictions_oof.csv", "predictions_frozen.csv")
Command = Callable[..., Completed]


def find_unnamed(file: str, written: Iterable[str]) -> list[str]:
    """Return the columns or keys of a file that its paragraph in the page does not name."""
    paragraphs = re.split(r"\n(?=- |\n)", PAGE.read_text(encoding="utf-8"))
    (paragraph,) = (
        text for text in paragraphs if text.startswith("- **") and f"**`{file}`**" in text
    )
    words = re.findall(r"`([^`]+)`", paragraph)
    return [name for name in written if not any(_stands_for(word, name, "[^_]+") for word in words)]


def find_unnamed_files(folder: Path) -> list[str]:
    """Return the files and sub-folders in a folder that the page does not name."""
    words = re.findall(r"[\w.<>]+", PAGE.read_text(encoding="utf-8"))
    paths = (path.relative_to(folder) for path in sorted(folder.rglob("*")))
    return [str(p) for p in paths if not any(_stands_for(word, p.name, ".+") for word in words)]


def _stands_for(word: str, name: str, placeholder: str) -> bool:
    """Return whether a name is a word of the page, or fits one such as ``prob_<class>``.

    Args:
        word: word of the page.
        name: name in a file.
        placeholder: pattern of the text that stands for ``<class>``.
    """
    literal = re.split(r"<\w+>", word)
    pattern = placeholder.join(map(re.escape, literal))
    return any(literal) and re.fullmatch(pattern, name) is not None


def read_columns(path: Path) -> list[str]:
    """Read the first line of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


@pytest.fixture
def evaluated(picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command) -> Path:
    """Evaluate the run on its own table with one file that is no image; return the folder."""
    (tmp_path / "broken.png").write_text("no image", encoding="utf-8")
    rows = read_rows(picture_table)
    table, out = tmp_path / "labels.csv", tmp_path / "out"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([picture_table.parent / row["path"], row["label"]] for row in rows)
        writer.writerow([tmp_path / "broken.png", "dark"])
    result = foveate("evaluate", picture_run, table, "--out", out, "--audit-layout")
    assert result.returncode == 2, result.stderr
    return out


def test_the_page_names_what_a_run_writes(picture_run: Path) -> None:
    fold = picture_run / "fold_0"
    assert find_unnamed("metrics.csv", read_columns(fold / "metrics.csv")) == []
    assert find_unnamed("predictions.csv", read_columns(fold / "predictions.csv")) == []
    oof = read_columns(picture_run / "predictions_oof.csv")
    assert "prob_dark" in oof
    assert find_unnamed("predictions_oof.csv", oof) == []
    for name in ("metrics.json", "cost.json"):
        assert find_unnamed(name, read_json(picture_run / name)) == []
    assert find_unnamed("cost.json", read_json(fold / "cost.json")) == []
    assert find_unnamed_files(picture_run) == []


def test_the_page_names_what_evaluate_writes(evaluated: Path) -> None:
    for name in ("predictions.csv", "quarantine.csv"):
        assert find_unnamed(name, read_columns(evaluated / name)) == []
    for name in ("metrics.json", "cost.json"):
        assert find_unnamed(name, read_json(evaluated / name)) == []
    assert {"layout", "n_seen_in_training"} < set(read_json(evaluated / "metrics.json"))
    assert find_unnamed_files(evaluated) == []


def test_the_page_names_the_scores_of_several_folds(picture_run: Path) -> None:
    task = find_models(picture_run).task
    rows = read_rows(picture_run / "predictions_oof.csv")
    folds = [row | {"fold": str(i // 2 % 2)} for i, row in enumerate(rows)]
    scores = evaluate_rows(folds, task)
    assert {"folds", "pooling"} < set(scores)
    assert find_unnamed("metrics.json", scores) == []


def test_the_page_names_the_columns_of_several_models_and_of_regression(picture_run: Path) -> None:
    tasks = (find_models(picture_run).task, RegressionTask(mean=0.0, spread=1.0))
    for task in tasks:
        for table in TABLES:
            assert find_unnamed(table, [*task.columns, *task.deviation_columns]) == []


@pytest.mark.parametrize("method", names("methods"))
def test_the_page_names_the_figures_that_a_method_adds_to_each_epoch(method: str) -> None:
    size, classes = {"width": 8, "dim": 16}, {"classes": ["normal", "tumour"]}
    card = ModelCard(method, {}, "small", size, "binary", {}, classes, VIEW)
    figures = build_model(card, pretrained=False).method.findings()
    assert find_unnamed("metrics.csv", figures) == []


def test_the_page_names_every_entry_of_the_layouts() -> None:
    layouts = [kind for kind in vars(run_layout).values() if isinstance(kind, type)]
    entries = {
        entry.name
        for kind in layouts
        for entry in vars(kind).values()
        if isinstance(entry, run_layout._Entry)
    }
    assert {"predictions_frozen.csv", "checkpoints", "model.json", "progress.png"} < entries
    words = set(re.findall(r"[\w.]+", PAGE.read_text(encoding="utf-8")))
    assert entries - words == set()


def test_an_unnamed_column_is_noticed() -> None:
    assert find_unnamed("metrics.csv", ["epoch", "level_share_2", "steps"]) == ["steps"]
    assert find_unnamed("predictions.csv", ["prob_dark", "prob_q_dark"]) == ["prob_q_dark"]
    assert find_unnamed("quarantine.csv", ["stage", "epoch"]) == ["epoch"]
