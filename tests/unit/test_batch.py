"""Batches: crops in order, chunks read ahead, layouts, and errors of loading."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveate.batch import (
    N_COLOURS,
    Augment,
    Batch,
    Chunks,
    LoadedImage,
    Patches,
    ReadingFailed,
    View,
)
from foveate.batch import (
    chunks as chunks_module,
)
from foveate.batch.colours import describe_colours
from foveate.batch.features import FeatureStore
from foveate.encoders import build_encoder
from foveate.errors import UnreadableImage
from foveate.geometry import Box, Frame
from foveate.nn.generators import seeded
from helpers.images import PyramidImage

PATCH = 8
VIEW = View(spacing_um=1.0, patch_px=PATCH, glimpse_spacing_um=8.0)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SECONDS = 20.0


def noise_image(
    seed: int,
    shape: tuple[int, int] = (64, 96),
    *,
    channels: int = 3,
    dtype: type[np.unsignedinteger[Any]] = np.uint8,
    on_read: Callable[[tuple[int, ...]], None] | None = None,
) -> PyramidImage:
    """Return an image of noise on a black ground, one micrometre per pixel."""
    rng, top = np.random.default_rng(seed), np.iinfo(dtype).max
    pixels = rng.integers(0, top, (*shape, channels), dtype, endpoint=True)
    ground, path = (0.0,) * channels, Path(f"fake{seed}")
    return PyramidImage(pixels, path=path, background=ground, on_read=on_read)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def make_batch(images: Sequence[PyramidImage], pool: ThreadPoolExecutor, **changed: Any) -> Batch:
    items = [
        LoadedImage(f"i{k}", image, image.pixels[::8, ::8], np.full((8, 12), 255, np.uint8))
        for k, image in enumerate(images)
    ]
    options: dict[str, Any] = {"view": VIEW, "normalise": (MEAN, STD), "pool": pool}
    return Batch(items, device=torch.device("cpu"), **{**options, **changed})


def row_of(n: int, *, y: float = 0, side: float = PATCH) -> Patches:
    """Return n patches side by side, from the left."""
    origin = np.stack([np.full(n, float(y)), side * np.arange(n, dtype=np.float64)], 1)
    return Patches(origin, np.full(n, float(side)))


def read_slowly(images: Sequence[PyramidImage], patches: Sequence[Patches]) -> torch.Tensor:
    """Read and normalise every patch separately."""
    rows = []
    for image, part in zip(images, patches, strict=True):
        for origin, side in zip(part.origin_um, part.side_um, strict=True):
            box = Box(tuple(origin), (float(side),) * 2, Frame.UM)
            pixels = image.read_at(box, (PATCH, PATCH)).astype(np.float64)
            pixels = np.broadcast_to(pixels, (PATCH, PATCH, 3)) / np.iinfo(image.dtype).max
            rows.append(((pixels - MEAN) / STD).transpose(2, 0, 1))
    return torch.tensor(np.stack(rows), dtype=torch.float32)


# -- glimpses --------------------------------------------------------------------------------------


def test_colours_are_moments_and_quantiles_of_the_foreground() -> None:
    rng = np.random.default_rng(0)
    rgb = torch.from_numpy(rng.random((3, 20, 30))).float()
    weight = torch.from_numpy(rng.random((1, 20, 30)) > 0.7).float()
    chosen = rgb.numpy()[:, weight[0].numpy() > 0]
    quantiles = np.quantile(chosen, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1).T
    expected = np.concatenate([chosen.mean(1), chosen.std(1), quantiles.ravel()])
    colours = describe_colours(rgb, weight)
    assert colours.shape == (1, N_COLOURS)
    np.testing.assert_allclose(colours[0].numpy(), expected, atol=1e-5)
    # Without any foreground, all pixels count.
    torch.testing.assert_close(
        describe_colours(rgb, torch.zeros_like(weight)), describe_colours(rgb)
    )


def test_cached_glimpses_have_the_same_colours(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    images = [noise_image(seed=k) for k in range(2)]
    encoder = build_encoder("small").eval()
    plain = make_batch(images, threads).look(encoder)
    cached = make_batch(images, threads, store=FeatureStore(tmp_path)).look(encoder)
    for one, other in zip(plain, cached, strict=True):
        torch.testing.assert_close(other.overview, one.overview, rtol=2e-3, atol=2e-3)
        assert one.overview.shape == (1, encoder.n_features + N_COLOURS)


# -- crops -----------------------------------------------------------------------------------------


def test_crops_follow_patch_order_and_sides(threads: ThreadPoolExecutor) -> None:
    images = [noise_image(0), noise_image(1)]
    mixed = Patches(
        np.asarray([[0, 0], [8, 40], [16, 16], [3, 5]], np.float64),
        np.asarray([PATCH, 2 * PATCH, 4 * PATCH, 1.5 * PATCH]),
    )
    patches = [mixed, row_of(9)]
    crops = make_batch(images, threads).read_patches(patches)
    assert crops.shape == (4 + 9, 3, PATCH, PATCH)
    torch.testing.assert_close(crops, read_slowly(images, patches), atol=1e-5, rtol=0)
    expected = images[0].pixels[8:24, 40:56].astype(np.float64) / 255
    coarse = crops[1].numpy() * np.asarray(STD)[:, None, None] + np.asarray(MEAN)[:, None, None]
    assert coarse.mean((1, 2)) == pytest.approx(expected.mean((0, 1)), abs=0.03)


def test_images_of_one_batch_may_be_grey_or_colour_and_of_8_or_16_bit(
    threads: ThreadPoolExecutor,
) -> None:
    images = [
        noise_image(0),
        noise_image(1, channels=1),
        noise_image(2, channels=1, dtype=np.uint16),
        noise_image(3, dtype=np.uint16),
        noise_image(4),
    ]
    patches = [row_of(3)] * 5
    batch = make_batch(images, threads)
    crops = batch.read_patches(patches)
    torch.testing.assert_close(crops, read_slowly(images, patches), atol=1e-5, rtol=0)
    alone = [make_batch([image], threads).read_patches([row_of(3)]) for image in images]
    assert torch.equal(crops, torch.cat(alone)), "an image does not depend on its neighbours"
    chunks = batch.chunks(patches, 4)
    assert torch.equal(torch.cat([chunks(c) for c in range(len(chunks))]), crops)


def test_no_patches_give_no_crops(threads: ThreadPoolExecutor) -> None:
    batch = make_batch([noise_image(0), noise_image(1)], threads)
    none = [row_of(0), row_of(0)]
    assert batch.read_patches(none).shape == (0, 3, PATCH, PATCH)
    chunks = batch.chunks(none, 4)
    assert len(chunks) == 1
    assert chunks(0).shape == (0, 3, PATCH, PATCH)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UnreadableImage("torn"), "torn"),
        (OSError("torn"), "fake1: its content is not what its reader expects"),
        (ValueError("torn"), "fake1: its content is not what its reader expects"),
    ],
)
def test_an_unreadable_image_is_named(
    error: Exception, message: str, threads: ThreadPoolExecutor
) -> None:
    def fail(_: tuple[int, ...]) -> None:
        raise error

    images = [noise_image(0), noise_image(1, on_read=fail), noise_image(2)]
    batch = make_batch(images, threads)
    with pytest.raises(ReadingFailed, match=message) as caught:
        batch.read_patches([row_of(5)] * 3)
    assert caught.value.image_id == "i1"
    chunks = batch.chunks([row_of(5)] * 3, 5)
    assert torch.equal(chunks(0), batch.read_patches([row_of(5), row_of(0), row_of(0)]))
    with pytest.raises(ReadingFailed) as caught:
        chunks(1)
    assert caught.value.image_id == "i1"
    rest = [row_of(5), row_of(0), row_of(5)]
    torch.testing.assert_close(
        batch.read_patches(rest), read_slowly(images, rest), atol=1e-5, rtol=0
    )


# -- chunks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 5, 17, 100])
def test_chunks_are_crops_in_order_across_images(size: int, threads: ThreadPoolExecutor) -> None:
    images = [noise_image(k) for k in range(4)]
    patches = [row_of(5), row_of(0), row_of(11, y=8), row_of(1, y=16, side=2 * PATCH)]
    batch = make_batch(images, threads)
    chunks = batch.chunks(patches, size)
    parts = [chunks(c) for c in range(len(chunks))]
    assert [len(part) for part in parts] == [size] * (17 // size) + [17 % size] * (17 % size > 0)
    assert torch.equal(torch.cat(parts), batch.read_patches(patches))
    for c in reversed(range(len(chunks))):
        assert torch.equal(chunks(c), parts[c]), "the second pass sees the same, in any order"


@pytest.mark.parametrize("augment", ["slide", "picture", "warp"])
def test_both_passes_use_the_same_augmentation(
    augment: Augment, threads: ThreadPoolExecutor
) -> None:
    batch = make_batch([noise_image(0), noise_image(1)], threads, augment=augment)
    chunks = batch.chunks([row_of(7), row_of(6)], 4)
    first = [chunks(c) for c in range(4)]
    torch.rand(3)
    assert all(torch.equal(chunks(c), first[c]) for c in reversed(range(4)))
    again = batch.chunks([row_of(7), row_of(6)], 4)
    assert any(not torch.equal(again(c), first[c]) for c in range(4)), "drawn anew"


@pytest.mark.parametrize("augment", ["slide", "picture", "warp", "none"])
def test_a_batch_draws_nothing_when_it_is_made(
    augment: Augment, threads: ThreadPoolExecutor
) -> None:
    """With given generators, torch's global generator is never used."""
    encoder, before = build_encoder("small", {"width": 4, "dim": 8}), torch.get_rng_state()
    make_batch([noise_image(0)], threads, augment=augment)
    generators = seeded([1, 2])
    batch = make_batch(
        [noise_image(0), noise_image(1)], threads, augment=augment, generators=generators
    )
    for used, fresh in zip(generators, seeded([1, 2]), strict=True):
        assert torch.equal(used.get_state(), fresh.get_state())
    batch.look(encoder)
    batch.read_patches([row_of(3), row_of(2)])
    batch.layout([row_of(3), row_of(2)], 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("augment", ["slide", "picture", "warp"])
def test_random_draws_of_an_image_depend_on_its_generator_only(
    augment: Augment, threads: ThreadPoolExecutor
) -> None:
    """Draws do not depend on other images, which another process may compute."""
    images, encoder = (
        [noise_image(0), noise_image(1)],
        build_encoder("small", {"width": 4, "dim": 8}),
    )

    def seen(images: list[PyramidImage], seeds: list[int]) -> list[torch.Tensor]:
        batch = make_batch(images, threads, augment=augment, generators=seeded(seeds))
        last, patches = batch.look(encoder)[-1], [row_of(3 + k) for k in seeds]
        crops = batch.read_patches(patches)[-len(patches[-1]) :]
        chunks = batch.chunks(patches, 4)
        read = torch.cat([chunks(c) for c in range(len(chunks))])[-len(patches[-1]) :]
        return [*last.maps, last.colours, crops, read, batch.layout(patches, 9)[0][-1]]

    for together, alone in zip(seen(images, [1, 2]), seen(images[1:], [2]), strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.equal(seen(images[1:], [3])[0], seen(images[1:], [2])[0])


def test_the_next_chunk_is_read_ahead(threads: ThreadPoolExecutor) -> None:
    """The reading of chunk 1 starts before it is requested, and blocks nobody."""
    begun, released = threading.Event(), threading.Event()

    def slow(origin: tuple[int, ...]) -> None:
        if origin[1] >= 3 * PATCH:
            begun.set()
            assert released.wait(SECONDS), "never released"

    image = noise_image(0, on_read=slow)
    batch = make_batch([image], threads)
    chunks = batch.chunks([row_of(9)], 3)
    chunks(0)  # comes although every later read is held up
    assert begun.wait(SECONDS), "while chunk 0 is consumed, chunk 1 is being read"
    assert not released.is_set()
    released.set()
    assert torch.equal(chunks(1), batch.read_patches([row_of(9)[3:6]]))
    assert torch.equal(chunks(2), batch.read_patches([row_of(9)[6:9]]))
    assert batch.seconds_reading > 0


def test_each_patch_is_read_once_in_the_first_pass(threads: ThreadPoolExecutor) -> None:
    image = noise_image(0)
    chunks = make_batch([image], threads).chunks([row_of(11)], 2)
    for c in range(len(chunks)):
        chunks(c)
    assert sorted(image.reads) == [(0, PATCH * k) for k in range(11)]


def test_pixels_are_cached_up_to_a_limit(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_bytes = 2 * PATCH * PATCH * 3
    monkeypatch.setattr(chunks_module, "_PIXEL_CACHE_BYTES", 2 * patch_bytes + 5)
    image = noise_image(0, (64, 2048))
    chunks = make_batch([image], threads).chunks([row_of(200)], 2)
    first = []
    for c in range(len(chunks)):
        first.append(chunks(c))
        assert count_held_bytes(chunks) <= (2 + 2) * patch_bytes, "two kept, two being read ahead"
    image.reads.clear()
    assert all(torch.equal(chunks(c), first[c]) for c in range(len(chunks)))
    assert sorted(image.reads) == [(0, PATCH * k) for k in range(4, 200)]


def test_nothing_is_cached_without_a_second_pass(threads: ThreadPoolExecutor) -> None:
    batch = make_batch([noise_image(0)], threads)
    with torch.no_grad():
        chunks = batch.chunks([row_of(11)], 2)
        first = [chunks(c) for c in range(len(chunks))]
    assert count_held_bytes(chunks) == 0
    assert all(torch.equal(chunks(c), first[c]) for c in range(len(chunks)))


def test_chunks_skipped_by_the_second_pass_are_released(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few gradients, replay requests few chunks; those between them must be released."""
    monkeypatch.setattr(chunks_module, "_PIXEL_CACHE_BYTES", 0)
    chunks = make_batch([noise_image(0, (64, 4096))], threads).chunks([row_of(400)], 2)
    for c in range(0, len(chunks), 10):
        chunks(c)
        assert count_held_bytes(chunks) <= 2 * 2 * PATCH * PATCH * 3


def count_held_bytes(chunks: Chunks) -> int:
    """Count the bytes of all cached or prefetched pixels, after pending reads finish."""
    parts = [
        *chunks._pixels.values(),
        *([j.result() for j in jobs] for jobs in chunks._jobs.values()),
    ]
    return sum(part.nbytes for part in itertools.chain(*parts))


# -- layout ----------------------------------------------------------------------------------------


def two_images_with_patches() -> tuple[list[PyramidImage], list[Patches]]:
    """Return two images of different shape with patches of different sides."""
    second = Patches(
        np.asarray([[0, 0], [8, 8], [24, 40]], np.float64), np.asarray([8.0, 16.0, 8.0])
    )
    return [noise_image(0), noise_image(1, (40, 80))], [row_of(5, y=16), second]


def test_layout_is_in_units_of_the_finest_patch(
    threads: ThreadPoolExecutor,
) -> None:
    images, patches = two_images_with_patches()
    for augment in ("none", "warp"):
        torch.manual_seed(0)
        centre, extent = make_batch(images, threads, augment=augment).layout(patches, 6)
        assert centre.shape == (2, 6, 2)
        expected = [[(20 - 32) / 8, (4 + 8 * k - 48) / 8] for k in range(5)]
        assert centre[0].tolist() == [*expected, [0, 0]]
        expected = [[(4 - 20) / 8, (4 - 40) / 8], [(16 - 20) / 8, (16 - 40) / 8], [1.0, 0.5]]
        assert centre[1].tolist() == [*expected, *[[0, 0]] * 3]
        assert extent.tolist() == [[1] * 6, [1, 2, 1, 1, 1, 1]]


def test_layouts_are_turned_and_shifted_per_slide(
    threads: ThreadPoolExecutor,
) -> None:
    images, patches = two_images_with_patches()
    plain, extent = make_batch(images, threads).layout(patches, 6)
    turns = set()
    shifts = []
    for seed in range(40):
        torch.manual_seed(seed)
        batch = make_batch(images, threads, augment="slide")
        centre, same = batch.layout(patches, 6)
        assert torch.equal(batch.layout(patches, 6)[0], centre), "one way for the whole step"
        assert torch.equal(same, extent)
        for i, part in enumerate(patches):
            n = len(part)
            step, before = centre[i, 1:n] - centre[i, :1], plain[i, 1:n] - plain[i, :1]
            eight = {
                (transposed, *sign): (before.flip(-1) if transposed else before)
                * torch.tensor(sign, dtype=torch.float32)
                for transposed in (False, True)
                for sign in itertools.product((-1, 1), repeat=2)
            }
            length = step.norm() / before.norm()
            assert 1 / 1.11 < length < 1.11
            fits = [k for k, x in eight.items() if torch.allclose(x * length, step, atol=1e-4)]
            assert len(fits) == (1 if i else 2), "patches in one row fit two turns"
            turns.update((i, fit) for fit in fits)
            assert (centre[i, n:] == 0).all(), "padding stays where it was"
            shifts.append(centre[i, :n].mean(0))
    assert len(turns) == 16, "every image is turned, every way, on its own"
    assert 4 < torch.stack(shifts).std() < 14
    assert torch.stack(shifts).unique(dim=0).shape == (80, 2), "every image has its own shift"


def test_the_audit_shuffles_places_among_an_images_own_patches(threads: ThreadPoolExecutor) -> None:
    images, patches = two_images_with_patches()
    plain, extent = make_batch(images, threads).layout(patches, 6)
    moved = [0, 0]
    for seed in range(8):
        torch.manual_seed(seed)
        batch = make_batch(images, threads, shuffle_layout=True)
        centre, same = batch.layout(patches, 6)
        assert torch.equal(same, extent), "a patch stays as large as it is"
        for i, part in enumerate(patches):
            n = len(part)
            assert sorted(centre[i, :n].tolist()) == sorted(plain[i, :n].tolist())
            assert (centre[i, n:] == 0).all()
            moved[i] += not torch.equal(centre[i], plain[i])
        assert torch.equal(
            batch.read_patches(patches), make_batch(images, threads).read_patches(patches)
        )
    assert min(moved) >= 5
