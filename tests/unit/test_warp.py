"""Small random affine maps of patches."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from foveate.nn.warp import warp


def test_nothing_to_do_changes_nothing() -> None:
    patches = torch.rand(3, 3, 17, 24)
    torch.testing.assert_close(warp(patches, degrees=0.0, scale=0.0), patches)
    assert warp(patches[:0]).shape == (0, 3, 17, 24)


def test_a_seed_replays_it_and_patches_differ() -> None:
    patches = torch.rand(1, 1, 20, 20).expand(4, -1, -1, -1)
    torch.manual_seed(1)
    first = warp(patches)
    torch.manual_seed(1)
    assert torch.equal(first, warp(patches))
    assert (first[0] - first[1]).abs().max() > 0.05


def test_a_constant_stays_constant_up_to_the_edge() -> None:
    torch.testing.assert_close(
        warp(torch.full((5, 1, 12, 12), -2.0)), torch.full((5, 1, 12, 12), -2.0)
    )


def test_places_are_not_rounded_to_half_precision() -> None:
    patches = torch.rand(3, 1, 300, 300)
    torch.manual_seed(1)
    exact = warp(patches)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(warp(patches), exact)


def test_a_blob_moves_no_further_than_its_bounds() -> None:
    """A spot away from the centre moves about it within the stated limits."""
    patches = torch.zeros(200, 1, 41, 41)
    patches[:, :, 20, 32] = 1.0
    torch.manual_seed(0)
    actual = warp(patches, degrees=10.0, scale=0.1).numpy()[:, 0]
    # A spot's centre of mass, relative to the middle of the patch.
    moved = np.asarray([ndimage.center_of_mass(one) for one in actual]) - 20
    radius = np.hypot(*moved.T)
    assert (radius > 12 / 1.16).all()
    assert (radius < 12 * 1.16).all()
    angle = np.degrees(np.arctan2(moved[:, 0], moved[:, 1]))
    assert np.abs(angle).max() < 13
    assert np.abs(angle).max() > 5
    assert abs(angle.mean()) < 1.5
