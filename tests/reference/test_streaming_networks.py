"""Streaming equals the plain network on random networks.

Pictures and volumes of odd sizes, in batches of one to three; convolutions of any options, pooling,
norms, activations, four kinds of dropout, and branches: residual, side by side, gated, masked, and
down and up again. Outputs and all gradients in double precision.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from foveate.streaming import Streamed, TooLittleMemory
from foveate.streaming.base import Call
from foveate.streaming.dropout import ElementDropout

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEAN_POOLS = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
CHANNEL_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Normalised(nn.Module):
    """Layer norm over channels, between two permutations."""

    def __init__(self, c: int, d: int) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(c), (0, *range(2, 2 + d), 1)
        self.first = (0, 1 + d, *range(1, 1 + d))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.permute(self.last)).permute(self.first)
        return out


class Residual(nn.Module):
    """The sum of a map and a branch, which may be dropped."""

    def __init__(self, branch: nn.Module, drop: float) -> None:
        super().__init__()
        self.branch, self.drop = branch, DropPath(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.branch(x))
        return out


class ConcatenatedBranches(nn.Module):
    """Two branches whose channels are concatenated."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.second(x), self.first(x)], 1)


class Gated(nn.Module):
    """The product of two branches, or one branch masked by the other."""

    def __init__(self, gate: nn.Module, branch: nn.Module, *, mask: bool) -> None:
        super().__init__()
        self.gate, self.branch, self.mask = gate, branch, mask

    def forward(self, x: Tensor) -> Tensor:
        gate, y = self.gate(x), self.branch(x)
        if self.mask:
            return torch.where(gate > 0, y, 0.1 * y) + y * (y < gate)
        return gate.sigmoid() * y


class DownAndUp(nn.Module):
    """Down-sampling and up-sampling, cropped and concatenated to the input map."""

    def __init__(self, down: nn.Module, inner: nn.Module, up: nn.Module, d: int) -> None:
        super().__init__()
        self.down, self.inner, self.up, self.d = down, inner, up, d

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.inner(self.down(x)))
        cells = tuple(slice(x.shape[dim]) for dim in range(2, 2 + self.d))
        return torch.cat([x, y[(..., *cells)]], 1)


class RandomNetwork:
    """A random network of a seed.

    Attributes:
        net: the network, in double precision.
        x: a batch of images for it.
        kinds: of layers that it has.
    """

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.d = self.rng.choice([2, 2, 3])
        low, high = {2: (31, 75), 3: (15, 24)}[self.d]
        size = [self.rng.randint(low, high) for _ in range(self.d)]
        channels = self.rng.randint(1, 3)
        self.x = torch.randn(self.rng.randint(1, 3), channels, *size, dtype=torch.float64)
        self.strides = 2
        layers, c = [], channels
        for _ in range(self.rng.randint(4, 8)):
            layer, c = self.layer(c, depth=2)
            layers.append(layer)
        layers.append(CONVOLUTIONS[self.d](c, 2, 1))
        self.net = nn.Sequential(*layers).double()
        self.kinds = sorted({type(m).__name__ for m in self.net.modules()})

    def layer(self, c: int, depth: int) -> tuple[nn.Module, int]:
        """Draw any layer for c channels, and return the channels of its output."""
        if depth and self.rng.random() < 0.3:
            return self.branching(c, depth)
        rng = self.rng
        if self.strides and rng.random() < 0.2:
            self.strides -= 1
            if rng.random() < 0.6:
                k = rng.randint(2, 5)
                return self.conv(c, 6, k, 2, padding=rng.randint(0, k // 2)), 6
            pool, k = rng.choice([MAX_POOLS, MEAN_POOLS])[self.d], rng.randint(2, 3)
            return pool(k, 2, rng.randint(0, 1), ceil_mode=rng.random() < 0.5), c
        return self.same(c)

    def same(self, c: int, after: int | None = None) -> tuple[nn.Module, int]:
        """Draw a layer that keeps the cells, with `after` channels if given."""
        rng, after = self.rng, after or self.rng.choice([4, 6])
        if rng.random() < 0.5:
            k = rng.choice([1, 3, 3, 5])
            dilation = rng.randint(1, 2)
            mode = rng.choice(["zeros", "zeros", "reflect", "replicate"])
            k, dilation = (3, 1) if mode == "reflect" else (k, dilation)
            padding = dilation * (k // 2)
            conv = self.conv(c, after, k, 1, padding=padding, dilation=dilation, padding_mode=mode)
            return nn.Sequential(conv, self.inner(after)), after
        return nn.Sequential(self.inner(c), self.conv(c, after, 3, 1, padding=1)), after

    def inner(self, c: int) -> nn.Module:
        """Draw a layer of single cells."""
        rng = self.rng
        p = rng.uniform(0.1, 0.6)
        kinds: list[Callable[[], nn.Module]] = [
            *(nn.Tanh, nn.GELU, nn.SiLU, lambda: nn.PReLU(c), lambda: nn.Softmax(1)),
            *(lambda: Normalised(c, self.d), lambda: self.norm(c)),
            *(lambda: nn.Dropout(p), lambda: nn.AlphaDropout(p)),
            lambda: CHANNEL_DROPOUT[self.d](p),
            lambda: nn.Sequential(self.conv(c, 2 * c, 1, 1), nn.GLU(1)),
            # A layer that overwrites its input follows one that does not need its output again.
            lambda: nn.Sequential(self.conv(c, c, 1, 1), nn.LeakyReLU(0.2, inplace=True)),
            lambda: nn.Sequential(self.conv(c, c, 1, 1), nn.Dropout(p, inplace=True)),
        ]
        return rng.choice(kinds)()

    def branching(self, c: int, depth: int) -> tuple[nn.Module, int]:
        """Draw branches that meet again."""
        rng = self.rng

        def branch(after: int) -> nn.Module:
            first, between = self.same(c)
            return nn.Sequential(first, self.same(between, after)[0])

        kind = rng.randrange(4)
        if kind == 0:
            return Residual(branch(c), rng.choice([0.0, 0.5])), c
        if kind == 1:
            second, after = self.same(c)
            return ConcatenatedBranches(branch(4), second), 4 + after
        if kind == 2:
            return Gated(branch(4), branch(4), mask=rng.random() < 0.5), 4
        down = rng.choice(
            [
                self.conv(c, c, 3, 2, padding=1),
                MAX_POOLS[self.d](2, ceil_mode=True),
                MEAN_POOLS[self.d](3, 2, 1, ceil_mode=True),
            ]
        )
        inner, between = self.same(c)
        return DownAndUp(down, inner, self.up(between), self.d), c + 3

    def up(self, c: int) -> nn.Module:
        """Draw an up-sampling by 2 per axis, to 3 channels."""
        kinds: list[Callable[[], nn.Module]] = [
            lambda: TRANSPOSED[self.d](c, 3, 2, 2),
            lambda: TRANSPOSED[self.d](c, 3, 4, 2, 1),
            lambda: nn.Sequential(nn.Upsample(scale_factor=2), self.conv(c, 3, 1, 1)),
            lambda: nn.Sequential(
                nn.Upsample(scale_factor=2, mode={2: "bilinear", 3: "trilinear"}[self.d]),
                self.conv(c, 3, 1, 1),
            ),
        ]
        if self.d == 2:
            kinds.append(lambda: nn.Sequential(self.conv(c, 12, 1, 1), nn.PixelShuffle(2)))
        return self.rng.choice(kinds)()

    def conv(self, c: int, after: int, k: int, stride: int, **options: object) -> nn.Module:
        """Draw a convolution, with groups where the channels allow it."""
        groups = math.gcd(c, after) if self.rng.random() < 0.2 else 1
        bias = self.rng.random() < 0.8
        made: nn.Module = CONVOLUTIONS[self.d](
            c, after, k, stride, groups=groups, bias=bias, **options
        )
        return made

    def norm(self, c: int) -> nn.Module:
        """Draw a frozen norm with arbitrary statistics."""
        norm = NORMS[self.d](c).eval()
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.3, 2)
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        return norm


def _dropped(self: nn.Module, x: Tensor) -> Tensor:
    """Return a dropout layer's output where all elements of an image are drawn at once."""
    region = tuple((0, n) for n in x.shape[2:])
    call = Call(self, (x,), {}, tuple(range(2, x.ndim)), region, region, reuse=False)
    op = ElementDropout(rate=lambda: self.p, extent_cell=x.shape[2:], alpha=False, mutates=False)
    seed = op.draw(x.shape[1], x)
    assert seed is not None
    mask = op.draw_mask(int(seed), x, call)
    if not isinstance(self, nn.AlphaDropout):
        dropped = torch.where(mask, x / (1 - self.p), 0.0)
        return x.copy_(dropped) if self.inplace else dropped
    alpha = -1.7580993408473766
    a = ((1 - self.p) * (1 + self.p * alpha**2)) ** -0.5
    return a * torch.where(mask, x, alpha) - a * alpha * self.p


def stream_in_small_budget(net: nn.Module, x: Tensor) -> Streamed:
    """Stream within twice the smallest budget, of powers of two, that is enough."""
    budget = 1 << 16
    while True:
        try:
            Streamed(net, budget_bytes=budget).plan(x.shape[1:], x, len(x))
            return Streamed(net, budget_bytes=2 * budget)
        except TooLittleMemory:
            budget *= 2


def compare(seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, int, list[str]]:
    """Return the largest relative difference, the number of tiles and the kinds of layers."""
    drawn = RandomNetwork(seed)
    net, x, rng = drawn.net, drawn.x.requires_grad_(), drawn.rng
    learnt = [x, *net.parameters()]
    with monkeypatch.context() as patch:
        for kind in (nn.Dropout, nn.AlphaDropout):
            patch.setattr(kind, "forward", _dropped)
        torch.manual_seed(seed)
        plain = torch.cat([net(image[None].clone()) for image in x])
    upstream = torch.randn(plain.shape, dtype=x.dtype)
    expected = torch.autograd.grad(plain, learnt, upstream, allow_unused=True)
    if rng.random() < 0.6:
        tile = tuple(rng.randint(max(4, n // 5), n - 1) for n in x.shape[2:])
        streamed = Streamed(net, tile=tile)
    else:
        streamed = stream_in_small_budget(net, x)
    torch.manual_seed(seed)
    actual = streamed(x)
    gradients = torch.autograd.grad(actual, learnt, upstream, allow_unused=True)
    assert actual.shape == plain.shape
    worst = float((actual - plain).detach().abs().max() / plain.detach().abs().max())
    # The gradient of a nearly unused weight is rounding; it is compared with the largest one.
    least = 1e-6 * max(float(b.abs().max()) for b in expected if b is not None)
    for a, b in zip(gradients, expected, strict=True):
        assert a is not None or b is None or not b.any()
        if a is not None and b is not None:
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(least)))
    return worst, streamed.counts["backward"], drawn.kinds


N, FEW = 300, 10


@pytest.mark.parametrize("seed", range(N, N + FEW))
def test_a_random_network_equals_the_plain_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    worst, _, kinds = compare(seed, monkeypatch)
    assert worst < 1e-9, kinds


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, N, 10))
def test_many_random_networks_equal_the_plain_ones(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = []
    for seed in range(first, first + 10):
        worst, n, kinds = compare(seed, monkeypatch)
        assert worst < 1e-9, (seed, kinds)
        tiles.append(n)
    assert sum(n > 1 for n in tiles) >= 8
