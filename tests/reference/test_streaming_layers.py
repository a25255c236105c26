"""Each streamed operation equals the plain layer for many options; receptive fields."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.nn.channel_norm import ChannelNorm
from foveate.streaming import NotLocal, Streamed
from foveate.streaming.build import build_graph
from foveate.streaming.graph import _crop_map
from foveate.streaming.spans import axis_spans
from foveate.streaming.trace import trace

Map = Callable[[Tensor], Tensor]


class FunctionNetwork(nn.Module):
    """A function as a network, with layers for it to use."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.children())


class IndexedUpsampling(nn.Module):
    """Nearest up-sampling by indexing, whose gradient is exact.

    PyTorch's gradient of nearest up-sampling does not match its map where single and double
    precision round the position of a cell differently.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        places = []
        for dim in range(2, x.ndim):
            shape = [1] * x.ndim
            shape[dim] = -1
            ramp = torch.arange(x.shape[dim], dtype=x.dtype).view(shape)
            cells = self.layer(ramp.expand(1, 1, *x.shape[2:]))
            places.append(cells.movedim(dim, 0).flatten(1)[:, 0].long())
        for dim, place in enumerate(places, 2):
            x = x.index_select(dim, place)
        return x


def assert_streams(
    stack: nn.Module, x: Tensor, rng: random.Random, n_grids: int = 2, like: nn.Module | None = None
) -> None:
    """Compare map and gradients with the plain layer's on random tiles, in double precision."""
    stack.double()
    x = x.double().requires_grad_()
    plain = (like or stack)(x.clone())  # a layer may overwrite its input
    upstream = torch.randn(plain.shape, dtype=x.dtype)
    learnt = [x, *stack.parameters()]
    expected = torch.autograd.grad(plain, learnt, upstream, allow_unused=True)
    for _ in range(n_grids):
        streamed = Streamed(stack, tile=tuple(rng.randint(2, n) for n in x.shape[2:]))
        actual = streamed(x)
        torch.testing.assert_close(actual, plain, rtol=1e-10, atol=1e-10)
        gradients = torch.autograd.grad(actual, learnt, upstream, allow_unused=True)
        for a, b in zip(gradients, expected, strict=True):
            assert (a is None) == (b is None) or not (b if a is None else a).any()
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)


def image(rng: random.Random, d: int, channels: int = 4, low: int = 9, high: int = 23) -> Tensor:
    high = high if d < 3 else low + 4
    return torch.randn(2, channels, *(rng.randint(low, high) for _ in range(d)))


def plain_or_none(stack: nn.Module, x: Tensor) -> bool:
    """Return the plain layer's map; None where PyTorch refuses these options for this image."""
    try:
        with torch.no_grad():
            return stack(x.clone()).numel() > 0
    except RuntimeError:
        return False


def options(rng: random.Random, d: int, most: int, least: int = 1) -> int | tuple[int, ...]:
    if rng.random() < 0.5:
        return rng.randint(least, most)
    return tuple(rng.randint(least, most) for _ in range(d))


def convolution(rng: random.Random, d: int) -> nn.Module:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    kernel, dilation = options(rng, d, 5), options(rng, d, 3)
    mode = rng.choice(["zeros", "zeros", "reflect", "replicate"])
    same = rng.random() < 0.25
    return kind(
        4,
        6,
        kernel,
        1 if same else options(rng, d, 4),
        "same" if same else options(rng, d, 6, 0),
        dilation,
        groups=rng.choice([1, 2]),
        bias=rng.random() < 0.5,
        padding_mode=mode,
    )


def transposed(rng: random.Random, d: int) -> nn.Module:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[d - 1]
    stride, dilation = rng.randint(1, 4), rng.randint(1, 2)
    extra = rng.randint(0, max(stride, dilation) - 1)
    padding = options(rng, d, 3, 0)
    kernel = options(rng, d, 4)
    return kind(
        4, 6, kernel, stride, padding, extra, rng.choice([1, 2]), rng.random() < 0.5, dilation
    )


def pooling(rng: random.Random, d: int) -> nn.Module:
    kernel = rng.randint(1, 5)
    stride = rng.choice([None, options(rng, d, 4)])
    padding, ceil = rng.randint(0, kernel // 2), rng.random() < 0.5
    if rng.random() < 0.5:
        kind = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[d - 1]
        return kind(kernel, stride, padding, rng.randint(1, 3), ceil_mode=ceil)
    if d == 1:
        stride = stride if stride is None or isinstance(stride, int) else stride[0]
        return nn.AvgPool1d(kernel, stride, padding, ceil, rng.random() < 0.5)
    kind = (nn.AvgPool2d, nn.AvgPool3d)[d - 2]
    return kind(kernel, stride, padding, ceil, rng.random() < 0.5, rng.choice([None, 3]))


def padding(rng: random.Random, d: int) -> nn.Module:
    names = ["ConstantPad", "ZeroPad", "ReflectionPad", "ReplicationPad"]
    name = rng.choice(names)
    least = -2 if name in ("ConstantPad", "ZeroPad") else 0
    most = 13 if name == "ConstantPad" else 6
    sides = tuple(rng.randint(least, most) for _ in range(2 * d))
    kind = getattr(nn, f"{name}{d}d")
    pad = kind(sides, 0.7) if name == "ConstantPad" else kind(sides)
    return nn.Sequential(pad, (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1](4, 2, 2, 2))


def upsampling(rng: random.Random, d: int) -> nn.Module:
    linear = ("linear", "bilinear", "trilinear")[d - 1]
    mode = rng.choice(["nearest", "nearest-exact", linear, linear])
    align = rng.choice([None, True, False]) if mode == linear else None
    if rng.random() < 0.4:
        return nn.Upsample(size=options(rng, d, 40, 5), mode=mode, align_corners=align)
    scale = rng.choice([2, 3, 1.5, 0.5, 1 / 3, 2.7, 0.73])
    recompute = rng.choice([None, True, False])
    return nn.Upsample(
        scale_factor=scale, mode=mode, align_corners=align, recompute_scale_factor=recompute
    )


MAKERS = [convolution, transposed, pooling, padding, upsampling]


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_random_options_equal_the_plain_layer(
    make: Callable[[random.Random, int], nn.Module],
) -> None:
    n_checked = 0
    for seed in range(40):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        d = rng.choice([1, 2, 2, 3])
        layer, x = make(rng, d), image(rng, d)
        if not plain_or_none(layer, x):
            continue
        n_checked += 1
        try:
            nearest = str(getattr(layer, "mode", "")).startswith("nearest")
            assert_streams(layer, x, rng, like=IndexedUpsampling(layer) if nearest else None)
        except NotLocal as reason:
            assert "nearest hangs on how large" in str(reason)  # noqa: PT017
            n_checked -= 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {layer} on {tuple(x.shape)}") from error
    assert n_checked >= 25


# -- stacks of functions --------------------------------------------------------------------------


def _shuffled(x: Tensor, conv: nn.Module) -> Tensor:
    a, b = conv(x).chunk(2, dim=1)
    return torch.cat([b, a * b], dim=1)


def _channels_last(x: Tensor, norm: nn.Module, linear: nn.Module) -> Tensor:
    y = x.permute(0, 2, 3, 1)
    return linear(functional.gelu(norm(y))).permute(0, 3, 1, 2) + x


def _overwritten(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    z = y
    z += x
    z = functional.relu(z, inplace=True)
    return y * 2 + z  # one map


def _overwritten_by_place(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    y.mul_(3.0)
    functional.leaky_relu(y, 0.1, True)
    return y + x


def _read_before(x: Tensor, conv: nn.Module) -> Tensor:
    y = conv(x)
    doubled = y * 2
    torch.relu_(y)
    return doubled + torch.nn.functional.conv2d(y, conv.weight, padding=1)  # type: ignore[arg-type]


def _halo_of_overwritten(x: Tensor, conv: nn.Module, relu: nn.Module) -> Tensor:
    y = conv(x)
    moved = functional.pad(y, (2, -2, 0, 0))
    relu(y)
    return functional.avg_pool2d(y, 5, 1, 2) + moved


def _identity_shares(x: Tensor, conv: nn.Module, same: nn.Module) -> Tensor:
    y = conv(x)
    z = same(y)
    z.clamp_(min=0)
    return y + x


def _input_overwritten(x: Tensor) -> Tensor:
    functional.relu(x, inplace=True)
    return functional.max_pool2d(x, 2)


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "strided slices": lambda: FunctionNetwork(lambda x: x[..., ::2, 1:] * 2 + x[:, :, ::2, :-1]),
    "slices from the end": lambda: FunctionNetwork(lambda x: x[:, :, -7:, 3:-2:3]),
    "channel slices": lambda: FunctionNetwork(lambda x: x[:, 1:3] - x[:, :2]),
    "chunk and cat": lambda: FunctionNetwork(_shuffled, conv=nn.Conv2d(4, 6, 3, 2)),
    "channels last": lambda: FunctionNetwork(
        _channels_last, norm=nn.LayerNorm(4), linear=nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    ),
    "channel norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), ChannelNorm(4), nn.Conv2d(4, 2, 2)),
    "prelu per channel": lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.PReLU(4)),
    "prelu": lambda: nn.Sequential(nn.PReLU(), nn.Conv2d(4, 4, 3)),
    "overwritten": lambda: FunctionNetwork(_overwritten, conv=nn.Conv2d(4, 4, 3, padding=1)),
    "by place": lambda: FunctionNetwork(_overwritten_by_place, conv=nn.Conv2d(4, 4, 3, padding=1)),
    "read before": lambda: FunctionNetwork(
        _read_before, conv=nn.Conv2d(4, 4, 3, padding=1, bias=False)
    ),
    "halo": lambda: FunctionNetwork(
        _halo_of_overwritten, conv=nn.Conv2d(4, 4, 3), relu=nn.ReLU(inplace=True)
    ),
    "identity": lambda: FunctionNetwork(
        _identity_shares, conv=nn.Conv2d(4, 4, 1), same=nn.Identity()
    ),
    "input": lambda: FunctionNetwork(_input_overwritten),
    "softmax over channels": lambda: FunctionNetwork(
        lambda x: x.softmax(1) * x.mean(1, keepdim=True)
    ),
    "resized to another": lambda: FunctionNetwork(
        lambda x: functional.interpolate(functional.max_pool2d(x, 2), size=x.shape[2:]) + x
    ),
    "odd sides": lambda: FunctionNetwork(
        lambda x: functional.avg_pool2d(
            functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate"), 2
        )
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_the_plain_stack(name: str) -> None:
    rng = random.Random(name)
    torch.manual_seed(1)
    for _ in range(3):
        assert_streams(FUNCTIONS[name](), image(rng, 2), rng)


# -- receptive fields -----------------------------------------------------------------------------


class TwoBranches(nn.Module):
    """Two branches of equal stride and different receptive fields."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = nn.Conv2d(1, 1, 1, 2), nn.Conv2d(1, 1, (3, 7), 2, (1, 3), (1, 2))

    def forward(self, x: Tensor) -> Tensor:
        far: Tensor = self.far(functional.pad(x, (3, 3, 0, 0)))
        return far + functional.max_pool2d(x, 1, 2)


FIELDS: dict[str, Callable[[], nn.Module]] = {
    "strides": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 1, 5, 2, 2)),
    "even": lambda: nn.Sequential(nn.Conv2d(1, 2, 4, 2, 1), nn.Conv2d(2, 1, (2, 6), 3)),
    "dilations": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 2, dilation=1), nn.Conv2d(2, 2, 2, dilation=2), nn.Conv2d(2, 1, 2)
    ),
    "ceil": lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 3)),
    "branches": TwoBranches,
    "one to one": lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1)),
    "up": lambda: nn.Sequential(
        nn.Conv2d(1, 1, 4, 2, 1), nn.ConvTranspose2d(1, 1, 2, 2), nn.Conv2d(1, 1, 3)
    ),
    "half": lambda: nn.Sequential(nn.Conv2d(1, 1, 4, 4), nn.ConvTranspose2d(1, 1, 4, 2, 1)),
}


@pytest.mark.parametrize("name", FIELDS)
def test_spans_match_nan_propagation(name: str) -> None:
    """A NaN in one line of the image reaches exactly the cells whose span contains it."""
    torch.manual_seed(0)
    stack, side = FIELDS[name](), 96
    graph = build_graph(trace(stack), (1, side, side), torch.empty(0))
    last = len(graph.steps) - 1
    for axis, n in enumerate(graph.steps[last].extent_cell):
        reached = []
        for line in range(side):
            x = torch.randn(1, 1, side, side)
            x.select(2 + axis, line).fill_(math.nan)
            with torch.no_grad():
                reached.append(stack(x)[0, 0].isnan().any(1 - axis))
        reached_cells = torch.stack(reached)  # (line, cell)
        cells = np.arange(n)
        low, high = axis_spans(graph, last, axis, cells, cells + 1)
        inner = [i for i in range(n) if low[0, i] > 0 and high[0, i] < side]
        assert len(inner) >= 6
        for i in inner:
            lines = reached_cells[:, i].nonzero().flatten()
            assert (low[0, i], high[0, i]) == (int(lines[0]), int(lines[-1]) + 1)


@pytest.mark.parametrize("name", FIELDS)
def test_tiles_depend_on_their_input_region_only(name: str) -> None:
    """NaN outside the input region of a tile does not change the tile."""
    torch.manual_seed(0)
    stack = FIELDS[name]()
    x = torch.randn(1, 1, 61, 67)
    streamed = Streamed(stack, tile=17)
    with torch.no_grad():
        plain = stack(x)
        grid = streamed.plan((1, 61, 67)).segments[0].grid
        assert len(grid) > 4
        for tile in grid:
            alone = torch.full_like(x, math.nan)
            (a, b), (c, d) = tile.input_region
            alone[..., a:b, c:d] = x[..., a:b, c:d]
            (a, b), (c, d) = tile.output_region
            torch.testing.assert_close(stack(alone)[..., a:b, c:d], plain[..., a:b, c:d])


@pytest.mark.parametrize("dense", [True, False], ids=["map", "view"])
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_map_parts_keep_the_memory_layout(
    form: torch.memory_format, dense: bool
) -> None:
    """Another memory layout would be copied by earlier layers, a third of a tile's time."""
    x = torch.randn(1, 5, 9, 12, dtype=torch.double).contiguous(memory_format=form)
    x = (x if dense else x[..., 1:10]).detach().requires_grad_()
    covered = ((3, 12), (10, 10 + x.shape[-1]))
    for region in (((4, 12), (10, 15)), ((3, 11), (12, 10 + x.shape[-1])), ((5, 8), (12, 14))):
        part = _crop_map(x, (2, 3), covered, region)
        (a, b), (c, d) = region
        plain = x[..., a - 3 : b - 3, c - 10 : d - 10]
        torch.testing.assert_close(part, plain)
        weight = torch.randn_like(part)
        (ours,) = torch.autograd.grad((part * weight).sum(), x)
        (theirs,) = torch.autograd.grad((plain * weight).sum(), x)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert ours.is_contiguous(memory_format=form)
    assert _crop_map(x, (2, 3), covered, covered) is x
