"""A patient is predicted from the images that can be read, however many cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from foveate.batch import View
from foveate.errors import FoveateError, UnreadableMember
from foveate.geometry import Box, Frame
from foveate.images.evidence import Evidence
from foveate.loading.loader import CaseLoader
from foveate.prediction.answer import Answer, Failure
from foveate.prediction.rest import Loaded, predict_rest
from foveate.table import Case

VIEW = View(spacing_um=1.0, patch_px=32, glimpse_spacing_um=4.0)
NOTHING = Evidence(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), remainder=1.0)


def write_slide(path: Path, *, damaged: bool) -> Case:
    """Write a slide of two levels; where it is damaged, the glimpse can still be read."""
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    options = {"tile": (64, 64), "compression": "zlib", "photometric": "rgb"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, resolution=(1e4, 1e4), resolutionunit="centimeter", **options)
        file.write(pixels[::4, ::4], subfiletype=1, **options)
    if damaged:
        with tifffile.TiffFile(path) as tiff:
            offset = tiff.pages[0].dataoffsets[2]
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes(64))
    return Case(path.stem, "P1", path)


def read_all(case: Case, loader: CaseLoader, item: Loaded) -> Answer | FoveateError:
    """Answer without a model, after all pixels have been read."""
    if isinstance(item, FoveateError):
        return item
    try:
        item.image.read(Box((0, 0), item.image.shape, Frame.PX, 0))
    except FoveateError as error:
        return error
    return Answer(case, (), (1.0,), (0.0,), NOTHING, (1.0, 1.0), "um", 1, 1, 1, 0.1, 0.0)


@pytest.mark.parametrize(("n_readable", "n_damaged"), [(1, 17), (0, 2)])
def test_damaged_slides_leave_the_others(tmp_path: Path, n_readable: int, n_damaged: int) -> None:
    images = [
        write_slide(tmp_path / f"S{i:02d}.tif", damaged=i >= n_readable)
        for i in range(n_readable + n_damaged)
    ]
    case = Case("P1", "P1", images[0].path, images=tuple(images))
    first = UnreadableMember("damaged", {images[-1].image_id: "damaged"})
    outcome = predict_rest(case, CaseLoader(VIEW), first, read_all)
    if not n_readable:
        assert isinstance(outcome, Failure)
        assert "region" in outcome.reason
        return
    assert isinstance(outcome, Answer)
    assert list(outcome.case.list_images()) == images[:n_readable]
    assert set(outcome.left_out) == {image.image_id for image in images[n_readable:]}


def test_an_error_of_no_image_in_particular_is_a_failure(tmp_path: Path) -> None:
    images = tuple(write_slide(tmp_path / f"S{i}.tif", damaged=False) for i in range(2))
    case = Case("P1", "P1", images[0].path, images=images)
    for error in (FoveateError("together"), UnreadableMember("of others", {"S9": "damaged"})):
        outcome = predict_rest(case, CaseLoader(VIEW), error, read_all)
        assert outcome == Failure(case, str(error))
