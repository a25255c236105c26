"""Runs on splits of other programs: what is chosen in training never sees the test part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from foveate.runs.folder import read_json, read_rows
from foveate.table import load_splits
from helpers.commands import Completed
from helpers.squares import write_squares, write_table

Command = Callable[..., Completed]

N = 30
TINY = (
    *("--method", "downsampled", "--encoder", "small", "--encoder.width", "8"),
    *("--encoder.dim", "16", "--view.patch-px", "16", "--view.glimpse-px", "48"),
    *("--epochs", "4", "--train.batch-size", "4", "--train.lr", "5e-3", "--heatmaps", "0"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of few and of many squares, and splits as CLAM writes them."""
    folder = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(0)
    for i in range(N):
        write_squares(folder / f"s{i:02d}.png", {(90, 40, 0): 4 + 20 * (i % 2)}, rng)
    write_labels(folder / "t.csv", swapped=())
    names = [f"s{i:02d}" for i in range(N)]
    parts = [
        {"train": names[:16], "val": names[16:22], "test": names[22:]},
        {"train": names[8:24], "val": names[24:], "test": names[:8]},
        {"train": names[:16], "val": names[24:], "test": names[18:24]},
    ]
    for k, fold in enumerate(parts):
        write_clam(folder / "many" / f"splits_{k}.csv", fold)
    write_clam(folder / "one" / "splits_0.csv", parts[0])
    return folder


def write_labels(path: Path, swapped: Sequence[str]) -> Path:
    """Write a table of labels, the other label for some of the images."""
    rows = [(f"s{i:02d}.png", f"P{i:02d}", i % 2) for i in range(N)]
    flipped = [(name, p, "ab"[y != (name in swapped)]) for name, p, y in rows]
    return write_table(path, ("path", "patient", "label"), flipped)


def write_clam(path: Path, parts: Mapping[str, Sequence[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [
        [i, *(p[i] if i < len(p) else "" for p in parts.values())]
        for i in range(max(map(len, parts.values())))
    ]
    write_table(path, ("", *parts), rows)


@pytest.mark.slow
def test_epoch_temperature_and_threshold_do_not_see_the_test_part(
    folder: Path, foveate: Command
) -> None:
    """The labels of half of the test part are swapped: nothing but the scores may change."""
    other = write_labels(folder / "swapped.csv", [f"s{i:02d}.png" for i in range(22, N, 2)])
    runs = []
    for table in (folder / "t.csv", other):
        out = folder / f"run_{table.stem}"
        result = foveate("train", table, "--out", out, *TINY, "--split.from", folder / "one")
        assert result.returncode == 0, result.stderr
        runs.append(out)
    models = [(run / "fold_0" / "model" / "model.safetensors").read_bytes() for run in runs]
    assert models[0] == models[1]
    keys = ("best_epoch", "best_val_score", "temperature", "threshold")
    chosen = [
        {k: read_json(run / "fold_0" / "model" / "model.json")["provenance"][k] for k in keys}
        for run in runs
    ]
    assert chosen[0] == chosen[1]
    tables = [(run / "fold_0" / "metrics.csv").read_text().splitlines() for run in runs]
    columns = tables[0][0].split(",")
    kept = [
        c
        for c, name in enumerate(columns)
        if not name.endswith(("_mib", "seconds")) and "seconds_" not in name
    ]
    rows = [[[r.split(",")[c] for c in kept] for r in table] for table in tables]
    assert rows[0] == rows[1], "the figures of the epochs"
    scores = [read_json(run / "metrics.json")["metrics"]["accuracy"]["value"] for run in runs]
    assert scores[0] != scores[1], "the labels of the test part count in the scores"


@pytest.mark.slow
def test_overlapping_test_parts_are_trained_and_scored(folder: Path, foveate: Command) -> None:
    out = folder / "run_many"
    result = foveate("train", folder / "t.csv", "--out", out, *TINY, "--split.from",
                     folder / "many")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "split (as CLAM writes): 3 folds of images" in result.stderr
    assert "2 images are tested in several folds" in result.stderr
    splits = load_splits(out / "splits.json")
    assert [len(fold.test) for fold in splits.folds] == [8, 8, 6]
    metrics = read_json(out / "metrics.json")
    assert len(metrics["folds"]) == 3
    assert metrics["n_images"] == 20
    rows = read_rows(out / "predictions_oof.csv")
    assert len(rows) == 22
    assert len(read_rows(out / "splits" / "splits_2.csv")) == 16
    assert {"metrics", "calibration"} == metrics["uncalibrated"].keys()
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in ("Net benefit", "before the temperature", "sensitivity"):
        assert words in page, words
    again = foveate("train", folder / "t.csv", "--out", out, *TINY, "--split.from",
                    folder / "many")  # fmt: skip
    assert again.returncode == 0, again.stderr
    compared = foveate("compare", out, out, "--out", folder / "compared")
    assert compared.returncode == 0, compared.stderr
