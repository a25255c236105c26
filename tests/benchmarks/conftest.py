"""The folder `benchmarks` as its users have it: its plug-ins known, its command line at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Ended, command
from foveate import parts

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_folders", [FOLDER])


@pytest.fixture
def bench(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """``python -m benchmarks`` in this process."""
    from benchmarks.__main__ import main

    return command(main, capfd, monkeypatch)
