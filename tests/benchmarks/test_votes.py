"""Votes of single patches in the prediction of `centred_glimpse`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.methods._votes import Voted
from benchmarks.methods.centred_glimpse import CentredGlimpse
from foveate.batch import Batch, View
from foveate.encoders.small import SmallEncoder
from foveate.loading.loader import CaseLoader
from foveate.nn.heads import Head
from foveate.table import read_cases

VIEW = View(spacing_um=1.0, patch_px=32, glimpse_spacing_um=16.0)
HEADS = (
    Head("most", 2, True, "sum"),
    Head("grade", 3, True, "none"),
    Head("findings", 2, False, "max"),
)


@pytest.mark.parametrize("training", [True, False])
def test_counts_and_multilabel_outputs_average_votes_and_pooled_logits(training: bool) -> None:
    heads = (
        Head("grade", 3, True, "none"),
        Head("most", 2, True, "sum"),
        Head("findings", 2, False, "max"),
        Head("cells", 1, False, "sum"),
        Head("tumour", 1, False, "max"),
        Head("stage", 2, True, "max"),
        Head("site", 2, True, "none"),
    )
    voted = Voted(heads).train(training)
    with torch.no_grad():
        voted.log_trust.copy_(torch.tensor([2.0, 3.0]).log() / 10)
    opinions, pooled = (
        torch.randn(4, 13, requires_grad=True),
        torch.randn(4, 13, requires_grad=True),
    )
    answer, beside = voted(opinions, pooled)
    count, several = (1.0, 0.0) if training else (0.5, 0.5)
    share = torch.tensor([0.0] * 3 + [2 * count] * 2 + [several] * 2 + [3 * count] + [0.0] * 5)
    rest = torch.tensor([1.0] * 3 + [1 - count] * 2 + [1 - several] * 2 + [1 - count] + [1.0] * 5)
    torch.testing.assert_close(answer, opinions * share + pooled * rest)
    torch.testing.assert_close(beside, pooled)
    # Beside the answer only what is pooled for counts learns.
    learnt = torch.autograd.grad(beside.square().sum(), (opinions, pooled), allow_unused=True)
    assert learnt[0] is None
    counted = torch.tensor([False] * 3 + [True] * 2 + [False] * 2 + [True] + [False] * 5)
    assert torch.equal(learnt[1] != 0, counted.expand(4, -1))
    assert Voted(heads[:1])(opinions[:, :3], pooled[:, :3])[1] is None
    assert Voted(heads[:1]).log_trust is None


@pytest.mark.parametrize("instance", [0.0, 1.0])
def test_patch_votes_enter_the_prediction(instance: float, tiny_cohort: Path) -> None:
    """With pooled logits of 5 everywhere, outputs are the mean of votes and pooled logits."""
    torch.manual_seed(0)
    method = CentredGlimpse(encoder=SmallEncoder(width=8, dim=16), heads=HEADS, instance=instance)
    for head in method.aggregator.pool.heads:
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 5.0)
    for p in method.head_instance.parameters():
        nn.init.normal_(p, std=0.3)
    assert isinstance(method.voted.log_trust, nn.Parameter)
    nn.init.constant_(method.voted.log_trust, math.log(2.0) / 10)
    alone: list[Tensor] = []
    method.head_instance.register_forward_hook(lambda _, __, prediction: alone.append(prediction))
    loader = CaseLoader(VIEW)
    try:
        items = [loader.load(case) for case in read_cases(tiny_cohort).cases[:2]]
        device, normalise = torch.device("cpu"), ((0.5,) * 3, (0.25,) * 3)
        batch = Batch(items, view=VIEW, normalise=normalise, device=device, pool=loader.threads)
        with torch.inference_mode():
            prediction = method.eval()(batch)
    finally:
        loader.close()
    expected = torch.full((2, 7), 5.0)
    if instance:
        assert alone[0].abs().min() > 1e-3
        expected[:, :2] = (5.0 + 2.0 * alone[0][:, :2]) / 2
        expected[:, 5:] = (5.0 + alone[0][:, 5:]) / 2
    torch.testing.assert_close(prediction.logits, expected)
