"""Plans of how a stack is computed on images of one size: tiles, and the maps that are stored."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from foveate.streaming.base import AbstractSource, TooLittleMemory
from foveate.streaming.cost import MAX_TILES, TilingOptions
from foveate.streaming.graph import Graph
from foveate.streaming.grid import TileGrid

MAX_STORED = 3
"""Largest number of stored maps; the number of possible plans multiplies with each."""
_FINER = (1, 2, 4, 8, 16, 32)
"""Factors of the number of tiles per axis that are tried to leave out background."""
_DISK_BYTE_WORK = 200.0
"""Operations that moving a byte to or from a map on disk is counted as."""


class StoredMap(NamedTuple):
    """A map that is stored between two segments.

    Attributes:
        step: number of the step whose map it is.
        size_bytes: size of the map.
        on_disk: whether it is stored on disk or in memory.
    """

    step: int
    size_bytes: float
    on_disk: bool


@dataclass(frozen=True)
class Segment:
    """A part of the stack that is computed tile by tile, or at once.

    Attributes:
        grid: tiles of the backward pass.
        forward_grid: tiles of the forward pass, which may be larger as they save no activations.
        at_once: whether it is one tile, whose activations are saved instead of computed again.
        on_disk: whether its output map, and the gradient of that map, are on disk.
    """

    grid: TileGrid
    forward_grid: TileGrid
    at_once: bool
    on_disk: bool = False

    def work(self, learns: bool) -> float:
        """Estimate the operations of a forward pass, and with `learns` of the backward pass too.

        A backward pass of tiles repeats their forward pass, and takes twice as many operations.
        """
        if self.at_once:
            return 3 * self.grid.work
        return self.forward_grid.work + 3 * self.grid.work * learns

    def peak_bytes(self, learns: bool) -> float:
        """Estimate the peak memory of the largest tile, with `learns` including its gradient."""
        return max(self.forward_grid.forward_bytes, self.grid.training_bytes * learns)


@dataclass(frozen=True)
class StreamingPlan:
    """A plan of how a stack is computed on images of one size.

    Attributes:
        segments: segments of the stack, one after the other.
        work: operations of a training step, or of a forward pass, over those of the plain stack.
        peak_bytes: estimate of the peak memory, without parameters and the final map.
        learns: whether a backward pass follows.
    """

    segments: tuple[Segment, ...]
    work: float
    peak_bytes: float
    learns: bool

    def describe(self) -> str:
        """Describe the plan in one line."""
        parts = []
        for segment in self.segments:
            sides = " × ".join(map(str, segment.grid.n_tiles))
            size = " × ".join(map(str, segment.grid.largest()))
            tiles = "at once" if segment.at_once else f"{sides} tiles of about {size} cells"
            parts.append(tiles + " (map on disk)" * segment.on_disk)
        return (
            f"{', then '.join(parts)}; {self.work:.2f} × the work of the plain network; "
            f"holds about {self.peak_bytes / 2**20:.0f} MiB"
        )


def choose_streaming_plan(
    graph: Graph,
    *,
    budget_bytes: int,
    scratch_bytes: int,
    learns: bool,
    n_tiles: Sequence[int] | None,
    max_stored: int,
) -> StreamingPlan:
    """Find the plan of the fewest operations that fits: its tiles, and the maps it stores.

    Args:
        graph: the steps of the stack.
        budget_bytes: memory beside parameters and the final map.
        scratch_bytes: space on disk for maps of one image.
        learns: whether a backward pass follows.
        n_tiles: tiles per axis of the output, where the user chose them: then the plan is one
            segment of these tiles, whether it fits or not. None searches.
        max_stored: largest number of stored maps.

    Raises:
        TooLittleMemory: not even tiles of one cell fit.
    """
    last = len(graph.steps) - 1
    if n_tiles is not None:
        grid = TileGrid(graph, 0, last, n_tiles)
        segment = Segment(grid, grid, at_once=False)
        return _sum_up(graph, [segment], [], segment.peak_bytes(learns), learns)
    undivided = _plan_segments(graph, (), budget_bytes, learns)
    if undivided is not None and undivided.work <= 1:
        return undivided
    candidates = _list_candidates(graph, budget_bytes, scratch_bytes)
    plans = [] if undivided is None else [undivided]
    for n in range(1, max_stored + 1):
        for stored in itertools.combinations(candidates, n):
            if len({s.step for s in stored}) < n or _disk_bytes(stored) > scratch_bytes:
                continue
            plan = _plan_segments(graph, stored, budget_bytes, learns)
            plans += [] if plan is None else [plan]
    if not plans:
        raise _refuse_budget(graph, budget_bytes, learns)
    return min(plans, key=lambda plan: plan.work)


def _plan_segments(
    graph: Graph, stored: Sequence[StoredMap], budget_bytes: float, learns: bool
) -> StreamingPlan | None:
    """Plan the segments between stored maps; return None where a segment does not fit.

    During the backward pass of a segment, memory also contains the stored maps before it, the
    gradients of its input and output, and the saved activations of earlier segments that are
    computed at once. Later segments have released theirs.
    """
    bounds = [0, *(s.step for s in stored), len(graph.steps) - 1]
    maps = [0.0 if s.on_disk else s.size_bytes for s in stored]
    segments: list[Segment] = []
    peak, saved = 0.0, 0.0
    for j, (begin, end) in enumerate(itertools.pairwise(bounds)):
        other = saved + sum(maps[:j]) + sum(maps[max(j - 1, 0) : j + 1])
        # A segment after a map on disk is tiled: otherwise autograd would make the gradient of that
        # map in memory.
        tiled = j > 0 and stored[j - 1].on_disk
        segment = _plan_segment(graph, begin, end, budget_bytes - other, learns, tiled)
        if segment is not None and tiled:
            # The pages of a tile's input and of its gradient are in memory while it is computed.
            cells = math.prod(segment.grid.largest())
            other += 2 * graph.steps[begin].cell_bytes * cells
            segment = _plan_segment(graph, begin, end, budget_bytes - other, learns, tiled)
        if segment is None:
            return None
        segments.append(replace(segment, on_disk=j < len(stored) and stored[j].on_disk))
        peak = max(peak, other + segment.peak_bytes(learns))
        saved += segment.peak_bytes(learns) if segment.at_once else 0.0
    return _sum_up(graph, segments, stored, peak, learns)


def refine_for_background(
    graph: Graph, plan: StreamingPlan, source: AbstractSource
) -> StreamingPlan:
    """Divide the first segment's tiles, where that leaves out more background than halos add.

    Args:
        graph: the steps of the stack.
        plan: the best plan for an image without background.
        source: the image, which knows where it contains background only.
    """
    first, *others = plan.segments
    grid, backward_work = _refine_grid(first.grid, source)
    forward_grid, forward_work = _refine_grid(first.forward_grid, source)
    work = 3 * backward_work * plan.learns + forward_work
    full_work = first.work(plan.learns)
    if work >= full_work:
        return plan
    refined = replace(first, grid=grid, forward_grid=forward_grid, at_once=False)
    saving = (full_work - work) / _plain_work(graph, plan.learns)
    return replace(plan, segments=(refined, *others), work=plan.work - saving)


def _refine_grid(grid: TileGrid, source: AbstractSource) -> tuple[TileGrid, float]:
    """Find the grid of the fewest operations for an image, among `grid` and finer ones.

    Returns:
        The grid, and the operations of a forward pass over the tiles that are not left out.
    """
    extent_cell = grid.graph.steps[grid.end].extent_cell
    best, least_work, sides = grid, float("inf"), None
    for factor in _FINER:
        finer_sides = tuple(
            min(s * factor, n) for s, n in zip(grid.n_tiles, extent_cell, strict=True)
        )
        if finer_sides == sides or (factor > 1 and math.prod(finer_sides) > MAX_TILES):
            break
        sides = finer_sides
        finer = TileGrid(grid.graph, grid.begin, grid.end, sides)
        n_equal = int(finer.blank(source).sum()) if grid.graph.regular else 1
        n_computed = len(finer) - n_equal + 1
        work = finer.work * min(n_computed / len(finer), 1.0)
        if work < least_work:
            best, least_work = finer, work
    return best, least_work


def _sum_up(
    graph: Graph,
    segments: Sequence[Segment],
    stored: Sequence[StoredMap],
    peak_bytes: float,
    learns: bool,
) -> StreamingPlan:
    """Make a plan of segments, with their operations over those of the plain stack."""
    work = sum(s.work(learns) for s in segments)
    # A map on disk is written and read once. In training, it is read again, and its gradient is
    # read, written and read.
    moved = sum(s.size_bytes for s in stored if s.on_disk) * (6 if learns else 2)
    work = (work + _DISK_BYTE_WORK * moved) / _plain_work(graph, learns)
    return StreamingPlan(tuple(segments), work, peak_bytes, learns)


def _plain_work(graph: Graph, learns: bool) -> float:
    """Estimate the operations of the plain stack in a forward pass, or in a training step."""
    last = len(graph.steps) - 1
    single = TileGrid(graph, 0, last, (1,) * len(graph.steps[last].extent_cell))
    return (1 + 2 * learns) * single.work


def _list_candidates(graph: Graph, budget_bytes: float, scratch_bytes: float) -> list[StoredMap]:
    """List the maps that may be stored, in order; among maps of equal size only the last."""
    last = {_map_bytes(graph, t): t for t in graph.storable}
    return [
        StoredMap(t, size, on_disk)
        for t, size in sorted((t, size) for size, t in last.items())
        for on_disk, room in ((False, budget_bytes), (True, scratch_bytes))
        if 2 * size < room
    ]


def _disk_bytes(stored: Sequence[StoredMap]) -> float:
    """Compute the space on disk of stored maps and of two of their gradients, the largest."""
    sizes = sorted(s.size_bytes for s in stored if s.on_disk)
    return sum(sizes) + sum(sizes[-2:])


def _map_bytes(graph: Graph, t: int) -> float:
    step = graph.steps[t]
    return float(step.cell_bytes * math.prod(step.extent_cell))


def _plan_segment(
    graph: Graph, begin: int, end: int, budget_bytes: float, learns: bool, tiled: bool
) -> Segment | None:
    """Plan the segment of the fewest operations within a budget; return None where none fits.

    Args:
        graph: the steps of the stack.
        begin: step whose map is the segment's input.
        end: step whose map is its output.
        budget_bytes: memory in bytes.
        learns: whether a backward pass follows.
        tiled: whether it must be computed tile by tile even if its activations fit.
    """
    if learns and not tiled:
        single = TileGrid(graph, begin, end, (1,) * len(graph.steps[end].extent_cell))
        if single.training_bytes <= budget_bytes and single.fits_device:
            return Segment(single, single, at_once=True)
    options = graph.of_segment(TilingOptions, begin, end)
    forward_sides = options.find_cheapest(budget_bytes, "forward")
    sides = options.find_cheapest(budget_bytes, "training") if learns else forward_sides
    if forward_sides is None or sides is None:
        return None
    grid = TileGrid(graph, begin, end, sides)
    forward_grid = grid if forward_sides == sides else TileGrid(graph, begin, end, forward_sides)
    return Segment(grid, forward_grid, at_once=False)


def _refuse_budget(graph: Graph, budget_bytes: int, learns: bool) -> TooLittleMemory:
    """Make the error for a budget into which no tile fits."""
    last = len(graph.steps) - 1
    grid = TileGrid(graph, 0, last, graph.steps[last].extent_cell)
    cell_bytes = Segment(grid, grid, at_once=False).peak_bytes(learns)
    return TooLittleMemory(
        f"a tile of one output cell holds about {cell_bytes / 2**20:.0f} MiB, more than the "
        f"{budget_bytes / 2**20:.0f} MiB allowed: allow more, take a narrower network, one "
        "with a smaller receptive field, or read at a coarser spacing"
    )
