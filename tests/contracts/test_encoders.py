"""What every encoder promises, asked of every encoder that is found.

Encoders are built as for a stored model: with their default options, without reading weights.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder, ProjectedEncoder, without_weights
from foveate.errors import UnknownName
from foveate.parts import find, names
from foveate.parts.options import options

ENCODERS = [name for name in names("encoders") if find("encoders", name).reads_pixels]
"""All but `stored`, which projects the vectors of files and sees no pixels."""
BY_RESPONSE = {"lite0", "slices"}
"""Encoders whose centres are those of the trained network's response; it pads on one side, so that
receptive fields lie up to half a stride off. `test_lite0.py` and `test_slices.py` measure them."""


@functools.cache
def _build(name: str, local: bool) -> AbstractEncoder:
    torch.manual_seed(0)
    part = find("encoders", name)
    norm = {"norm": "local"} if local and "norm" in options(part) else {}
    with without_weights():
        encoder: AbstractEncoder = part(**norm)
    return encoder.eval()


def build(name: str, *, local: bool = False) -> AbstractEncoder:
    """An encoder in evaluation mode; `local` for norms that look at one cell, where it has them."""
    return copy.deepcopy(_build(name, local))


def image(encoder: AbstractEncoder, *space: int, n: int = 1) -> Tensor:
    """Noise ``(n, 3, *space)``, of the first axes of `space` that the encoder has."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, *space[: encoder.axes], generator=generator)


@torch.no_grad()
def maps_of(encoder: AbstractEncoder, x: Tensor) -> list[Tensor]:
    return encoder.maps(x)


def cell_centres(encoder: AbstractEncoder, i: int, n: int) -> Tensor:
    """Centres of the n cells of map i along an axis, in pixels."""
    return encoder.map_centres_px[i] + encoder.strides[i] * torch.arange(n)


@pytest.mark.parametrize("name", ENCODERS)
def test_maps_features_and_vector_have_the_sizes_stated(name: str) -> None:
    encoder = build(name)
    x = image(encoder, 45, 31, 18, n=2)
    assert len(encoder.strides) == len(encoder.map_dims) == len(encoder.map_centres_px)
    assert list(encoder.strides) == sorted(encoder.strides)
    with torch.no_grad():
        maps = encoder.maps(x)
        features = encoder.features(maps)
        vector = encoder.project(features)
        whole = encoder(x)
    for map_, dim, stride in zip(maps, encoder.map_dims, encoder.strides, strict=True):
        assert map_.shape == (2, dim, *(math.ceil(n / stride) for n in x.shape[2:]))
        assert map_.isfinite().all()
    assert features.shape == (2, encoder.n_features)
    assert sum(encoder.feature_groups) in (0, encoder.n_features)
    assert vector.shape == (2, encoder.dim)
    torch.testing.assert_close(vector, whole)


@pytest.mark.parametrize("name", ENCODERS)
def test_cells_lie_where_the_encoder_says(name: str) -> None:
    """A pixel that is changed changes cells around it, in the mean over pixels of one stride.

    Along the first axis, on all maps whose cells are reached by a pixel of the middle alone.
    """
    encoder = build(name, local=True).double()
    phases, side = (8, 192) if encoder.axes == 2 else (4, 96)
    x = image(encoder, side, 12, 12).double()
    middle = x.shape[2] // 2
    changed = x.repeat(phases, *(1 for _ in x.shape[1:]))
    for phase in range(phases):
        changed[phase, :, middle + phase, 6] += 10.0
    before, after = maps_of(encoder, x), maps_of(encoder, changed)
    checked = 0
    for i, (one, other) in enumerate(zip(before, after, strict=True)):
        reached = ((other - one).abs() > 1e-12).flatten(3).any(-1).any(1)
        if encoder.strides[i] > phases or reached[:, [0, -1]].any():
            continue
        centres, off = cell_centres(encoder, i, reached.shape[1]), []
        for phase, cells in enumerate(reached):
            at = centres[cells]
            off.append(float(at.min() + at.max()) / 2 - (middle + phase + 0.5))
        allowed = (0.51 if name in BY_RESPONSE else 0.05) * encoder.strides[i]
        assert abs(sum(off) / len(off)) <= allowed, (i, encoder.map_centres_px[i])
        checked += 1
    assert checked


@pytest.mark.parametrize("name", [n for n in ENCODERS if n != "slices"])
def test_a_part_of_an_image_has_the_maps_that_the_image_has_there(name: str) -> None:
    """Wherever a cell does not see the border of the part; `slices` pads its borders by itself."""
    encoder = build(name, local=True).double()
    assert encoder.local
    side, begin, end = (192, 32, 160) if encoder.axes == 2 else (128, 32, 96)
    x = image(encoder, side, 12, 12).double()
    whole, part = maps_of(encoder, x), maps_of(encoder, x[:, :, begin:end])
    shifted = x.clone()
    shifted[:, :, [begin - 1, end]] += 10.0
    outside = maps_of(encoder, shifted)
    checked = 0
    for i, stride in enumerate(encoder.strides):
        here = slice(begin // stride, end // stride)
        seen = ((outside[i] - whole[i])[:, :, here].abs() > 1e-12).flatten(3).any(-1).any(1)[0]
        for k in (~seen).nonzero()[:, 0].tolist():
            torch.testing.assert_close(part[i][:, :, k], whole[i][:, :, here][:, :, k])
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize("name", ENCODERS)
def test_evaluation_is_deterministic_and_independent_of_the_batch(name: str) -> None:
    encoder = build(name)
    x = image(encoder, 45, 31, 18, n=2)
    with torch.no_grad():
        torch.manual_seed(1)
        first = encoder(x)
        torch.manual_seed(2)
        assert torch.equal(encoder(x), first)
        for i in range(2):
            torch.testing.assert_close(encoder(x[i : i + 1])[0], first[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("name", ENCODERS)
def test_copies_and_pickles(
    name: str, copied: Callable[[AbstractEncoder], AbstractEncoder]
) -> None:
    encoder = build(name)
    x = image(encoder, 32, 18, 18)
    with torch.no_grad():
        assert torch.equal(copied(encoder)(x), encoder(x))
    again = copied(encoder)
    assert (again.strides, again.map_centres_px) == (encoder.strides, encoder.map_centres_px)
    assert [len(tier) for tier in again.tiers()] == [len(tier) for tier in encoder.tiers()]


@pytest.mark.parametrize("name", ENCODERS)
def test_tiers_hold_every_trained_parameter_of_a_pretrained_network_once(name: str) -> None:
    """All but the projection, which is learnt from the first step on."""
    encoder = build(name)
    tiers = [id(p) for p in itertools.chain(*encoder.tiers())]
    assert len(tiers) == len(set(tiers))
    assert set(tiers) <= {id(p) for p in encoder.parameters()}
    assert bool(tiers) == isinstance(encoder, ProjectedEncoder)
    if tiers:
        rest = {n for n, p in encoder.named_parameters() if p.requires_grad and id(p) not in tiers}
        assert rest == {f"mixed.{n}" for n, _ in encoder.mixed.named_parameters()}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_reaches_every_trained_parameter_and_no_other(name: str) -> None:
    encoder = build(name).train()
    trained = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    encoder(image(encoder, 32, 32, 32)).square().sum().backward()
    for n, p in encoder.named_parameters():
        if n in trained:
            assert p.grad is not None, n
            assert p.grad.isfinite().all(), n
        else:
            assert p.grad is None, n
    learning = [tier for tier in encoder.tiers() if any(p.requires_grad for p in tier)]
    for tier in learning:
        assert any(p.grad is not None and p.grad.any() for p in tier)


@pytest.mark.parametrize("name", [n for n in ENCODERS if n != "timm"])
def test_a_name_that_is_nearly_right_is_told(name: str) -> None:
    with pytest.raises(UnknownName, match=f"Did you mean '{name}'"):
        build_encoder(name[:-1] + "_" + name[-1])
