"""How a stack is computed on images of one size: which tiles, and what is stored between."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from foveate.streaming.base import AbstractSource, NotLocal, TooLittleMemory
from foveate.streaming.cost import MOST_TILES, ways
from foveate.streaming.graph import Graph
from foveate.streaming.grid import Grid

MOST_STORED = 3
"""Maps between rounds of tiles; the ways to choose them multiply with each."""
_FINER = (1, 2, 4, 8, 16, 32)
_LAID = 200.0
"""Operations that moving a byte to or from a map on disk is taken for."""


class Cut(NamedTuple):
    """Where a map is stored between two rounds of tiles.

    Attributes:
        step: whose map.
        size: of the map in bytes.
        on_disk: there instead of in memory.
    """

    step: int
    size: float
    on_disk: bool


@dataclass(frozen=True)
class Segment:
    """A part of the stack that is computed tile by tile, or at once.

    Attributes:
        grid: its tiles, for the gradient.
        passing: its tiles where nothing is held for a gradient; they may be larger.
        at_once: one tile, whose activations are held instead of computed again.
        on_disk: its map is laid there, and the map's gradient.
    """

    grid: Grid
    passing: Grid
    at_once: bool
    on_disk: bool = False

    def work(self, learns: bool) -> float:
        """Operations; a backward pass takes twice those of a forward pass, which it repeats."""
        if self.at_once:
            return 3 * self.grid.work
        return self.passing.work + 3 * self.grid.work * learns

    def held_bytes(self, learns: bool) -> float:
        """What the largest tile holds."""
        return max(self.passing.passing_bytes, self.grid.held_bytes * learns)


@dataclass(frozen=True)
class Plan:
    """How a stack is computed on images of one size.

    Attributes:
        segments: one after the other.
        work: operations of a training step, or a forward pass, over those of the plain stack.
        held_bytes: estimate of what is held at most, without the final map.
        learns: whether a backward pass follows.
    """

    segments: tuple[Segment, ...]
    work: float
    held_bytes: float
    learns: bool

    def told(self) -> str:
        """One line for people."""
        parts = []
        for segment in self.segments:
            sides = " × ".join(map(str, segment.grid.sides))
            size = " × ".join(map(str, segment.grid.largest()))
            tiles = "at once" if segment.at_once else f"{sides} tiles of about {size} cells"
            parts.append(tiles + " (map on disk)" * segment.on_disk)
        return (
            f"{', then '.join(parts)}; {self.work:.2f} × the work of the plain network; "
            f"holds about {self.held_bytes / 2**20:.0f} MiB"
        )


def choose(
    graph: Graph,
    *,
    budget_bytes: int,
    scratch_bytes: int,
    learns: bool,
    sides: Sequence[int] | None,
    most_stored: int,
) -> Plan:
    """The cheapest way that fits: tiles, and where a map is stored between two rounds of tiles.

    Args:
        graph: the steps.
        budget_bytes: what may be held beside parameters and the final map.
        scratch_bytes: what may be laid on disk for an image.
        learns: whether a backward pass follows.
        sides: tiles per axis of the output, when the user settles them; then nothing is chosen.
        most_stored: maps that may be stored.

    Raises:
        TooLittleMemory: not even tiles of one cell fit.
    """
    last = len(graph.steps) - 1
    if sides is not None:
        grid = Grid(graph, 0, last, sides)
        settled = Segment(grid, grid, at_once=False)
        return _planned(graph, [settled], [], settled.held_bytes(learns), learns)
    plain = _chained(graph, (), budget_bytes, learns)
    if plain is not None and plain.work <= 1:
        return plain
    cuts = _worthwhile(graph, budget_bytes, scratch_bytes)
    found = [] if plain is None else [plain]
    for n in range(1, most_stored + 1):
        for chosen in itertools.combinations(cuts, n):
            if len({cut.step for cut in chosen}) < n or _laid_bytes(chosen) > scratch_bytes:
                continue
            plan = _chained(graph, chosen, budget_bytes, learns)
            found += [] if plan is None else [plan]
    if not found:
        cell = _smallest(graph, learns)
        raise TooLittleMemory(
            f"a tile of one output cell holds about {cell / 2**20:.0f} MiB, more than the "
            f"{budget_bytes / 2**20:.0f} MiB allowed: allow more, take a narrower network, one "
            "with a smaller receptive field, or read at a coarser spacing"
        )
    return min(found, key=lambda plan: plan.work)


def _chained(graph: Graph, cuts: Sequence[Cut], budget: float, learns: bool) -> Plan | None:
    """Segments one after the other, with the maps between them stored; None where one is too large.

    At its turn in the backward pass a segment stands beside the maps before it, the gradients of
    its input and of its output, and what segments before it hold at once. What comes later is gone.
    """
    bounds = [0, *(cut.step for cut in cuts), len(graph.steps) - 1]
    maps = [0.0 if cut.on_disk else cut.size for cut in cuts]
    segments: list[Segment] = []
    peak, standing = 0.0, 0.0
    for j, (begin, end) in enumerate(itertools.pairwise(bounds)):
        beside = standing + sum(maps[:j]) + sum(maps[max(j - 1, 0) : j + 1])
        # Autograd would make the gradient of what is computed at once, in memory.
        tiled = j > 0 and cuts[j - 1].on_disk
        segment = _segment(graph, begin, end, budget - beside, learns, tiled)
        if segment is not None and tiled:
            # The pages of a tile's input, and of its gradient, come to memory with it.
            cells = math.prod(segment.grid.largest())
            beside += 2 * graph.steps[begin].cell_bytes * cells
            segment = _segment(graph, begin, end, budget - beside, learns, tiled)
        if segment is None:
            return None
        segments.append(replace(segment, on_disk=j < len(cuts) and cuts[j].on_disk))
        peak = max(peak, beside + segment.held_bytes(learns))
        standing += segment.held_bytes(learns) if segment.at_once else 0.0
    return _planned(graph, segments, cuts, peak, learns)


def for_tissue(graph: Graph, plan: Plan, source: AbstractSource) -> Plan:
    """The plan with smaller tiles, where that leaves out more background than halos add.

    Args:
        graph: the steps.
        plan: what is best for an image without background.
        source: the image, which knows where it holds nothing but background.
    """
    first, *others = plan.segments
    grid, work = _finer(first.grid, source)
    passing, once = _finer(first.passing, source)
    work = 3 * work * plan.learns + once
    whole = first.work(plan.learns)
    if work >= whole:
        return plan
    better = replace(first, grid=grid, passing=passing, at_once=False)
    less = (whole - work) / _plain_work(graph, plan.learns)
    return replace(plan, segments=(better, *others), work=plan.work - less)


def _finer(grid: Grid, source: AbstractSource) -> tuple[Grid, float]:
    """Of a grid and finer ones the cheapest, and the operations of a pass over its live tiles."""
    extent = grid.graph.steps[grid.end].extent
    best, least, sides = grid, float("inf"), None
    for factor in _FINER:
        finer = tuple(min(s * factor, n) for s, n in zip(grid.sides, extent, strict=True))
        if finer == sides or (factor > 1 and math.prod(finer) > MOST_TILES):
            break
        sides = finer
        each = Grid(grid.graph, grid.begin, grid.end, sides)
        alike = int(each.blank(source).sum()) if grid.graph.regular else 1
        live = len(each) - alike + 1
        work = each.work * min(live / len(each), 1.0)
        if work < least:
            best, least = each, work
    return best, least


def _planned(
    graph: Graph, segments: Sequence[Segment], cuts: Sequence[Cut], held: float, learns: bool
) -> Plan:
    work = sum(s.work(learns) for s in segments)
    # A map is written and read; then read again, its gradient summed up, written and read.
    moved = sum(cut.size for cut in cuts if cut.on_disk) * (6 if learns else 2)
    work = (work + _LAID * moved) / _plain_work(graph, learns)
    return Plan(tuple(segments), work, held, learns)


def _plain_work(graph: Graph, learns: bool) -> float:
    """Operations of the plain stack in one pass, or in a training step."""
    last = len(graph.steps) - 1
    whole = Grid(graph, 0, last, (1,) * len(graph.steps[last].extent))
    return (1 + 2 * learns) * whole.work


def _worthwhile(graph: Graph, budget_bytes: float, scratch_bytes: float) -> list[Cut]:
    """Maps that may be stored, in order; of neighbours with maps of one size, the last."""
    last = {_map_bytes(graph, t): t for t in graph.cuts}
    each = sorted((t, size) for size, t in last.items())
    return [
        Cut(t, size, on_disk)
        for t, size in each
        for on_disk, room in ((False, budget_bytes), (True, scratch_bytes))
        if 2 * size < room
    ]


def _laid_bytes(cuts: Sequence[Cut]) -> float:
    """Maps on disk, and the gradients of two of them."""
    sizes = sorted(cut.size for cut in cuts if cut.on_disk)
    return sum(sizes) + sum(sizes[-2:])


def _map_bytes(graph: Graph, t: int) -> float:
    step = graph.steps[t]
    return float(step.cell_bytes * math.prod(step.extent))


def _segment(
    graph: Graph, begin: int, end: int, budget: float, learns: bool, tiled: bool
) -> Segment | None:
    """The fewest operations within the budget; held at once where that fits and may be."""
    if learns and not tiled:
        whole = Grid(graph, begin, end, (1,) * len(graph.steps[end].extent))
        if whole.held_bytes <= budget and whole.quick:
            return Segment(whole, whole, at_once=True)
    every = ways(graph, begin, end)
    passing = every.cheapest(budget, "passing")
    sides = every.cheapest(budget, "held") if learns else passing
    if passing is None or sides is None:
        return None
    grid = Grid(graph, begin, end, sides)
    same = passing == sides
    return Segment(grid, grid if same else Grid(graph, begin, end, passing), at_once=False)


def _smallest(graph: Graph, learns: bool) -> float:
    last = len(graph.steps) - 1
    grid = Grid(graph, 0, last, graph.steps[last].extent)
    return Segment(grid, grid, at_once=False).held_bytes(learns)


def check_rank(space: Sequence[int]) -> None:
    """Images have one to three axes."""
    if not 1 <= len(space) <= 3:
        raise NotLocal(f"an image (b, c, *space) with 1 to 3 spatial axes, got {len(space)}")
