"""Loading of canvases: their foreground, and patches at the places that a file states."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.canvas import Canvas, write_canvas
from benchmarks.canvas.loading import CanvasLoader, PlacedCase, PlacedImage
from foveate.bags.embedding import Bag
from foveate.batch import Batch, LoadedImage, View
from foveate.errors import UnreadableImage
from foveate.table import Case

CORNERS = ((16, 16), (16, 200), (150, 96))
"""Corners of the three stamps of 16 pixels on a canvas of 256."""


@pytest.fixture
def canvas(tmp_path: Path) -> Path:
    stamp = np.full((16, 16), 200, np.uint8)
    path = tmp_path / "canvas.sparse"
    write_canvas(path, Canvas.from_stamps((256, 256), [stamp] * 3, CORNERS))
    return path


@pytest.fixture
def loader() -> Iterator[CanvasLoader]:
    canvas_loader = CanvasLoader(View(1.0, 16, 8.0, unit="px"))
    yield canvas_loader
    canvas_loader.close()


def test_pixels_unlike_the_ground_are_foreground(canvas: Path, loader: CanvasLoader) -> None:
    item = loader.load(Case("a", "a", canvas))
    assert (item.image.kind, item.image.unit) == ("picture", "px")
    # The filter looks half a pixel beyond each pixel of the glimpse, so a ring may be touched.
    ys, xs = np.nonzero(item.contrast)
    for y, x in zip(ys * 8 + 4, xs * 8 + 4, strict=True):
        assert any(abs(y - b - 8) <= 16 and abs(x - a - 8) <= 16 for b, a in CORNERS)
    assert all(item.contrast[(b + 8) // 8, (a + 8) // 8] > 0 for b, a in CORNERS)
    assert type(item) is LoadedImage, "no places are stated"


def test_an_empty_canvas_is_foreground_everywhere(tmp_path: Path, loader: CanvasLoader) -> None:
    path = tmp_path / "bare.sparse"
    write_canvas(path, Canvas.from_stamps((64, 64), [], []))
    assert (loader.load(Case("b", "b", path)).contrast == 255).all()


def test_scanning_methods_use_the_places_of_the_case(
    canvas: Path, loader: CanvasLoader, tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    places = np.asarray(CORNERS) + 8.0
    np.save(tmp_path / "places.npy", places)
    case = PlacedCase("a", "a", canvas, places=tmp_path / "places.npy")
    for _ in range(2):
        item = loader.load(case)
        assert isinstance(item, PlacedImage), "also when the glimpse is remembered"
        np.testing.assert_array_equal(item.places_um, places)
    batch = Batch(
        [item],
        view=loader.view,
        normalise=((0.0,) * 3, (1.0,) * 3),
        device=torch.device("cpu"),
        pool=pool,
    )
    bag = Bag(train_encoder=True, chunk=4, jitter=True)
    (patches,) = bag.cover(batch, training=True)
    np.testing.assert_array_equal(patches.origin_um, CORNERS)
    assert torch.equal(batch.read_patches([patches]), torch.full((3, 3, 16, 16), 200 / 255))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((0, 2)), r"\(0, 2\), expected \(n, 2\)"),
        (np.zeros((4, 3)), r"\(4, 3\), expected \(n, 2\)"),
        (np.zeros(4), r"\(4,\), expected \(n, 2\)"),
        (np.asarray([[1.0, np.nan]]), "finite"),
        (np.asarray([["1", "2"]]), "finite"),
        (np.asarray([[8.0, 8.0], [300.0, 8.0]]), r"\[300\.0, 8\.0\] lies outside"),
        (np.asarray([[-1, 8]]), "lies outside"),
        (np.asarray([[{}, 1]], object), "not a .npy file"),
        (b"", "not a .npy file"),
        (b"y,x\n8,8\n", "not a .npy file"),
        (None, "not a .npy file"),
    ],
)
def test_unusable_places_are_refused_by_name(
    content: Any, message: str, canvas: Path, loader: CanvasLoader, tmp_path: Path
) -> None:
    path = tmp_path / "places.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UnreadableImage, match=message) as caught:
        loader.load(PlacedCase("a", "a", canvas, places=path))
    assert str(path) in str(caught.value)
    ((loaded,),) = loader.ahead([[PlacedCase("a", "a", canvas, places=path)]])
    assert isinstance(loaded, UnreadableImage), "and sets aside this image alone"
