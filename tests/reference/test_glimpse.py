"""`glimpse`: what the prediction is made of, and what its parts learn from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
)
VIEW = View(spacing_um=1.0, patch_px=32, glimpse_spacing_um=16.0)


@pytest.mark.parametrize("instance", [0.0, 1.0])
def test_what_patches_say_is_in_the_answer(instance: float, tiny_cohort: Path) -> None:
    """Where the pooled vectors say 5 to everything: counts and findings are half of each."""
    torch.manual_seed(0)
    method = Glimpse(encoder=SmallEncoder(width=8, dim=16), heads=HEADS, instance=instance)
    for head in method.related.pool.heads:
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, 5.0)
    for p in method.head_instance.parameters():
        nn.init.normal_(p, std=0.3)
    assert isinstance(method.voted.log_trust, nn.Parameter)
    nn.init.constant_(method.voted.log_trust, math.log(2.0) / 10)
    alone: list[Tensor] = []
    method.head_instance.register_forward_hook(lambda _, __, found: alone.append(found))
    found = _evaluated(method, tiny_cohort)
    expected = torch.full((2, 7), 5.0)
    if instance:
        assert alone[0].abs().min() > 1e-3
        expected[:, :2] = (5.0 + 2.0 * alone[0][:, :2]) / 2
        expected[:, 5:] = (5.0 + alone[0][:, 5:]) / 2
    torch.testing.assert_close(found.logits, expected)


def test_what_is_pooled_begins_small_but_for_sums() -> None:
    method = Glimpse(encoder=SmallEncoder(width=8, dim=16), heads=HEADS)
    for head, last in zip(HEADS, method.related.pool.heads, strict=True):
        sizes = [float(p.detach().abs().max()) for p in last.parameters()]
        assert all(size < 0.02 for size in sizes) == (head.pooling not in ("sum", "count"))


@pytest.mark.parametrize("adds_up", [False, True])
@pytest.mark.parametrize("zoom", [(), (4.0,)])
def test_the_expectation_teaches_patches_only_where_they_add_up(
    zoom: tuple[float, ...], adds_up: bool, tiny_cohort: Path
) -> None:
    torch.manual_seed(0)
    encoder, heads = SmallEncoder(width=8, dim=16), HEADS if adds_up else HEADS[2:]
    method = Glimpse(encoder=encoder, heads=heads, dropout=0.0, zoom=zoom, looks=2)
    for p in method.locate.parameters():
        nn.init.normal_(p, std=0.3)
    with _batch(tiny_cohort) as batch:
        weight, logits = method(batch).auxiliary["expected"]
    assert weight == method.locating
    logits.square().sum().backward()
    taught = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in taught} == {
        "encoder",
        "locate",
        "head_expected",
        *(["embed"] if adds_up else []),
        *(["zoom"] if zoom else []),
    }


def test_what_teaches_where_to_look_weighs_as_much_as_asked(tiny_cohort: Path) -> None:
    found = []
    for locating in (1.0, 0.25):
        torch.manual_seed(0)
        encoder = SmallEncoder(width=8, dim=16)
        method = Glimpse(encoder=encoder, heads=HEADS, mass=0.01, locating=locating)
        for p in method.locate.parameters():
            nn.init.normal_(p, std=0.3)
        torch.manual_seed(1)
        with _batch(tiny_cohort) as batch:
            prediction = method(batch)
        found.append((prediction.losses["spread"], prediction.auxiliary["expected"][0]))
    assert found[0][0] > 0
    torch.testing.assert_close(found[1][0], 0.25 * found[0][0])
    assert [weight for _, weight in found] == [1.0, 0.25]


def _evaluated(method: Glimpse, table: Path) -> Prediction:
    with _batch(table) as batch, torch.inference_mode():
        found: Prediction = method.eval()(batch)
        return found


@contextmanager
def _batch(table: Path) -> Iterator[Batch]:
    loader = CaseLoader(VIEW)
    try:
        with ThreadPoolExecutor(1) as pool:
            yield Batch(
                [loader.load(case) for case in list(read_cases(table).cases)[:2]],
                view=VIEW,
                normalise=((0.5,) * 3, (0.25,) * 3),
                device=torch.device("cpu"),
                pool=pool,
            )
    finally:
        loader.close()
