"""Plans within a budget: tiles, stored maps, and estimates of memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.process import measure_in_process
from benchmarks.streaming import Streaming, measure_streaming
from foveate.streaming import AbstractSource, Region, Streamed, StreamingPlan
from foveate.streaming.base import Flags, Span
from foveate.streaming.cost import TilingOptions
from foveate.streaming.graph import Graph
from foveate.streaming.grid import TileGrid
from foveate.streaming.plan import choose_streaming_plan
from foveate.streaming.scratch import DiskMap

MIB = 1 << 20


def deep_network() -> nn.Module:
    """Layers that shrink the map early, as encoders do."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for c, k, stride in ((3, 16, 2), (16, 16, 2), (16, 32, 2), (32, 32, 1), (32, 32, 1)):
        layers += [nn.Conv2d(c, k, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*layers)


def plan_images(
    budget_mib: float, *, side: int = 1024, net: nn.Module | None = None
) -> StreamingPlan:
    """Plan the streaming of images of this side."""
    return Streamed(net or deep_network(), budget_bytes=int(budget_mib * MIB)).plan((3, side, side))


def test_more_memory_never_costs_more_work() -> None:
    plans = [plan_images(budget) for budget in (4, 8, 16, 32, 64, 128, 512)]
    works = [plan.work for plan in plans]
    assert works == sorted(works, reverse=True)
    assert works[-1] == 1.0, "at once"
    assert works[0] > 1.4


@pytest.mark.parametrize("budget_mib", [8, 16, 32, 64])
def test_an_untiled_stage_is_freed_before_earlier_tiles_run(
    budget_mib: int,
) -> None:
    plan = plan_images(budget_mib)
    peak_bytes = [segment.peak_bytes(learns=True) for segment in plan.segments]
    maps = [s.grid.graph.steps[s.grid.end] for s in plan.segments[:-1]]
    stored = [step.cell_bytes * step.extent_cell[0] * step.extent_cell[1] for step in maps]
    peaks = []
    for i, alone in enumerate(peak_bytes):
        # Maps before it, with the gradient of its input, and that of its output.
        beside = sum(stored[:i]) + sum(stored[max(i - 1, 0) : i + 1])
        earlier = [h for h, s in zip(peak_bytes[:i], plan.segments, strict=False) if s.at_once]
        peaks.append(alone + beside + sum(earlier))
    assert plan.peak_bytes == pytest.approx(max(peaks))
    assert plan.peak_bytes <= budget_mib * MIB


def test_tiles_are_larger_without_gradients() -> None:
    net = deep_network().double()
    streamed = Streamed(net, budget_bytes=4 * MIB)
    x = torch.randn(1, 3, 517, 483, dtype=torch.float64)
    actual = streamed(x)
    actual.square().sum().backward()
    assert 1 < streamed.counts["forward"] < streamed.counts["backward"]
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    expected = net(x)
    expected.square().sum().backward()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    for p, q in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, q, rtol=1e-10, atol=1e-12)


def test_half_precision_allows_larger_tiles() -> None:
    full = plan_images(16, side=2048)
    with torch.autocast("cpu", torch.bfloat16):
        half = plan_images(16, side=2048)
    assert half.work < full.work
    assert half.peak_bytes <= 16 * MIB


def halving(kind: str) -> nn.Module:
    """Make layers whose halos are larger than the tiles that fit into a small budget."""
    torch.manual_seed(0)
    conv = {"2d": nn.Conv2d, "3d": nn.Conv3d}[kind]
    layers: list[nn.Module] = [conv(2, 8, 3, 2, 1), nn.Tanh()]
    for stride in (1, 1, 2, 1, 1, 2, 1):
        layers += [conv(8, 8, 3, stride, 1), nn.Tanh()]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("kind", "space"), [("2d", (387, 411)), ("3d", (83, 71, 90))])
def test_maps_on_disk_do_not_change_results(
    kind: str, space: tuple[int, ...], last: bool, tmp_path: Path
) -> None:
    net = halving(kind)
    x = torch.randn(2, 2, *space, dtype=torch.double, requires_grad=True)
    if last:
        form = torch.channels_last if kind == "2d" else torch.channels_last_3d
        net, x = net.to(memory_format=form), x.detach().to(memory_format=form).requires_grad_()
    budget = (2 if kind == "2d" else 8) * MIB
    streamed = Streamed(net, budget_bytes=budget, scratch=tmp_path)
    plan = streamed.plan(x.shape[1:], x)
    assert any(segment.on_disk for segment in plan.segments), plan.describe()
    assert plan.work < Streamed(net, budget_bytes=budget).plan(x.shape[1:], x).work
    y, z = net(x), streamed(x)
    torch.testing.assert_close(z, y, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(y)
    leaves = [x, *net.parameters()]
    for ours, plain in zip(
        torch.autograd.grad((z * weight).sum(), leaves),
        torch.autograd.grad((y * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10 * float(plain.abs().max()))
    assert not list(tmp_path.iterdir()), "files have no names"


def test_a_full_disk_is_an_error_before_a_map_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no room for a map of 1048576\.0 GiB"):
        DiskMap(tmp_path, (1, 1 << 20, 1 << 30), torch.uint8, torch.contiguous_format)


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_maps_on_disk_are_read_in_parts(form: torch.memory_format, tmp_path: Path) -> None:
    """The other rows stay on disk, even if the system uses large memory pages."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs /proc/self/status")

    def mapped() -> int:
        fields = dict(line.split(":") for line in status.read_text().splitlines())
        return sum(int(fields[key].split()[0]) << 10 for key in ("RssFile", "RssShmem"))

    stored = DiskMap(tmp_path, (2, 8, 256, 65536), torch.uint8, form)
    part = stored.map[1:, :, 20:200, 5000:21384]
    before = mapped()
    part.fill_(3)
    assert part.numel() <= mapped() - before + MIB < 1.1 * part.numel() + 8 * MIB
    stored.release_pages()
    assert mapped() - before < MIB
    stored.prefetch(part)
    assert int(part.min()) == 3
    assert int((stored.map == 3).sum()) == part.numel()


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_uses_the_planned_memory(bf16: bool, tmp_path: Path) -> None:
    """In a separate process, memory is within a fifth of the plan's estimate."""
    budget_mib = 96
    step = Streaming(
        encoder="small",
        side=1536,
        budget_mib=budget_mib,
        tile=0,
        plain=False,
        bf16=bf16,
        image=None,
        skip_background=False,
        group=1,
        frugal=True,
    )
    row = measure_in_process(measure_streaming, step, label="a step", less="nothing")
    assert row["tiles_backward"] > 2, row["tiles"]
    assert row["step_mib"] <= 1.2 * budget_mib, row


@pytest.mark.parametrize("budget_mib", [0.4, 1, 3, 9])
def test_the_plan_is_the_cheapest_of_all_tilings(budget_mib: float) -> None:
    graph = Streamed(deep_network())._graph_of((3, 200, 330), torch.device("cpu"), torch.float32)
    begin, end = graph.storable[1], len(graph.steps) - 1
    options = graph.of_segment(TilingOptions, begin, end)
    grids = [TileGrid(graph, begin, end, sides) for sides in itertools.product(*options.counts)]
    grids = [g for g in grids if max(g.n_tiles) <= 8 * min(g.n_tiles) or len(g) <= 64]
    for mode in ("training", "forward"):
        fits = [g for g in grids if getattr(g, f"{mode}_bytes") <= budget_mib * MIB]
        sides = options.find_cheapest(budget_mib * MIB, mode)  # type: ignore[arg-type]
        assert (sides is None) == (not fits)
        if sides is not None:
            assert TileGrid(graph, begin, end, sides).work == min(g.work for g in fits)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("space", [(16384, 16384), (11000, 70001), (700, 900, 1000)])
def test_gpu_maps_have_at_most_2_to_the_31_elements(space: tuple[int, ...], learns: bool) -> None:
    """The limit holds for any amount of memory; on a CPU it does not apply."""
    conv = nn.Conv2d if len(space) == 2 else nn.Conv3d
    net = nn.Sequential(conv(3, 8, 3, padding=1), nn.ReLU(), conv(8, 4, 3, 2, 1), conv(4, 4, 3))
    cpu = Streamed(net)._graph_of((3, *space), torch.device("cpu"), torch.float32)
    cuda = Graph(cpu.steps, [], cpu.gradient_bytes, "cuda")
    assert cpu.max_elements is None
    plans = []
    for graph in (cpu, cuda):
        options = {"budget_bytes": 1 << 45, "scratch_bytes": 0, "n_tiles": None, "max_stored": 3}
        plans.append(choose_streaming_plan(graph, learns=learns, **options))  # type: ignore[arg-type]
    assert all(len(segment.grid) == 1 for segment in plans[0].segments)
    largest = []
    for segment in plans[1].segments:
        for grid in (segment.grid, segment.forward_grid):
            for tile in grid:
                regions = [
                    (cuda.steps[t].channels, region) for t, region in grid.spans(tile).items()
                ]
                largest += [c * math.prod(b - a for a, b in r) for c, r in regions]
    assert 2**27 < max(largest) < 2**31
    assert plans[1].work < 1.6


class GlassImage(AbstractSource):
    """An image of background, except for one corner."""

    has_blank = True
    shape, device = (3, 1024, 1024), torch.device("cpu")

    def crops(self, regions: Sequence[Region]) -> Iterator[Tensor]:
        for (a, b), (c, d) in regions:
            yield torch.zeros(1, 3, b - a, d - c)

    def blank(self, spans: Sequence[Span]) -> Flags:
        (rows, _), (columns, _) = spans
        blank: Flags = (rows[:, None] >= 100) | (columns >= 100)
        return blank

    def background(self) -> Tensor:
        return torch.zeros(3)


def test_small_tiles_without_stored_maps_are_cheapest_over_glass() -> None:
    """Segments after a stored map compute background too: the cheapest plan is another one."""
    streamed = Streamed(deep_network(), budget_bytes=32 * MIB)
    full, ours = streamed.plan(GlassImage.shape), streamed.plan_for(GlassImage())
    assert len(full.segments) > 1
    assert len(ours.segments) == 1
    assert ours.work < 0.2 < 1 < full.work
    streamed(GlassImage()).sum().backward()
    assert streamed.counts["backward"] < 0.2 * len(ours.segments[0].grid)


@pytest.mark.parametrize(
    "source", [GlassImage(), torch.zeros(2, 3, 512, 384)], ids=["glass", "batch"]
)
def test_progress_rises_tile_by_tile_to_one(
    source: AbstractSource | Tensor,
) -> None:
    streamed = Streamed(deep_network(), budget_bytes=8 * MIB)
    shares: list[float] = []
    streamed.on_progress = shares.append
    y = streamed(source)
    forward = len(shares)
    assert shares[-1] < 0.6
    # Tiles that need no gradient count as done.
    (y * (torch.arange(y.shape[-1]) < 10)).sum().backward()
    assert len(shares) >= forward + streamed.counts["backward"]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
