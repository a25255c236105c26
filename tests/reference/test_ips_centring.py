"""Patches of `ips` that move to what they show: every object whole, in one patch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from foveate.batch import Batch, Patches, View
from foveate.cases import Case
from foveate.encoders import build_encoder
from foveate.loading import CaseLoader
from foveate.methods.ips import Ips
from foveate.nn.heads import Head
from foveate.sparse import Canvas, write_canvas

VIEW = View(1.0, 32, 8.0, unit="px")
HEADS = (Head("which", 3, True, "sum"), Head("present", 2, False, "max"))
STAMP = 20


@pytest.fixture
def loader() -> Iterator[CaseLoader]:
    loader = CaseLoader(VIEW)
    yield loader
    loader.close()


def squares(folder: Path) -> tuple[Case, NDArray[np.int64]]:
    """Squares of 20 px, far apart, each at another place of the lattice of 32 px."""
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


def looked_at(batch: Batch, *, centring: int, training: bool) -> Patches:
    torch.manual_seed(0)
    encoder = build_encoder("small", {"width": 8, "dim": 16})
    method = Ips(encoder=encoder, heads=HEADS, centring=centring, attention_heads=4)
    patches = method.bag.cover(batch, training=training)[0]
    return method._centred(batch, 0, patches) if centring else patches


def times_whole(patches: Patches, origins: NDArray[np.int64]) -> NDArray[np.int64]:
    """In how many patches each square lies whole."""
    begin = patches.origin_um[:, None]
    inside = (begin <= origins) & (origins + STAMP <= begin + VIEW.patch_px)
    count: NDArray[np.int64] = inside.all(-1).sum(0)
    return count


@pytest.mark.parametrize("training", [False, True])
def test_every_object_is_whole_in_one_patch(
    tmp_path: Path, loader: CaseLoader, training: bool
) -> None:
    case, origins = squares(tmp_path)
    batch = Batch(
        [loader.load(case)],
        view=VIEW,
        normalise=((0.5,) * 3, (0.25,) * 3),
        device=torch.device("cpu"),
        pool=loader.crops,
    )
    cut = looked_at(batch, centring=0, training=training)
    assert (times_whole(cut, origins) == 0).any()
    moved = looked_at(batch, centring=3, training=training)
    assert len(moved) == len(origins)
    assert (times_whole(moved, origins) == 1).all()
