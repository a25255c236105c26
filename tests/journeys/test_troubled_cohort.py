"""Thirty kinds of trouble in one cohort: ``check`` finds each, ``train`` ends, the report says it.

The kinds are those that users of other tools report: files that cannot be read or are another
thing, wrong pixel sizes, twins, patients and labels that contradict each other, tables with gaps,
and facts that tell the label by themselves.
"""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from helpers.commands import Completed, run_child

Bytes = NDArray[np.uint8]

N_SOUND = 48
_GLASS = 243


def draw_slide(seed: int, side: int = 512) -> Bytes:
    """A slide of pale glass with a few stained islands that differ from seed to seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    pixels = np.full((side, side, 3), _GLASS, np.uint8)
    pixels = (pixels + rng.integers(-2, 3, pixels.shape)).astype(np.uint8)
    for _ in range(4):
        cy, cx = rng.uniform(0.25, 0.75, 2) * side
        ry, rx = rng.uniform(0.08, 0.2, 2) * side
        island = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        grain = rng.normal(0, 14, (side // 8, side // 8, 1)).repeat(8, 0).repeat(8, 1)
        tissue = np.array([196, 120, 172]) + grain + rng.normal(0, 6, (side, side, 3))
        pixels[island] = tissue.clip(0, 255).astype(np.uint8)[island]
    return pixels


def write_slide(
    path: Path,
    pixels: NDArray[Any],
    um: float | tuple[float, float] | None = 0.5,
    description: str | None = None,
    **more: Any,
) -> None:
    """Write a tiled TIFF that states its pixel size (x, y)."""
    if um is not None:
        x_um, y_um = (um, um) if isinstance(um, float) else um
        more |= {"resolution": (1e4 / x_um, 1e4 / y_um), "resolutionunit": "CENTIMETER"}
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(
        path, pixels, tile=(128, 128), photometric=photometric, description=description, **more
    )


class Cohort:
    """The folder and the rows of the cohort, while trouble is added to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "slides").mkdir(parents=True)
        self.rows: list[list[str]] = []
        for i in range(N_SOUND):
            ill = i % 2 == 1
            name = f"S{i:02d}.tif"
            write_slide(self.slide(name), draw_slide(i))
            site = ("east" if ill else "west") if i % 12 else "north"
            self.add(name, patient=f"P{i:02d}", label="ill" if ill else "well", site=site)

    def slide(self, name: str) -> Path:
        return self.folder / "slides" / name

    def add(self, name: str, *, patient: str = "", label: str = "ill", site: str = "west") -> None:
        patient = patient or f"Q{len(self.rows):02d}"
        um = "0.5" if name == "halved.tif" else ""
        self.rows.append([f"slides/{name}", patient, label, site, um])

    def write(self) -> Path:
        """Write the table."""
        path = self.folder / "labels.csv"
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, delimiter=";")
            writer.writerow(["path", "patient_id", "label", "site", "mpp"])
            writer.writerows(self.rows)
        return path


# -- the kinds of trouble, each a function that adds it -------------------------------------------


def add_cut_file(cohort: Cohort) -> None:
    write_slide(cohort.slide("cut.tif"), draw_slide(101))
    whole = cohort.slide("cut.tif").read_bytes()
    cohort.slide("cut.tif").write_bytes(whole[: len(whole) // 2])
    cohort.add("cut.tif")


def add_empty_file(cohort: Cohort) -> None:
    cohort.slide("void.tif").write_bytes(b"")
    cohort.add("void.tif")


def add_web_page(cohort: Cohort) -> None:
    cohort.slide("login.tif").write_text("<!DOCTYPE html><html>login</html>", encoding="utf-8")
    cohort.add("login.tif")


def add_archive(cohort: Cohort) -> None:
    with zipfile.ZipFile(cohort.slide("packed.tif"), "w") as file:
        file.writestr("slide.tif", b"II*\0")
    cohort.add("packed.tif")


def add_noise(cohort: Cohort) -> None:
    cohort.slide("noise.svs").write_bytes(np.random.default_rng(0).bytes(5000))
    cohort.add("noise.svs")


def add_missing_file(cohort: Cohort) -> None:
    cohort.add("nowhere.tif")


def add_broken_link(cohort: Cohort) -> None:
    cohort.slide("link.tif").symlink_to("gone.tif")
    cohort.add("link.tif")


def add_pipe(cohort: Cohort) -> None:
    os.mkfifo(cohort.slide("pipe.tif"))
    cohort.add("pipe.tif")


def add_claim(cohort: Cohort) -> None:
    """A file of a few kilobytes that claims 70,000 x 70,000 pixels."""
    small = np.zeros((128, 128, 3), np.uint8)
    write_slide(cohort.slide("claim.tif"), small)
    with tifffile.TiffFile(cohort.slide("claim.tif"), mode="r+") as file:
        tags = file.pages.first.tags
        tags["ImageWidth"].overwrite(70_000)
        tags["ImageLength"].overwrite(70_000)
    cohort.add("claim.tif")


def add_damaged_tile(cohort: Cohort) -> None:
    path = cohort.slide("hole.tif")
    write_slide(path, draw_slide(102), compression="deflate")
    with tifffile.TiffFile(path) as file:
        at, size = file.pages.first.dataoffsets[5], file.pages.first.databytecounts[5]
    with path.open("r+b") as handle:
        handle.seek(at)
        handle.write(b"\xff" * size)
    cohort.add("hole.tif")


def add_same_bytes(cohort: Cohort) -> None:
    shutil.copy(cohort.slide("S02.tif"), cohort.slide("copy.tif"))
    cohort.add("copy.tif", patient="P77", label="well")


def add_contradiction(cohort: Cohort) -> None:
    shutil.copy(cohort.slide("S04.tif"), cohort.slide("other_label.tif"))
    cohort.add("other_label.tif", patient="P04", label="ill")


def add_same_picture(cohort: Cohort) -> None:
    """The same picture, compressed once more under another name."""
    pixels = tifffile.imread(cohort.slide("S06.tif"))
    write_slide(cohort.slide("again.tif"), pixels, compression="jpeg")
    cohort.add("again.tif", patient="P78", label="well")


def add_two_labels(cohort: Cohort) -> None:
    write_slide(cohort.slide("second.tif"), draw_slide(103))
    cohort.add("second.tif", patient="P01", label="well")


def add_blank(cohort: Cohort) -> None:
    write_slide(cohort.slide("blank.tif"), np.full((512, 512, 3), _GLASS, np.uint8))
    cohort.add("blank.tif")


def add_hardly_tissue(cohort: Cohort) -> None:
    pixels = np.full((512, 512, 3), _GLASS, np.uint8)
    pixels[200:212, 200:212] = (190, 110, 160)
    write_slide(cohort.slide("specks.tif"), pixels)
    cohort.add("specks.tif")


def add_icon(cohort: Cohort) -> None:
    write_slide(cohort.slide("icon.tif"), draw_slide(104)[248:264, 248:264])
    cohort.add("icon.tif")


def add_grey(cohort: Cohort) -> None:
    write_slide(cohort.slide("grey.tif"), draw_slide(105).mean(axis=-1).astype(np.uint8))
    cohort.add("grey.tif")


def add_frame(cohort: Cohort) -> None:
    """A slide with a black frame, so that its border is no glass."""
    pixels = draw_slide(106)
    pixels[:24], pixels[-24:], pixels[:, :24], pixels[:, -24:] = 4, 4, 4, 4
    write_slide(cohort.slide("frame.tif"), pixels)
    cohort.add("frame.tif")


def add_far_spacing(cohort: Cohort) -> None:
    write_slide(cohort.slide("far.tif"), draw_slide(107), 15.0)
    cohort.add("far.tif")


def add_oblong(cohort: Cohort) -> None:
    write_slide(cohort.slide("oblong.tif"), draw_slide(108), (0.6, 0.5))
    cohort.add("oblong.tif")


def add_wrong_objective(cohort: Cohort) -> None:
    words = "Aperio Image Library v12\r\n512x512 |AppMag = 40|MPP = 0.5000"
    write_slide(cohort.slide("power.tif"), draw_slide(109), 0.5, words)
    cohort.add("power.tif")


def add_no_label(cohort: Cohort) -> None:
    write_slide(cohort.slide("unknown.tif"), draw_slide(110))
    cohort.add("unknown.tif", label="")


def add_missing_word(cohort: Cohort) -> None:
    write_slide(cohort.slide("na.tif"), draw_slide(111))
    cohort.add("na.tif", label="N/A")


def add_repeated_row(cohort: Cohort) -> None:
    cohort.rows.append(list(cohort.rows[0]))


def add_unlisted(cohort: Cohort) -> None:
    write_slide(cohort.slide("unlisted.tif"), draw_slide(112))


def add_confounded_site(cohort: Cohort) -> None:
    """Nothing to add: the sites of the sound slides tell their labels."""


def add_dates(cohort: Cohort) -> None:
    """All ill patients were copied a year later."""
    for path, _, label, *_ in cohort.rows:
        file = cohort.folder / path
        if file.is_file():
            when = 1.70e9 if label == "ill" else 1.67e9
            os.utime(file, (when, when))


def add_contradicting_spacing(cohort: Cohort) -> None:
    """A slide whose file states another pixel size than the table."""
    write_slide(cohort.slide("halved.tif"), draw_slide(113), 0.25)
    cohort.add("halved.tif")


def add_wide_values(cohort: Cohort) -> None:
    """A slide of 16 bits that uses twelve of them."""
    write_slide(cohort.slide("deep.tif"), draw_slide(115).astype(np.uint16) * 16)
    cohort.add("deep.tif")


# -- what is said about each --------------------------------------------------------------------

Words = tuple[str, ...]
TROUBLES: list[tuple[Callable[[Cohort], None], str, Words, Words]] = [
    # how it is added; kind and words of the finding; words of the report beside those
    (add_cut_file, "unreadable", ("cut",), ("cut.tif", "cut off")),
    (add_empty_file, "unreadable", ("void", "empty"), ("void.tif", "the file is empty")),
    (add_web_page, "unreadable", ("login", "a web page"), ("login.tif", "a web page")),
    (add_archive, "unreadable", ("packed",), ("packed.tif", "archive")),
    (add_noise, "unreadable", ("noise",), ("noise.svs",)),
    (add_missing_file, "missing", ("nowhere", "no file"), ("nowhere.tif",)),
    (add_broken_link, "row", ("link", "is not there"), ("link.tif", "is a link to a file")),
    (add_pipe, "row", ("pipe", "a pipe or a device"), ("pipe.tif",)),
    (add_claim, "unreadable", ("claim",), ("claim.tif",)),
    (add_damaged_tile, "unreadable", ("hole",), ("hole.tif",)),
    (add_same_bytes, "duplicate", ("copy", "S02", "different patients"), ("copy",)),
    (add_contradiction, "row", ("other_label",), ("other_label",)),
    (add_same_picture, "duplicate", ("again", "S06"), ("again",)),
    (add_two_labels, "labels", ("P01",), ("P01",)),
    (add_blank, "blank", ("blank",), ("blank",)),
    (add_hardly_tissue, "tissue", ("specks",), ("specks",)),
    (add_icon, "tiny", ("icon", "16 x 16 pixels"), ("icon",)),
    (add_grey, "channels", ("grey",), ("grey, not colour",)),
    (add_frame, "reader", ("frame",), ("frame",)),
    (add_far_spacing, "spacing", ("far", "15 x 15 um"), ("slides have 0.08 to 4",)),
    (add_oblong, "spacing", ("oblong", "not square"), ("pixels that are not square",)),
    (add_wrong_objective, "spacing", ("power", "objective of 40 x"), ("objective of 40 x",)),
    (add_no_label, "table", ("2 rows without a 'label'",), ("2 rows without a 'label'",)),
    (add_missing_word, "table", ("2 rows without a 'label'",), ("2 rows without a 'label'",)),
    (add_repeated_row, "table", ("repeated rows",), ("repeated rows",)),
    (add_unlisted, "files", ("unlisted",), ("unlisted",)),
    (add_confounded_site, "confound", ("column 'site'",), ("column 'site'",)),
    (add_dates, "confound", ("date",), ("date",)),
    (add_contradicting_spacing, "spacing", ("halved", "2 times"), ("2 times what the file says",)),
    (add_wide_values, "depth", ("deep", "16-bit, not 8-bit"), ("16-bit, not 8-bit",)),
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of the troubled cohort."""
    built = Cohort(tmp_path_factory.mktemp("troubled") / "cohort")
    for add, *_ in TROUBLES:
        add(built)
    return built.write()


@pytest.fixture(scope="module")
def checked(cohort: Path) -> tuple[Completed, dict[str, Any]]:
    """The ended check, and its findings."""
    ended = run_child("check", cohort)
    stored = json.loads((cohort.parent / "check" / "check.json").read_text(encoding="utf-8"))
    return ended, stored


@pytest.fixture(scope="module")
def report(cohort: Path, checked: tuple[Completed, dict[str, Any]]) -> str:
    """The text of the report of a training on the cohort, without its markup."""
    small = ("--method", "downsampled", "--encoder", "small", "--epochs", 1, "--heatmaps", 2)
    ended = run_child("train", cohort, "--out", cohort.parent / "run", *small)
    assert ended.returncode == 2, ended.stderr  # finished, and some images were set aside
    page = (cohort.parent / "run" / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<(style|script)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.mark.slow
def test_check_ends_and_lists_the_worst_first(checked: tuple[Completed, dict[str, Any]]) -> None:
    ended, stored = checked
    assert ended.returncode == 2, ended.stderr
    order = ["unusable", "problem", "note"]
    severities = [order.index(finding["severity"]) for finding in stored["findings"]]
    assert severities == sorted(severities)
    assert 0 not in severities, stored["findings"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "in_report"),
    [trouble[1:] for trouble in TROUBLES],
    ids=[trouble[0].__name__.removeprefix("add_") for trouble in TROUBLES],
)
def test_every_trouble_is_found_and_named_in_the_report(
    checked: tuple[Completed, dict[str, Any]],
    report: str,
    kind: str,
    words: Words,
    in_report: Words,
) -> None:
    of_kind = [f for f in checked[1]["findings"] if f["kind"] == kind]
    texts = [json.dumps(finding, ensure_ascii=False) for finding in of_kind]
    assert any(all(word in text for word in words) for text in texts), of_kind
    for word in in_report:
        assert word in report


@pytest.mark.slow
def test_the_report_has_scores(report: str) -> None:
    assert "AUROC" in report
    assert "images could not be used" in report
