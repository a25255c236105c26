"""Messages of streaming about layers that look beyond a neighbourhood, with the way out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming import NotLocal, Streamed

CONV = nn.Conv2d(3, 4, 3)
FACTOR = torch.ones(4)


class Ending(nn.Module):
    """A convolution to 6 x 6 cells, and a function on its map."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = CONV, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


class Placed(nn.Module):
    """A convolution, and a parameter of one value per cell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.place = CONV, nn.Parameter(torch.zeros(4, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.place


class TwoImages(nn.Module):
    """A stack of two images."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def _read_after_overwriting(x: Tensor) -> Tensor:
    part = x[:, :, 1:]
    x.relu_()
    return part


@pytest.mark.parametrize(
    ("words", "stack"),
    [
        (
            "batch norm on batch statistics looks at the whole image: freeze it (.eval()), or "
            "replace it by layer norm over channels",
            nn.Sequential(CONV, nn.BatchNorm2d(4)).train(),
        ),
        (
            "batch norm on batch statistics looks at the whole image: freeze it (.eval())",
            Ending(lambda x: functional.batch_norm(x, FACTOR, FACTOR, training=True)),
        ),
        (
            "layer norm over space looks at the whole map: normalise channels only",
            nn.Sequential(CONV, nn.LayerNorm((6, 6))),
        ),
        ("its weights are computed from the image", Ending(lambda x: functional.conv2d(x, x))),
        (
            "a linear layer along a spatial axis looks at the whole map",
            nn.Sequential(CONV, nn.Linear(6, 5)),
        ),
        ("it moves the images of a batch", Ending(lambda x: x.permute(1, 0, 2, 3))),
        ("it moves the images of a batch", Ending(lambda x: x.transpose(0, 1))),
        ("a parameter has one value per place", Placed()),
        ("it runs along a spatial axis (dim 2)", Ending(lambda x: x.softmax(2))),
        ("it runs along the images of a batch (dim 0)", Ending(lambda x: x.softmax(0))),
        ("it picks images of a batch", Ending(lambda x: x[0:1])),
        (
            "padding_mode 'circular' joins opposite borders; use 'zeros' or 'reflect'",
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        ),
        (
            "return_indices gives positions within a part; leave it off",
            nn.Sequential(CONV, nn.MaxPool2d(2, return_indices=True)),
        ),
        (
            "mode 'bicubic' is not supported; use 'nearest' or a linear one",
            Ending(lambda x: functional.interpolate(x, scale_factor=2, mode="bicubic")),
        ),
        (
            "mode 'circular' joins opposite borders; use 'constant' or 'reflect'",
            Ending(lambda x: functional.pad(x, (1, 1, 1, 1), "circular")),
        ),
        (
            "it expects channels in dimension 1; permute them back before",
            Ending(lambda x: functional.interpolate(x.permute(0, 2, 3, 1), scale_factor=2)),
        ),
        (
            "takes 2 inputs; only one image can be streamed: wrap the stack so that forward takes "
            "that alone",
            TwoImages(),
        ),
        ("what it gives hangs on the values of the image", Ending(lambda x: x[x > 0])),
        ("it joins maps of different sizes", Ending(lambda x: x[:, :, :1] + x)),
        (
            "it overwrites a map that is read later through a view of it; compute it out of place",
            Ending(_read_after_overwriting),
        ),
    ],
)
def test_layers(words: str, stack: nn.Module) -> None:
    with pytest.raises(NotLocal) as caught:
        Streamed(stack, tile=4)(torch.zeros(1, 3, 8, 8))
    assert words in str(caught.value)


def test_layers_for_pictures_in_a_volume() -> None:
    stack = nn.Sequential(nn.Conv3d(3, 4, 1), nn.PixelShuffle(2))
    with pytest.raises(NotLocal, match="of a volume it mixes up the axes"):
        Streamed(stack, tile=4)(torch.zeros(1, 3, 8, 8, 8))
