"""Commands that are repeated, interrupted or aimed at the run itself, and what they print."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import PICTURE_RUN, picture
from foveate.cli import terminal
from foveate.errors import CheckpointError
from foveate.files.digest import file_sha256
from foveate.runs.checkpoint import load_model
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed, command_words, one_thread_environment, read_refusal

Command = Callable[..., Completed]
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "damaged"
ENDED = 4_194_305
"""Number of a process that no system gives, as Linux counts to 4,194,304."""

COSTS = ("decoded_px", "asked_px", "level0_px", "n_images")


# -- repeated --------------------------------------------------------------------------------------


def test_a_repeated_evaluation_uses_the_labels_and_patients_of_now(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "out"
    words = ("evaluate", picture_run, table, "--out", out, "--heatmaps", "0")

    def write(images_per_patient: int, spelt: dict[str, str]) -> None:
        lines = ["path,label,patient_id"]
        for i, row in enumerate(read_rows(picture_table)):
            path = picture_table.parent / row["path"]
            lines.append(f"{path},{spelt[row['label']]},P{i // images_per_patient:02d}")
        table.write_text("\n".join(lines), encoding="utf-8")

    write(1, {"dark": "dark", "plain": "plain"})
    assert foveate(*words).returncode == 0
    before = read_json(out / "metrics.json")
    assert not list((out / "heatmaps").glob("*.png")), "none was asked for"
    write(2, {"dark": "plain", "plain": "dark"})
    result = foveate(*words)
    assert result.returncode == 0, result.stderr
    after = read_json(out / "metrics.json")
    auroc, old = after["metrics"]["auroc"], before["metrics"]["auroc"]
    assert auroc["value"] == pytest.approx(1 - old["value"])
    assert (before["n_patients"], after["n_patients"]) == (24, 12)
    assert {row["patient_id"] for row in read_rows(out / "predictions.csv")} == {
        f"P{i:02d}" for i in range(12)
    }


def test_a_prediction_that_was_cut_off_ends_with_the_same_files_and_costs(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    """The journal ends in half a line, as after a kill, beside files that were being written."""
    images, out = tmp_path / "in", tmp_path / "out"
    for i in range(8):
        picture(images / f"N{i}.png", 100 + i)
    (images / "N3.png").write_bytes((images / "N3.png").read_bytes()[:300])
    words = ("predict", picture_run, images, "--out", out, "--heatmaps", "3")
    assert foveate(*words).returncode == 2
    cost = read_json(out / "cost.json")
    files = {p.relative_to(out) for p in out.rglob("*")}

    def answers() -> list[dict[str, str]]:
        rows = read_rows(out / "predictions.csv")
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]

    expected = answers()
    journal = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(b"".join(journal[:4]) + journal[4][:40])
    for name in ("predictions.csv", "cost.json", "quarantine.csv"):
        (out / name).unlink()
    (out / "heatmaps" / f".N5.png.{ENDED}.part").write_bytes(b"half a picture")
    (out / f".predictions.csv.{ENDED}.part").write_bytes(b"image_id,")
    result = foveate(*words)
    assert result.returncode == 2, result.stderr
    assert "images are answered already" in result.stderr
    assert answers() == expected
    again = read_json(out / "cost.json")
    assert [again[key] for key in COSTS] == [cost[key] for key in COSTS]
    assert cost["level0_px"] == 7 * 96 * 96
    assert {p.relative_to(out) for p in out.rglob("*")} == files, "nothing half written is left"


def test_a_link_to_the_run_is_refused_as_out(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    (tmp_path / "link").symlink_to(picture_run, target_is_directory=True)
    before = {p: p.stat().st_mtime_ns for p in picture_run.rglob("*")}
    for run, out in (
        (picture_run, tmp_path / "link"),
        (picture_run, tmp_path / "link" / "heatmaps"),
        (tmp_path / "link", picture_run),
    ):
        for words in (("predict", run, picture_table.parent), ("evaluate", run, picture_table)):
            assert "give another --out" in read_refusal(foveate(*words, "--out", out))
    assert {p: p.stat().st_mtime_ns for p in picture_run.rglob("*")} == before


# -- one bad file ----------------------------------------------------------------------------------


def test_hostile_files_are_set_aside_and_the_others_predicted(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    for i in range(2):
        picture(images / f"N{i}.png", i)
    expected = {
        "overflow_vox_offset.nii": "its voxels would begin at byte",
        "negative_vox_offset.nii.gz": "its voxels would begin at byte",
        "hang_packbits_alpha.tif": "",
        "hang_onebyte_aperio.svs": "24,585 blocks, the file lists 9",
    }
    for name in expected:
        shutil.copy(FIXTURES / name, images / name)
    result = foveate("predict", picture_run, images, "--out", out, "--heatmaps", "0")
    assert result.returncode == 2, result.stderr
    assert [row["image_id"] for row in read_rows(out / "predictions.csv")] == ["N0", "N1"]
    reasons = {Path(row["path"]).name: row["reason"] for row in read_rows(out / "quarantine.csv")}
    assert reasons.keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons[name]
        assert "Error" not in reasons[name]


class Harmful:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_weights_that_are_a_pickle_run_no_code(picture_run: Path, tmp_path: Path) -> None:
    """Also where the checksum in the model's JSON file is that of the pickle."""
    folder = shutil.copytree(picture_run / "fold_0" / "model", tmp_path / "model")
    trace = tmp_path / "code was run"
    weights = load_model(folder).method.state_dict()
    torch.save({**weights, "more": Harmful(trace)}, folder / "model.safetensors")
    card = read_json(folder / "model.json")
    card["sha256"] = file_sha256(folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(folder)
    assert not trace.exists()
    torch.load(shutil.copy(folder / "model.safetensors", tmp_path / "m.pt"), weights_only=False)
    assert trace.exists(), "the pickle is one that would do harm"


# -- the terminal ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_warning_of_a_library_reaches_the_terminal(tmp_path: Path) -> None:
    """Python's warnings are on, and some pictures are such as make Pillow warn."""
    rows = ["path,label"]
    for i in range(12):
        path = picture(tmp_path / f"P{i:02d}.png", i)
        if i % 4 > 1:  # a palette whose transparency is given in bytes
            Image.open(path).convert("P").save(path, transparency=bytes(range(256)))
            with pytest.warns(UserWarning, match="Transparency"):
                Image.open(path).convert("RGB")
        rows.append(f"{path.name},{('plain', 'dark')[i % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    environment = {k: v for k, v in one_thread_environment().items() if k != "PYTHONWARNINGS"}
    result = subprocess.run(
        command_words("train", "t.csv", "--out", "run", *PICTURE_RUN),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for word in ("Warning", "site-packages", "torch", "PIL"):
        assert word not in result.stderr, result.stderr


def test_every_image_and_step_is_shown_as_progress(
    picture_table: Path, tmp_path: Path, foveate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part of a training is silent: with lines at any time, each image gives one."""
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.0)
    result = foveate("train", picture_table, "--out", tmp_path / "run", *PICTURE_RUN)
    assert result.returncode == 0, result.stderr
    n_test = len(read_json(tmp_path / "run" / "splits.json")["folds"][0]["test"])
    for title, total in (
        ("opening images", 24),
        ("noting what the run rests on", 24),
        ("training: end to end", 4),
        ("predicting", n_test),
    ):
        lines = [x for x in result.stderr.splitlines() if x.startswith(f"{title}: ")]
        done = {float(line.split(": ")[-1].split("/")[0].split()[-1]) for line in lines}
        assert {*range(1, total + 1)} <= done, (title, lines)
