"""Streaming of layers around convolutions: channel operations, reshapes and masks.

Each beside the plain layer, in double precision, with all gradients.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming import NotLocal, Streamed
from reference.test_streaming_layers import FunctionNetwork, assert_streams, image, transposed

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


def between_convolutions(*layers: nn.Module, d: int = 2, channels: int = 4) -> nn.Module:
    """Put layers between two convolutions, so that halos and inner gradients count."""
    conv = CONVOLUTIONS[d - 1]
    first, last = conv(4, 8, 3, padding=1), conv(channels, 3, 3, 2)
    return nn.Sequential(first, nn.Tanh(), *layers, last)


def function_between_convolutions(
    function: Callable[..., Tensor], *, d: int = 2, channels: int = 8
) -> nn.Module:
    """Put a function between two convolutions."""
    return between_convolutions(FunctionNetwork(function), d=d, channels=channels)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "softmax": lambda: between_convolutions(nn.Softmax(1), channels=8),
    "softmax, from the end": lambda: between_convolutions(nn.Softmax(-3), channels=8),
    "softmax 2d": lambda: between_convolutions(nn.Softmax2d(), channels=8),
    "softmax 3d": lambda: between_convolutions(nn.Softmax(1), channels=8, d=3),
    "log softmax": lambda: between_convolutions(nn.LogSoftmax(1), channels=8),
    "softmin": lambda: between_convolutions(nn.Softmin(1), channels=8),
    "glu": lambda: between_convolutions(nn.GLU(1)),
    "glu 1d": lambda: between_convolutions(nn.GLU(1), d=1),
    "glu 3d": lambda: between_convolutions(nn.GLU(-4), d=3),
    "pixel shuffle": lambda: between_convolutions(nn.PixelShuffle(2), channels=2),
    "twice shuffled": lambda: between_convolutions(
        nn.PixelShuffle(2), nn.Conv2d(2, 9, 3, 2), nn.PixelShuffle(3), channels=1
    ),
    "channel shuffle": lambda: between_convolutions(nn.ChannelShuffle(4), channels=8),
    "channel shuffle 3d": lambda: between_convolutions(nn.ChannelShuffle(2), channels=8, d=3),
}

FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "log softmax": lambda: function_between_convolutions(
        lambda x: functional.log_softmax(x, 1) + x.log_softmax(dim=-3)
    ),
    "softmax": lambda: function_between_convolutions(
        lambda x: torch.softmax(x, dim=1) * functional.softmax(x, 1)
    ),
    "glu": lambda: function_between_convolutions(lambda x: functional.glu(x, 1), channels=4),
    "glu by name": lambda: function_between_convolutions(
        lambda x: functional.glu(x, dim=-3), channels=4
    ),
    "pixel shuffle": lambda: function_between_convolutions(
        lambda x: functional.pixel_shuffle(x, 2), channels=2
    ),
    "channel shuffle": lambda: function_between_convolutions(lambda x: torch.channel_shuffle(x, 2)),
    "mask": lambda: function_between_convolutions(lambda x: x * (x > 0.1)),
    "mask, as number": lambda: function_between_convolutions(
        lambda x: x * (x > 0).float() - (x.le(0.2)).to(x.dtype)
    ),
    "two masks": lambda: function_between_convolutions(
        lambda x: x * ((x > -0.3) & ~(x > 0.4) | (x != x.relu()))
    ),
    "chosen": lambda: function_between_convolutions(
        lambda x: torch.where(x > 0, x.square(), -0.1 * x)
    ),
    "chosen by another": lambda: function_between_convolutions(
        lambda x: torch.where(x[:, :1] >= x.mean(1, keepdim=True), x, 2 * x)
    ),
    "filled": lambda: function_between_convolutions(
        lambda x: x.masked_fill(x == x.amax(1, keepdim=True), 2.0)
    ),
    "filled in place": lambda: function_between_convolutions(
        lambda x: (x * 2).masked_fill_(x.lt(0), -1.0) + x
    ),
    "filled, called": lambda: function_between_convolutions(
        lambda x: torch.masked_fill(x, torch.gt(x, 0), 0.5)
    ),
    "clipped": lambda: function_between_convolutions(
        lambda x: functional.threshold(x, 0.1, -0.3) + x.sign() * x
    ),
    "largest channel": lambda: function_between_convolutions(
        lambda x: torch.cat([x.max(1, keepdim=True)[0], x.mean(1, True)], 1), channels=2
    ),
    "largest channel, named": lambda: function_between_convolutions(
        lambda x: torch.max(x, dim=1, keepdim=True).values + x.min(1, True)[0], channels=1
    ),
    "largest of two": lambda: function_between_convolutions(
        lambda x: torch.max(x, 0.3 * x) + torch.min(x, x.square())
    ),
    "spread of channels": lambda: function_between_convolutions(
        lambda x: (
            (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + torch.var(x, 1, keepdim=True))
        )
    ),
    "smooth maximum": lambda: function_between_convolutions(
        lambda x: x - x.logsumexp(1, keepdim=True)
    ),
}


def _run(net: nn.Module, d: int, seed: str) -> None:
    rng = random.Random(seed)
    torch.manual_seed(1)
    for _ in range(3):
        assert_streams(net, image(rng, d), rng)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_the_plain_stack(name: str) -> None:
    net = LAYERS[name]()
    _run(net, 3 if "3d" in name else 1 if "1d" in name else 2, name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_the_plain_stack(name: str) -> None:
    _run(FUNCTIONS[name](), 2, name)


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_unshuffle_equals_the_plain_stack(factor: int) -> None:
    rng = random.Random(factor)
    for layer in (
        nn.PixelUnshuffle(factor),
        FunctionNetwork(lambda x: functional.pixel_unshuffle(x, factor)),
    ):
        net = nn.Sequential(layer, nn.Conv2d(4 * factor**2, 4, 3, padding=1))
        assert_streams(net, torch.randn(2, 4, 7 * factor, 9 * factor), rng)
        assert_streams(nn.Sequential(net, nn.PixelShuffle(2)), torch.randn(1, 4, 18, 24), rng)


class Spread(nn.Module):
    """A transposed convolution as a function, with a computed weight."""

    def __init__(self, conv: nn.Module, *, named: bool) -> None:
        super().__init__()
        self.conv, self.named = conv, named
        self.function = TRANSPOSED[conv.weight.ndim - 3]

    def forward(self, x: Tensor) -> Tensor:
        c, run = self.conv, self.function
        weight = torch.tanh(c.weight)
        if self.named:
            options = {"stride": c.stride, "padding": c.padding, "dilation": c.dilation}
            options |= {"groups": c.groups, "output_padding": c.output_padding}
            return run(x, bias=c.bias, weight=weight, **options)
        order = (c.stride, c.padding, c.output_padding, c.groups, c.dilation)
        return run(x, weight, c.bias, *order)


@pytest.mark.parametrize("named", [False, True], ids=["by place", "by name"])
def test_functional_transposed_convolutions_equal_the_plain_stack(named: bool) -> None:
    checked = 0
    for seed in range(20):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        d = rng.choice([1, 2, 2, 3])
        net, x = Spread(transposed(rng, d), named=named), image(rng, d)
        try:
            with torch.no_grad():
                net(x)
        except RuntimeError:
            continue  # options that torch does not take
        assert_streams(net, x, rng)
        checked += 1
    assert checked >= 12


@pytest.mark.parametrize("tile", [7, 40])
def test_a_map_may_be_its_own_mask(tile: int) -> None:
    net = function_between_convolutions(lambda x: x > 0)[:-1]
    x = torch.randn(2, 4, 31, 36)
    actual = Streamed(net, tile=tile)(x)
    assert actual.dtype == torch.bool
    assert torch.equal(actual, net(x))


def test_masks_are_not_stored_between_rounds_of_tiles() -> None:
    """Neither masks nor maps computed from them are stored: earlier layers must get gradients."""
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 2, 1), nn.Tanh(), FunctionNetwork(lambda x: x > 0)),
        *(FunctionNetwork(lambda m: m.double()), nn.Conv2d(4, 16, 3, 2, 1)),
        *(layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.Tanh())),
    ).double()
    x = torch.randn(2, 3, 240, 250, dtype=torch.float64)
    for budget in (2 << 20, 4 << 20, 1 << 30):
        net.zero_grad()
        plain = net(x)
        plain.square().sum().backward()
        expected = [p.grad for p in net.parameters()]
        net.zero_grad()
        streamed = Streamed(net, budget_bytes=budget)
        actual = streamed(x)
        torch.testing.assert_close(actual, plain, rtol=1e-10, atol=1e-10)
        actual.square().sum().backward()
        for p, gradient in zip(net.parameters(), expected, strict=True):
            if gradient is None:
                assert p.grad is None or not p.grad.any()
            else:
                torch.testing.assert_close(p.grad, gradient, rtol=1e-9, atol=1e-9)


# -- the nearest cell -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64], ids=str
)
def test_nearest_up_sampling_matches_the_layer_at_every_ratio(
    mode: str, dtype: torch.dtype
) -> None:
    """PyTorch rounds positions differently for one axis and for two (20 cells to 46)."""
    sizes = [(20, 46), (20, 54), (24, 37), (24, 123), (301, 389)]
    sizes += [(n, m) for n in range(11, 90, 7) for m in range(13, 200, 9)]
    tried = [(n, {"size": (m, 5)}) for n, m in sizes] + [(n, {"size": (5, m)}) for n, m in sizes]
    scales = (1 / 3, 0.7, 1.1, 1.3, 2, 2.9)
    tried += [(n, {"scale_factor": scale}) for n in (301, 419, 607) for scale in scales]
    refused = 0
    for n, options in tried:
        layer = nn.Upsample(**options, mode=mode)  # type: ignore[arg-type]
        across = options.get("size", (0, 5))[0] == 5  # type: ignore[index]
        x = torch.randn(1, 4, *((5, n) if across else (n, 5)), dtype=dtype)
        try:
            actual = Streamed(layer, tile=97)(x)
        except NotLocal as reason:
            assert "nearest hangs on how large" in str(reason)  # noqa: PT017
            refused += 1
            continue
        assert torch.equal(actual, layer(x)), (n, options)
        last = x.contiguous(memory_format=torch.channels_last)
        assert torch.equal(actual, layer(last)), (n, options)
    assert refused < 0.08 * len(tried)
    # Sides that stay as they are at a scale of 1.1, and little else.
    assert refused < 0.02 * len(tried) or dtype == torch.float64


# -- refused --------------------------------------------------------------------------------------

WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(),
    "mean, called": lambda x: x - torch.mean(x),
    "sum": lambda x: x / torch.sum(x),
    "sum, method": lambda x: x / x.sum(),
    "amax": lambda x: x / x.amax(),
    "amin": lambda x: x - torch.amin(x),
    "amax of no axis": lambda x: x / x.amax(()),
    "sum of no axis": lambda x: x / torch.sum(x, []),
    "max": lambda x: x / x.max(),
    "std": lambda x: x / x.std(),
    "var, biased": lambda x: x / torch.var(x, False),
    "axis": lambda x: x - x.mean(axis=(2, 3), keepdim=True),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("name", WHOLE)
def test_layers_that_see_the_whole_image_are_refused_by_name(name: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), FunctionNetwork(WHOLE[name]))
    word = name.split(",")[0].split(" ")[0].replace("axis", "mean")
    with pytest.raises(
        NotLocal, match=rf"^{word} in '1' \(FunctionNetwork\) cannot be streamed"
    ) as actual:
        Streamed(net).check()
    assert actual.match("whole image|spatial axis")
    assert actual.match("take a network without")


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "softmax without a dimension": (lambda: nn.Softmax(), r"name its dimension: 1 for channels"),
    "softmax along rows": (lambda: nn.Softmax(2), r"spatial axis \(dim 2\)"),
    "softmax along images": (lambda: nn.Softmax(0), "images of a batch"),
    "glu along columns": (lambda: nn.GLU(), r"spatial axis \(dim -1\)"),
    "shuffled volume": (lambda: nn.PixelShuffle(2), "made for pictures"),
    "mean without its dimension": (lambda: FunctionNetwork(lambda x: x.mean(1)), "keepdim=True"),
    "attribute": (lambda: FunctionNetwork(lambda x: x.T), "not known"),
    "weights from the image": (
        lambda: FunctionNetwork(lambda x: functional.conv_transpose2d(x[:, :1], x)),
        "computed from the image",
    ),
    "a number from the image": (
        lambda: FunctionNetwork(lambda x: x * x.mean().item()),
        "values of the image",
    ),
    "cells by a mask": (
        lambda: FunctionNetwork(lambda x: x * x[x > 0].mean()),
        "values of the image",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_are_not_local_are_refused_with_the_reason(name: str) -> None:
    make, why = REFUSED[name]
    x = torch.randn(1, 8, 12, 12, 12) if "volume" in name else torch.randn(1, 8, 12, 12)
    if "volume" in name:
        x = x[:, :, :8]
    with pytest.raises(NotLocal, match=why):
        Streamed(nn.Sequential(nn.Identity(), make()), tile=4)(x)
