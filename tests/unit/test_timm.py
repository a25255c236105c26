"""Networks of timm: which are accepted, and where the cells of their maps lie."""

from __future__ import annotations

import pytest

from foveate.encoders import build_encoder
from foveate.errors import UnknownName


@pytest.mark.parametrize("name", ["mixer_s32_224", "levit_128s", "eva02_tiny_patch14_224"])
def test_networks_with_a_fixed_input_size_are_refused(name: str) -> None:
    with pytest.raises(UnknownName, match=f"'{name}' does not take images of any size") as refused:
        build_encoder(name, {"pretrained": False})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "stages", "centres"),
    [
        ("resnet10t", 4, (0.5, 0.5, 0.5, 0.5)),
        # Pooling over two cells moves the centre by half a cell each time.
        ("vgg11_bn", 4, (0.5, 1.0, 2.0, 4.0)),
        ("densenet121", 3, (0.5, 0.5, 2.5)),
        ("convnext_atto", 2, (2.0, 4.0)),
    ],
)
def test_cell_centres_follow_the_layers(name: str, stages: int, centres: tuple[float, ...]) -> None:
    encoder = build_encoder(name, {"pretrained": False, "stages": stages})
    assert encoder.map_centres_px == centres
