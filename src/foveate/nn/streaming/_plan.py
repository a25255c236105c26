"""How a stack is computed on images of one size: which tiles, and what is stored between."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foveate.nn.streaming._graph import Graph
from foveate.nn.streaming._grid import Grid
from foveate.nn.streaming.base import NotLocal, Region, TooLittleMemory

_SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
_FINER = (1, 2, 4, 8, 16, 32)
_MOST_TILES = 1 << 16


@dataclass(frozen=True)
class Segment:
    """A part of the stack that is computed tile by tile, or at once.

    Attributes:
        grid: its tiles.
        at_once: one tile, whose activations are held instead of computed again.
    """

    grid: Grid
    at_once: bool


@dataclass(frozen=True)
class Plan:
    """How a stack is computed on images of one size.

    Attributes:
        segments: one after the other.
        work: operations of a training step, over those of the plain stack.
        held_bytes: estimate of what is held at most, without the final map.
    """

    segments: tuple[Segment, ...]
    work: float
    held_bytes: float

    def told(self) -> str:
        """One line for people."""
        parts = []
        for segment in self.segments:
            sides = " × ".join(map(str, segment.grid.sides))
            size = " × ".join(map(str, segment.grid.largest()))
            parts.append("at once" if segment.at_once else f"{sides} tiles of about {size} cells")
        return (
            f"{', then '.join(parts)}; {self.work:.2f} × the work of the plain network; "
            f"holds about {self.held_bytes / 2**20:.0f} MiB"
        )


def choose(
    graph: Graph, *, budget_bytes: int, learns: bool, stored: int, sides: Sequence[int] | None
) -> Plan:
    """The cheapest way that fits: tiles, and where a map is stored between two rounds of tiles.

    Args:
        graph: the steps.
        budget_bytes: what may be held beside parameters and the final map.
        learns: whether a backward pass follows.
        stored: bytes per element of stored maps.
        sides: tiles per axis of the output, when the user settles them; then nothing is chosen.

    Raises:
        TooLittleMemory: not even tiles of one cell fit.
    """
    last = len(graph.steps) - 1
    graph.plain_work = Grid(graph, 0, last, (1,) * len(graph.steps[last].extent)).work
    if sides is not None:
        grid = Grid(graph, 0, last, sides)
        held = grid.held_bytes if learns else grid.passing_bytes
        return Plan((Segment(grid, at_once=False),), 4 * grid.work / (3 * graph.plain_work), held)
    found: list[Plan] = []
    for cut in (None, *_worthwhile(graph, budget_bytes, stored)):
        bounds = (0, last) if cut is None else (0, cut, last)
        kept = 0.0 if cut is None else 2 * _map_bytes(graph, cut, stored)
        segments, work, peak = [], 0.0, 0.0
        for begin, end in itertools.pairwise(bounds):
            segment = _cheapest(graph, begin, end, budget_bytes - kept, learns)
            if segment is None:
                break
            segments.append(segment)
            held = segment.grid.held_bytes if learns else segment.grid.passing_bytes
            work += (3 if segment.at_once else 4) * segment.grid.work
            peak = peak + held if segment.at_once else max(peak, held)
        else:
            if peak + kept <= budget_bytes:
                found.append(Plan(tuple(segments), work / (3 * graph.plain_work), peak + kept))
    if not found:
        cell = _smallest(graph, learns)
        raise TooLittleMemory(
            f"a tile of one output cell holds about {cell / 2**20:.0f} MiB, more than the "
            f"{budget_bytes / 2**20:.0f} MiB allowed: allow more, take a narrower network, one "
            "with a smaller receptive field, or read at a coarser spacing"
        )
    return min(found, key=lambda plan: plan.work)


def for_tissue(graph: Graph, plan: Plan, is_blank: Callable[[Region], bool]) -> Plan:
    """The plan with smaller tiles, where that leaves out more background than halos add.

    Args:
        graph: the steps.
        plan: what is best for an image without background.
        is_blank: whether a region of the image holds nothing but background.
    """
    first, *others = plan.segments
    extent = graph.steps[first.grid.end].extent
    plain = 3 * graph.plain_work
    rest = plan.work - (3 if first.at_once else 4) * first.grid.work / plain
    best, least, sides = first, plan.work - rest, first.grid.sides
    for factor in _FINER:
        finer = tuple(min(s * factor, n) for s, n in zip(first.grid.sides, extent, strict=True))
        if factor > 1 and (finer == sides or math.prod(finer) > _MOST_TILES):
            break
        sides = finer
        grid = Grid(graph, first.grid.begin, first.grid.end, sides)
        live = sum(not is_blank(tile.region) for tile in grid) + 1
        work = 4 * grid.work / plain * live / len(grid)
        if work < least:
            best, least = Segment(grid, at_once=False), work
    return Plan((best, *others), least + rest, plan.held_bytes)


def _worthwhile(graph: Graph, budget_bytes: int, stored: int) -> list[int]:
    """Cuts whose map may be stored; of neighbours with maps of one size, the last."""
    fits = [t for t in graph.cuts if 2 * _map_bytes(graph, t, stored) < budget_bytes / 2]
    sizes = {_map_bytes(graph, t, stored): t for t in fits}
    return sorted(sizes.values())


def _map_bytes(graph: Graph, t: int, stored: int) -> float:
    step = graph.steps[t]
    return float(stored * step.channels * math.prod(step.extent))


def _cheapest(graph: Graph, begin: int, end: int, budget: float, learns: bool) -> Segment | None:
    """Fewest operations within the budget; held at once where that fits."""
    extent = graph.steps[end].extent
    whole = Grid(graph, begin, end, (1,) * len(extent))
    if (whole.held_bytes if learns else whole.passing_bytes) <= budget:
        return Segment(whole, at_once=learns)
    best: Grid | None = None
    for sides in _candidates(extent):
        if best is not None and math.prod(sides) > 2 * len(best) + 8:
            break
        grid = Grid(graph, begin, end, sides)
        held = grid.held_bytes if learns else grid.passing_bytes
        if held <= budget and (best is None or grid.work < best.work):
            best = grid
    return None if best is None else Segment(best, at_once=False)


@functools.cache
def _candidates(extent: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Numbers of tiles per axis, few tiles first."""
    each = [[s for s in (*_SIDES, *range(160, n, 32), n) if s <= n] for n in extent]
    every = itertools.product(*each)
    near = [s for s in every if max(s) <= 8 * min(s) or math.prod(s) <= 64]
    return sorted(set(near), key=lambda s: (math.prod(s), max(s)))


def _smallest(graph: Graph, learns: bool) -> float:
    last = len(graph.steps) - 1
    grid = Grid(graph, 0, last, graph.steps[last].extent)
    return grid.held_bytes if learns else grid.passing_bytes


def check_rank(space: Sequence[int]) -> None:
    """Images have one to three axes."""
    if not 1 <= len(space) <= 3:
        raise NotLocal(f"an image (b, c, *space) with 1 to 3 spatial axes, got {len(space)}")
