"""`glimpse`: how glimpse and patches form the prediction, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.attention_maps.glimpse_and_patches import Tokens
from foveate.batch import Batch, View
from foveate.batch.features import FeatureStore
from foveate.encoders.lite0 import Lite0Encoder
from foveate.encoders.small import SmallEncoder
from foveate.loading.loader import CaseLoader
from foveate.methods.downsampled import Downsampled
from foveate.methods.glimpse import Glimpse
from foveate.methods.glimpse_zoom import GlimpseZoom
from foveate.nn.heads import Head
from foveate.table import read_cases
from foveate.tasks.binary import BinaryTask
from foveate.training.frozen_start import fit_start

HEADS = (
    Head("most", 2, True, "sum"),
    Head("grade", 3, True, "sum"),
    Head("findings", 2, False, "max"),
)
Build = Callable[[Sequence[int]], Batch]
VIEW = View(spacing_um=1.0, patch_px=32, glimpse_spacing_um=16.0)


def test_initial_head_weights_are_small_except_for_sums() -> None:
    method = Glimpse(encoder=SmallEncoder(width=8, dim=16), heads=HEADS)
    for head, last in zip(HEADS, method.aggregator.pool.heads, strict=True):
        sizes = [float(p.detach().abs().max()) for p in last.parameters()]
        assert all(size < 0.02 for size in sizes) == (head.pooling != "sum")


@pytest.mark.parametrize("adds_up", [False, True])
@pytest.mark.parametrize("zoom", [(), (4.0,)])
def test_the_expected_loss_reaches_patches_only_with_additive_pooling(
    zoom: tuple[float, ...], adds_up: bool, tiny_cohort: Path
) -> None:
    torch.manual_seed(0)
    encoder, heads = SmallEncoder(width=8, dim=16), HEADS if adds_up else HEADS[2:]
    method: Glimpse | GlimpseZoom = Glimpse(encoder=encoder, heads=heads, dropout=0.0)
    if zoom:
        method = GlimpseZoom(encoder=encoder, heads=heads, dropout=0.0, zoom=zoom, looks=2)
    for p in method.locate.parameters():
        nn.init.normal_(p, std=0.3)
    with _load_rows(tiny_cohort) as batch:
        logits, weight = method(batch).further["expected"]
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


def test_the_locating_option_scales_the_location_gradient(tiny_cohort: Path) -> None:
    gradients = []
    for locating in (1.0, 0.25):
        torch.manual_seed(0)
        encoder = SmallEncoder(width=8, dim=16)
        method = Glimpse(encoder=encoder, heads=HEADS, locating=locating)
        method.spread.mass = 0.01
        for p in method.locate.parameters():
            nn.init.normal_(p, std=0.3)
        torch.manual_seed(1)
        with _load_rows(tiny_cohort) as batch:
            prediction = method(batch)
        gradients.append(
            (prediction.further["spread"].value, prediction.further["expected"].weight)
        )
    assert gradients[0][0] > 0
    torch.testing.assert_close(gradients[1][0], 0.25 * gradients[0][0])
    assert [weight for _, weight in gradients] == [1.0, 0.25]


# -- the glimpse beside the patches ----------------------------------------------------------------


def interaction(f: Tensor) -> Tensor:
    """Return the interaction in outputs ``(4, k)``, relative to their spread.

    For two glimpses o and two sets of patches p: f(o, p) - f(o', p) - f(o, p') + f(o', p').
    """
    return (f[0] - f[1] - f[2] + f[3]).abs() / f.std(0, correction=0)


def test_glimpse_and_patches_interact(tiny_cohort: Path) -> None:
    """Combine the glimpses and patches of two slides at the start, with default settings."""
    torch.manual_seed(0)
    method = Glimpse(encoder=Lite0Encoder(), heads=HEADS).eval()
    with _batch_builder(tiny_cohort) as build, torch.inference_mode():
        looks = build(range(8)).look(method.encoder)
        settled = torch.cat([look.features for look in looks])
        method.encoder.mixed.standardise.fit(settled)
        batch = build((0, 0, 1, 1))
        glimpse_tokens, tokens = _parts(method, batch)
        f = method.relate_and_pool(batch, glimpse_tokens[[0, 2, 0, 2]], tokens)[0]
    assert (f.std(0, correction=0) > 1e-4).all()
    measured = interaction(f)
    assert (measured > 1e-4).all(), measured
    assert measured.median() > 2e-3, measured


def test_an_exclusive_or_of_glimpse_and_patches_is_learned(tiny_cohort: Path) -> None:
    """The label is yes if the glimpse and the patches are of different kinds.

    Neither predicts the label alone: a sum of the two parts stays at a loss of ln 2.
    """
    torch.manual_seed(0)
    heads = (Head("unlike", 1, False, "max"),)
    method = Glimpse(encoder=SmallEncoder(width=8, dim=16), heads=heads, dropout=0.0)
    method.glimpse_dropout = 0.0
    kinds = torch.randn(2, 2, 16)
    target = torch.tensor([0.0, 1.0, 1.0, 0.0])
    optimizer = torch.optim.AdamW(method.aggregator.parameters(), lr=3e-3)
    with _load_rows(tiny_cohort, order=(0,) * 4) as batch:
        with torch.no_grad():
            _, drawn = _parts(method, batch)
        regions = drawn.regions[:1] * 4  # else where patches lie would tell images apart
        glimpse_tokens = kinds[0, [0, 1, 0, 1]]
        patches = kinds[1, [0, 0, 1, 1]].unsqueeze(1).expand(-1, len(regions[0]), -1)
        every = torch.ones(4, len(regions[0]), dtype=torch.bool)
        tokens = Tokens(patches, every, every, regions)
        for _ in range(200):
            noise = 0.1 * torch.randn_like(patches)
            f = method.relate_and_pool(
                batch, glimpse_tokens, replace(tokens, vectors=patches + noise)
            )[0]
            loss = functional.binary_cross_entropy_with_logits(f[:, 0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            f = method.eval().relate_and_pool(batch, glimpse_tokens, tokens)[0]
    assert functional.binary_cross_entropy_with_logits(f[:, 0], target) < 0.3
    assert (interaction(f) > 1.0).all()


def test_a_hidden_glimpse_does_not_change_the_output(tiny_cohort: Path) -> None:
    """In training the glimpse is hidden at times; the patches then predict without it."""
    torch.manual_seed(0)
    encoder = SmallEncoder(width=8, dim=16)
    method = Glimpse(encoder=encoder, heads=HEADS, dropout=0.0, jitter=False).train()
    answers = []
    with _load_rows(tiny_cohort, order=(0, 0)) as batch, torch.no_grad():
        glimpse_tokens, tokens = _parts(method, batch)
        other = glimpse_tokens + torch.randn_like(glimpse_tokens)
        for hidden in (1.0, 0.0):
            method.glimpse_dropout = hidden
            answers.append(
                [method.relate_and_pool(batch, w, tokens)[0] for w in (glimpse_tokens, other)]
            )
    torch.testing.assert_close(answers[0][0], answers[0][1], rtol=0, atol=0)
    assert (answers[1][0] - answers[1][1]).abs().max() > 1e-4
    assert (answers[0][0] - answers[1][0]).abs().max() > 1e-4


@pytest.mark.slow
def test_without_patch_information_it_equals_downsampled(tiny_cohort: Path) -> None:
    """Both fit the same linear model to the glimpse features of a frozen encoder."""
    task = BinaryTask(classes=("normal", "tumour"))
    cases = read_cases(tiny_cohort).cases[:12]
    answers, parts = [], []
    for kind in (Glimpse, Downsampled):
        torch.manual_seed(0)
        method = kind(encoder=Lite0Encoder(), heads=task.heads)
        with _batch_builder(tiny_cohort, FeatureStore(None)) as build:
            alone = ((case, build((row,))) for row, case in enumerate(cases))
            parts.append(fit_start(method, task, cases, alone, lambda *_: None))
            if isinstance(method, Glimpse):
                for part in (*method.aggregator.pool.heads, *method.head_instance.parts):
                    for p in part.parameters():
                        nn.init.zeros_(p)
            with torch.inference_mode():
                answers.append(torch.cat([method.eval()(build((i,))).logits for i in range(12)]))
    assert answers[0].std() > 1e-3
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)
    assert parts[0] == parts[1]
    assert parts[0].keys() == {c.image_id for c in cases}


def _parts(method: Glimpse, batch: Batch) -> tuple[Tensor, Tokens]:
    """Return the token of each glimpse ``(b, d)``, and the tokens of the patches."""
    looks = batch.look(method.encoder)
    field = method.attend(batch, [look.maps for look in looks])
    chosen = method.choice.choose_cells(batch, field, training=method.training)
    f, valid = method.read(batch, chosen.patches)
    features = torch.cat([look.features for look in looks])
    glimpse_tokens = method.embed(method.encoder.project(features).float()) + method.whole
    return glimpse_tokens, Tokens(f, valid, valid, chosen.patches)


@contextmanager
def _load_rows(table: Path, order: Sequence[int] = (0, 1)) -> Iterator[Batch]:
    """Build a batch of the images in these rows of the table."""
    with _batch_builder(table) as build:
        yield build(order)


@contextmanager
def _batch_builder(table: Path, store: FeatureStore | None = None) -> Iterator[Build]:
    """Return a function that builds batches of the images in given rows."""
    loader, cases = CaseLoader(VIEW), read_cases(table).cases
    try:
        with ThreadPoolExecutor(1) as pool:
            yield lambda order: Batch(
                [loader.load(cases[row]) for row in order],
                view=VIEW,
                normalise=((0.5,) * 3, (0.25,) * 3),
                device=torch.device("cpu"),
                pool=pool,
                store=store,
            )
    finally:
        loader.close()
