"""Volumes slice by slice through a picture encoder."""

from __future__ import annotations

import math

import pytest
import torch

from foveate.encoders import build_encoder
from foveate.encoders.slices import SlicesEncoder, _edges, _weights
from foveate.errors import OptionError


def build(**options: object) -> SlicesEncoder:
    encoder = build_encoder("slices", {"pretrained": False, **options})
    assert isinstance(encoder, SlicesEncoder)
    return encoder.eval()


@pytest.fixture(scope="module")
def pretrained() -> SlicesEncoder:
    encoder = build_encoder("slices", {"step": 1})
    assert isinstance(encoder, SlicesEncoder)
    return encoder.eval()


@torch.inference_mode()
def maps_of(encoder: SlicesEncoder, x: torch.Tensor) -> list[torch.Tensor]:
    return encoder.maps(x)


@pytest.mark.parametrize("planes", ["axial", "three"])
@pytest.mark.parametrize("enlarge", [1, 2])
@pytest.mark.parametrize("shape", [(35, 50, 36), (64, 16, 7), (1, 40, 3)])
def test_map_cells_are_cubes_for_any_volume(
    shape: tuple[int, int, int], enlarge: int, planes: str
) -> None:
    encoder = build(planes=planes, enlarge=enlarge)
    maps = maps_of(encoder, torch.randn(2, 3, *shape))
    for map_, dim, stride in zip(maps, encoder.map_dims, encoder.strides, strict=True):
        assert map_.shape == (2, dim, *(math.ceil(n / stride) for n in shape))
    features = encoder.features(maps)
    assert features.shape == (2, sum(encoder.feature_groups))
    assert features.isfinite().all()
    assert encoder.project(features).shape == (2, encoder.dim)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_blob_is_located_along_every_axis(axis: int, pretrained: SlicesEncoder) -> None:
    """The response of each plane is centred at the blob, in the stated cell positions."""
    blob = [48.0, 48.0, 48.0]
    blob[axis] = 30.0
    lines = [torch.arange(96) + 0.5 - place for place in blob]
    square = sum(d.square() for d in torch.meshgrid(*lines, indexing="ij"))
    x = 2 * torch.exp(-square / 32) - 1
    ground = maps_of(pretrained, torch.full((1, 3, 96, 96, 96), -1.0))
    maps = maps_of(pretrained, x.expand(1, 3, -1, -1, -1))
    stages = list(zip(pretrained.strides, pretrained.map_centres_px, strict=True))
    for i, (stride, centre) in enumerate(stages):
        change = (maps[i] - ground[i]).abs()[0]
        for plane in change.chunk(3):
            response = plane.sum(0)
            best = torch.stack(torch.unravel_index(response.argmax(), response.shape))
            assert (centre + stride * best - torch.tensor(blob)).abs().max() <= stride, i
            if stride > 4:  # the whole volume answers a little
                continue
            for along in range(3):
                line = response.sum([a for a in range(3) if a != along])
                cells = centre + stride * torch.arange(len(line))
                middle = float((line * cells).sum() / line.sum())
                assert abs(middle - blob[along]) < 0.2 * stride + 0.3, (i, along)


def test_axes_are_treated_alike(pretrained: SlicesEncoder) -> None:
    """Exchanging the axes of a volume exchanges the maps of its planes.

    Slices across y of ``(z, y, x)`` are slices across z of ``(y, z, x)``.
    """
    x = torch.rand(1, 3, 20, 24, 28)
    one = maps_of(pretrained, x)
    other = maps_of(pretrained, x.transpose(2, 3))
    for a, b in zip(one, other, strict=True):
        coronal = a.chunk(3, 1)[1]
        axial = b.chunk(3, 1)[0].transpose(2, 3)
        torch.testing.assert_close(coronal, axial, rtol=1e-3, atol=1e-3)


def test_means_match_the_mean_over_all_slices() -> None:
    """Cells are weighted by the share that lies inside the volume."""
    encoder = build(step=1)
    x = torch.zeros(1, 3, 22, 40, 40)
    x[:, :, 16:] = 1.5  # the last six of 22 slices
    axial = [m.chunk(3, 1)[0] for m in maps_of(encoder, x)]
    low, high = (maps_of(encoder, x[:, :, [z]]) for z in (0, 21))
    for i, map_ in enumerate(axial):
        expected = (16 * low[i].chunk(3, 1)[0] + 6 * high[i].chunk(3, 1)[0]) / 22
        n = map_.shape[2]
        length = torch.tensor(_edges(22, n, encoder.strides[i], encoder.map_centres_px[i])).diff()
        means = (map_ * (length / 22).view(-1, 1, 1)).sum(2)
        torch.testing.assert_close(means, expected[:, :, 0], rtol=1e-3, atol=1e-3)


def test_maps_of_an_even_volume_barely_depend_on_its_size(pretrained: SlicesEncoder) -> None:
    """Border pixels are repeated, so that padding does not reveal the size of a crop.

    The mean difference of map means is compared with zero-padded slices of the same sizes.
    """
    with_borders, without = [], []
    for shape in ((18, 30, 22), (40, 33, 50)):
        x = torch.full((1, 3, *shape), 0.3)
        axial = [m.chunk(3, 1)[0].mean((0, 2, 3, 4)) for m in maps_of(pretrained, x)]
        with_borders.append(torch.cat(axial))
        with torch.inference_mode():
            flat = torch.full((1, 3, *(pretrained.enlarge * n for n in shape[1:])), 0.3)
            plain = pretrained.picture.maps(flat)
        without.append(torch.cat([plain[i].mean((0, 2, 3)) for i in pretrained.map_indices]))
    differences = [float((one - other).abs().mean()) for one, other in (with_borders, without)]
    assert differences[0] < 0.6 * differences[1]


@pytest.mark.parametrize(("n", "step", "stride"), [(31, 2, 16), (3, 2, 16), (64, 3, 4), (1, 1, 2)])
def test_every_slice_has_weight_and_rows_sum_to_one(n: int, step: int, stride: int) -> None:
    places = list(range(min(step // 2, n - 1), n, step))
    weights = _weights(places, n, stride, stride / 2)
    assert weights.shape == (math.ceil(n / stride), len(places))
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)))
    assert (weights.sum(0) > 0).all()


def test_slices_are_drawn_by_the_seed_in_training_only() -> None:
    encoder, x = build(step=2, thinning=3), torch.randn(1, 3, 30, 30, 30)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = encoder.features(maps_of(encoder, x))
    assert torch.equal(first, encoder.features(maps_of(encoder, x)))
    assert torch.equal(state, torch.get_rng_state())
    encoder.train()
    drawn = [encoder.features(maps_of(encoder, x)) for _ in range(3)]
    torch.set_rng_state(state)
    repeated = [encoder.features(maps_of(encoder, x)) for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, repeated, strict=True))
    assert not torch.equal(drawn[0], drawn[1])
    all_slices = [encoder.eval()._choose_slices(30), encoder.train()._choose_slices(30)]
    assert len(all_slices[0]) == 15
    assert len(all_slices[1]) == 5


def test_a_step_changes_exactly_the_trainable_parameters() -> None:
    encoder = build_encoder("slices", {"taught": 2}).train()
    encoder(torch.randn(2, 3, 16, 20, 24)).square().sum().backward()
    learnt = {n for n, p in encoder.named_parameters() if p.requires_grad}
    reached = {n for n, p in encoder.named_parameters() if p.grad is not None}
    assert learnt == reached
    assert any(n.startswith("picture.blocks.6") for n in learnt)
    assert not any(n.startswith(("picture.blocks.2", "picture.mixed")) for n in learnt)
    pretrained_part = {id(p) for tier in encoder.tiers() for p in tier}
    own_parameters = {n for n, p in encoder.named_parameters() if id(p) not in pretrained_part}
    assert {n for n in own_parameters if not n.startswith("picture.mixed")} == {
        "mixed.linear.weight",
        "mixed.linear.bias",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enlarge": 3}, "enlarge: got 3"),
        ({"step": 0}, "encoder.step: got 0, expected 1 or more"),
        ({"thinning": -1}, "encoder.thinning: got -1, expected 1 or more"),
        ({"picture": "small3d"}, "'small3d' reads volumes"),
        ({"step": 40}, "step: 40 voxels"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(**options)
