"""A slide in DICOM and its twin in another format are the same slide, to readers and to models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest

import foveate as fv
from foveate.geometry import Box, Frame
from foveate.readers import is_image_folder, open_image
from foveate.table import cases_from_folder
from helpers.dicom_slides import write_slide
from helpers.images import read_whole

OPTIONS = {
    **{"encoder": "small", "encoder__width": 8, "encoder__dim": 16, "epochs": 1, "heatmaps": 0},
    **{"view__patch_px": 64, "view__spacing_um": 0.5, "view__glimpse_spacing_um": 16},
}


def test_a_real_slide_and_its_twin_have_the_same_pixels(shared_data: Path) -> None:
    """The twin was compressed once more. Its header claims RGB where its JPEGs are YCbCr."""
    folder = shared_data / "vendor_wsi/dicom_cmu1_pyramid"
    svs = shared_data / "vendor_wsi/aperio/CMU-1-Small-Region.svs"
    with open_image(folder) as image, open_image(svs) as twin:
        assert len(image.levels) == 12
        assert image.shape == twin.shape
        assert image.spacing_um == pytest.approx(twin.spacing_um)
        difference = read_whole(image).astype(float) - read_whole(twin)
        assert np.abs(difference).mean() < 4
        assert np.abs(difference.mean((0, 1))).max() < 0.5
    with open_image(folder / "level-5-frames-0-1.dcm") as image:
        assert image.shape == twin.shape
    assert [case.path for case in cases_from_folder(folder, is_image_folder).cases] == [folder]


def test_a_real_slide_is_read_as_openslide_reads_it(shared_data: Path) -> None:
    """Its header is right about colours. OpenSlide displaces levels of uneven steps."""
    folder = shared_data / "vendor_wsi_emulated/dicom"
    file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    with open_image(folder) as image, openslide.OpenSlide(file) as slide:
        assert [level.shape[::-1] for level in image.levels] == list(slide.level_dimensions[:3])
        assert image.spacing_um == pytest.approx((0.5056, 0.5056))
        for level in range(3):
            step = int(image.levels[level].downsample[0])
            side = 400
            place = (2000 * 4 // step // 2, 1600 * 4 // step // 2) if level < 2 else (30, 20)
            ours = image.read(Box(place, (side, side), Frame.PX, level))
            theirs = slide.read_region((place[1] * step, place[0] * step), level, (side, side))
            difference = np.asarray(theirs)[..., :3].astype(float) - ours
            assert np.abs(difference).mean() <= (0.5 if level else 0)
            assert np.abs(difference.mean((0, 1))).max() < 0.2


@pytest.mark.slow
def test_a_model_answers_alike_for_a_slide_and_its_twin(tiny_cohort: Path, tmp_path: Path) -> None:
    classifier = fv.Classifier("glimpse", out=tmp_path / "run", **OPTIONS)
    classifier.fit(tiny_cohort)
    paths = [tiny_cohort.parent / name for name in sorted(pd.read_csv(tiny_cohort)["file"])[:3]]
    for path in paths:
        with open_image(path) as image:
            levels = [read_whole(image, i) for i in range(len(image.levels))]
            assert image.spacing_um is not None
            write_slide(tmp_path / "new" / path.stem, levels, image.spacing_um[0], side=256)
    expected = classifier.predict_proba(paths)
    twins = sorted((tmp_path / "new").iterdir())
    assert [twin.name for twin in twins] == [path.stem for path in paths]
    np.testing.assert_allclose(classifier.predict_proba(twins), expected, atol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(tmp_path / "new"), expected, atol=1e-5)
