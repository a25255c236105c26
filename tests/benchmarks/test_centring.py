"""Patches move onto the objects they show, so that one patch contains each object whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.canvas import Canvas, write_canvas
from benchmarks.canvas.loading import CanvasLoader
from benchmarks.methods._centring import shift_to_mass
from benchmarks.methods.centred_glimpse import CentredGlimpse
from benchmarks.methods.centred_ips import CentredIps
from foveate.batch import Batch, Patches, View, run_by_shape
from foveate.encoders import build_encoder
from foveate.nn.heads import Head
from foveate.table import Case
from helpers.batches import load_batch

VIEW = View(1.0, 32, 8.0, unit="px")
HEADS = (Head("which", 3, True, "sum"), Head("present", 2, False, "max"))
STAMP = 20


@pytest.fixture
def loader() -> Iterator[CanvasLoader]:
    loader = CanvasLoader(VIEW)
    yield loader
    loader.close()


def squares(folder: Path) -> tuple[Case, NDArray[np.int64]]:
    """Write squares of 20 px far apart, at different positions within the lattice of 32 px."""
    at = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(-1, 2)
    origins = 128 * at + 8 * np.stack([at.sum(1) % 4, at[:, 1]], -1) + 40
    canvas = Canvas(
        shape=(640, 640),
        origins=origins,
        stamp_ids=np.zeros(len(at), np.int64),
        scales=np.ones(len(at), np.int64),
        stamp_sizes=np.full((1, 2), STAMP),
        stamp_pixels=np.full(STAMP * STAMP, 255, np.uint8),
    )
    write_canvas(folder / "squares.sparse", canvas)
    return Case("a", "a", folder / "squares.sparse"), origins


def collect_patches(batch: Batch, *, centring: int, training: bool) -> Patches:
    torch.manual_seed(0)
    encoder = build_encoder("small", {"width": 8, "dim": 16})
    method = CentredIps(encoder=encoder, heads=HEADS, centring=centring)
    return method.bag.cover(batch, training=training)[0]


def count_patches_with_whole_square(
    patches: Patches, origins: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count, for each square, the patches that contain it whole."""
    begin = patches.origin_um[:, None]
    inside = (begin <= origins) & (origins + STAMP <= begin + VIEW.patch_px)
    count: NDArray[np.int64] = inside.all(-1).sum(0)
    return count


@pytest.mark.parametrize("training", [False, True])
def test_every_object_lies_whole_in_one_patch(
    tmp_path: Path, loader: CanvasLoader, training: bool
) -> None:
    case, origins = squares(tmp_path)
    batch = load_batch([case], loader, loader.threads)
    cut = collect_patches(batch, centring=0, training=training)
    assert (count_patches_with_whole_square(cut, origins) == 0).any()
    moved = collect_patches(batch, centring=3, training=training)
    assert len(moved) == len(origins)
    assert (count_patches_with_whole_square(moved, origins) == 1).all()


def glimpse(**options: int | bool) -> CentredGlimpse:
    torch.manual_seed(0)
    encoder = build_encoder("small", {"width": 8, "dim": 16})
    return CentredGlimpse(encoder=encoder, heads=HEADS, **options).train()


def choose_with_centring(
    method: CentredGlimpse, batch: Batch
) -> tuple[Patches, torch.Tensor, torch.Tensor, Patches]:
    """Return the chosen patches, the drawn cells, their patches, and patches without centring."""
    with torch.no_grad():
        field = method.attend(batch, run_by_shape(method.encoder.maps, batch.glimpses()))
        chosen = method.choice.choose_cells(batch, field, training=method.training)
        return (
            chosen.patches[0],
            chosen.index[0],
            chosen.shows[0],
            field.patches(batch, chosen.index, jitter=False)[0],
        )


@pytest.mark.parametrize("patches", [1, 5])
def test_training_always_includes_the_strongest_cells(
    tmp_path: Path, loader: CanvasLoader, patches: int
) -> None:
    case, origins = squares(tmp_path)
    batch = load_batch([case], loader, loader.threads)
    options = {"patches": patches, "centring": 3, "jitter": False}
    drawn, *_ = choose_with_centring(glimpse(**options), batch)
    alone = count_patches_with_whole_square(drawn, origins) > 0
    assert 0 < alone.sum() <= patches < len(origins)
    every, _, shows, _ = choose_with_centring(
        glimpse(**options, strongest=16), load_batch([case], loader, loader.threads)
    )
    assert (count_patches_with_whole_square(every, origins) == 1).all()
    assert ((count_patches_with_whole_square(every[shows.numpy()], origins) > 0) == alone).all()


@pytest.mark.parametrize("strongest", [0, 3, 40])
def test_drawn_cells_use_the_patches_that_show_them(
    tmp_path: Path, loader: CanvasLoader, strongest: int
) -> None:
    case, _ = squares(tmp_path)
    batch = load_batch([case], loader, loader.threads)
    method = glimpse(patches=12, strongest=strongest, jitter=False, centring=0)
    every, index, shows, cells = choose_with_centring(method, batch)
    assert len(index.unique()) == 12
    assert len(every) == (12 if not strongest else len({tuple(o) for o in every.origin_um}))
    away = np.abs(every.origin_um[shows.numpy()] - cells.origin_um).max(1)
    assert (away < VIEW.patch_um / 4).all()
    assert not strongest or len(every) >= strongest


def test_a_box_moves_onto_the_object_in_it() -> None:
    values = np.zeros((40, 60))
    values[10:14, 20:24] = 3.0
    values[30:33, 50:53] = 1.0
    start = np.asarray([[9.0, 25.0], [14.5, 19.0], [33.0, 49.0], [5.0, 5.0]])
    moved = shift_to_mass(values, start, side=10.0, steps=3)
    np.testing.assert_allclose(moved, [[12, 22], [12, 22], [31.5, 51.5], [5, 5]])


def test_one_step_moves_to_the_centre_of_mass() -> None:
    values = np.random.default_rng(2).random((20, 20))
    (moved,) = shift_to_mass(values, np.asarray([[9.0, 11.0]]), side=6.0, steps=1)
    part = values[6:12, 8:14]
    y, x = np.mgrid[6:12, 8:14] + 0.5
    expected = [(part * y).sum() / part.sum(), (part * x).sum() / part.sum()]
    np.testing.assert_allclose(moved, expected)
