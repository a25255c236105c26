"""Mistakes of published codes that no other test detects; see `benchmarks/traps.py`."""

from __future__ import annotations

import pytest
import torch

from foveate.nn.sampling import expectation


@pytest.mark.parametrize("row", [[0.1] * 10, [1 - 1e-9, 5e-10, 4e-10], [0.7, 0.2, 0.1]])
def test_remaining_mass_is_never_less_than_the_drawn_mass(row: list[float]) -> None:
    """In float32, rounding can leave too little or negative mass before the last draws.

    Then the value, the feature gradient and the score of a draw are each at least what the drawn
    mass alone gives (trap 3).
    """
    a = torch.tensor([row]).requires_grad_()
    f = torch.ones(1, len(row), 1, requires_grad=True)
    actual = expectation(a, f)
    by_a, by_f = torch.autograd.grad(actual.sum(), (a, f))
    counted = torch.arange(len(row), 0, -1)
    assert a.sum() >= 1 - 1e-6, "everything is drawn"
    assert (by_f[..., 0] >= a * counted / len(row) * (1 - 1e-7)).all()
    assert (by_a >= counted / len(row)).all()
    assert 1 <= actual < 1 + 1e-6
