"""`glimpse`: what the prediction is made of."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from foveate.batch import Batch, View
from foveate.cases import read_cases
from foveate.encoders.small import SmallEncoder
from foveate.loading import CaseLoader
from foveate.methods.base import Prediction
from foveate.methods.glimpse import Glimpse
from foveate.nn.heads import Head

HEADS = (
    Head("most", 2, True, "count"),
    Head("grade", 3, True, "sum"),
    Head("findings", 2, False, "max"),
    Head("tumour", 1, False, "max"),
    Head("stage", 2, True, "max"),
)
VIEW = View(spacing_um=1.0, patch_px=32, glimpse_spacing_um=16.0)


@pytest.mark.parametrize("instance", [0.0, 1.0])
def test_the_prediction_begins_at_what_patches_say(instance: float, tiny_cohort: Path) -> None:
    """Where the pooled vector says nothing, counts, sums and several findings remain."""
    torch.manual_seed(0)
    method = Glimpse(encoder=SmallEncoder(width=8, dim=16), heads=HEADS, instance=instance)
    for head in method.heads:
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    for p in method.head_instance.parameters():
        nn.init.normal_(p, std=0.3)
    assert isinstance(method.voted.log_trust, nn.Parameter)
    nn.init.constant_(method.voted.log_trust, math.log(2.0) / 10)
    alone: list[Tensor] = []
    method.head_instance.register_forward_hook(lambda _, __, found: alone.append(found[0]))
    found = _evaluated(method, tiny_cohort)
    expected = torch.zeros(2, 10)
    if instance:
        assert alone[0].abs().min() > 1e-3
        expected = alone[0] * torch.tensor([2.0] * 7 + [0.0] * 3)
    torch.testing.assert_close(found.logits, expected)


def _evaluated(method: Glimpse, table: Path) -> Prediction:
    loader = CaseLoader(VIEW)
    try:
        with ThreadPoolExecutor(1) as pool, torch.inference_mode():
            batch = Batch(
                [loader.load(case) for case in list(read_cases(table).cases)[:2]],
                view=VIEW,
                normalise=((0.5,) * 3, (0.25,) * 3),
                device=torch.device("cpu"),
                pool=pool,
            )
            found: Prediction = method.eval()(batch)
            return found
    finally:
        loader.close()
