"""Streaming with random layers, in half precision, and among several processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from timm.layers import DropPath
from torch import Tensor, distributed, nn

from foveate.streaming import AbstractSource, Region, Streamed
from foveate.streaming.base import Flags, Span


def stack(*layers: nn.Module) -> nn.Module:
    """Two convolutions with layers between and after them."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), *layers, nn.Conv2d(8, 4, 3, padding=1), nn.Tanh()
    )


class Residual(nn.Module):
    """A branch that may be dropped."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(8, 8, 3, padding=1), drop

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.drop(self.conv(x))
        return out


class MapReusedAfterDropout(nn.Module):
    """A network that uses a map again after dropout has overwritten it."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(8, 8, 1), drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.drop(y) + y


class BetweenPermutations(nn.Module):
    """A layer between two permutations."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out


class FunctionalDropout(nn.Module):
    """Dropout as a function, as a network."""

    def __init__(self, function: Callable[..., Tensor], **options: bool) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, 0.4, **self.options)


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_is_replayed(inplace: bool) -> None:
    """With the same generator state, the gradient belongs to the computed map."""
    net = stack(nn.Conv2d(8, 8, 1), nn.Dropout(0.5, inplace), nn.AlphaDropout(0.3)).double()
    streamed = Streamed(net, tile=11)
    x = torch.randn(2, 3, 29, 34, dtype=torch.float64)
    upstream = torch.randn(2, 4, 15, 17, dtype=torch.float64)

    def loss(change: float) -> Tensor:
        moved = copy.deepcopy(streamed)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), directions, strict=True):
                p.add_(d, alpha=change)
        torch.manual_seed(9)
        out: Tensor = (moved(x + change * along) * upstream).sum()
        return out.detach()

    directions = [torch.randn_like(p) for p in net.parameters()]
    along = torch.randn_like(x)
    x.requires_grad_()
    torch.manual_seed(9)
    total = (streamed(x) * upstream).sum()
    after = torch.get_rng_state()
    torch.rand(5)  # what happens between the passes does not matter
    between = torch.get_rng_state()
    total.backward()
    assert (torch.get_rng_state() == between).all()
    assert x.grad is not None
    slope = float((x.grad * along).sum())
    slope += sum(
        float((p.grad * d).sum()) for p, d in zip(net.parameters(), directions, strict=True)
    )
    x = x.detach()
    step = 1e-5
    expected = float(loss(step) - loss(-step)) / (2 * step)
    assert slope == pytest.approx(expected, rel=1e-6)
    assert (torch.get_rng_state() == after).all()  # as many draws, whatever the weights


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "elements": lambda: nn.Dropout(0.4),
    "elements in place": lambda: MapReusedAfterDropout(nn.Dropout(0.4, inplace=True)),
    "alpha": lambda: nn.AlphaDropout(0.4),
    "channels": lambda: nn.Dropout2d(0.4),
    "branch": lambda: Residual(DropPath(0.4)),
    "function": lambda: FunctionalDropout(nn.functional.dropout),
    "function of channels": lambda: FunctionalDropout(nn.functional.dropout2d),
    "alpha function": lambda: FunctionalDropout(nn.functional.alpha_dropout, training=True),
    "channels last": lambda: BetweenPermutations(nn.Dropout(0.4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_random_draws_do_not_depend_on_the_plan(name: str) -> None:
    """Draws are the same for all tiles, budgets and stored maps."""
    torch.manual_seed(2)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, 2, 1), LAYERS[name]()]
    for _ in range(2):
        layers += [nn.Conv2d(8, 8, 3, 2, 1), nn.Tanh(), LAYERS[name]()]
    net = nn.Sequential(*layers, nn.Conv2d(8, 8, 5, padding=2), LAYERS[name]()).double()
    x = torch.randn(3, 3, 203, 214, dtype=torch.float64)
    learnt, results, segments = list(net.parameters()), [], set()
    for options in ({"tile": 214}, {"tile": 37}, {"tile": (50, 17)}, *BUDGETS):
        streamed = Streamed(net, **options)  # type: ignore[arg-type]
        segments.add(len(streamed.plan(x.shape[1:], x, 3).segments))
        torch.manual_seed(6)
        map_ = streamed(x)
        gradients = torch.autograd.grad(map_.square().sum(), learnt)
        results.append([map_, *gradients, torch.rand(1)])
    assert len(segments) > 1
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


BUDGETS = [{"budget_bytes": n << 20} for n in (1, 2, 1000)]


class HalfBackground(AbstractSource):
    """An image whose right half is marked as background."""

    has_blank, device, dtype = True, torch.device("cpu"), torch.float64

    def __init__(self, image: Tensor) -> None:
        self.image, self.shape = image, tuple(image.shape)

    def crops(self, regions: Sequence[Region]) -> Iterator[Tensor]:
        for (a, b), (c, d) in regions:
            yield self.image[None, :, a:b, c:d]

    def blank(self, spans: Sequence[Span]) -> Flags:
        (rows, _), (columns, _) = spans
        blank: Flags = (rows[:, None] >= 0) & (columns >= self.shape[2] // 2)
        return blank

    def background(self) -> Tensor:
        return torch.full((3,), 0.5, dtype=torch.float64)


@pytest.mark.parametrize("name", ["elements", "channels"])
def test_background_tiles_are_merged_only_without_elementwise_dropout(name: str) -> None:
    net = stack(LAYERS[name](), nn.Conv2d(8, 8, 3, padding=1), LAYERS[name]()).double()
    image = torch.randn(3, 64, 160, dtype=torch.float64)
    image[..., 80:] = 0.5
    torch.manual_seed(3)
    expected = Streamed(net, tile=200)(image[None])
    torch.manual_seed(3)
    streamed = Streamed(net, tile=16)
    torch.testing.assert_close(streamed(HalfBackground(image)), expected, rtol=1e-10, atol=1e-10)
    assert (streamed.counts["forward"] < 40) == (name == "channels")


@pytest.mark.parametrize("d", [1, 2, 3])
def test_elements_are_dropped_independently_at_the_given_rate(d: int) -> None:
    net = nn.Sequential((nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1](2, 2, 1), nn.Dropout(0.3))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1.0)
    torch.manual_seed(1)
    x = torch.zeros(2, 2, *{1: (90000,), 2: (301, 299), 3: (45, 44, 46)}[d])
    values = torch.stack([Streamed(net, tile=40 if d > 1 else 5000)(x) for _ in range(2)])
    torch.testing.assert_close(values.unique(), torch.tensor([0.0, 1 / 0.7]))
    values = (values > 0).double()
    assert float(values.mean()) == pytest.approx(0.7, abs=0.005)
    centred = values - 0.7
    for dim in range(values.ndim):
        n = values.shape[dim]
        # The next one, and the one at the same place of the next block.
        for shift in (1, 12, 32, 1024):
            if shift < n:
                product = centred.narrow(dim, 0, n - shift) * centred.narrow(dim, shift, n - shift)
                assert abs(float(product.mean())) < 0.21 * 5 / product.numel() ** 0.5


def test_a_large_map_is_drawn_in_few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block takes a few calls, which on a GPU take longer than the drawing."""
    net, x = nn.Sequential(nn.AvgPool2d((1, 1)), nn.Dropout(0.3)), torch.ones(1, 1, 4000, 1501)
    drawn = []
    bernoulli = Tensor.bernoulli_

    def spied(self: Tensor, *args: float, **options: torch.Generator) -> Tensor:
        drawn.append(self.numel())
        return bernoulli(self, *args, **options)

    monkeypatch.setattr(Tensor, "bernoulli_", spied)
    torch.manual_seed(2)
    expected = Streamed(net, tile=4000)(x)
    assert sum(drawn) == x.numel()
    assert len(drawn) <= 64 * 48
    assert float((expected > 0).double().mean()) == pytest.approx(0.7, abs=0.002)
    torch.manual_seed(2)
    assert torch.equal(Streamed(net, tile=(999, 780))(x), expected)
    assert sum(drawn) < 2.3 * x.numel()


def test_alpha_dropout_keeps_mean_and_variance() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AlphaDropout(0.3))
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.zero_()
    x = torch.randn(1, 1, 400, 400)
    actual = Streamed(net, tile=90)(x)
    assert float(actual.detach().mean()) == pytest.approx(0, abs=0.02)
    assert float(actual.detach().std()) == pytest.approx(1, abs=0.02)
    # A plain layer gives two values: one for dropped and one for kept elements.
    plain = net(x)
    torch.testing.assert_close(actual.min(), plain.min(), atol=0.5, rtol=0)
    (dropped,), (other,) = (m.flatten().mode().values.view(1) for m in (actual, plain))
    torch.testing.assert_close(dropped, other)


DROPS: dict[str, Callable[[], nn.Module]] = {
    "drop path": lambda: Residual(DropPath(0.4)),
    "drop path, not scaled": lambda: Residual(DropPath(0.4, scale_by_keep=False)),
    "always dropped": lambda: Residual(DropPath(1.0)),
    "never dropped": lambda: Residual(DropPath(0.0)),
    "stochastic depth": lambda: Residual(torchvision.ops.StochasticDepth(0.4, "row")),
    "channels": lambda: nn.Dropout2d(0.4),
    "channels in place": lambda: MapReusedAfterDropout(nn.Dropout2d(0.4, inplace=True)),
    "channels out of place": lambda: MapReusedAfterDropout(nn.Dropout2d(0.4)),
}


@pytest.mark.parametrize("name", DROPS)
def test_draws_per_image_match_the_plain_stack(name: str) -> None:
    net = stack(DROPS[name](), DROPS[name]()).double()
    images = torch.randn(4, 3, 29, 34, dtype=torch.float64)
    streamed = Streamed(net, tile=11)
    learnt = list(net.parameters())
    torch.manual_seed(6)
    plain = torch.cat([net(image[None]) for image in images])
    expected = torch.autograd.grad(plain.square().sum(), learnt)
    torch.manual_seed(6)
    actual = streamed(images)
    assert streamed.counts["forward"] >= 4 * len(images)
    torch.testing.assert_close(actual, plain, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(actual.square().sum(), learnt), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_schedule_of_stochastic_depth_is_followed() -> None:
    drop = DropPath(0.0)
    net, x = stack(Residual(drop)), torch.randn(1, 3, 29, 34)
    streamed = Streamed(net, tile=11)
    torch.testing.assert_close(streamed(x), net(x))
    drop.drop_prob = 1.0
    torch.testing.assert_close(streamed(x), net(x))


# -- half precision -------------------------------------------------------------------------------


def _error(gradient: Tensor | None, true: Tensor) -> float:
    assert gradient is not None
    return float((gradient.double() - true).norm() / true.norm())


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_is_as_accurate_as_the_plain_stack(inside: bool) -> None:
    net, x = stack(nn.Conv2d(8, 8, 3, padding=1), nn.GELU()), torch.randn(2, 3, 61, 67)
    true = copy.deepcopy(net).double()
    upstream = torch.randn(2, 4, 31, 34)
    (true(x.double()) * upstream).sum().backward()
    errors = []
    for run in (Streamed(copy.deepcopy(net), tile=16), copy.deepcopy(net)):
        with torch.autocast("cpu", torch.bfloat16):
            total = (run(x) * upstream).sum()
            if inside:
                total.backward()
        if not inside:
            total.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in run.parameters())
        pairs = zip(run.parameters(), true.parameters(), strict=True)
        errors.append([_error(p.grad, q.grad) for p, q in pairs])
    for streamed, plain in zip(*errors, strict=True):
        assert 1e-6 < streamed < 1.3 * plain + 1e-3


@pytest.mark.parametrize("half_weights", [False, True], ids=["autocast", "bf16 weights"])
def test_gradients_are_summed_in_single_precision(half_weights: bool) -> None:
    """81 tiles of 81 cells: sums of bf16 would stop short of 6561."""
    net = nn.Conv2d(1, 1, 1)
    x = torch.ones(1, 1, 81, 81)
    if half_weights:
        net, x = net.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=not half_weights):
        actual = Streamed(net, tile=9)(x)
    actual.backward(torch.ones_like(actual))
    assert actual.dtype == torch.bfloat16
    assert net.bias is not None
    expected = torch.tensor([81.0 * 81]).to(net.bias.dtype)
    torch.testing.assert_close(net.bias.grad, expected, rtol=0, atol=0)


# -- several processes ----------------------------------------------------------------------------


def test_distributed_data_parallel_gives_the_same_gradients(tmp_path: Path) -> None:
    net, x = stack(nn.Conv2d(8, 8, 1)), torch.randn(2, 3, 29, 34)
    expected = copy.deepcopy(net)
    expected(x).square().sum().backward()
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(Streamed(net, tile=11))
        for _ in range(2):
            parallel.zero_grad()
            parallel(x).square().sum().backward()
    finally:
        distributed.destroy_process_group()
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
