"""The reader contract holds for canvases, and the method contract for the benchmark methods."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.canvas import Canvas, write_canvas
from contracts import test_readers
from foveate.images.image import AbstractImage
from foveate.readers import open_image
from helpers.commands import one_thread_environment

ROOT = Path(__file__).resolve().parents[2]
globals().update(
    (name, test)
    for name, test in vars(test_readers).items()
    if name.startswith("test_") and test.__code__.co_varnames[:1] == ("image",)
)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[AbstractImage]:
    rng = np.random.default_rng(0)
    places = np.column_stack([rng.integers(0, 2050, 300), rng.integers(0, 4990, 300)])
    stamps = list(rng.integers(0, 256, (300, 47, 31), np.uint8))
    path = tmp_path / "stamps.sparse"
    write_canvas(path, Canvas.from_stamps((2100, 5021), stamps, places, background=90))
    with open_image(path) as opened:
        assert opened.reader == "foveate sparse canvas 1"
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("method", ["centred_glimpse", "centred_ips"])
def test_benchmark_methods_pass_the_contract_tests(method: str) -> None:
    words = ("tests/contracts/test_methods.py", "--plugins", "benchmarks", "-k", method)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=one_thread_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.findall(r"(\d+) passed", result.stdout)[0]) >= 5


def test_plugins_find_shared_modules_from_any_folder(tmp_path: Path) -> None:
    words = ("-m", "foveate", "methods", "--plugins", str(ROOT / "benchmarks"))
    result = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert {"centred_glimpse", "centred_ips"} <= set(result.stdout.split())
