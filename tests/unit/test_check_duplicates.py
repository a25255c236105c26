"""The same picture is recognised when it was written in another way; different ones are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from foveate.checks.duplicates import _find_pairs, _take_gradients, find_duplicates
from foveate.checks.probe import probe
from foveate.checks.records import ImageRecord
from foveate.checks.thumbnail import make_print, read_print
from foveate.table import Case


def draw(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((320, 256), Image.Resampling.BICUBIC)
    return picture.filter(ImageFilter.GaussianBlur(2))


def write_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return Image.open(out)


def gradients(picture: Image.Image) -> np.ndarray:
    return _take_gradients(read_print(make_print(np.asarray(picture, np.float32) / 255)))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 30": lambda p: write_jpeg(p, 30),
    "a third of the size": lambda p: p.resize((107, 85), Image.Resampling.LANCZOS),
    "twice the size": lambda p: p.resize((640, 512)),
    "another aspect": lambda p: p.resize((200, 200)),
    "brighter": lambda p: p.point([min(255, int(v * 1.15 + 5)) for v in range(256)] * 3),
    "grey": lambda p: p.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_correlates_with_the_original(change: Callable[..., Image.Image]) -> None:
    for seed in range(3):
        assert gradients(draw(seed)) @ gradients(change(draw(seed))) > 0.9


def test_different_pictures_do_not_correlate() -> None:
    vectors = np.stack([gradients(draw(seed)) for seed in range(30)])
    others = (vectors @ vectors.T)[np.triu_indices(30, 1)]
    assert others.max() < 0.3


def test_turned_and_mirrored_copies_are_found() -> None:
    pictures = [draw(0), draw(1), draw(0).rotate(90, expand=True)]
    pictures.append(draw(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(180))
    copies = [read_print(make_print(np.asarray(p, np.float32) / 255)) for p in pictures]
    assert set(_find_pairs(copies, 0.85)) == {(0, 2), (1, 3)}


def test_flat_images_have_no_print() -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.001, (64, 64, 3)).astype(np.float32)
    assert make_print(noise) == ""


def check_all(cases: list[Case]) -> dict[str, list[str]]:
    """Groups of images by the severity and the first words of the finding about them."""
    records = {c.image_id: ImageRecord.from_entry(probe(c.path)) for c in cases}
    return {
        f"{f.severity}: {f.text.split(':')[0]}": sorted(f.images)
        for f in find_duplicates(cases, records)
    }


def test_findings_tell_labels_patients_and_copies_apart(tmp_path: Path) -> None:
    for name, seed in [("a", 0), ("b", 1), ("c", 2), ("d", 3), ("e", 4)]:
        draw(seed).save(tmp_path / f"{name}.png")
        draw(seed).resize((160, 128)).save(tmp_path / f"{name}2.jpg", quality=80)
    labels = {"a": ("P1", "x"), "a2": ("P2", "x"), "b": ("P3", "x"), "b2": ("P3", "x")}
    labels |= {"c": ("P4", "x"), "c2": ("P5", "y"), "d": ("P6", "x"), "e": ("P7", "y")}
    cases = [
        Case(i, patient, next(tmp_path.glob(f"{i}.*")), label)
        for i, (patient, label) in labels.items()
    ]
    same = "2 images show the same picture as another one"
    patients = "as different patients, so that one copy could train and the other test"
    assert check_all(cases) == {
        f"problem: {same}, {patients}": ["a", "a2"],
        f"note: {same}, of one patient, and each counts in training and in scores": ["b", "b2"],
        f"problem: {same}, with different labels, of which one must be wrong": ["c", "c2"],
    }


@pytest.mark.parametrize("folder", ["xray_nih", "histo_osteosarcoma"])
def test_different_images_of_real_sets_are_no_copies(shared_data: Path, folder: str) -> None:
    paths = [p for p in sorted((shared_data / folder).rglob("*")) if p.suffix in (".png", ".jpg")]
    copies = [read_print(probe(path)["print"]) for path in paths]
    assert len(copies) >= 12
    assert list(_find_pairs(copies, 0.85)) == []


def test_copies_in_a_real_set_are_found(shared_data: Path) -> None:
    """Augmented copies, of which the names tell the original."""
    folder = shared_data / "histo_oral"
    names = ["aug_122_8132.jpg", "aug_122_9578.jpg", "aug_21_7988.jpg", "aug_10_1877.jpg"]
    paths = [next(folder.rglob(name)) for name in names]
    copies = [read_print(probe(path)["print"]) for path in paths]
    assert set(_find_pairs(copies, 0.85)) == {(0, 1), (2, 3)}
