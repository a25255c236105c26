"""Messages that other tests know by a word or two: what went wrong and what to do, in full."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

import foveate as fv
from foveate.batch import View
from foveate.encoders import build_encoder
from foveate.errors import FoveateError, TableError, TrainingError
from foveate.evaluation.audit import audit_layout
from foveate.files.lock import lock_folder
from foveate.geometry import Box, Frame
from foveate.loading.loader import CaseLoader
from foveate.methods.base import AbstractMethod
from foveate.parts.required import check_class
from foveate.pretrained.vit import create_vit
from foveate.readers import open_image
from foveate.readers.openslide_ import OpenSlideReader
from foveate.runs.checkpoint import write_tensors
from foveate.runs.config import load_yaml
from foveate.runs.models import find_models
from helpers.progress import Recorder

PIXELS = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)


def refused(words: str, call: Callable[[], object]) -> None:
    """Check that a call is refused with these words in the message."""
    with pytest.raises(FoveateError) as caught:
        call()
    assert words in str(caught.value)


# -- slides and pictures --------------------------------------------------------------------------


def slide(path: Path) -> Path:
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(128, 128), compression="zlib")
    return path


def damage_tile(path: Path, i: int) -> None:
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[i], file.pages[0].databytecounts[i]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    words = "a.svs: the file is empty; copy or download it again"
    refused(words, lambda: open_image(tmp_path / "a.svs"))


def test_a_slide_with_a_damaged_tile(tmp_path: Path) -> None:
    path = slide(tmp_path / "a.tif")
    damage_tile(path, 5)
    damaged = Box((128, 128), (9, 9), Frame.PX, 0)
    with OpenSlideReader(path) as image:
        words = "level 0, region (9, 9) at (128, 128) cannot be decoded"
        refused(words, lambda: image.read(damaged))
        path.unlink()
        refused("a.tif: is no longer readable", lambda: image.read(damaged))


def test_a_region_that_does_not_fit_memory(tmp_path: Path) -> None:
    with OpenSlideReader(slide(tmp_path / "a.tif")) as image:
        words = "does not fit memory; read it at a coarser spacing"
        refused(words, lambda: image._read_level(0, (0, 0), (1 << 23, 1 << 23)))


def test_a_slide_that_claims_tiles_larger_than_any_memory(tmp_path: Path) -> None:
    path = tmp_path / "trestle.tif"
    options = {"software": "MedScan 1.0", "metadata": None}
    description = "Background Color=E6E6E6;White Balance=0;Objective Power=10;"
    tifffile.imwrite(
        path,
        PIXELS[:128, :128],
        photometric="rgb",
        tile=(64, 64),
        compression="jpeg",
        description=description,
        **options,
    )
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["TileLength"].offset
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(struct.pack("<HHII", 323, 4, 1, 536_870_976))
    words = "trestle.tif: claims tiles of 34,359,742,464 pixels, more than"
    refused(words, lambda: open_image(path))


# -- weights, options, parts ----------------------------------------------------------------------


def test_arguments_that_timm_does_not_take() -> None:
    words = "encoder.model_args: timm cannot make 'vit_tiny_patch16_224' so: dim should be"
    refused(words, lambda: create_vit("vit_tiny_patch16_224", {"num_heads": 7}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("patch_embed.proj.weight", (192, 3, 16)), ("pos_embed", (3,))],
)
def test_weights_of_another_form(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Positions without axes were an IndexError once."""
    path, tensors = tmp_path / "w.pth", timm.create_model("vit_tiny_patch16_224").state_dict()
    torch.save({**tensors, name: torch.zeros(shape)}, path)
    options = {"weights": str(path), "model_args": "num_heads=3"}
    words = f"encoder.weights: {path} does not fit encoder 'vit_tiny_patch16_224': "
    refused(words, lambda: build_encoder("vit_tiny_patch16_224", options))


def test_a_file_of_weights_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    (tmp_path / f".{path.name}.{os.getpid()}.part").mkdir()
    words = f"{path} could not be written; check that the folder is there, that you may write to it"
    refused(words, lambda: write_tensors(path, {"a": torch.zeros(2)}, {}))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that only Linux has")
def test_a_config_that_cannot_be_read() -> None:
    words = "--config /proc/self/mem cannot be read: the system says: "
    refused(words, lambda: load_yaml(Path("/proc/self/mem")))


def test_a_class_that_is_no_part() -> None:
    words = "x.py: <class 'int'> is no AbstractMethod; make it a subclass"
    refused(words, lambda: check_class(int, AbstractMethod, "x.py"))


# -- runs -----------------------------------------------------------------------------------------


def test_a_table_without_a_readable_image(picture_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    table, out = tmp_path / "t.csv", tmp_path / "out"
    table.write_text("path,label\na.png,dark\n", encoding="utf-8")
    words = rf"no image of {table} could be predicted; see {out / 'quarantine.csv'}"
    with pytest.raises(TableError, match=words):
        fv.evaluate(picture_run, table, out)


def test_a_part_of_a_folder_that_is_being_written(
    picture_run: Path, picture_table: Path, tmp_path: Path
) -> None:
    options = fv.PredictOptions(part="1/2", heatmaps=0)
    with lock_folder(tmp_path):
        words = f"{tmp_path}: another foveate writes there; wait until it has ended"
        refused(words, lambda: fv.predict(picture_run, picture_table, tmp_path, options))


def test_an_audit_without_images(picture_run: Path) -> None:
    models = find_models(picture_run)
    loader = CaseLoader(View(1.0, 32, 8.0))
    words = "the layout audit needs images: give a table of which at least one can be read"
    with pytest.raises(TrainingError, match=words):
        audit_layout(models, [], loader, device=torch.device("cpu"))
    loader.close()


def test_a_run_whose_test_images_broke(tmp_path: Path) -> None:
    """They are opened before training, and again when they are predicted."""
    names = [f"{i}.png" for i in range(16)]
    for i, name in enumerate(names):
        Image.fromarray(PIXELS[i * 32 : i * 32 + 32, :32]).save(tmp_path / name)
    rows = [f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(rows), encoding="utf-8")

    def break_images(update: fv.ProgressUpdate) -> None:
        if update.title == "predicting":
            for name in names:
                (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")

    out = tmp_path / "run"
    options = fv.RunOptions(method="downsampled", encoder="small", epochs=1, device="cpu")
    small = {"encoder__width": 8, "encoder__dim": 16}
    words = "no test image could be predicted: mend those that .* lists, and give another --out"
    with pytest.raises(TrainingError, match=words):
        fv.train(tmp_path / "t.csv", out, options, on_progress=Recorder(break_images), **small)
