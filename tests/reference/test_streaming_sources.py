"""Streaming from files: images are read region by region and background is skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import Tensor, nn

from foveate.batch import Augment, Batch, View
from foveate.encoders import build_encoder
from foveate.loading.loader import CaseLoader
from foveate.methods.streaming_cnn import StreamingCnn
from foveate.nn.heads import Head
from foveate.streaming import AbstractSource, Region, Streamed, TooLittleMemory
from foveate.streaming.base import Flags, Span
from foveate.table import Case

VIEW = View(spacing_um=1.0, patch_px=64, glimpse_spacing_um=8.0)
NORMALISE = ((0.5, 0.4, 0.6), (0.25, 0.2, 0.3))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a white slide with two pieces of coloured noise and odd sides."""
    rng = np.random.default_rng(3)
    pixels = np.full((611, 845, 3), 255, np.uint8)
    pixels[96:180, 100:260] = rng.integers(40, 160, (84, 160, 3))
    pixels[400:450, 700:760] = rng.integers(40, 160, (50, 60, 3))
    path = tmp_path_factory.mktemp("whole") / "slide.tif"
    tifffile.imwrite(
        path, pixels, tile=(128, 128), resolution=(10000, 10000), resolutionunit="CENTIMETER"
    )
    return path


def load_copies(loader: CaseLoader, path: Path, n: int = 1, augment: Augment = "none") -> Batch:
    items = [loader.load(Case(str(i), str(i), path, spacing_um=(1.0, 1.0))) for i in range(n)]
    pool: ThreadPoolExecutor = loader.threads
    return Batch(items, view=VIEW, normalise=NORMALISE, device=CPU, pool=pool, augment=augment)


def normalised(path: Path) -> Tensor:
    pixels = torch.from_numpy(tifffile.imread(path)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in NORMALISE)
    return (pixels - mean) / std


def test_regions_of_a_turned_image_match_the_turned_array(slide: Path, loader: CaseLoader) -> None:
    plain = normalised(slide)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        batch = load_copies(loader, slide, augment="slide")
        batch.changes.tints = None
        reader = batch.whole(0, skip_background=False)
        bits = reader.turn.bits
        seen.add(bits)
        turned = plain.flip(-1) if bits & 1 else plain
        turned = turned.flip(-2) if bits & 2 else turned
        turned = turned.transpose(-1, -2) if bits & 4 else turned
        assert reader.shape == tuple(turned.shape)
        h, w = turned.shape[1:]
        regions: list[Region] = [((0, h), (0, w)), ((5, 77), (w - 40, w)), ((300, 301), (0, 9))]
        for region, crop in zip(regions, reader.crops(regions), strict=True):
            (a, b), (c, d) = region
            torch.testing.assert_close(crop[0], turned[:, a:b, c:d], atol=1e-6, rtol=0)
    assert seen == set(range(8))


@pytest.mark.slow
def test_block_background_matches_the_glimpse(slide: Path, loader: CaseLoader) -> None:
    """Compare with slices of the turned glimpse, one pixel larger on every side."""
    results = {}
    rng = np.random.default_rng(0)
    for seed in range(40):
        torch.manual_seed(seed)
        source = load_copies(loader, slide, augment="slide").whole(0, skip_background=True)
        bits = source.turn.bits
        spans = []
        for n in source.shape[1:]:
            low = rng.integers(0, n, 30)
            spans.append((low, np.minimum(low + rng.integers(1, 90, 30), n)))
        blank = source.blank(spans)
        foreground = torch.from_numpy(source.item.contrast != 0)
        # Glimpse pixels are counted from the stored corner, which a mirror puts elsewhere.
        pixels = foreground.repeat_interleave(8, 0).repeat_interleave(8, 1)[:611, :845]
        near = nn.functional.max_pool2d(pixels[None].float(), 23, 1, 11)[0] > 0
        turned = source.turn.apply(near[None])[0]
        inner = source.turn.apply(pixels[None])[0]
        for i, (a, b) in enumerate(zip(*spans[0], strict=True)):
            for k, (c, d) in enumerate(zip(*spans[1], strict=True)):
                assert not (blank[i, k] and inner[a:b, c:d].any())
                assert blank[i, k] or turned[a:b, c:d].any()
        results[bits] = float(blank.mean())
    assert set(results) == set(range(8))
    assert all(0.2 < share < 0.98 for share in results.values())


def test_background_is_computed_once_without_reading(slide: Path, loader: CaseLoader) -> None:
    """The slide's background is one colour, so leaving it out changes nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 5, 2, 2), nn.Tanh(), nn.Conv2d(4, 6, 3, 2, 1), nn.Tanh(), nn.MaxPool2d(2)
    )
    x = normalised(slide)[None]
    y = net(x)
    weight = torch.randn_like(y)
    plain = torch.autograd.grad((y * weight).sum(), list(net.parameters()))
    streamed = Streamed(net, tile=48)
    batch = load_copies(loader, slide)
    source = batch.whole(0, skip_background=True)
    before = batch.items[0].image.count.asked_px
    z = streamed(source)
    torch.testing.assert_close(z, y, atol=1e-5, rtol=0)
    ours = torch.autograd.grad((z * weight).sum(), list(net.parameters()))
    for a, b in zip(plain, ours, strict=True):
        torch.testing.assert_close(b, a, atol=2e-4 * float(a.abs().max()), rtol=0)
    tiles = 13 * 18
    assert streamed.counts["forward"] < tiles / 2
    assert streamed.counts["backward"] < tiles / 2
    assert batch.items[0].image.count.asked_px - before < 0.5 * 2 * 611 * 845


class Patterned(AbstractSource):
    """A map in memory whose left half counts as background."""

    has_blank = True

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.shape, self.device, self.dtype = tuple(x.shape[1:]), x.device, x.dtype

    def crops(self, regions: Sequence[Region]) -> Iterator[Tensor]:
        for (a, b), (c, d) in regions:
            assert d > self.shape[2] // 2, "background was read"
            yield self.x[:, :, a:b, c:d]

    def blank(self, spans: Sequence[Span]) -> Flags:
        (rows, _), (_, high) = spans
        return np.broadcast_to(high <= self.shape[2] // 2, (len(rows), len(high)))

    def background(self) -> Tensor:
        return torch.tensor([0.3, -0.2], dtype=self.dtype)


@pytest.mark.parametrize("tile", [16, 24, 40])
def test_background_tiles_at_borders_are_merged_only_if_equal(tile: int) -> None:
    """Padding and the phase of up-sampling make tiles differ: only equal tiles are merged."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 131, 206, dtype=torch.double)
    x[..., :103] = torch.tensor([0.3, -0.2], dtype=torch.double).view(2, 1, 1)
    for net in (
        nn.Sequential(nn.Conv2d(2, 3, 4, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1)),
        nn.Sequential(
            nn.Conv2d(2, 3, 3, 2, 1), nn.Tanh(), nn.ConvTranspose2d(3, 2, 3, 2), nn.Tanh()
        ),
    ):
        net.double()
        y = net(x)
        weight = torch.randn_like(y)
        plain = torch.autograd.grad((y * weight).sum(), list(net.parameters()))
        streamed = Streamed(net, tile=tile)
        z = streamed(Patterned(x))
        torch.testing.assert_close(z, y, atol=1e-12, rtol=0)
        ours = torch.autograd.grad((z * weight).sum(), list(net.parameters()))
        for a, b in zip(plain, ours, strict=True):
            torch.testing.assert_close(b, a, atol=1e-10 * float(a.abs().max()), rtol=0)


def test_the_method_matches_the_plain_network(slide: Path, loader: CaseLoader) -> None:
    """Compare logits and gradients in many tiles, in two segments, and at once."""
    results = []
    for options in ({"tile": 128}, {"budget_mib": 24}, {"budget_mib": 4096}):
        torch.manual_seed(0)
        encoder = build_encoder("small", {"width": 8, "norm": "local"})
        head = (Head("class", 2, True, "max"),)
        method = StreamingCnn(
            encoder=encoder, heads=head, dropout=0.0, skip_background=False, **options
        )
        method.train()
        prediction = method(load_copies(loader, slide, n=2))
        prediction.logits.square().sum().backward()
        results.append((prediction.logits.detach(), [p.grad for p in method.parameters()]))
    for logits, gradients in results[1:]:
        torch.testing.assert_close(logits, results[0][0], atol=1e-5, rtol=1e-4)
        for a, b in zip(gradients, results[0][1], strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                # Shares do not depend on the bias of their scores, whose gradient is only rounding.
                torch.testing.assert_close(a, b, atol=1e-3 * float(b.abs().max()) + 1e-7, rtol=0)


def test_a_long_step_reports_its_progress(slide: Path, loader: CaseLoader) -> None:
    """The share counts all images of a batch, and the backward pass; in prediction, one image."""
    encoder = build_encoder("small", {"width": 8, "norm": "local"})
    head = (Head("class", 2, True, "max"),)
    method = StreamingCnn(encoder=encoder, heads=head, tile=128, skip_background=False)
    batch, shares = load_copies(loader, slide, n=2), list[float]()
    batch.on_progress = shares.append
    prediction = method.train()(batch)
    forward = len(shares)
    assert forward > 8
    assert 0.2 < shares[-1] < 0.7
    prediction.logits.sum().backward()
    assert len(shares) > 1.5 * forward
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    shares.clear()
    with torch.inference_mode():
        method.eval()(batch)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)


def test_too_little_memory_is_an_error_before_reading(slide: Path, loader: CaseLoader) -> None:
    batch = load_copies(loader, slide)
    encoder = build_encoder("resnet18", {"pretrained": False, "norm": "local"})
    method = StreamingCnn(encoder=encoder, heads=(Head("class", 2, True, "max"),), budget_mib=1)
    before = batch.items[0].image.count.asked_px
    with pytest.raises(TooLittleMemory, match=r"one output cell holds about \d+ MiB"):
        method(batch)
    assert batch.items[0].image.count.asked_px == before


@pytest.mark.parametrize("skip", [False, True])
def test_evidence_covers_the_image_or_its_foreground(
    skip: bool, slide: Path, loader: CaseLoader
) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("small", {"width": 8, "norm": "local"})
    head = (Head("class", 2, True, "max"),)
    method = StreamingCnn(encoder=encoder, heads=head, skip_background=skip).eval()
    with torch.inference_mode():
        (evidence,) = method(load_copies(loader, slide)).evidence
    assert evidence.weight.sum() == pytest.approx(1.0)
    assert (evidence.size_um == 32).all()
    covered = np.zeros((672, 896), np.int64)
    for row, column in evidence.origin_um.astype(int):
        covered[row : row + 32, column : column + 32] += 1
    assert covered.max() == 1, "cells are disjoint"
    assert covered[96:180, 100:260].all()
    assert covered[400:450, 700:760].all()
    if skip:
        # A pixel of the glimpse around, in whole cells.
        assert covered.sum() < (84 + 96) * (160 + 96) + (50 + 96) * (60 + 96)
    else:
        assert covered[:611, :845].all()
        assert len(evidence.weight) == 20 * 27
