"""Messages about files, tables, splits and folders: each names the file and what to do."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import foveate
from foveate.batch import View
from foveate.encoders import build_encoder
from foveate.errors import FoveateError, SplitError, TableError, TrainingError
from foveate.formats.tiff_index import refuse_unlisted
from foveate.geometry import Box, Frame
from foveate.images.likeness import ImageFacts
from foveate.loading.gather import gather_cases
from foveate.loading.loader import CaseLoader
from foveate.loading.scan import ViewOptions, choose_view
from foveate.readers import open_image
from foveate.reports.run_files import read_run
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model, load_model, read_tensors, save_model
from foveate.runs.folder import check_out, model_folders
from foveate.runs.schedule import TrainOptions
from foveate.table import Case, Splits, cases_from_folder, make_splits, read_cases
from foveate.table.files import Finder
from foveate.table.folds import split_hash
from foveate.table.sheet import read_sheet
from foveate.table.spacing import SpacingCells
from foveate.training.loop import Trainer
from helpers.images import PyramidImage

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
VOXELS = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)


def refused(words: str, call: Callable[[], object]) -> None:
    """Check that a call is refused with these words in the message."""
    with pytest.raises(FoveateError) as caught:
        call()
    assert words in str(caught.value)


def read_whole(path: Path) -> object:
    with open_image(path) as image:
        return image.read(Box((0,) * image.ndim, image.shape, Frame.PX, 0))


# -- volumes ----------------------------------------------------------------------------------


def volume(path: Path, *patches: tuple[int, str, tuple[float, ...]]) -> Path:
    """Write a volume, and change numbers in its file."""
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    for at, code, values in patches:
        struct.pack_into(code, content, at, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("words", "patches"),
    [
        (
            "its qform is empty or not finite and does not say which way the axes run; set a",
            [(252, "<hhfff", (1, 0, np.nan, np.nan, np.nan))],
        ),
        ("its voxels would begin at byte -1; the file is", [(108, "<f", (-1.0,))]),
        (
            "its voxels would begin at byte 100, inside the header, and extensions follow it; save",
            [(108, "<f", (100.0,)), (348, "<B", (1,))],
        ),
    ],
)
def test_volumes(words: str, patches: list, tmp_path: Path) -> None:
    path = volume(tmp_path / "v.nii", *patches)
    refused(f"{path}: {words}", lambda: read_whole(path))


def test_volumes_that_end_early(tmp_path: Path) -> None:
    path = volume(tmp_path / "v.nii")
    path.write_bytes(path.read_bytes()[:600])
    words = "truncated: its header promises 1024 bytes, there are 600"
    refused(words, lambda: read_whole(path))
    path.write_bytes(struct.pack("<i", 540) + b"n+2\0" + bytes(100))
    refused(f"{path}: its header cannot be read", lambda: read_whole(path))


# -- pictures and slides ----------------------------------------------------------------------


def tiff(path: Path, pixels: np.ndarray = PIXELS, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **{"tile": (32, 32), "compression": "zlib", **options})
    return path


def set_tag(path: Path, name: str, value: object) -> Path:
    """Overwrite a tag of the first directory."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[name].overwrite(value)
    return path


def read_tag(path: Path, name: str) -> tuple[int, ...]:
    with tifffile.TiffFile(path) as file:
        return tuple(file.pages[0].tags[name].value)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.nii"])
def test_images_that_are_closed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    {".tif": tiff, ".png": Image.fromarray(PIXELS).save, ".nii": volume}[path.suffix](path)
    image = open_image(path)
    image.close()
    region = Box((0,) * image.ndim, image.shape, Frame.PX, 0)
    refused(f"{path}: the image is closed", lambda: image.read(region))


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.png"
    Image.fromarray(PIXELS).save(path)
    with open_image(path) as image:
        Image.fromarray(PIXELS[:10]).save(path)
        words = "decoded to (10, 48, 3) uint8, its header promised (64, 48, 3) uint8"
        refused(words, lambda: image.read(Box((0, 0), image.shape, Frame.PX, 0)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    words = "the picture claims more pixels than the limit of 200 for pictures that are decoded"
    refused(words, lambda: open_image(path))


def test_codings_of_tiffs(tmp_path: Path) -> None:
    path = set_tag(tiff(tmp_path / "a.tif"), "Compression", 32809)
    refused("compression 32809", lambda: open_image(path))
    path = tiff(tmp_path / "b.tif", PIXELS.astype(np.complex64))
    refused("samples of 64 bits in format 6 (1 is unsigned)", lambda: open_image(path))


def test_blocks_of_tiffs(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif")
    offsets, counts = read_tag(path, "TileOffsets"), read_tag(path, "TileByteCounts")
    set_tag(path, "TileOffsets", offsets[:3])
    words = "48 x 64 pixels need 4 blocks, the file lists 3"
    refused(words, lambda: open_image(path))
    words = "48 x 64 pixels need 4 tiles, the file lists 3"
    refused(words, lambda: refuse_unlisted(path))
    path = set_tag(tiff(tmp_path / "b.tif"), "TileByteCounts", (65_535, *counts[1:]))
    words = "a tile claims 65,535 bytes, the file has less"
    refused(words, lambda: refuse_unlisted(path))
    path = tiff(tmp_path / "c.tif")
    set_tag(set_tag(path, "TileWidth", 1 << 15), "TileLength", 1 << 15)
    with pytest.raises(FoveateError, match=r"claims \d+.\d+ GB of pixels in \S+ bytes"):
        open_image(path)


@pytest.mark.parametrize(
    ("words", "content"),
    [
        ("a block of 5 bytes, expected 3072", "none"),
        ("a block of (8, 8) pixels, expected (32, 32)", "jpeg2000"),
        ("a block of (32, 32, 1) uint8, expected (32, 32, 3)", "jpeg2000"),
        ("a JPEG 2000 of 100 x 100 in a block of (32, 32)", "jpeg2000"),
        ("a JPEG of 100 x 100 in a block of 32 x 32", "jpeg"),
    ],
)
def test_blocks_of_another_size(words: str, content: str, tmp_path: Path) -> None:
    """The first tile is replaced by one of another size or kind."""
    import imagecodecs

    sides = [int(n) for n in re.findall(r"\d+", words.replace("2000", ""))]
    channels = 1 if "1) uint8" in words else 3
    pixels = np.zeros((sides[0], sides[1], channels), np.uint8)
    if content == "none":
        data, compression = b"12345", None
    elif content == "jpeg":
        data, compression = imagecodecs.jpeg8_encode(pixels), "jpeg"
    else:
        data, compression = imagecodecs.jpeg2k_encode(pixels.squeeze()), "jpeg2000"
    path = tiff(tmp_path / "a.tif", compression=compression, photometric="rgb")
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + data + bytes(16))
    offsets, counts = read_tag(path, "TileOffsets"), read_tag(path, "TileByteCounts")
    set_tag(path, "TileOffsets", (end, *offsets[1:]))
    set_tag(path, "TileByteCounts", (len(data), *counts[1:]))
    refused(words, lambda: read_whole(path))


def test_images_without_a_pixel_size() -> None:
    image = PyramidImage(PIXELS, spacing_um=None)
    words = "memory: the file states no pixel size. Give it in a column 'mpp' of the table"
    refused(words, lambda: image.box_um)
    facts = ImageFacts((9, 9), (1.0, 1.0), "um", "picture", "r")
    words = "some images state micrometres per pixel and some do not: give the missing ones"
    refused(words, lambda: choose_view([facts, replace(facts, unit="px")], ViewOptions()))


# -- tables and splits ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "row 2: 3 cells for 2 columns; quote values that hold the delimiter. The last cell is",
            "path,label\na,b,c\n",
        ),
        (
            "1 lines of up to 20001 cells are no table of images: give the table of labels",
            "," * 20000,
        ),
    ],
)
def test_tables(words: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TableError) as caught:
        list(read_sheet(path).rows)
    assert words in str(caught.value)


def test_tables_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.csv"
    path.write_text("path,label\n" + "a,b\n" * 50_000, encoding="utf-8")
    monkeypatch.setattr("foveate.table.text._MAX_BYTES", 100)
    with pytest.raises(TableError, match="more than 0 MiB are no table of images: give the table"):
        read_sheet(path)


def test_folders_and_files_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("path,label\na,b\n", encoding="utf-8")
    none = tmp_path / "none"
    words = f"--images {none}: no such folder; check the name"
    refused(words, lambda: read_cases(path, images=none))
    refused("no such folder or image; check the name", lambda: cases_from_folder(none))
    refused("no such file or folder; check the name", lambda: gather_cases([none]))
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.tif").touch()
    with pytest.raises(TableError, match=r"several files: .* and .*; write its folder before it"):
        Finder(tmp_path).find("a")
    words = "row 1: got 'x', expected micrometres per pixel from"
    cells = SpacingCells([("x", Path("a.tif"))])
    refused(words, lambda: cells.parse("x", "row 1", Path("a.tif")))


CASES = [
    Case(f"{label}{i}", f"p{label}{i}", Path(f"{label}{i}.tif"), label)
    for label in "ab"
    for i in range(8)
]


def test_shares_and_classes_that_cannot_be_split() -> None:
    with pytest.raises(SplitError, match=r"fraction: got 1.5, expected at least 0 and below 1"):
        make_splits(CASES, test_fraction=1.5)
    words = r"label 'b' has 1 patient, .* need at least \d+ of each class: use .*, add patients, or"
    with pytest.raises(SplitError, match=words):
        make_splits(CASES[:9])


def test_splits_that_do_not_fit() -> None:
    splits = make_splits(CASES)
    (fold,) = splits.folds
    first, test = fold.train[0], fold.test[0]
    mixed = splits.patients | {first: splits.patients[test]}
    for words, folds, patients in (
        ("occur more than once", (replace(fold, val=(*fold.val, first)),), splits.patients),
        ("are missing or have no patient", (replace(fold, train=fold.train[1:]),), splits.patients),
        (f"patient '{splits.patients[test]}' is in train and in test", (fold,), mixed),
        ("are tested 0 times, expected once", (fold, fold), splits.patients),
    ):
        wrong = Splits(folds, patients, 0, split_hash(folds, patients, 0))
        with pytest.raises(SplitError) as caught:
            wrong.check()
        assert words in str(caught.value)
    words = "the split is not of this table: b7 differ; use the table it was made from, or another"
    refused(words, lambda: splits.check(CASES[:-1]))


# -- runs, models and weights -----------------------------------------------------------------

VIEW = View(1.0, 32, 8.0, unit="px")
CARD = ModelCard(
    "mil_mean",
    {},
    "small",
    {"width": 8, "dim": 16},
    "binary",
    {},
    {"classes": ["a", "b"]},
    VIEW,
)


def test_folders_without_a_model(tmp_path: Path) -> None:
    none, run = tmp_path / "none", tmp_path / "run"
    words = f"{none}: no such folder; give the --out folder of `foveate train`"
    refused(words, lambda: model_folders(none))
    words = f"{none} holds no run; give the --out folder of `foveate train`"
    refused(words, lambda: read_run(none))
    run.mkdir()
    words = f"{run} holds no trained model; give the --out folder of `foveate train`, or the folder"
    refused(words, lambda: model_folders(run))
    (run / "config.yaml").touch()
    words = f"--out {run} is the folder of a trained run, whose own results would be overwritten"
    refused(words, lambda: check_out(run, none))
    (run / "splits.json").write_text("{}")
    words = "splits.json is damaged: it holds no folds. Restore it from a copy, or begin a new run"
    refused(words, lambda: model_folders(run))


def test_models_without_their_weights(tmp_path: Path) -> None:
    save_model(tmp_path, CARD, {})
    (tmp_path / "model.safetensors").unlink()
    words = "is missing: the model is incomplete; restore it, or train again"
    refused(words, lambda: load_model(tmp_path))
    (tmp_path / "bad").write_bytes(b"bad")
    words = "is damaged: restore it from a copy, or delete it and train again"
    refused(words, lambda: read_tensors(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("words", "name", "content"),
    [
        ("is damaged or no safetensors file; fetch it again", "w.safetensors", None),
        ("holds no tensors by name; save the network's state_dict()", "w.pth", [1]),
        ("Name the network that these weights are of with --encoder", "w.pth", {}),
    ],
)
def test_files_of_weights(words: str, name: str, content: object, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is None:
        path.write_bytes(b"bad")
    else:
        torch.save(content or {"conv1.0.weight": torch.ones(1)}, path)
    refused(words, lambda: build_encoder("resnet10t", {"weights": str(path)}))


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("encoder lite0: its weights are missing (", "_FILE", "none"),
        ("not the expected weights; install the package again", "_DIGEST", "none"),
    ],
)
def test_weights_of_lite0(
    words: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"foveate.encoders.lite0.{name}", value)
    refused(words, lambda: build_encoder("lite0"))


def _broken_pictures(folder: Path) -> list[Case]:
    for i in range(4):
        (folder / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken %d" % i)
    return [Case(str(i), str(i), folder / f"{i}.png", "ab"[i % 2]) for i in range(4)]


def test_a_table_of_broken_images_is_not_trained_on(tmp_path: Path) -> None:
    rows = [f"{case.path},{case.label}\n" for case in _broken_pictures(tmp_path)]
    (tmp_path / "table.csv").write_text("path,label\n" + "".join(rows))
    with pytest.raises(TrainingError, match=r"no image of \S+ can be read; the first: "):
        foveate.train(tmp_path / "table.csv", tmp_path / "run", encoder="small", device="cpu")


def test_a_training_whose_images_broke_ends(tmp_path: Path) -> None:
    cases = _broken_pictures(tmp_path)
    options = TrainOptions(epochs=3, batch_size=4, device="cpu")
    trainer = Trainer(build_model(CARD, pretrained=False), CaseLoader(VIEW), tmp_path, options)
    with pytest.raises(TrainingError, match="no training image is left: mend those in quarantine"):
        trainer.fit(cases, [])
