"""Iterative patch selection against scoring every patch at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from foveate.batch import Batch, Patches, View
from foveate.batch.features import FeatureStore
from foveate.encoders import build_encoder
from foveate.loading.loader import CaseLoader
from foveate.methods.ips import Ips
from foveate.nn.heads import Head
from foveate.nn.selection import normalised_scores
from foveate.table import Case
from helpers.batches import load_batch

VIEW = View(1.0, 32, 8.0, unit="px")
HEADS = (Head("which", 3, True, "sum"), Head("present", 2, False, "max"))
SIDE, STAMP = 512, 20
KEPT = 24


def canvas(folder: Path, seed: int, n: int) -> Case:
    """Write a black picture with n stamps of eight kinds."""
    rng = np.random.default_rng(seed)
    stamps = rng.integers(1, 256, (8, STAMP, STAMP)).astype(np.uint8)
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    for y, x in rng.integers(0, SIDE - STAMP, (n, 2)):
        pixels[y : y + STAMP, x : x + STAMP] = stamps[rng.integers(8)]
    path = folder / f"{seed}.png"
    Image.fromarray(pixels).save(path)
    return Case(str(seed), str(seed), path)


def method(**options: object) -> Ips:
    torch.manual_seed(0)
    built = Ips(
        encoder=build_encoder("small", {"width": 8, "dim": 16}),
        heads=HEADS,
        kept=KEPT,
        **options,  # type: ignore[arg-type]
    )
    # Away from the even attention of the beginning, so that scores differ.
    with torch.no_grad():
        built.related.pool.questions.mul_(20)
    return built.eval()


@torch.no_grad()
def best_patch_positions(built: Ips, batch: Batch, patches: Patches) -> set[tuple[float, ...]]:
    """Return the places of the M patches with most attention, from all patches at once."""
    centre, extent = batch.layout([patches], len(patches))
    tokens = (
        built.embed(built.encoder(batch.read_patches([patches])))
        + built.related.position(centre, extent)[0]
    )
    query, key = built.related.pool.query().double(), built.related.pool.keys(tokens).double()
    logits = torch.einsum("thd,nhd->thn", query, key) / query.shape[-1] ** 0.5
    attention = logits.softmax(-1).sum((0, 1))
    return places(patches, attention.topk(KEPT).indices)


def places(patches: Patches, index: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in patches.origin_um[index.numpy()]}


def run_selection(built: Ips, batch: Batch, patches: Patches) -> set[tuple[float, ...]]:
    selected, more = built._select(batch, [patches], *batch.layout([patches], len(patches)))
    assert len(more[0]) == built.buffer
    return places(patches, selected[0])


def test_a_frozen_encoder_scans_each_patch_once(
    tmp_path: Path, loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    """The same patches are selected, and no patch is read a second time."""
    cases, store, built = (
        [canvas(tmp_path, seed, 60) for seed in (1, 2)],
        FeatureStore(None),
        method(),
    )
    plain = built(load_batch(cases, loader, pool))
    first, again = (load_batch(cases, loader, pool, store) for _ in range(2))
    for batch in (first, again):
        prediction = built(batch)
        torch.testing.assert_close(prediction.logits, plain.logits, atol=5e-3, rtol=5e-3)
        for evidence, other in zip(prediction.evidence, plain.evidence, strict=True):
            shared = set(map(tuple, evidence.origin_um)) & set(map(tuple, other.origin_um))
            assert len(shared) >= KEPT - 1  # kept in half precision, the last may swap places
    assert first.seconds_reading > 0
    assert again.seconds_reading == 0


@pytest.mark.parametrize("chunk", [5, 64, 1000])
def test_any_patch_order_selects_the_global_best(
    tmp_path: Path, loader: CaseLoader, pool: ThreadPoolExecutor, chunk: int
) -> None:
    batch = load_batch([canvas(tmp_path, 1, 60)], loader, pool)
    built = method(chunk=chunk)
    (patches,) = built.bag.cover(batch, training=False)
    assert len(patches) > 3 * KEPT
    best = best_patch_positions(built, batch, patches)
    assert len(best) == KEPT
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(patches))
        assert run_selection(built, batch, patches[order]) == best


def test_nearly_equal_initial_scores_select_the_same_in_any_order(
    tmp_path: Path, loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    """Initial scores are so close that they tie in single precision.

    The whole ranking is compared, in five orders of each of eight images: the best M, for any M,
    some 5,000 selections.
    """
    for seed in range(8):
        torch.manual_seed(seed)
        encoder = build_encoder("small", {"width": 8, "dim": 16})
        built = Ips(encoder=encoder, heads=HEADS, chunk=16, kept=1).eval()
        batch = load_batch([canvas(tmp_path, seed, 100)], loader, pool)
        (patches,) = built.bag.cover(batch, training=False)
        built.buffer = len(patches) - 1
        selections = set()
        for turn in range(5):
            mixed = patches[np.random.default_rng(turn).permutation(len(patches))]
            selected, more = built._select(batch, [mixed], *batch.layout([mixed], len(mixed)))
            ranking = mixed.origin_um[torch.cat([selected[0], more[0]]).numpy()]
            selections.add(tuple(map(tuple, ranking)))
        assert len(selections) == 1, seed


def test_selection_does_not_depend_on_other_images(
    tmp_path: Path, loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    cases = [canvas(tmp_path, 2, 60), canvas(tmp_path, 3, 4), canvas(tmp_path, 4, 40)]
    built = method(chunk=16, buffer=3)
    together = built(load_batch(cases, loader, pool))
    for i, case in enumerate(cases):
        alone = built(load_batch([case], loader, pool))
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(alone.evidence[0].origin_um, together.evidence[i].origin_um)


def test_exploration_keeps_most_of_the_best_patches(
    tmp_path: Path, loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    batch = load_batch([canvas(tmp_path, 1, 60)], loader, pool)
    built = method(explore=0.25)
    (patches,) = built.bag.cover(batch, training=False)
    best = best_patch_positions(built, batch, patches)
    built.train()
    torch.manual_seed(5)
    selections = [run_selection(built, batch, patches) for _ in range(8)]
    for chosen in selections:
        assert len(chosen) == KEPT
        assert len(chosen & best) >= 0.75 * KEPT
    assert len({frozenset(chosen) for chosen in selections}) > 1


def test_buffer_patches_get_no_gradient(
    tmp_path: Path, loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    batch = load_batch([canvas(tmp_path, 1, 60)], loader, pool)
    built = method(buffer=10, instance=0.0)
    logits = built(batch).logits
    built.buffer = 0
    assert not torch.allclose(logits, built(batch).logits)
    built.buffer, recorded = 10, []

    def spy(module: object, args: tuple[Tensor, ...], output: Tensor) -> None:
        recorded.append((len(args[0]), output.requires_grad))

    handle = built.encoder.register_forward_hook(spy)
    built.train()(batch)
    handle.remove()
    # Patches without anything on them are embedded once, so there may be fewer than were asked for.
    last_trained = max(j for j, (_, trained) in enumerate(recorded) if trained)
    assert 0 < sum(n for n, trained in recorded if trained) <= KEPT
    assert 0 < sum(n for n, _ in recorded[last_trained + 1 :]) <= 10


def test_a_stored_model_predicts_images_of_another_size(
    tmp_path: Path, loader: CaseLoader, pool: ThreadPoolExecutor
) -> None:
    """Positions are physical: nothing in the weights is tied to a number of patches."""
    built, again = method(), method()
    again.load_state_dict(built.state_dict())
    small = load_batch([canvas(tmp_path, 7, 10)], loader, pool)
    large = load_batch([canvas(tmp_path, 8, 90)], loader, pool)
    for batch in (small, large):
        assert torch.equal(built(batch).logits, again(batch).logits)


def test_chunks_blocks_and_tiles_do_not_change_gradients(
    tmp_path: Path,
    loader: CaseLoader,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cases = [canvas(tmp_path, 2, 60), canvas(tmp_path, 3, 4)]
    outcomes = []
    for frugal in (False, True):
        built = method(explore=0.0, dropout=0.3, chunk=10 if frugal else 1000, layers=2).train()
        if frugal:
            monkeypatch.setattr("foveate.nn.attention._ROWS", 7)
            monkeypatch.setattr("foveate.methods.ips._MANY", 7)
            for layer in built.related.relate:
                layer.pairs = 100
        torch.manual_seed(4)
        prediction = built(load_batch(cases, loader, pool))
        alone = prediction.further["instance"].logits
        (prediction.logits.sin().sum() + alone.sin().sum()).backward()
        gradients = {n: p.grad for n, p in built.named_parameters() if p.grad is not None}
        outcomes.append((prediction.logits.detach(), gradients))
    (plain, theirs), (frugal_logits, ours) = outcomes
    torch.testing.assert_close(frugal_logits, plain, atol=1e-5, rtol=1e-5)
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("encoder.") for name in ours)
    for name, gradient in ours.items():
        error = (gradient - theirs[name]).norm()
        assert error <= 1e-4 * theirs[name].norm() + 1e-6, name


def test_scores_of_many_patches_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(50, 2, 4)
    share = logits.double().softmax(0).sum((1, 2)).log()
    for size in (7, 50, 100):
        monkeypatch.setattr("foveate.nn.selection._PATCHES", size)
        torch.testing.assert_close(normalised_scores(logits), share, atol=1e-6, rtol=1e-6)
