"""Warnings name each of a few files, but not each of a thousand."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.messages.warn import warn_once
from foveate.readers import open_image
from helpers.dicom import write_dicom


def test_three_files_per_warning_are_named_once_each(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "foveate"):
        for _ in range(2):
            for i in range(100):
                warn_once(logging.WARNING, "odd", Path(f"{i}.tif"), "is odd")
        warn_once(logging.WARNING, "other", Path("0.tif"), "is other")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[:3] == ["0.tif: is odd", "1.tif: is odd", "2.tif: is odd"]
    assert "not named" in messages[3]
    assert messages[4:] == ["0.tif: is other"]


@pytest.mark.parametrize("name", ["a.dcm", "a.png"])
def test_opening_images_does_not_repeat_warnings_of_others(tmp_path: Path, name: str) -> None:
    path, pixels = tmp_path / name, np.zeros((8, 8), np.uint8)
    if path.suffix == ".dcm":
        write_dicom(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    open_image(path).close()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("each place warns once", stacklevel=1)
            open_image(path).close()
    assert [str(warning.message) for warning in shown] == ["each place warns once"]
