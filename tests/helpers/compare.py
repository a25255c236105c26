"""Comparisons of tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_near(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    """Check that tensors agree within an absolute tolerance, without a relative one."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
