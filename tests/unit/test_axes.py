"""The axes in types are checked in the tests, as ``tests/conftest.py`` asks for."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from foveate.nn.pooling import MeanPool
from foveate.nn.sampling import expectation

pytestmark = pytest.mark.skipif(
    jaxtyping.config.jaxtyping_disable, reason="JAXTYPING_DISABLE turns the checks off"
)


@pytest.fixture(autouse=True)
def check_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check each call, however many other tests have made."""
    monkeypatch.setattr("check_axes._EVERY", 1)


def test_equal_axes_must_have_equal_sizes() -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="expectation"):
        expectation(torch.full((1, 2), 0.5), torch.zeros(1, 3, 4))


def test_a_mask_must_be_bool() -> None:
    tokens = torch.zeros(1, 2, 4)
    MeanPool()(tokens, torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(jaxtyping.TypeCheckError, match="valid"):
        MeanPool()(tokens, torch.ones(1, 2))
