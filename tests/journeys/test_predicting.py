"""Predictions are written image by image: none is lost, exchanged or computed twice."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from conftest import PICTURE_RUN, picture
from foveate import parts as registry
from foveate.files.lock import NAME, lock_folder
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Child, Completed, read_refusal, run_child

Command = Callable[..., Completed]
SECONDS = 120.0


def answers(out: Path) -> dict[str, dict[str, str]]:
    """Read the predictions by image, without the columns that depend on time."""
    rows = read_rows(out / "predictions.csv")
    by_image = {
        row["image_id"]: {k: v for k, v in row.items() if not k.startswith("seconds")}
        for row in rows
    }
    assert len(by_image) == len(rows)
    return by_image


def lines(out: Path) -> list[dict[str, object]]:
    text = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in text]


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "index.json"}


def new_images(folder: Path, n: int = 16) -> Path:
    for i in range(n):
        picture(folder / f"N{i:02d}.png", 100 + i)
    return folder


# -- going on --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_kills_change_nothing(picture_run: Path, tmp_path: Path) -> None:
    images = new_images(tmp_path / "in")
    (images / "N03.png").write_bytes((images / "N03.png").read_bytes()[:300])
    undisturbed, out = tmp_path / "whole", tmp_path / "out"
    assert run_child("predict", picture_run, images, "--out", undisturbed).returncode == 2
    rng = random.Random(0)
    for n_lines in (1, 5, 10):
        process = Child("predict", picture_run, images, "--out", out)
        wait_for_lines(process, out / "answers.jsonl", n_lines + 1)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
    assert (out / NAME).exists(), "what a killed process held does not stop the next one"
    result = run_child("predict", picture_run, images, "--out", out)
    assert result.returncode == 2, result.stderr
    assert "images are answered already" in result.stderr
    assert answers(out) == answers(undisturbed)
    written_keys = [str(line["key"]) for line in lines(out) if "key" in line]
    assert len(written_keys) == len(set(written_keys)) == 16, "each image was answered once"
    keys = ("decoded_px", "asked_px", "level0_px", "n_images")
    cost, wanted_cost = read_json(out / "cost.json"), read_json(undisturbed / "cost.json")
    assert [cost[key] for key in keys] == [wanted_cost[key] for key in keys]
    assert cost["level0_px"] == 15 * 96 * 96
    assert {p.name for p in (out / "heatmaps").iterdir()} == {
        p.name for p in (undisturbed / "heatmaps").iterdir()
    }
    assert not list(out.rglob("*.part"))
    assert not (out / NAME).exists()
    (row,) = read_rows(out / "quarantine.csv")
    assert row["image_id"] == "N03"


def wait_for_lines(process: Child, path: Path, n: int) -> None:
    until = time.monotonic() + SECONDS
    while not (path.is_file() and path.read_bytes().count(b"\n") >= n):
        assert time.monotonic() < until
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)


def test_existing_predictions_are_not_recomputed(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = new_images(tmp_path / "in", 4), tmp_path / "out"
    assert foveate("predict", picture_run, images, "--out", out).returncode == 0
    first, drawn = answers(out), stamps(out / "heatmaps")
    again = foveate("predict", picture_run, images, "--out", out)
    assert again.returncode == 0
    assert "4 of 4 images are answered already" in again.stderr
    assert (answers(out), stamps(out / "heatmaps")) == (first, drawn)

    picture(images / "N01.png", 7)
    picture(images / "N04.png", 8)
    assert foveate("predict", picture_run, images, "--out", out).returncode == 0
    changed = [i for i, row in answers(out).items() if row != first.get(i)]
    assert changed == ["N01", "N04"], "a changed file and a new one are answered anew"
    assert [e["image_id"] for e in read_json(out / "heatmaps" / "index.json")] == [*answers(out)]

    picture(images / "N02.png", 3).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert foveate("predict", picture_run, images, "--out", out).returncode == 2
    assert not list((out / "heatmaps").glob("N02*")), "no old picture beside a new table"
    picture(images / "N02.png", 3)
    assert foveate("predict", picture_run, images, "--out", out).returncode == 0
    assert len(list((out / "heatmaps").glob("N02*"))) == 3
    assert not (out / "quarantine.csv").exists()


def test_predictions_of_another_command_are_refused(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = new_images(tmp_path / "in", 3), tmp_path / "out"
    assert foveate("predict", picture_run, images, "--out", out).returncode == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.suffix != ".txt"}
    message = read_refusal(foveate("predict", picture_run, images / "N00.png", "--out", out))
    assert "2 images that are not among those given now (N01, N02)" in message
    assert "another --out" in message
    message = read_refusal(foveate("predict", picture_run, images, "--out", out, "--heatmaps", "1"))
    assert "heatmaps was 1000, now it is 1" in message
    message = read_refusal(foveate("evaluate", picture_run, picture_table, "--out", out))
    assert "holds the answers of another command" in message
    other = tmp_path / "other"
    shutil.copytree(picture_run, other)
    card = other / "fold_0" / "model" / "model.json"
    card.write_text(card.read_text().replace('"threshold": ', '"threshold": 0.5, "was": '))
    assert "models was" in read_refusal(foveate("predict", other, images, "--out", out))
    for path, content in before.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["", "fold_0", "fold_0/model", "heatmaps", "fold_9"])
def test_a_run_folder_is_refused_as_out(
    name: str, picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(picture_run, run)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    for words in (("predict", run, picture_table.parent / "in"), ("evaluate", run, picture_table)):
        for folder in (run / name, run / "fold_0" / ".." / name):
            message = read_refusal(foveate(*words, "--out", folder))
            assert "--out" in message
            assert "give another --out" in message
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_results_of_something_else_are_not_overwritten(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = new_images(tmp_path / "in", 2), tmp_path / "out"
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    message = read_refusal(foveate("predict", picture_run, images, "--out", out, "--heatmaps", "0"))
    assert f"{out} holds results of something else (metrics.json)" in message
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file, not a folder" in read_refusal(
        foveate("predict", picture_run, images, "--out", file, "--heatmaps", "0")
    )
    inside = picture_run / "external"
    for _ in range(2):
        result = foveate("predict", picture_run, images, "--out", inside, "--heatmaps", "0")
        assert result.returncode == 0, result.stderr
    shutil.rmtree(inside)


# -- two at once -----------------------------------------------------------------------------------


def test_one_process_locks_a_folder(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    images = new_images(tmp_path / "in", 2)
    with lock_folder(out):
        message = read_refusal(
            foveate("predict", picture_run, images, "--out", out, "--heatmaps", "0")
        )
        assert f"{out} is in use by another foveate, process {os.getpid()} on " in message
        assert "another --out" in message
        assert "is in use" in read_refusal(
            foveate("evaluate", picture_run, picture_table, "--out", out)
        )
        assert "is in use" in read_refusal(
            foveate("train", picture_table, "--out", out, *PICTURE_RUN)
        )
        assert [p.name for p in out.iterdir()] == [NAME]
    assert not (out / NAME).exists()
    assert foveate("predict", picture_run, images, "--out", out, "--heatmaps", "0").returncode == 0


@pytest.mark.slow
def test_two_processes_at_once_lose_nothing(picture_run: Path, tmp_path: Path) -> None:
    images, out = new_images(tmp_path / "in"), tmp_path / "out"
    both = [Child("predict", picture_run, images, "--out", out) for _ in range(2)]
    outputs = [process.communicate(timeout=SECONDS)[1] for process in both]
    assert {process.returncode for process in both} <= {0, 1}, outputs
    assert any(process.returncode == 0 for process in both), outputs
    assert len(answers(out)) == 16
    keys = [line["key"] for line in lines(out) if "key" in line]
    assert len(keys) == 16


def test_a_run_in_training_is_refused(picture_run: Path, tmp_path: Path, foveate: Command) -> None:
    run, images = tmp_path / "run", new_images(tmp_path / "in", 1)
    shutil.copytree(picture_run, run)
    shutil.rmtree(run / "fold_0" / "model")
    message = read_refusal(foveate("predict", run, images, "--out", tmp_path / "out"))
    assert "training has not finished; repeat the `foveate train` command" in message
    with lock_folder(run):
        message = read_refusal(foveate("predict", run, images, "--out", tmp_path / "out"))
        assert "training has not finished; it is going on now, so wait" in message


# -- a full disk -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_full_disk_loses_no_prediction(picture_run: Path, tmp_path: Path) -> None:
    images, out = new_images(tmp_path / "in", 12), tmp_path / "out"
    full = (resource.RLIMIT_FSIZE, 6000)
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", "0")
    message = read_refusal(run_child(*words, limit=full))
    assert f"{out / 'answers.jsonl'}: the disk is full" in message
    assert "the same command continues" in message
    keys = [line["key"] for line in lines(out) if "key" in line]
    assert 0 < len(keys) < 12
    result = run_child(*words)
    assert result.returncode == 0, result.stderr
    assert f"{len(keys)} of 12 images are answered already" in result.stderr
    assert len(answers(out)) == 12
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_a_full_disk_ends_a_training_in_one_line(picture_table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    full = (resource.RLIMIT_FSIZE, 9000)
    message = read_refusal(
        run_child("train", picture_table, "--out", run, *PICTURE_RUN, limit=full)
    )
    assert f"{run / 'fold_0' / 'checkpoints'}" in message
    assert "the disk is full" in message
    result = run_child("train", picture_table, "--out", run, *PICTURE_RUN)
    assert result.returncode == 0, result.stderr
    assert not list(run.rglob("*.part"))


# -- one bad file ----------------------------------------------------------------------------------

PLUGIN = '''
"""Ends as its file's first word says."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from foveate.images.level import Level
from foveate.readers.base import AbstractReader


class OddReader(AbstractReader):
    """Ends as its file's first word says."""

    priority = 99

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.word = path.read_text().split()[1]
        if self.word == "overflow":
            raise OverflowError("Python int too large to convert to C ssize_t")
        self.kind, self.spacing_um, self.channels = "picture", None, 3
        self.levels, self.dtype = (Level((96, 96), (1.0, 1.0)),), np.dtype(np.uint8)
        self.reader = "odd"

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        return head.startswith(b"ODD ")

    def _read_level(self, level, origin_px, size_px):
        large = min(size_px) > 16
        if self.word == "memory" and large:
            raise MemoryError
        if self.word == "torch" and large:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        if self.word == "key" and large:
            raise KeyError(273)
        return np.full((*size_px, 3), 128, np.uint8)

    def close(self) -> None:
        pass
'''


def test_no_bad_file_stops_a_prediction(
    picture_run: Path, tmp_path: Path, foveate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_folders", [])
    plugins = tmp_path / "plugins"
    (plugins / "readers").mkdir(parents=True)
    (plugins / "readers" / "odd.py").write_text(PLUGIN, encoding="utf-8")
    images, out = new_images(tmp_path / "in", 2), tmp_path / "out"
    for word in ("overflow", "memory", "torch", "key"):
        (images / f"{word}.tif").write_text(f"ODD {word} ")
    os.mkfifo(images / "pipe.png")
    (images / "loop.png").symlink_to("loop.png")
    (images / "gone.png").symlink_to("nowhere.png")
    (images / "in").symlink_to(images, target_is_directory=True)
    new_images(tmp_path / "elsewhere", 5)
    (images / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    result = foveate(
        "predict", picture_run, images, "--out", out, "--plugins", plugins, "--heatmaps", "0"
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert len(answers(out)) == 7, "linked folders are followed, each once"
    reasons = {row["image_id"]: row["reason"] for row in read_rows(out / "quarantine.csv")}
    expected = {
        "overflow": "damaged or of a rare kind|makes no sense",
        "memory": "memory",
        "torch": "need more memory than there is",
        "key": "damaged or of a rare kind|makes no sense",
        "pipe": "is a pipe or a device",
        "loop": "its link leads back to itself: remove the link",
        "gone": "a link to a file that is not there",
    }
    assert reasons.keys() == expected.keys()
    for image_id, part in expected.items():
        assert re.search(part, reasons[image_id]), reasons[image_id]
        assert f"{image_id}." in reasons[image_id]
        complaints = [
            line for line in result.stderr.splitlines() if f"set aside {image_id}:" in line
        ]
        assert len(complaints) <= 1
    assert not any("Error" in reason for reason in reasons.values()), "no words of Python"
    assert "OverflowError" in (out / "log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_unusual_file_names_are_predicted(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    names = [
        *("Käse & Brot (1) #2 100%", "切片一", "$P_1$x^{2$", 'a<b>&"c', "-rf", " leading", "=1+1"),
        *("line\nbreak", "tab\tname", "x" * 251, "y" * 250, "病" * 83),
    ]
    images, out = tmp_path / "in", tmp_path / "out"
    for i, name in enumerate(names):
        picture(images / f"{name}.png", i)
    shutil.copy(images / "切片一.png", os.fsencode(images) + b"/caf\xe9.png")
    picture(images / "one" / "same" / "S.png", 1)
    picture(images / "two" / "same" / "S.png", 2)
    result = foveate("predict", picture_run, images, "--out", out)
    assert result.returncode == 0, result.stderr
    rows = answers(out)
    assert len(rows) == len(names) + 3
    assert "caf_xe9" in rows
    index = read_json(out / "heatmaps" / "index.json")
    assert len({e["png"] for e in index}) == len(rows)
    for entry in index:
        assert (out / "heatmaps" / entry["png"]).is_file(), entry["image_id"]
        assert (out / "heatmaps" / entry["geojson"]).is_file()
    assert foveate("predict", picture_run, images, "--out", out).returncode == 0
    assert answers(out) == rows
    same = [images / part / "same" / "S.png" for part in ("one", "two")]
    assert foveate("predict", picture_run, *same, "--out", tmp_path / "same").returncode == 0
    assert len(answers(tmp_path / "same")) == 2


def test_files_that_are_no_images_are_ignored(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = new_images(tmp_path / "in", 2), tmp_path / "out"
    for name in (
        *("Thumbs.db", ".DS_Store", "._N00.png", "desktop.ini", "N00.png.md5", "N00.png.sha256"),
        *("SHA256SUMS", "md5sum", "N01.png.aux.xml", "N02.png.part", "N02.png.crdownload"),
    ):
        (images / name).write_bytes(b"\0\1\2\3")
    for folder in ("@eaDir", "__MACOSX", "#recycle"):
        picture(images / folder / "N00.png" / "SYNOPHOTO_THUMB_M.png", 1)
    result = foveate("predict", picture_run, images, "--out", out, "--heatmaps", "0")
    assert result.returncode == 0, result.stderr
    assert [*answers(out)] == ["N00", "N01"]


def test_a_repeated_reason_is_printed_a_few_times(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = new_images(tmp_path / "in", 1), tmp_path / "out"
    for i in range(20):
        (images / f"B{i:02d}.svs").write_bytes(b"")
    result = foveate("predict", picture_run, images, "--out", out, "--heatmaps", "0")
    complaints = [line for line in result.stderr.splitlines() if "set aside" in line]
    assert len(complaints) == 5, complaints
    assert complaints[0].startswith("set aside B00: ")
    assert complaints[4] == "set aside 20 images in all; quarantine.csv lists them"
    assert "set aside 20 images in all for this reason: the file is empty" in complaints[3]
    assert len(read_rows(out / "quarantine.csv")) == 20


def test_prediction_works_with_few_open_files(picture_run: Path, tmp_path: Path) -> None:
    images, out = new_images(tmp_path / "in", 80), tmp_path / "out"
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", "0")
    result = run_child(*words, limit=(resource.RLIMIT_NOFILE, 64))
    assert result.returncode == 0, result.stderr
    assert len(answers(out)) == 80


# -- images unlike those of training ---------------------------------------------------------------


def test_images_unlike_the_training_are_marked(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    picture(images / "alike.png", 1)
    picture(images / "grey.png", 1, shape=(96, 96))
    picture(images / "large.png", 1, shape=(1200, 1200, 3))
    picture(images / "dot.png", 2, shape=(1, 1, 3))
    Image.new("RGB", (96, 96), (255, 255, 255)).save(images / "white.png")
    result = foveate("predict", picture_run, images, "--out", out)
    assert result.returncode == 0, result.stderr
    marks = {row["image_id"]: row["unlike"] for row in read_rows(out / "predictions.csv")}
    assert marks["alike"] == ""
    assert marks["grey"] == "grey, not in colour"
    assert marks["large"] == "a long side of 1.2e+03 px, not 96; a short side of 1.2e+03 px, not 96"
    assert "tiny (1 x 1 pixels)" in marks["dot"]
    assert marks["white"] == "blank"
    assert "warning: 4 of 5 images are unlike those of training" in result.stderr
    assert "UNLIKE the images of training: blank" in result.stdout
    assert {e["image_id"]: e["unlike"] for e in read_json(out / "heatmaps/index.json")} == marks
    assert read_json(picture_run / "fold_0/model/model.json")["trained_on"] == {
        "n": 24,
        "kinds": ["picture"],
        "channels": [3],
        "unit": "px",
        "spacing": [1.0, 1.0],
        "side": [96.0, 96.0],
        "assumed": 0,
        "short_side": [96.0, 96.0],
        "colours": ["colour"],
    }


@pytest.mark.slow
def test_an_assumed_spacing_applies_to_files_without_spacing(
    picture_table: Path, tiny_cohort: Path, tmp_path: Path, foveate: Command
) -> None:
    with tiny_cohort.open(encoding="utf-8", newline="") as file:
        slide = tiny_cohort.parent / next(csv.DictReader(file))["file"]
    image = picture(tmp_path / "xray.png", 1)
    words = (*PICTURE_RUN, "--view.assume-spacing-um", "0.5", "--view.spacing-um", "4")
    run = tmp_path / "slides"
    assert foveate("train", tiny_cohort, "--out", run, *words).returncode == 0
    result = foveate("predict", run, image, slide, "--out", tmp_path / "a")
    assert result.returncode == 2, "no slide of the training needed the assumption"
    assert [*answers(tmp_path / "a")] == [slide.stem]
    (row,) = read_rows(tmp_path / "a" / "quarantine.csv")
    assert "states no pixel size" in row["reason"]
    assert "--spacing-um" in row["reason"]
    result = foveate("predict", run, image, "--out", tmp_path / "b", "--spacing-um", "0.5")
    assert result.returncode == 0, result.stderr
    (row,) = read_rows(tmp_path / "b" / "predictions.csv")
    assert "a picture, not a slide" in row["unlike"]
    run = tmp_path / "pictures"
    assert foveate("train", picture_table, "--out", run, *words).returncode == 0
    result = foveate("predict", run, image, "--out", tmp_path / "c")
    assert result.returncode == 0, "pictures of the training needed it, too"
    (row,) = read_rows(tmp_path / "c" / "predictions.csv")
    assert (row["unlike"], row["spacing"]) == ("", "0.5 um")


@pytest.mark.slow
def test_training_images_are_marked(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = tmp_path / "renamed", tmp_path / "out"
    images.mkdir()
    for i in range(24):
        shutil.copy(picture_table.parent / "in" / f"P{i:02d}.png", images / f"other{i:02d}.png")
    picture(images / "P01.png", 1005)
    result = foveate("predict", picture_run, images, "--out", out)
    assert result.returncode == 0, result.stderr
    fold = read_json(picture_run / "splits.json")["folds"][0]
    n_seen = len(fold["train"]) + len(fold["val"])
    assert f"warning: {n_seen} of 25 images trained the models that answer" in result.stderr
    marks = {i: row["in_training"] for i, row in answers(out).items()}
    for part, word in (("train", "training"), ("val", "validation"), ("test", "")):
        for image_id in fold[part]:
            assert marks[f"other{image_id[1:]}"] == word
    assert marks["P01"] == "", "a namesake is another image"


def test_unknown_labels_are_set_aside(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    table = tmp_path / "labels.csv"
    text = picture_table.read_text(encoding="utf-8").replace("in/", f"{picture_table.parent}/in/")
    table.write_text(text.replace("P01.png,dark", "P01.png,odd"), encoding="utf-8")
    result = foveate("evaluate", picture_run, table, "--out", tmp_path / "out", "--heatmaps", "1")
    assert result.returncode == 2, result.stderr
    assert (
        "1 of 24 rows left out, for the model does not know their label: 'odd' 1" in result.stderr
    )
    assert read_json(tmp_path / "out" / "metrics.json")["n_images"] == 23
    assert len(list((tmp_path / "out" / "heatmaps").glob("*.png"))) == 1
    table.write_text(text.replace(",dark", ",a").replace(",plain", ",b"), encoding="utf-8")
    message = read_refusal(foveate("evaluate", picture_run, table, "--out", tmp_path / "none"))
    assert "column 'label' holds no label that the model knows: 'a' 12, 'b' 12" in message
    assert "it knows dark, plain" in message


def test_results_are_not_mixed_with_images(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    images = new_images(tmp_path / "in", 4)
    message = read_refusal(
        foveate("predict", picture_run, images, "--out", images, "--heatmaps", "0")
    )
    assert "is the folder of the images" in message
    for _ in range(2):
        result = foveate(
            "predict", picture_run, images, "--out", images / "answers", "--heatmaps", "0"
        )
        assert result.returncode == 0, result.stderr
        assert "4 files in" in result.stderr
    assert len(answers(images / "answers")) == 4
