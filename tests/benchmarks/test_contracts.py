"""What the contract asks of an image, asked of a canvas; of methods, of those of the benchmarks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.canvas import Canvas, write_canvas
from conftest import one_thread
from contracts import test_readers
from foveate.images.image import AbstractImage
from foveate.readers import open_image

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


@pytest.mark.parametrize("method", ["centred_glimpse", "centred_ips"])
def test_the_methods_keep_the_contract(method: str) -> None:
    words = ("tests/contracts/test_methods.py", "--plugins", "benchmarks", "-k", method)
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=one_thread(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert int(re.findall(r"(\d+) passed", ended.stdout)[0]) >= 5


def test_the_parts_find_their_shared_files_from_any_folder(tmp_path: Path) -> None:
    words = ("-m", "foveate", "methods", "--plugins", str(ROOT / "benchmarks"))
    ended = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert {"centred_glimpse", "centred_ips"} <= set(ended.stdout.split())
