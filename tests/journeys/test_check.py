"""``foveate check`` finds seeded trouble of every kind, says nothing of a clean cohort, resumes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

import foveate as fv
from helpers.commands import Child, Completed

Command = Callable[..., Completed]


def draw(seed: int, side: int = 96, *, width: int | None = None) -> Image.Image:
    """A picture of soft blots that differ from seed to seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((width or side, side), Image.Resampling.BICUBIC)
    return picture.filter(ImageFilter.GaussianBlur(1))


def write_table(path: Path, rows: Sequence[Sequence[object]], *more: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient_id", "label", *more])
        writer.writerows(rows)
    return path


def write_cohort(folder: Path, n: int = 24) -> Path:
    """A clean cohort of pictures; the two classes differ in nothing that the check measures."""
    (folder / "in").mkdir(parents=True)
    rows = []
    for i in range(n):
        draw(i, 96 + 8 * (i // 2 % 3)).save(folder / "in" / f"I{i:02d}.png")
        os.utime(folder / "in" / f"I{i:02d}.png", (1.7e9, 1.7e9))
        rows.append([f"in/I{i:02d}.png", f"P{i:02d}", "ill" if i % 2 else "well"])
    return write_table(folder / "labels.csv", rows)


def read_findings(out: Path) -> list[dict[str, Any]]:
    stored: dict[str, Any] = json.loads((out / "check.json").read_text(encoding="utf-8"))
    findings: list[dict[str, Any]] = stored["findings"]
    return findings


def find_about(findings: list[dict[str, Any]], kind: str, *parts: str) -> dict[str, Any]:
    """The first finding of a kind whose text, images and subject contain all parts."""
    of_kind = [f for f in findings if f["kind"] == kind]
    for finding in of_kind:
        if all(part in json.dumps(finding, ensure_ascii=False) for part in parts):
            return finding
    raise AssertionError(f"no {kind} with {parts} in {of_kind or findings}")


def hash_files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes())
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("clean"))


# -- a clean cohort ------------------------------------------------------------------------------


def test_a_clean_cohort_has_no_problem_and_is_not_changed(clean: Path, tmp_path: Path) -> None:
    before = hash_files(clean.parent)
    result = fv.check(clean, tmp_path / "out")
    assert [f for f in result.findings if f.severity != "note"] == []
    assert result.severity == "note"
    assert result.command == f"foveate train {clean} --out runs/first"
    assert hash_files(clean.parent) == before
    with (tmp_path / "out" / "check.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert rows[0] | {"shape": "96x96", "kind": "picture", "levels": "1"} == rows[0]
    page = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 24
    assert "http" not in page.replace("http-equiv", "")


def test_the_next_command_reads_the_table_in_the_same_way(clean: Path, tmp_path: Path) -> None:
    options = fv.CheckOptions(label="label", task="binary", renamed={"ill": "sick"})
    result = fv.check(clean, tmp_path / "out", options)
    words = f"foveate train {clean} --label label --task binary --map ill=sick --out runs/first"
    assert result.command == words
    question = (tmp_path / "out" / "check.html").read_text(encoding="utf-8")
    assert "sick 12" in question


def test_facts_without_a_relation_are_not_reported(clean: Path, tmp_path: Path) -> None:
    fv.check(clean, tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "check.json").read_text(encoding="utf-8"))
    assert {"width", "file size"} <= {fact["fact"] for fact in stored["facts"]}
    assert all(fact["p_value"] > 0.05 for fact in stored["facts"])


# -- seeded trouble ------------------------------------------------------------------------------


def seed_trouble(folder: Path) -> Path:
    """A cohort of slides, pictures and volumes with trouble of many kinds."""
    table = write_cohort(folder, 30)
    images = folder / "in"
    with table.open(encoding="utf-8", newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    whole = (images / "I04.png").read_bytes()
    (images / "I04.png").write_bytes(whole[: len(whole) // 2])
    (images / "I05.png").write_bytes(b"")
    (images / "I06.png").unlink()
    (images / "I07.png").write_text("<html>login</html>", encoding="utf-8")
    draw(8, 400).save(images / "I09.jpg", quality=60)
    (images / "I09.png").unlink()
    rows[9][0] = "in/I09.jpg"
    shutil.copy(images / "I10.png", images / "I12.png")
    Image.new("RGB", (96, 96), (240, 240, 240)).save(images / "I14.png")
    Image.new("RGB", (8, 9)).save(images / "I15.png")
    os.mkfifo(images / "pipe.png")
    rows += [["in/pipe.png", "P90", "ill"], ["in/I00.png", "P00", "well"]]
    draw(91).save(images / "extra.png")
    draw(92).save(images / "I92.png")
    rows.append(["in/I92.png", "P01", "well"])
    draw(93).save(images / "I93.png")
    rows.append(["in/I93.png", "P02", "well"])
    draw(94).convert("L").save(images / "I94.png")
    rows.append(["in/I94.png", "P94", "ill"])
    tissue = np.asarray(draw(95, 256))
    tifffile.imwrite(images / "nospacing.tif", tissue, tile=(128, 128), photometric="rgb")
    empty = np.full((256, 256, 3), 245, np.uint8)
    for name, pixels, um in (("blank", empty, 0.5), ("far", tissue, 15.0), ("oblong", tissue, 0.5)):
        wide_um = um * (1.2 if name == "oblong" else 1)
        tifffile.imwrite(
            images / f"{name}.tif",
            pixels,
            tile=(128, 128),
            photometric="rgb",
            resolution=(1e4 / wide_um, 1e4 / um),
            resolutionunit="CENTIMETER",
        )
    values = np.random.default_rng(0).normal(100, 30, (20, 20, 20)).astype(np.float32)
    values[:4] = np.nan
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(images / "gaps.nii")
    rows += [
        [f"in/{name}", f"Q{k}", "ill" if k % 2 else "well"]
        for k, name in enumerate(
            ["nospacing.tif", "blank.tif", "far.tif", "oblong.tif", "gaps.nii"]
        )
    ]
    return write_table(table, rows)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    table = seed_trouble(tmp_path_factory.mktemp("troubled"))
    out = table.parent / "check"
    result = fv.check(table)
    assert result.folder == out
    assert result.severity == "unusable"
    return out, read_findings(out)


@pytest.mark.parametrize(
    ("kind", "severity", "parts"),
    [
        ("unreadable", "problem", ["I04", "cut off"]),
        ("unreadable", "problem", ["I05", "the file is empty"]),
        ("unreadable", "problem", ["I07", "a web page, such as a login page"]),
        ("missing", "problem", ["I06", "no file 'in/I06.png'"]),
        ("row", "problem", ["pipe", "is a pipe or a device, no file; name the image's file"]),
        ("duplicate", "problem", ["show the same picture", "I08", "I09"]),
        ("duplicate", "problem", ["hold the bytes of another one", "different patients", "I10"]),
        ("labels", "problem", ["1 patient has images of several labels", "P01", "I92"]),
        ("blank", "problem", ["I14"]),
        ("blank", "problem", ["blank"]),
        ("tiny", "problem", ["I15", "9 x 8 pixels"]),
        ("channels", "problem", ["I94", "grey, not colour"]),
        ("files", "note", ["not in the table", "extra.png"]),
        ("table", "note", ["1 repeated rows dropped"]),
        ("spacing", "unusable", ["nospacing", "a slide that states no pixel size"]),
        ("spacing", "problem", ["far", "slides have 0.08 to 4"]),
        ("spacing", "problem", ["oblong", "pixels that are not square"]),
        ("values", "problem", ["gaps", "20.00% of the pixels"]),
        ("plan", "unusable", ["pictures and volumes are mixed"]),
    ],
)
def test_every_seeded_trouble_is_found(
    troubled: tuple[Path, list[dict[str, Any]]], kind: str, severity: str, parts: list[str]
) -> None:
    finding = find_about(troubled[1], kind, *parts)
    assert finding["severity"] == severity


def test_findings_come_worst_first_and_the_page_shows_them(
    troubled: tuple[Path, list[dict[str, Any]]],
) -> None:
    out, findings = troubled
    order = [("unusable", "problem", "note").index(f["severity"]) for f in findings]
    assert order == sorted(order)
    page = (out / "check.html").read_text(encoding="utf-8")
    assert page.index("mixed") < page.index("3 images not readable")
    with (out / "check.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    assert rows["I05"]["findings"].startswith("unreadable: ")
    assert rows["I06"]["findings"].startswith("missing: no file")
    assert rows["far"]["spacing_um"] == "15x15"
    assert rows["far"]["spacing_from"] == "file"


def test_images_of_a_check_are_no_images_of_the_user(
    troubled: tuple[Path, list[dict[str, Any]]],
) -> None:
    """The folder of a check lies beside the images, and its files are not listed among them."""
    listed = fv.check(troubled[0].parent, troubled[0].parent.with_name("second"))
    assert listed.n_images == len(list((troubled[0].parent / "in").iterdir()))
    assert not any("check" in i for f in listed.findings for i in f.images)


# -- tables that training refuses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([["in/I00.png", "P00", "ill"]], "I00.png has the label 'ill', but 'well'"),
        ([["in/I00.png", "P77", "well"]], "I00.png has the patient 'P77', but 'P00'"),
        ([["in/I01.png", "", "well"]], "rows have no 'patient_id'"),
    ],
)
def test_a_refused_table_is_a_finding_and_its_images_are_checked(
    clean: Path, tmp_path: Path, rows: list[list[str]], text: str
) -> None:
    with clean.open(encoding="utf-8", newline="") as file:
        known = [list(row.values()) for row in csv.DictReader(file)][:8]
    table = write_table(tmp_path / "labels.csv", [*known, *rows])
    result = fv.check(table, tmp_path / "out", fv.CheckOptions(images=clean.parent))
    first = result.findings[0]
    assert (first.severity, first.kind) == ("unusable", "table")
    assert text in first.text
    assert result.n_images == 8
    assert result.command.startswith("foveate check ")


def test_a_table_that_is_none_leaves_the_folder_to_check(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean.parent / "in", tmp_path / "in")
    table = tmp_path / "labels.csv"
    table.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    result = fv.check(table)
    assert result.severity == "unusable"
    assert result.n_images == 24


# -- confounds -----------------------------------------------------------------------------------


def test_a_size_that_tells_the_label_is_shouted_first(tmp_path: Path, foveate: Command) -> None:
    (tmp_path / "in").mkdir()
    rows = []
    for i in range(24):
        draw(i, 96, width=120 + i % 4 if i % 2 else 96 + i % 5).save(tmp_path / f"in/I{i:02d}.png")
        site = f"site {'AB'[i % 2] if i % 11 else 'C'}"
        rows.append([f"in/I{i:02d}.png", f"P{i:02d}", "ill" if i % 2 else "well", site])
    table = write_table(tmp_path / "labels.csv", rows, "site")
    ended = foveate("check", table)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"checking {table}\n")
    first, remedy, *_ = ended.stdout.splitlines()
    assert first.startswith("problem   confound: width alone nearly tells the label: AUROC 1.000")
    assert "chance 0.5, 24 images, p below 0.001 corrected for" in first
    assert "bring every picture to one size: train with --view.fit 96x96" in remedy
    assert "--view.fit" in ended.stdout.splitlines()[-1]
    findings = read_findings(tmp_path / "check")
    assert "column 'site'" in find_about(findings, "confound", "column 'site'")["text"]


@pytest.mark.parametrize(
    ("name", "flags", "fact", "least"),
    [
        ("xray_kermany", {}, "height", 0.97),
        ("mri_hippocampus", {"label": "size_class"}, "", 0.66),
    ],
)
def test_the_known_confounds_of_real_sets_are_shouted_first(
    shared_data: Path, tmp_path: Path, name: str, flags: dict[str, str], fact: str, least: float
) -> None:
    result = fv.check(shared_data / name / "labels.csv", tmp_path, fv.CheckOptions(**flags))
    first = result.findings[0]
    assert (first.severity, first.kind) == ("problem", "confound")
    stored = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    values = {f["fact"]: f["value"] for f in stored["facts"]}
    assert max(values.values()) >= least
    assert fact in values or not fact


# -- kills ---------------------------------------------------------------------------------------


def test_a_killed_check_continues_and_ends_with_the_same_files(clean: Path, tmp_path: Path) -> None:
    fv.check(clean, tmp_path / "whole")
    process = Child("check", clean, "--out", tmp_path / "killed", "--workers", 1)
    journal = tmp_path / "killed" / "check.jsonl"
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if journal.is_file() and journal.read_bytes().count(b"\n") > 4:
            break
        time.sleep(0.02)
    process.kill()
    n_known = journal.read_bytes().count(b'"key"')
    assert 0 < n_known < 24
    result = fv.check(clean, tmp_path / "killed")
    assert result.severity == "note"
    assert journal.read_bytes().count(b'"key"') == 24
    for name in ("check.csv", "check.json", "check.html"):
        assert _read_plain(tmp_path / "whole" / name) == _read_plain(tmp_path / "killed" / name)


def _read_plain(path: Path) -> str:
    """The text of a result without the costs, which are measured anew."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        stored = json.loads(text)
        del stored["cost"]
        return json.dumps(stored)
    before, mark, after = text.partition('<section id="cost">')
    return before + mark + after.partition("</section>")[2] if mark else text


def test_only_changed_images_are_opened_again(tmp_path: Path) -> None:
    table = write_cohort(tmp_path, 12)
    (tmp_path / "in" / "I03.png").write_bytes(b"no picture")
    first = fv.check(table)
    assert find_about(read_findings(first.folder), "unreadable", "I03")
    draw(3).save(tmp_path / "in" / "I03.png")
    updates: list[float] = []
    again = fv.check(table, on_progress=lambda update: updates.append(update.done))
    assert updates[0] == 11
    assert "unreadable" not in {f.kind for f in again.findings}


# -- refusals ------------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_not_written_to(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(fv.FoveateError, match="holds something else than a check"):
        fv.check(clean, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_to_check_is_an_error_of_one_line(tmp_path: Path, foveate: Command) -> None:
    ended = foveate("check", tmp_path / "none.csv", "--out", tmp_path / "out")
    assert ended.returncode == 1
    assert "no such table" in ended.stderr


def test_a_folder_is_checked_without_a_table(tmp_path: Path) -> None:
    """Labels are those of its folders; images without a known patient are patients of their own."""
    for i in range(12):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        draw(i // 2 if i < 4 else i).save(tmp_path / "ab"[i % 2] / f"I{i}.png")
    for _ in range(2):  # its own results lie inside the folder the second time
        result = fv.check(tmp_path, tmp_path / "check")
        assert result.n_images == 12
    assert result.command == f"foveate init {tmp_path}"
    (first, *_) = (f for f in result.findings if f.kind == "duplicate")
    assert "with different labels" in first.text
    assert sorted(first.images) == ["I0", "I1", "I2", "I3"]
    with (tmp_path / "check" / "check.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["patient_id"] for row in rows} == {f"I{i}" for i in range(12)}
    assert {row["label"] for row in rows} == {"a", "b"}
