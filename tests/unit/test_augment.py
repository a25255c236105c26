"""Augmentation turns, moves and tints images; maps are moved back to their places."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch import Augment, Batch, LoadedImage, Patches, View
from foveate.batch.augment import AUGMENT_RANGES, Motion, Turn
from foveate.encoders.base import AbstractEncoder
from foveate.encoders.small import SmallEncoder
from foveate.nn.replay import replay
from foveate.nn.warp import resample_affine
from helpers.images import PyramidImage

KIND: dict[Augment, str] = {"slide": "slide", "picture": "picture", "volume": "volume"}
MOVED: list[Augment] = ["slide", "picture", "volume"]
STILL = {"turn": Turn(0), "small": np.eye(2), "shift": np.zeros(2), "away_patch": np.zeros(2)}


class BrightnessMaps(AbstractEncoder):
    """An encoder whose maps are the brightness around given cell centres.

    Args:
        cells: stride and first centre of each map.
        axes: of the images.
    """

    def __init__(self, cells: Sequence[tuple[int, float]], axes: int = 2) -> None:
        super().__init__()
        self.__dict__["axes"] = axes
        self.strides, self.map_centres_px = (
            tuple(brightness) for brightness in zip(*cells, strict=True)
        )
        self.map_dims, self.dim, self.mean, self.std = (1,) * len(cells), 1, (0.0,) * 3, (1.0,) * 3

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return weighted means over pixels less than a stride from each cell's centre."""
        means = []
        for stride, first in zip(self.strides, self.map_centres_px, strict=True):
            brightness = x.mean(1, keepdim=True)
            for axis in range(2, x.ndim):
                n = x.shape[axis]
                centre = first + stride * torch.arange(-(-n // stride))
                away = (centre[:, None] - torch.arange(n) - 0.5).abs()
                weight = (1 - away / stride).clamp_min(0)
                brightness = torch.movedim(torch.movedim(brightness, axis, -1) @ weight.T, -1, axis)
            means.append(brightness)
        return means

    def pool(self, maps: list[Tensor]) -> Tensor:
        """Return the mean of the finest map."""
        return maps[0].flatten(1).mean(1, keepdim=True)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def make_batch(
    images: Sequence[NDArray[np.uint8]], pool: ThreadPoolExecutor, augment: Augment, **changed: Any
) -> Batch:
    axes = images[0].ndim - 1
    kind = KIND.get(augment, "slide")
    ground, spacing_um = (40.0,) * images[0].shape[-1], (1.0,) * axes
    items = []
    for k, x in enumerate(images):
        image = PyramidImage(x, kind=kind, spacing_um=spacing_um, background=ground)
        contrast = np.where(x[..., 0] > 40, 255, 0).astype(np.uint8)
        items.append(LoadedImage(str(k), image, x, contrast))
    options: dict[str, Any] = {"normalise": ((0.0,) * 3, (1.0,) * 3), **changed}
    view = View(spacing_um=1.0, patch_px=16, glimpse_spacing_um=1.0, axes=axes)
    return Batch(
        items, view=view, device=torch.device("cpu"), pool=pool, augment=augment, **options
    )


def blob(space: Sequence[int], centre: Sequence[float], sigma: float = 4.0) -> NDArray[np.uint8]:
    """Return a bright spot around a point in pixels from the corner."""
    places = np.stack(np.indices(space), -1) + 0.5
    away = ((places - np.asarray(centre)) ** 2).sum(-1)
    pixels = 40 + 180 * np.exp(-away / (2 * sigma**2))
    return np.asarray(pixels.round()[..., None], np.uint8)


def noise(space: Sequence[int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*space, 1), np.uint8)


# -- resampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [(13, 21), (8, 9, 7)])
def test_quarter_turns_and_whole_shifts_are_exact(space: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *space)
    axes = len(space)
    one, shift = torch.eye(axes, dtype=torch.float64).repeat(2, 1, 1), torch.zeros(2, axes)
    torch.testing.assert_close(resample_affine(x, one, shift.double(), space), x, atol=1e-5, rtol=0)
    shift[1, 0] = 2
    moved = resample_affine(x, one, shift.double(), space, outside="zeros")
    torch.testing.assert_close(moved[0], x[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[1, :, :-2], x[1, :, 2:], atol=1e-4, rtol=0)
    assert moved[1, :, -2:].abs().max() < 1e-4


def test_resampling_gradients_match_a_linear_map() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(1, 2, 9, 7, requires_grad=True), torch.rand(1, 2, 9, 7)
    linear = torch.tensor([[[0.9, 0.2], [-0.1, 1.1]]], dtype=torch.float64)
    shift = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    out = resample_affine(x, linear, shift, (9, 7), stride_px=2, centre_px=0.7)
    (gradient,) = torch.autograd.grad((out * y).sum(), x)
    torch.testing.assert_close((gradient * x).sum(), (out * y).sum())
    assert resample_affine(x[:0], linear[:0], shift[:0], (3, 4)).shape == (0, 2, 3, 4)


# -- glimpses --------------------------------------------------------------------------------------

CELLS = [(4, 2.0), (2, 1.5), (8, 7.5), (4, 0.5)]
"""Stride and first centre of cells: centred, of `lite0`, and of networks with odd kernels."""


@pytest.mark.parametrize("augment", MOVED)
@pytest.mark.parametrize("space", [(96, 96), (67, 121), (40, 48, 44)])
def test_maps_show_a_blob_at_its_place_after_any_motion(
    augment: Augment, space: tuple[int, ...], threads: ThreadPoolExecutor
) -> None:
    encoder = BrightnessMaps(CELLS, axes=len(space))
    rng = np.random.default_rng(1)
    bits, moved = set(), 0
    for seed in range(24):
        torch.manual_seed(seed)
        centre = [rng.uniform(0.25 * n, 0.75 * n) for n in space]
        batch = make_batch([blob(space, centre)], threads, augment)
        assert batch.changes.motions is not None
        bits.add(batch.changes.motions[0].turn.bits)
        (look,) = batch.look(encoder)
        for map_, (stride, first) in zip(look.maps, CELLS, strict=True):
            assert map_.shape == (1, 1, *(-(-n // stride) for n in space))
            top = np.unravel_index(int(map_[0, 0].argmax()), map_.shape[2:])
            away = np.abs(first + stride * np.asarray(top) - centre)
            assert (away <= stride).all()
        plain = encoder.maps(batch._shown()[0][None])[0]
        moved += np.unravel_index(int(plain.argmax()), plain.shape[2:]) != tuple(
            np.unravel_index(int(look.maps[0].argmax()), look.maps[0].shape[2:])
        )
    assert bits == (set(range(8)) if augment == "slide" else {0, 1})
    assert moved > 12, "what is shown lies elsewhere"


@pytest.mark.parametrize(("stride", "first"), CELLS)
@pytest.mark.parametrize("space", [(96, 96), (64, 120), (67, 121)])
def test_moving_a_map_and_back_restores_it(
    stride: int, first: float, space: tuple[int, ...]
) -> None:
    """For smooth images, the remaining error follows the cell size; edges are left out."""
    encoder = BrightnessMaps([(stride, first)])
    x = torch.from_numpy(blob(space, [0.45 * space[0], 0.55 * space[1]], 14.0)).movedim(-1, 0)
    x = x.float().expand(3, -1, -1) / 255
    plain = encoder.maps(x[None])[0]
    edge = 12 // stride + 1
    inner = (..., slice(edge, -edge), slice(edge, -edge))
    for bits in range(8):
        for small, shift in itertools.product((1.0, 0.93), ([0.0, 0.0], [0.04, -0.05])):
            motion = Motion(Turn(bits), np.eye(2) * small, np.asarray(shift), np.zeros(2))
            moved = motion.show(x, torch.full((3,), 40 / 255))
            maps = encoder.maps(moved[None])[0]
            back = motion.register(maps, space, stride_px=stride, centre_px=first)
            assert back.shape == plain.shape
            torch.testing.assert_close(
                back[inner] / stride**2,
                plain[inner] / stride**2,
                atol=0.003 + stride**2 / 700,
                rtol=0,
            )


def test_turns_are_exact_for_centred_cells() -> None:
    """The sides are multiples of the stride, so that no cell is interpolated."""
    x, encoder = torch.rand(3, 32, 48), BrightnessMaps([(4, 2.0)])
    plain = encoder.maps(x[None])[0]
    for bits in range(8):
        motion = Motion(**{**STILL, "turn": Turn(bits)})
        torch.testing.assert_close(motion.show(x), Turn(bits).apply(x), atol=1e-5, rtol=0)
        maps = encoder.maps(motion.show(x)[None])[0]
        back = motion.register(maps, (32, 48), stride_px=4, centre_px=2.0)
        torch.testing.assert_close(back, plain, atol=1e-3, rtol=0)


def test_turned_points_match_turned_pixels() -> None:
    space, point = (20, 30), np.asarray([4.5, 21.5])
    x = torch.zeros(1, *space)
    x[0, 4, 21] = 1
    for bits in range(8):
        turned = Turn(bits).apply(x)[0]
        at = np.asarray(np.unravel_index(int(turned.argmax()), turned.shape)) + 0.5
        middle = np.asarray(turned.shape) / 2
        actual = Turn(bits).linear(2) @ (point - np.asarray(space) / 2) + middle
        np.testing.assert_allclose(actual, at)


def test_pixels_outside_the_glimpse_are_background(threads: ThreadPoolExecutor) -> None:
    plain = np.full((50, 70, 1), 40, np.uint8)
    for augment, seed in itertools.product(MOVED[:2], range(4)):
        torch.manual_seed(seed)
        (glimpse,) = make_batch([plain], threads, augment)._shown()
        torch.testing.assert_close(
            glimpse, glimpse[:, :1, :1].expand_as(glimpse), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("seed", range(6))
def test_the_foreground_mask_moves_with_the_glimpse(seed: int, threads: ThreadPoolExecutor) -> None:
    x = np.full((64, 90, 1), 40, np.uint8)
    x[10:30, 50:80] = 200
    torch.manual_seed(seed)
    batch = make_batch([x], threads, "slide")
    batch.changes.tints = None
    weight, (glimpse,) = batch._foreground(0), batch._shown()
    assert weight is not None
    assert weight.shape == (1, *glimpse.shape[1:])
    torch.testing.assert_close(weight[0], (glimpse[0] * 255 - 40) / 160, atol=1e-4, rtol=0)
    assert make_batch([x], threads, "picture")._foreground(0) is None


def test_shifts_keep_the_tissue_of_slides_in_sight(threads: ThreadPoolExecutor) -> None:
    """If the scaled tissue does not fit, equal amounts are lost on both sides."""
    x = np.full((80, 120, 1), 40, np.uint8)
    x[5:15, 90:119] = 200
    pixels = np.full((80, 120, 1), 200, np.uint8)
    for seed in range(24):
        torch.manual_seed(seed)
        batch = make_batch([x, pixels], threads, "slide")
        assert batch.changes.motions is not None
        areas = [float(np.linalg.det(motion.small)) for motion in batch.changes.motions]
        near, full = batch._foreground(0), batch._foreground(1)
        assert near is not None
        assert full is not None
        assert float(near.sum()) == pytest.approx(290 * areas[0], rel=0.05)
        if areas[1] > 1:
            torch.testing.assert_close(full, full.flip((-1, -2)), atol=1e-3, rtol=0)
        else:
            assert float(full.sum()) == pytest.approx(9600 * areas[1], rel=0.02)


def test_gradients_flow_through_restored_maps(threads: ThreadPoolExecutor) -> None:
    encoder = SmallEncoder(width=4, dim=8)
    torch.manual_seed(0)
    looks = make_batch([noise((40, 64)), noise((40, 64), 1)], threads, "slide").look(encoder)
    sum(m.square().sum() for look in looks for m in look.maps).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.stages.parameters())


def test_pixel_network_maps_are_restored_too(threads: ThreadPoolExecutor) -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        batch = make_batch([blob((60, 80), (20.5, 51.5))], threads, "slide")
        ((pixel_map,),) = batch.pixel_maps(lambda x: [x.mean(1, keepdim=True)])
        assert pixel_map.shape == (1, 1, 60, 80)
        top = np.unravel_index(int(pixel_map.argmax()), (60, 80))
        assert np.abs(np.asarray(top) - (20, 51)).max() <= 1


def test_nothing_is_drawn_or_changed_without_augmentation(threads: ThreadPoolExecutor) -> None:
    encoder = SmallEncoder(width=4, dim=8)
    x = noise((40, 64))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batch = make_batch([x], threads, "none")
    patches = [Patches(np.asarray([[3.0, 8.0]]), np.asarray([16.0]))]
    (look,), crop = batch.look(encoder), batch.read_patches(patches)
    assert torch.equal(torch.get_rng_state(), before)
    plain = torch.from_numpy(x).movedim(-1, 0).expand(3, -1, -1) / 255
    assert torch.equal(batch.glimpses()[0], plain)
    assert torch.equal(crop[0], plain[:, 3:19, 8:24])
    expected = encoder.maps(plain[None].contiguous(memory_format=torch.channels_last))
    assert all(torch.equal(a, b) for a, b in zip(look.maps, expected, strict=True))


@pytest.mark.parametrize("augment", MOVED)
def test_a_seed_replays_a_step(augment: Augment, threads: ThreadPoolExecutor) -> None:
    encoder = SmallEncoder(width=4, dim=8)
    images = [noise((40, 64)), noise((48, 48), 1)]
    patches = [Patches(np.asarray([[3.0, 8.0], [20.0, 9.0]]), np.full(2, 16.0))] * 2

    def step(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        batch = make_batch(images, threads, augment)
        looks = batch.look(encoder)
        return [
            *looks[1].maps,
            looks[0].features,
            batch.read_patches(patches),
            *batch.layout(patches, 2),
        ]

    first = step(1)
    assert all(torch.equal(a, b) for a, b in zip(first, step(1), strict=True))
    assert not any(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first[:-1], step(2), strict=False)
    )


# -- patches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", MOVED)
def test_patches_turn_with_their_image_and_scale_independently(
    augment: Augment, threads: ThreadPoolExecutor
) -> None:
    """An off-centre spot in each patch moves as in the glimpse and the layout."""
    spot = np.asarray([2.5, 4.5])
    images = [blob((32, 48), (8 + spot[0], 8 + spot[1]), 1.5)] * 2
    part = Patches(np.zeros((6, 2)), np.full(6, 16.0))
    sizes: list[float] = []
    for seed in range(12):
        torch.manual_seed(seed)
        batch = make_batch(images, threads, augment)
        assert batch.changes.motions is not None
        crops = batch.read_patches([part, part]).mean(1)
        for n, crop in enumerate(crops):
            mass = (crop - crop.min()).double() ** 2
            places = torch.stack(torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij"))
            at = (places * mass).sum((1, 2)) / mass.sum() + 0.5 - 8
            turned = batch.changes.motions[n // 6].turn.linear(2) @ spot
            size = float(at.norm()) / np.linalg.norm(spot)
            sizes.append(size)
            assert 0.85 < size < 1.15
            cosine = float(at @ torch.from_numpy(turned)) / float(at.norm()) / np.hypot(*spot)
            assert cosine > np.cos(np.radians(AUGMENT_RANGES[augment].degrees + 3))
    assert np.std(sizes) > 0.03, "every patch has its own size"
    plain = batch.read_patches([part, part], augment=False)
    assert torch.equal(plain[0], torch.from_numpy(images[0][:16, :16, 0]).expand(3, -1, -1) / 255)


def test_the_layout_follows_the_augmented_glimpse(threads: ThreadPoolExecutor) -> None:
    space = (64, 112)
    for seed in range(12):
        torch.manual_seed(seed)
        centre = np.random.default_rng(seed).uniform(16, 48, 2)
        batch = make_batch([blob(space, centre, 2.0)], threads, "picture")
        part = Patches(centre[None] - 8, np.asarray([16.0]))
        position = batch.layout([part], 1)[0][0, 0] * 16
        (glimpse,) = batch._shown()
        top = np.asarray(np.unravel_index(int(glimpse[0].argmax()), glimpse.shape[1:])) + 0.5
        assert np.abs(position.numpy() - (top - np.asarray(glimpse.shape[1:]) / 2)).max() < 1.5


def test_patches_of_one_colour_stay_of_one_colour(threads: ThreadPoolExecutor) -> None:
    """Such patches are embedded only once, which a rounding error would prevent."""
    x = np.full((64, 64, 1), 40, np.uint8)
    part = Patches(np.zeros((9, 2)), np.full(9, 16.0))
    torch.manual_seed(0)
    for augment in MOVED[:2]:
        crops = make_batch([x], threads, augment).read_patches([part])
        assert torch.equal(crops, crops[..., :1, :1].expand_as(crops))
        assert torch.equal(crops, crops[:1].expand_as(crops))


def test_both_passes_of_replay_see_the_same_pixels(threads: ThreadPoolExecutor) -> None:
    part = Patches(np.random.default_rng(0).uniform(0, 40, (7, 2)).round(), np.full(7, 16.0))
    torch.manual_seed(0)
    batch = make_batch([noise((64, 64)), noise((64, 64), 1)], threads, "slide")
    chunks = batch.chunks([part, part], 4)
    seen: list[Tensor] = []

    def load(c: int) -> Tensor:
        seen.append(chunks(c))
        return seen[-1]

    layer = torch.nn.Linear(3 * 16 * 16, 2)
    replay(lambda x: layer(x.flatten(1)), list(layer.parameters()), load, 4).sum().backward()
    assert len(seen) == 8
    assert all(torch.equal(a, b) for a, b in zip(seen[:4], seen[4:], strict=True))


# -- colour ----------------------------------------------------------------------------------------


def test_stain_augmentation_keeps_glass_and_grey_colourless(
    threads: ThreadPoolExecutor,
) -> None:
    def tinted(augment: Augment, *rgb: float) -> Tensor:
        pixel = torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)
        torch.manual_seed(0)
        batch = make_batch([noise((16, 16))] * 200, threads, augment)
        assert batch.changes.tints is not None
        return batch.changes.tints.apply(pixel.expand(200, -1, 1, 1), range(200)).flatten(1)

    glass, tissue = tinted("slide", 0.9, 0.9, 0.9), tinted("slide", 0.6, 0.3, 0.5)
    assert (tissue - torch.tensor([0.6, 0.3, 0.5])).abs().max() < 0.15
    ratio = tissue / glass
    assert ratio.std(0).min() > 0.02, "apart from gain, tissue changes its colour"
    for augment in MOVED[1:]:
        grey = tinted(augment, 0.5, 0.5, 0.5)
        torch.testing.assert_close(grey, grey[:, :1].expand_as(grey))
        assert 0.02 < grey.std() < 0.15
    assert tinted("volume", 0, 0, 0).max() < 0.051
    for augment in (*MOVED, "warp"):
        every = tinted(augment, 1.0, 0.0, 0.7)
        assert 0 <= every.min() <= every.max() <= 1
