"""Copies of an image under other names: a run sets aside, divides, continues and marks them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import foveate
from conftest import picture
from foveate.runs.folder import read_json, read_rows

SHORT = {"method": "downsampled", "encoder": "small", "epochs": 1, "heatmaps": 0}


def write_table(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "patient_id", "label"), *rows])
    return path


def test_a_run_with_copies(tmp_path: Path) -> None:
    rows = [(f"i{i:02d}.png", f"P{i}", "ab"[i % 2]) for i in range(16)]
    for i, (name, _, _) in enumerate(rows):
        picture(tmp_path / name, i)
    for name, original in (("c00.png", "i00.png"), ("c02.png", "i02.png")):
        shutil.copy(tmp_path / original, tmp_path / name)
    table = write_table(tmp_path / "t.csv", [*rows, ("c00.png", "Q0", "b"), ("c02.png", "Q2", "a")])
    parts = {}
    for seed in range(8):  # until the copies are trained on
        splits = foveate.table.make_splits(foveate.table.read_cases(table).cases, seed=seed)
        (fold,) = splits.folds
        parts = {i: part for part, members in fold.parts().items() for i in members}
        if parts["i02"] == "train":
            break
    assert parts["i02"] == parts["c02"] == "train"

    run = tmp_path / "run"
    for _ in range(2):  # the second call continues a complete run
        result = foveate.train(table, run, split__seed=seed, **SHORT)
        assert result.n_set_aside == 2
    reasons = {row["image_id"]: row["reason"] for row in read_rows(run / "quarantine.csv")}
    assert "c00.png holds the same bytes" in reasons["i00"]
    assert "i00.png holds the same bytes" in reasons["c00"]
    patients = read_json(run / "splits.json")["patients"]
    assert patients["i02"] == patients["c02"] == "P2 + Q2"

    new = [("n0.png", "Q2", "a"), ("n1.png", "Q7", "b"), ("n2.png", "P2", "a")]
    for i, (name, _, _) in enumerate(new):
        picture(tmp_path / name, 100 + i)
    options = foveate.EvaluateOptions(heatmaps=0)
    foveate.evaluate(run, write_table(tmp_path / "new.csv", new), tmp_path / "out", options)
    marks = {
        row["image_id"]: row["in_training"] for row in read_rows(tmp_path / "out/predictions.csv")
    }
    assert marks == {"n0": "patient", "n1": "", "n2": "patient"}
