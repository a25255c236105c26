"""User mistakes are refused in one line that names them; correct input is accepted.

Exit codes: 0 success, 1 refused, 2 done with images set aside.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import SMALL_RUN
from foveate import parts
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed, assert_refused, run_child

Command = Callable[..., Completed]
QUICK = (*SMALL_RUN, "--method", "downsampled", "--epochs", "1", "--heatmaps", "1")


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_cohort_rows(cohort: Path) -> list[dict[str, object]]:
    """Return the rows of a cohort with absolute paths."""
    with cohort.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{**row, "file": str(cohort.parent / row["file"])} for row in rows]


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_unusable_tables_are_refused(tiny_cohort: Path, tmp_path: Path, foveate: Command) -> None:
    rows, out = read_cohort_rows(tiny_cohort), ("--out", tmp_path / "run")
    missing = tmp_path / "none.csv"
    assert_refused(foveate("train", missing, *out, *QUICK), f"{missing}: no such table")

    empty = tmp_path / "empty.csv"
    empty.write_text("", encoding="utf-8")
    assert_refused(foveate("train", empty, *out, *QUICK), f"{empty} is empty", "header")
    empty.write_text("file,label\n", encoding="utf-8")
    assert_refused(foveate("train", empty, *out, *QUICK), f"{empty} has a header but no rows")
    assert_refused(foveate("train", tmp_path, *out, *QUICK), f"{tmp_path} is a folder", "table")

    result = foveate("train", tiny_cohort, *out, *QUICK, "--label", "lable")
    assert_refused(result, str(tiny_cohort), "no column 'lable' (--label)", "'label'")
    result = foveate("train", tiny_cohort, *out, *QUICK, "--patient", "person")
    assert_refused(result, "no column 'person' (--patient)", "patient_id")
    result = foveate("train", tiny_cohort, *out, *QUICK, "--path", "fle")
    assert_refused(result, "no column 'fle' (--path)", "'file'")

    one = write_table(tmp_path / "one.csv", [r for r in rows if r["label"] == "normal"])
    assert_refused(foveate("train", one, *out, *QUICK), str(one), "one class only", "'normal'")
    result = foveate("train", tiny_cohort, *out, *QUICK, "--classes", "normal,tumor")
    assert_refused(result, "no row has the label 'tumor'", "'tumour'")

    other = {**rows[0], "label": "tumour" if rows[0]["label"] == "normal" else "normal"}
    twice = write_table(tmp_path / "twice.csv", [*rows, other])
    name = Path(str(rows[0]["file"])).name
    assert_refused(foveate("train", twice, *out, *QUICK), f"row 26: {name}", "in row 2", "keep one")

    pick = [r for label in ("normal", "tumour") for r in rows if r["label"] == label][10:14]
    few = write_table(tmp_path / "few.csv", pick)
    assert_refused(foveate("train", few, *out, *QUICK), "patients", "need at least", "add patients")
    result = foveate("train", tiny_cohort, *out, *QUICK, "--folds", "19")
    assert_refused(result, "19 folds need at least", "fewer folds")

    spaced = write_table(tmp_path / "mpp.csv", [{**r, "mpp": "O.5"} for r in rows])
    result = foveate("train", spaced, *out, *QUICK)
    assert_refused(result, f"{spaced}, row 2, column 'mpp'", "'O.5'")
    assert foveate("train", tiny_cohort, *out, *QUICK).returncode == 0, "no attempt blocks --out"


# -- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--train.lrr", "1e-4"], ["no option 'train.lrr'", "Did you mean 'lr'"]),
        (["--method", "glimpsee"], ["no method 'glimpsee'", "Did you mean 'glimpse'"]),
        (["--encoder", "resnet1888"], ["no encoder 'resnet1888'", "Did you mean 'resnet18"]),
        (["--task", "binnary"], ["no task 'binnary'", "Did you mean 'binary'"]),
        (["--trian.lr", "1e-4"], ["'--trian.lr'", "Did you mean 'train'"]),
        (["--methd", "glimpse"], ["no option '--methd'", "Did you mean '--method'"]),
        (["--lr", "1e-4"], ["no option '--lr'", "Did you mean '--train.lr'"]),
        (["--patch-px", "64"], ["no option '--patch-px'", "Did you mean '--view.patch-px'"]),
        (["--patches", "4"], ["no option '--patches'", "Did you mean '--method.patches'"]),
        (["--view.patch-px", "100000"], ["view.patch_px: got 100000, expected at most 4096"]),
        (["--method.patches", "-1"], ["method.patches: got -1, expected 0 or more"]),
        (["--train.lr", "inf"], ["train.lr: got 'inf', expected a number"]),
        (["--heatmaps", "-1"], ["heatmaps: got -1, expected 0 or more"]),
        (["--method.patchs", "4"], ["no option 'method.patchs'", "Did you mean 'patches'"]),
        (["--encoder.depth", "4"], ["no option 'encoder.depth'", "width"]),
        (["--train.lr", "abc"], ["train.lr: got 'abc', expected a number"]),
        (["--train.lr"], ["--train.lr needs a value"]),
        (["--train.lr", "-1"], ["train.lr: got -1.0, expected more than 0"]),
        (["--train.augment", "slides"], ["train.augment: got 'slides'", "Did you mean 'slide'"]),
        (["--epochs", "-1"], ["train.epochs: got -1, expected 0 or more"]),
        (["--epochs", "many"], ["'--epochs'", "'many'", "train --help"]),
        (["--folds", "0"], ["split.folds: got 0, expected 1 or more"]),
        (["--split.test-fraction", "1.5"], ["split.test_fraction: got 1.5"]),
        (["--view.fit", "10x10"], ["view.fit: got (10, 10)", "1024x1024"]),
        (["--task", "binary", "--task.positive", "tumor"], ["no label 'tumor'", "'tumour'"]),
        (["--config", "none.yaml"], ["--config none.yaml: no such file"]),
        (["--plugins", "nowhere"], ["--plugins nowhere: no such folder"]),
        (["--images", "nowhere"], ["--images nowhere: no such folder"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_wrong_options_are_refused(
    words: list[str], parts: list[str], tiny_cohort: Path, tmp_path: Path, foveate: Command
) -> None:
    base = [*SMALL_RUN] if "--encoder.depth" in words else []
    result = foveate("train", tiny_cohort, "--out", tmp_path / "run", *base, *words)
    assert_refused(result, *parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["trian"], ["no such command 'trian'", "Did you mean 'train'"]),
        (["train"], ["missing option '--out'", "foveate train --help"]),
        (["train", "--out", "run"], ["no table: give one, foveate train labels.csv --out RUN"]),
        (["predict", "run", "--out", "x"], ["missing argument 'IMAGES...'"]),
        (["methods", "glimpsee"], ["no method 'glimpsee'", "Did you mean 'glimpse'"]),
        (["predict", "run", "x", "--out", "y", "--device", "gpu"], ["'--device'", "'cuda'"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_incomplete_commands_are_refused(
    words: list[str],
    parts: list[str],
    tmp_path: Path,
    foveate: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(foveate(*words), *parts)
    assert not list(tmp_path.iterdir()), "nothing was written"


def test_an_internal_error_is_one_line_and_a_log_file(
    tiny_cohort: Path, tmp_path: Path, foveate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_folders", [])
    (tmp_path / "parts" / "methods").mkdir(parents=True)
    text = "raise KeyError('thresholds')"
    (tmp_path / "parts" / "methods" / "faulty.py").write_text(text, encoding="utf-8")
    words = ("--method", "faulty", "--plugins", tmp_path / "parts", "--out", tmp_path / "run")
    result = foveate("train", tiny_cohort, *words)
    assert_refused(result, "this is a fault of foveate", "--plugins", "please report it")
    assert "KeyError" not in result.stderr
    (path,) = re.findall(r"with (\S+\.txt), which", result.stderr)
    text = Path(path).read_text(encoding="utf-8")
    assert "KeyError: 'thresholds'" in text
    assert "foveate train" in text
    Path(path).unlink()


def test_invalid_config_files_are_refused(tmp_path: Path, foveate: Command) -> None:
    path, out = tmp_path / "config.yaml", tmp_path / "run"
    for text, part in (
        ("train: [", "not YAML"),
        ("just words", "expected sections"),
        ("table: labels.csv\n", "'table'"),
        ("table: {path: x.csv}\ntrain: 3\n", "'train'"),
        ("table: {path: x.csv}\ntrian: {lr: 1}\n", "Did you mean 'train'"),
    ):
        path.write_text(text, encoding="utf-8")
        assert_refused(foveate("train", "--config", path, "--out", out), part)


def test_a_section_flag_before_the_table_is_parsed(
    tiny_cohort: Path, tmp_path: Path, foveate: Command
) -> None:
    """The value of the flag is not read as the table."""
    run = tmp_path / "run"
    result = foveate("train", "--train.lr", "1e-3", *QUICK, "--out", run, tiny_cohort)
    assert result.returncode == 0, result.stderr
    assert "lr: 0.001" in (run / "config.yaml").read_text(encoding="utf-8")


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a short run and return its folder."""
    run = tmp_path_factory.mktemp("finished") / "run"
    run_child("train", tiny_cohort, "--out", run, *QUICK).check_returncode()
    return run


@pytest.mark.slow
def test_foreign_folders_are_refused(
    tiny_cohort: Path, finished: Path, tmp_path: Path, foveate: Command
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("years of work", encoding="utf-8")
    result = foveate("train", tiny_cohort, "--out", foreign, *QUICK)
    assert_refused(result, f"{foreign} is not empty and holds no run", "--out")
    assert [p.name for p in foreign.iterdir()] == ["thesis.doc"]
    result = foveate("train", tiny_cohort, "--out", tiny_cohort, *QUICK)
    assert_refused(result, f"{tiny_cohort} is a file", "--out")
    result = foveate("train", tiny_cohort, "--out", finished, *QUICK, "--train.lr", "1e-3")
    assert_refused(result, "other options", "train.lr was None and is 0.001 now", "--out")

    slide, out = str(read_cohort_rows(tiny_cohort)[0]["file"]), ("--out", tmp_path / "out")
    result = foveate("predict", tmp_path / "nowhere", slide, *out)
    assert_refused(result, "nowhere: no such folder", "foveate train")
    assert_refused(foveate("predict", foreign, slide, *out), f"{foreign} holds no trained model")
    shutil.copytree(finished, tmp_path / "half", ignore=shutil.ignore_patterns("model"))
    result = foveate("predict", tmp_path / "half", slide, *out)
    assert_refused(result, "training has not finished", "foveate train")
    shutil.copytree(finished, tmp_path / "torn")
    weights = tmp_path / "torn" / "fold_0" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert_refused(foveate("predict", tmp_path / "torn", slide, *out), str(weights), "damaged")


def test_files_that_are_no_images_are_refused(
    finished: Path, tiny_cohort: Path, tmp_path: Path, foveate: Command
) -> None:
    empty, out = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    assert_refused(foveate("predict", finished, empty, "--out", out), f"{empty} holds no file")
    result = foveate("predict", finished, tmp_path / "x.tif", "--out", out, "--heatmaps", "0")
    assert_refused(result, f"{tmp_path / 'x.tif'}: no such file")
    text = tmp_path / "text.tif"
    text.write_text("no slide", encoding="utf-8")
    result = foveate("predict", finished, text, "--out", out, "--heatmaps", "0")
    assert_refused(result, "no image could be predicted", str(text))
    slide = str(read_cohort_rows(tiny_cohort)[0]["file"])
    result = foveate("predict", finished, slide, text, slide, "--out", out, "--heatmaps", "0")
    assert result.returncode == 2
    assert f"set aside text: {text}" in result.stderr
    assert [row["image_id"] for row in read_rows(out / "quarantine.csv")] == ["text"]
    assert len(read_rows(out / "predictions.csv")) == 1, "one slide named twice is one slide"
    assert foveate("predict", finished, slide, "--out", out, "--heatmaps", "0").returncode == 0
    assert not (out / "quarantine.csv").exists(), "the list of an earlier call is no longer true"


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_missing_image_files_are_reported(
    tiny_cohort: Path, tmp_path: Path, foveate: Command
) -> None:
    rows = read_cohort_rows(tiny_cohort)
    missing_rows = [{**r, "file": f"gone/{Path(str(r['file'])).name}"} for r in rows]
    result = foveate(
        "train", write_table(tmp_path / "a.csv", missing_rows), "--out", tmp_path / "a", *QUICK
    )
    assert_refused(
        result, "a.csv, row 2, column 'file'", "none of the 24 files is there", "--images"
    )

    table = write_table(
        tmp_path / "b.csv", [*rows[:5], {**missing_rows[5], "file": "x.tif"}, *rows[6:]]
    )
    result = foveate("train", table, "--out", tmp_path / "b", *QUICK)
    assert result.returncode == 2, result.stderr
    (row,) = read_rows(tmp_path / "b" / "quarantine.csv")
    assert (row["image_id"], row["stage"]) == ("x", "table")
    assert "no file 'x.tif'" in row["reason"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twelve tiled slides that state no resolution."""
    folder = tmp_path_factory.mktemp("bare")
    rng = np.random.default_rng(1)
    rows = []
    for i in range(12):
        pixels = np.full((512, 640, 3), 240, np.uint8)
        pixels[100:400, 100:500] = rng.integers(90, 170, (300, 400, 3))
        name = f"s{i:02d}.tif"
        tifffile.imwrite(folder / name, pixels, photometric="rgb", tile=(256, 256))
        rows.append({"file": name, "label": "ab"[i % 2]})
    return write_table(folder / "labels.csv", rows)


@pytest.mark.slow
def test_slides_without_spacing_are_refused(bare: Path, tmp_path: Path, foveate: Command) -> None:
    small = ("--encoder", "small", "--encoder.width", "8", "--encoder.dim", "16")
    quick = (*small, "--method", "downsampled", "--epochs", "1", "--view.glimpse-px", "64")
    result = foveate("train", bare, "--out", tmp_path / "run", *quick)
    assert_refused(
        result, "s00.tif", "no pixel size", "'mpp'", "--view.assume-spacing-um", "12 images"
    )

    run = tmp_path / "run"
    result = foveate("train", bare, "--out", run, *quick, "--view.assume-spacing-um", "0.25")
    assert result.returncode == 0, result.stderr
    rows = read_rows(run / "predictions_oof.csv")
    assert {row["spacing"] for row in rows} == {"0.25 um"}

    with bare.open(encoding="utf-8", newline="") as file:
        spaced_rows = [{**row, "mpp": "0.5"} for row in csv.DictReader(file)]
    table = write_table(bare.parent / "mpp.csv", spaced_rows)
    result = foveate("train", table, "--out", tmp_path / "mpp", *quick)
    assert result.returncode == 0, result.stderr
    rows = read_rows(tmp_path / "mpp" / "predictions_oof.csv")
    assert {row["spacing"] for row in rows} == {"0.5 um"}

    slide = bare.parent / "s03.tif"
    result = foveate("predict", tmp_path / "mpp", slide, "--out", tmp_path / "p")
    assert_refused(result, "no image could be predicted", "s03.tif", "no pixel size")
    words = ("predict", tmp_path / "mpp", slide, "--out", tmp_path / "p")
    for flag in ("--spacing-um", "--view.assume-spacing-um"):
        assert foveate(*words, flag, "0.5").returncode == 0


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write twelve PNG files of two sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    rows = []
    for i in range(12):
        pixels = rng.integers(0, 255, (100 + 20 * (i % 2), 90, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i:02d}.png")
        rows.append({"file": f"p{i:02d}.png", "label": "ab"[i % 2]})
    return write_table(folder / "labels.csv", rows)


@pytest.mark.slow
def test_pictures_without_spacing_work_in_pixels(
    pictures: Path, tmp_path: Path, foveate: Command
) -> None:
    small = ("--encoder", "small", "--encoder.width", "8", "--encoder.dim", "16")
    quick = (*small, "--method", "downsampled", "--epochs", "1", "--view.patch-px", "32")
    result = foveate("train", pictures, "--out", tmp_path / "run", *quick)
    assert result.returncode == 0, result.stderr
    assert "no pixel size, so lengths count in pixels" in result.stderr
    assert "sizes differ" in result.stderr
    rows = read_rows(tmp_path / "run" / "predictions_oof.csv")
    assert {row["spacing"] for row in rows} == {"1 px"}
    result = foveate("train", pictures, "--out", tmp_path / "fit", *quick, "--view.fit", "96x96")
    assert result.returncode == 0, result.stderr
    assert "sizes differ" not in result.stderr


def test_a_model_of_slides_refuses_pictures_without_spacing(
    finished: Path, pictures: Path, tmp_path: Path, foveate: Command
) -> None:
    result = foveate("predict", finished, pictures.parent / "p00.png", "--out", tmp_path / "out")
    assert_refused(result, "p00.png", "no pixel size")


def test_an_absent_device_is_refused(tiny_cohort: Path, tmp_path: Path, foveate: Command) -> None:
    torch = pytest.importorskip("torch")
    absent = "mps" if torch.cuda.is_available() else "cuda"
    words = ("train", tiny_cohort, "--out", tmp_path / "run", *QUICK, "--train.device", absent)
    assert_refused(foveate(*words), "train.device", absent)


# -- what is right ---------------------------------------------------------------------------------


def scores(run: Path) -> object:
    return read_json(run / "metrics.json")


def test_repeating_a_command_prints_the_same_scores(
    tiny_cohort: Path, finished: Path, foveate: Command
) -> None:
    before, page = scores(finished), (finished / "report.html").stat().st_mtime_ns
    model = finished / "fold_0" / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    result = foveate("train", tiny_cohort, "--out", finished, *QUICK)
    assert result.returncode == 0, result.stderr
    assert "holds this run already" in result.stderr
    assert "training:" not in result.stderr
    assert scores(finished) == before
    assert model.stat().st_mtime_ns == written
    assert (finished / "report.html").stat().st_mtime_ns >= page


@pytest.mark.slow
def test_a_config_recreates_its_run(finished: Path, tmp_path: Path, foveate: Command) -> None:
    run = tmp_path / "again"
    result = foveate("train", "--config", finished / "config.yaml", "--out", run)
    assert result.returncode == 0, result.stderr
    model = "fold_0/model/model.safetensors"
    assert (run / model).read_bytes() == (finished / model).read_bytes()
    assert scores(run) == scores(finished)
    assert (run / "config.yaml").read_bytes() == (finished / "config.yaml").read_bytes()


@pytest.mark.slow
def test_predicting_a_table_a_folder_and_a_file_agree(
    tiny_cohort: Path, finished: Path, tmp_path: Path, foveate: Command
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    rows = read_cohort_rows(tiny_cohort)[:3]
    for row in rows:
        shutil.copy(str(row["file"]), folder)
    table = write_table(folder / "list.csv", [{"file": Path(str(r["file"])).name} for r in rows])
    first = folder / Path(str(rows[0]["file"])).name
    tables = []
    for n, source in ((3, table), (3, folder), (1, first)):
        out = tmp_path / f"out_{len(tables)}"
        result = foveate("predict", finished, source, "--out", out)
        assert result.returncode == 0, result.stderr
        rows_out = read_rows(out / "predictions.csv")
        assert len(rows_out) == n
        assert result.stdout.count("tumour 0.") == n
        assert len(list((out / "heatmaps").glob("*.png"))) == n
        assert len(list((out / "heatmaps").glob("*.geojson"))) == n
        tables.append({row["image_id"]: row["prob_tumour"] for row in rows_out})
    assert tables[0] == tables[1]
    assert tables[2].items() <= tables[0].items()


def test_evaluating_a_labelled_table(
    tiny_cohort: Path, finished: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    out_of_fold = {
        r["image_id"]: r["prob_tumour"] for r in read_rows(finished / "predictions_oof.csv")
    }
    tested = [r for r in read_cohort_rows(tiny_cohort) if Path(str(r["file"])).stem in out_of_fold]
    result = foveate("evaluate", finished, write_table(tmp_path / "t.csv", tested), "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{len(out_of_fold)} images of ")
    assert "auroc" in result.stdout
    again = {r["image_id"]: r["prob_tumour"] for r in read_rows(out / "predictions.csv")}
    assert again == out_of_fold
    assert not list((out / "heatmaps").glob("*.png")), "pictures are drawn where they are asked for"
    normal = [r for r in read_cohort_rows(tiny_cohort)[:8] if r["label"] == "normal"]
    one = write_table(tmp_path / "one.csv", normal)
    result = foveate("evaluate", finished, one, "--out", tmp_path / "one")
    assert result.returncode == 0, result.stderr
    assert "accuracy" in result.stdout
    assert "auroc" not in result.stdout


def test_evaluation_skips_unknown_labels(
    tiny_cohort: Path, finished: Path, tmp_path: Path, foveate: Command
) -> None:
    rows = read_cohort_rows(tiny_cohort)[:4]
    odd = write_table(tmp_path / "odd.csv", [*rows[1:], {**rows[0], "label": "tumor"}])
    out = tmp_path / "out"
    result = foveate("evaluate", finished, odd, "--out", out)
    assert result.returncode == 2, result.stderr
    assert "1 of 4 rows left out" in result.stderr
    assert result.stdout.startswith("3 images of ")
    assert "'tumor' is none of" in (out / "quarantine.csv").read_text()
    result = foveate(
        "evaluate", finished, odd, "--out", tmp_path / "2", "--map", "tumor=tumour",
        "--heatmaps", "1",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("4 images of ")
    assert len(list((tmp_path / "2" / "heatmaps").glob("*.png"))) == 1
    result = foveate("evaluate", finished, odd, "--out", out, "--map", "tumor")
    assert_refused(result, "--map: got 'tumor', expected OLD=NEW")
    none = write_table(tmp_path / "none.csv", [row | {"label": "x"} for row in rows])
    result = foveate("evaluate", finished, none, "--out", tmp_path / "3")
    assert_refused(result, f"{none}", "no label that the model knows", "'x' 4")


def test_methods_and_doctor_print_their_lists(foveate: Command) -> None:
    result = foveate("methods")
    assert result.returncode == 0
    assert {line.split()[0] for line in result.stdout.splitlines() if line} >= {"glimpse", "abmil"}
    result = foveate("methods", "glimpse")
    assert result.returncode == 0
    assert "--method.patches" in result.stdout
    result = foveate("doctor")
    assert result.returncode == 0, result.stdout
    assert "FAIL" not in result.stdout
    assert "slide round trip" in result.stdout


def test_help_is_quick() -> None:
    """The best of three attempts takes less than half a second."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        words = [sys.executable, "-m", "foveate.cli", "--help"]
        result = subprocess.run(words, capture_output=True, text=True, check=True)
        taken.append(time.perf_counter() - begun)
        for command in ("demo", "train", "predict", "evaluate", "methods", "doctor"):
            assert command in result.stdout
    assert min(taken) < 0.5


def test_the_bare_command_shows_its_help(foveate: Command) -> None:
    result = foveate()
    assert result.returncode == 0
    assert "Start here:" in result.stdout


def test_a_progress_bar_shows_no_rate_before_the_first_step(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from foveate.cli.terminal import Terminal

    with Terminal(bars=False) as terminal:
        terminal.bar("working", 1, 3)
        time.sleep(0.1)
        terminal.bar("working", 3, 3)
        terminal.bar("working", 3, 3)
        terminal.bar("long", 1.25, 3)
    first, last, within = capfd.readouterr().err.splitlines()
    assert first == "working: 1/3"
    assert within == "long: 1.25/3"
    rate = float(last.removeprefix("working: 3/3  ").removesuffix("/s"))
    assert 10 < rate < 21
