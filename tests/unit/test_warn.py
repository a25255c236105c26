"""One line for each of a few files, and not for each of a thousand."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from foveate.messages.warn import warn_once


def test_three_files_of_a_kind_are_named_once_each(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "foveate"):
        for _ in range(2):
            for i in range(100):
                warn_once(logging.WARNING, "odd", Path(f"{i}.tif"), "is odd")
        warn_once(logging.WARNING, "other", Path("0.tif"), "is other")
    told = [record.getMessage() for record in caplog.records]
    assert told[:3] == ["0.tif: is odd", "1.tif: is odd", "2.tif: is odd"]
    assert "not named" in told[3]
    assert told[4:] == ["0.tif: is other"]
