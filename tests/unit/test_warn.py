"""Warnings name each of a few files, but not each of a thousand."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from foveate.messages.warn import warn_once


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
