"""Helpers of the studies: resumable rows, measured child processes, and tables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from foveate.images.evidence import Evidence
from foveate.runs.folder import read_rows, write_rows

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _rows
import claims
import demos
import real_images

sys.path.pop(0)


def test_the_last_row_of_a_key_wins(tmp_path: Path) -> None:
    rows = _rows.Rows(tmp_path / "new" / "t.csv", ("seed", "auroc", "outcome"), ("seed",))
    assert rows.all() == []
    rows.add({"seed": 1, "outcome": "exit 1: a, b"})
    rows.add({"seed": 2, "auroc": 0.5, "outcome": "ok"})
    rows.add({"seed": 1, "auroc": 0.75, "outcome": "ok"})
    again = _rows.Rows(rows.path, rows.columns, ("seed",))
    assert again.find(1) == {"seed": "1", "auroc": "0.75", "outcome": "ok"}
    assert again.find(3) is None
    assert [row["seed"] for row in again.all()] == ["1", "2"]
    with pytest.raises(SystemExit, match="other columns"):
        _rows.Rows(rows.path, ("seed", "auroc"), ("seed",)).add({"seed": 4})


def test_a_child_reports_exit_code_output_and_memory(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    hold = "import os, sys; x = b'1' * (300 << 20); print(os.environ['WORD']); sys.exit(3)"
    result = _rows.run_child([sys.executable, "-c", hold], log, {"WORD": "last, said"})
    assert result.code == 3
    assert result.peak_mib > 300
    assert _rows.describe_outcome(result, log) == "exit 3: last, said"
    assert _rows.describe_outcome(result, log, fine=(3,)) == "ok"
    result = _rows.run_child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log)
    assert result.code == -9


def test_seed_ranges_are_parsed() -> None:
    assert _rows.parse_numbers("0-3,7") == [0, 1, 2, 3, 7]


def test_large_files_are_deleted_and_scores_stay(tmp_path: Path) -> None:
    for name in ("checkpoints/best", "model/model.json", "frozen/model/model.json", "metrics.csv"):
        (tmp_path / "fold_0" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fold_0" / name).write_text("x")
    _rows.delete_large_files(tmp_path)
    assert not (tmp_path / "fold_0" / "checkpoints").exists()
    assert (tmp_path / "fold_0" / "model" / "model.json").is_file()
    _rows.delete_large_files(tmp_path, models=True)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["metrics.csv"]


def test_the_table_of_demos_counts_passed_runs(tmp_path: Path) -> None:
    score = {"auroc": "1.0", "lo": "0.735", "hi": "1.0", "downsampled_auroc": "0.424",
             "downsampled_lo": "0.19", "downsampled_hi": "0.643", "outcome": "ok"}  # fmt: skip
    rows = [
        dict.fromkeys(demos.COLUMNS, "") | score | values
        for values in (
            {"seed": "10", "exit": "0", "peaks": "14", "heaviest_peaks": "13", "positives": "14"},
            {"seed": "9", "exit": "1", "peaks": "12", "positives": "15", "outcome": "exit 1: it"},
        )
    ]
    text = demos.markdown(rows)
    assert "1 of 2 demos ended with 0; peaks in a deciding nodule: 26 of 29." in text
    lines = text.splitlines()
    assert lines[2].startswith("| 9 |")
    assert "1.000 (0.735 to 1.000) | 14 of 14 | 13 of 14 | 0.424 (0.190 to 0.643)" in lines[3]


def test_tables_of_real_images_are_means_over_seeds() -> None:
    same = {"set": "xray", "method": "glimpse", "folds": "5", "images": "44", "patients": "41"}
    rows = [
        dict.fromkeys(real_images.COLUMNS, "") | same | values
        for values in (
            {"seed": "0", "auroc": "0.9", "lo": "0.8", "hi": "1.0", "gain": "0.1",
             "gain_lo": "0.05", "gain_hi": "0.2", "frozen_auroc": "0.8"},
            {"seed": "1", "auroc": "0.7", "lo": "0.6", "hi": "0.8", "gain": "-0.2",
             "gain_lo": "-0.3", "gain_hi": "0.1", "frozen_auroc": "0.9"},
            {"seed": "2", "outcome": "exit 1: no memory"},
        )
    ]  # fmt: skip
    text = real_images.markdown(rows)
    assert "| 5 / 2 | 0.800 (0.700 to 0.900) | 0.700 to 0.900 |" in text
    assert "-0.050 (-0.125 to 0.150) | -0.200 to +0.100 | 1 / 0 of 2 |" in text
    assert "- xray glimpse 2 5 : exit 1: no memory" in text


def test_atlas_rows_without_pixel_size_get_one(tmp_path: Path) -> None:
    folder = tmp_path / "pathology_atlas" / "slides_5x"
    rows = [
        {"file": "a.tif", "case_id": "A", "stain_class": "H&E", "mpp": "2.0224", "x": "1"},
        {"file": "b.tif", "case_id": "B", "stain_class": "other", "mpp": "", "x": "2"},
    ]
    write_rows(folder / "labels.csv", rows, list(rows[0]))
    atlas_rows = read_rows(real_images.stain_table(tmp_path, tmp_path / "out"))
    assert [row["mpp"] for row in atlas_rows] == ["2.0224", "2.0"]
    assert atlas_rows[1]["file"] == str(folder / "b.tif")
    assert atlas_rows[1]["stain_class"] == "other"


def test_claims_are_planned_once_after_their_baselines() -> None:
    cohort = claims.Cohort(10, 4096)
    runs = claims.plan_runs(list(claims.CLAIMS), [0, 1], cohort, "")
    assert len({run.key for run in runs}) == len(runs)
    assert len({claims.folder_of(run, Path("out")) for run in runs}) == len(runs)
    assert next(run.name for run in runs if run.seed == 1) == claims.SHARED
    assert {name for c in claims.CLAIMS.values() for name in c.runs} == {r.name for r in runs}


def test_weights_are_summed_by_box_size(tmp_path: Path) -> None:
    def save(name: str, sides: list[float], weight: list[float]) -> None:
        size = np.repeat(np.array(sides)[:, None], 2, 1)
        path = tmp_path / "heatmaps" / name
        Evidence(np.zeros_like(size), size, np.array(weight)).save(path)

    (tmp_path / "heatmaps").mkdir()
    save("a.npz", [64, 64, 256], [0.5, 0.25, 0.25])
    save("b.npz", [64], [3.0])
    magnifications = claims.magnifications(tmp_path)
    assert magnifications["weight_by_size"] == "64 um 0.875; 256 um 0.125"
    assert (magnifications["boxes"], magnifications["sizes_per_image"]) == ("2.0", "1.50")
