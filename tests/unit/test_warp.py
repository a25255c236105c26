"""Small random affine maps of patches."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from foveate.nn.warp import warp


def test_zero_warp_changes_nothing() -> None:
    patches = torch.rand(3, 3, 17, 24)
    torch.testing.assert_close(warp(patches, torch.rand(3, 4), degrees=0.0, scale=0.0), patches)
    assert warp(patches[:0], torch.rand(0, 4)).shape == (0, 3, 17, 24)


def draws(m: int) -> Tensor:
    return 2 * torch.rand(m, 4, generator=torch.Generator().manual_seed(1)) - 1


def test_patches_differ() -> None:
    first = warp(torch.rand(1, 1, 20, 20).expand(4, -1, -1, -1), draws(4))
    assert (first[0] - first[1]).abs().max() > 0.05


def test_a_constant_stays_constant_up_to_the_edge() -> None:
    torch.testing.assert_close(
        warp(torch.full((5, 1, 12, 12), -2.0), draws(5)), torch.full((5, 1, 12, 12), -2.0)
    )


def test_positions_are_not_rounded_to_half_precision() -> None:
    patches = torch.rand(3, 1, 300, 300)
    exact = warp(patches, draws(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(patches, draws(3)), exact)


def test_a_blob_moves_within_the_limits() -> None:
    """A spot away from the centre moves about it within the stated limits."""
    patches = torch.zeros(200, 1, 41, 41)
    patches[:, :, 20, 32] = 1.0
    actual = warp(patches, draws(200), degrees=10.0, scale=0.1).numpy()[:, 0]
    # A spot's centre of mass, relative to the middle of the patch.
    moved = np.asarray([ndimage.center_of_mass(one) for one in actual]) - 20
    radius = np.hypot(*moved.T)
    assert (radius > 12 / 1.16).all()
    assert (radius < 12 * 1.16).all()
    angle = np.degrees(np.arctan2(moved[:, 0], moved[:, 1]))
    assert np.abs(angle).max() < 13
    assert np.abs(angle).max() > 5
    assert abs(angle.mean()) < 1.5
