"""Messages of streaming: which operation of a stack is refused, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from foveate.errors import OptionError
from foveate.streaming import NotLocal, Streamed


class Ending(nn.Module):
    """A convolution and a function on its map."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function
        self.register_buffer("table", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


class Overwriting(Ending):
    """A stack that overwrites what it computes from its parameters."""

    def forward(self, x: Tensor) -> Tensor:
        shift = self.table + 1
        shift.add_(1)
        return self.conv(x) + shift


def _out(x: Tensor) -> Tensor:
    return torch.add(x, 1, out=x)


@pytest.mark.parametrize(
    ("words", "stack"),
    [
        ("it writes into another map (out=...)", Ending(_out)),
        ("it pads channels", Ending(lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1)))),
        (
            "antialiased interpolation is not supported; leave antialias off",
            Ending(
                lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear", antialias=True)
            ),
        ),
        (
            "joins opposite borders; use",
            Ending(lambda x: functional.pad(x, (1, 1, 1, 1), "circular")),
        ),
        (
            "it picks single cells or dimensions; only slices keep a map a map",
            Ending(lambda x: x[:, :, 0]),
        ),
        (
            "it cuts channels and space at once; cut one after the other",
            Ending(lambda x: x[:, 1:3, 1:3]),
        ),
        (
            "it changes the number of dimensions; use keepdim=True",
            Ending(lambda x: x.mean(1)),
        ),
        ("it exchanges spatial axes", Ending(lambda x: x.transpose(2, 3))),
        (
            "the stack must return a map (b, c, *space)",
            Ending(lambda x: x.permute(0, 2, 3, 1)),
        ),
        (
            "the stack must return one map; wrap it so that it returns only that",
            Ending(lambda x: (x, x)),  # type: ignore[arg-type, return-value]
        ),
        (
            "it looks at more than a neighbourhood, or is unknown",
            Ending(lambda x: torch.cumsum(x, 2)),
        ),
        (
            "it looks at more than a neighbourhood, or is unknown",
            nn.Sequential(nn.AdaptiveMaxPool2d(1)),
        ),
        ("'mT' of a map is not known", Ending(lambda x: x.mT)),
        (
            "stochastic depth in mode 'batch' drops all images at once; use 'row'",
            nn.Sequential(nn.Conv2d(3, 4, 3), StochasticDepth(0.5, "batch")).train(),
        ),
        ("it overwrites what is computed from parameters", Overwriting(torch.relu)),
    ],
)
def test_operations(words: str, stack: nn.Module) -> None:
    with pytest.raises(NotLocal) as caught:
        Streamed(stack, tile=4)(torch.zeros(1, 3, 8, 8))
    assert words in str(caught.value)


def test_options(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(OptionError, match="none is no folder; make it first"):
        Streamed(conv, scratch=tmp_path / "none")
    with pytest.raises(OptionError, match=r"tile: got \(4, 4, 4\), expected one side or 2"):
        Streamed(conv, tile=(4, 4, 4))(torch.zeros(1, 3, 8, 8))
    with pytest.raises(OptionError, match="tile: got 0, expected at least 1"):
        Streamed(conv, tile=0)
    with pytest.raises(NotLocal, match="got an image of 0 spatial axes"):
        Streamed(nn.Linear(3, 4))(torch.zeros(1, 3))
