"""Labels that training renames stay renamed: in the run, its models, and what they evaluate."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import picture
from foveate.runs.folder import read_json
from foveate.yamltext import read_yaml
from helpers.commands import Completed, assert_refused

Command = Callable[..., Completed]

WORDS = ("--method", "downsampled", "--epochs", "0", "--heatmaps", "0")
MAPS = ("--map", "DARK=dark", "--map", "-999=")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write a table of two classes, one written in two ways, and of two rows without a label."""
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        for i in range(26):
            picture(tmp_path / f"P{i:02d}.png", i)
            label = "-999" if i > 23 else ("dark", "DARK")[i % 4 // 3] if i % 2 else "plain"
            writer.writerow([f"P{i:02d}.png", label])
    return tmp_path / "labels.csv"


def test_renamed_labels(table: Path, foveate: Command) -> None:
    run, other = table.parent / "run", table.parent / "other"
    refused = foveate("train", table, "--out", run, *WORDS)
    assert_refused(refused, "'-999' in 2 rows beside 'DARK', 'dark', 'plain'", "--map '-999='")
    refused = foveate("train", table, "--out", run, *WORDS, *MAPS[2:])
    assert_refused(refused, "'DARK' in 6 rows and 'dark' in 6 rows", "--map 'dark=DARK'")
    result = foveate("train", table, "--out", run, *WORDS, *MAPS)
    assert result.returncode == 0, result.stderr
    assert "8 rows with renamed labels: '-999' to no label, 'DARK' to 'dark'" in result.stderr
    assumed = "The positive class is 'plain', only because it comes after 'dark'"
    assert assumed in result.stderr
    assert assumed in (run / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
    renamed = {"DARK": "dark", "-999": ""}
    assert read_yaml(run / "config.yaml")["table"]["renamed"] == renamed
    card = read_json(run / "fold_0" / "model" / "model.json")
    assert card["renamed"] == renamed
    assert assumed in card["provenance"]["assumptions"][0]
    assert_refused(foveate("train", table, "--out", run, *WORDS, "--map", "DARK=plain"), "renamed")
    result = foveate("evaluate", run, table, "--out", other)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("24 images of ")
    assert "8 rows with renamed labels" in result.stderr
