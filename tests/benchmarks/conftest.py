"""Register the plug-ins of the folder `benchmarks` and run its command line in tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import command
from foveate import parts
from helpers.commands import Completed

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_folders", [FOLDER])


@pytest.fixture
def bench(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Completed]:
    """Return a function that runs ``python -m benchmarks`` in this process."""
    from benchmarks.__main__ import main

    return command(main, capfd, monkeypatch)
