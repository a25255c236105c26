"""The small encoder with standardised kernels."""

from __future__ import annotations

import torch

from foveate.encoders.small import SmallEncoder


def test_standardised_kernels_ignore_constant_images_and_keep_the_scale() -> None:
    torch.manual_seed(0)
    first = SmallEncoder(width=32, norm="weights").stages[0].requires_grad_(False)
    for bright in (-2.0, 0.0, 2.6):
        ground = first(torch.full((1, 3, 20, 20), bright))
        assert ground[..., 1:-1, 1:-1].abs().max() < 1e-4
    passed = first(torch.randn(4, 3, 64, 64))[..., 1:-1, 1:-1]
    assert abs(float(passed.square().mean()) - 1) < 0.1
