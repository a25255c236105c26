"""Which parts of an image are computed at a time: what they need, cost and hold."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.nn.streaming._graph import Graph
from foveate.nn.streaming.base import Ints, NotLocal, Region, TooLittleMemory

_SIDES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
_FAR = 1 << 60


@dataclass(frozen=True)
class Tile:
    """One part of a segment's output.

    Attributes:
        own: the output cells that this tile alone computes.
        spans: of each step from the segment's input to its output, the cells to compute.
        key: tiles over background with equal keys give equal maps.
    """

    own: Region
    spans: dict[int, Region]
    key: tuple[object, ...]


class Grid:
    """A segment's output in disjoint blocks, and per axis what each block needs of every step.

    Args:
        graph: the steps.
        begin, end: the segment: from the map of one step to that of another.
        sides: blocks per axis.
    """

    def __init__(self, graph: Graph, begin: int, end: int, sides: Sequence[int]) -> None:
        self.graph, self.begin, self.end = graph, begin, end
        extent = graph.steps[end].extent
        self.sides = tuple(min(s, n) for s, n in zip(sides, extent, strict=True))
        self.axes = [
            graph.kept(
                (begin, end, axis, n),
                functools.partial(axis_spans, graph, begin, end, axis, split(extent[axis], n)),
            )
            for axis, n in enumerate(self.sides)
        ]

    def __len__(self) -> int:
        return math.prod(self.sides)

    def __iter__(self) -> Iterator[Tile]:
        for place in itertools.product(*map(range, self.sides)):
            spans = {}
            for t in range(self.begin, self.end + 1):
                low = [
                    int(axis[0][t - self.begin, i])
                    for axis, i in zip(self.axes, place, strict=True)
                ]
                high = [
                    int(axis[1][t - self.begin, i])
                    for axis, i in zip(self.axes, place, strict=True)
                ]
                if all(a < b for a, b in zip(low, high, strict=True)):
                    spans[t] = tuple(zip(low, high, strict=True))
            own = spans[self.end]
            key = tuple(self._key(axis, i, own[axis]) for axis, i in enumerate(place))
            yield Tile(own, spans, key)

    @property
    def work(self) -> float:
        """Floating-point operations of one forward pass over all blocks."""
        return float(np.dot(self._per_cell("work"), self._volumes(np.sum)))

    @property
    def held_bytes(self) -> float:
        """What the largest block holds with gradient, by a model: see `_held`."""
        volume = self._volumes(np.max)
        return _held(self.graph, self.begin, self.end, volume)

    @property
    def passing_bytes(self) -> float:
        """What the largest block holds without gradient: a few maps at a time."""
        size = 4 * self._volumes(np.max) * self._channels()
        return float(4 * size.max())

    def _volumes(self, over: object) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        found = np.ones(self.end - self.begin + 1)
        for low, high in self.axes:
            found = found * over(np.maximum(high - low, 0), axis=1)  # type: ignore[operator]
        return found

    def _channels(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        steps = self.graph.steps[self.begin : self.end + 1]
        return np.asarray([s.channels for s in steps], np.float64)

    def _per_cell(self, name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        steps = self.graph.steps[self.begin : self.end + 1]
        values = [0.0, *(s.channels * getattr(s.op, name) for s in steps[1:])]
        return np.asarray(values)

    def _key(self, axis: int, i: int, own: tuple[int, int]) -> object:
        """Inside, where no step reaches a border, only the length counts."""
        low, high = self.axes[axis]
        extent = np.asarray([s.extent[axis] for s in self.graph.steps[self.begin : self.end + 1]])
        used = high[:, i] > low[:, i]
        inside = ((low[:, i] > 0) & (high[:, i] < extent))[used].all()
        return own[1] - own[0] if inside and _is_regular(self.graph) else own


def split(extent: int, n: int) -> Ints:
    """Ends ``(n + 1,)`` of n nearly equal parts."""
    return np.round(np.linspace(0, extent, n + 1)).astype(np.int64)


def axis_spans(graph: Graph, begin: int, end: int, axis: int, ends: Ints) -> tuple[Ints, Ints]:
    """Per step of a segment and block of the output, the cells ``low <= i < high`` to compute."""
    n_steps, n_parts = end - begin + 1, len(ends) - 1
    low = np.full((n_steps, n_parts), _FAR)
    high = np.full((n_steps, n_parts), -_FAR)
    low[-1], high[-1] = ends[:-1], ends[1:]
    for t in range(end, begin, -1):
        step = graph.steps[t]
        if (high[t - begin] < low[t - begin]).any():
            continue
        a, b = step.op.needs(axis, low[t - begin], high[t - begin])
        for s in step.sources:
            if s < begin:
                raise AssertionError(f"{step.name} takes a map from before its segment")
            low[s - begin] = np.minimum(low[s - begin], a)
            high[s - begin] = np.maximum(high[s - begin], b)
    return low, high


def _held(
    graph: Graph, begin: int, end: int, volume: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """Bytes that a block holds at most between its forward and its backward pass.

    Each map that is new memory is kept by whoever takes it; beside them stand a few times the
    largest one: its gradient, the one before, and what a convolution rearranges.
    """
    held, largest = 0.0, 0.0
    for t in range(begin, end + 1):
        step = graph.steps[t]
        size = 4 * step.channels * volume[t - begin]
        largest = max(largest, size)
        if t == begin or (step.op.fresh and not getattr(step.op, "mutates", False)):
            held += size
        held += step.op.held * step.channels * volume[t - begin]
    return held + 3 * largest


def _is_regular(graph: Graph) -> bool:
    """Whether moving the input by whole cells moves the output: no map grows on the way."""
    return all(
        all(a <= b for a, b in zip(s.extent, graph.steps[s.sources[0]].extent, strict=True))
        or s.op.__class__.__name__ in ("ConstantPad", "Convolution", "MaxPool", "MeanPool")
        for s in graph.steps
        if s.sources
    )


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
        work: floating-point operations of a training step, over those of the plain stack.
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
            first = next(iter(segment.grid)).spans[segment.grid.begin]
            size = " × ".join(str(high - low) for low, high in first)
            parts.append("at once" if segment.at_once else f"{sides} tiles of about {size} cells")
        return (
            f"{', then '.join(parts)}; {self.work:.2f} × the arithmetic of the plain network; "
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
    plain = 3 * Grid(graph, 0, last, (1,) * len(graph.steps[last].extent)).work
    if sides is not None:
        grid = Grid(graph, 0, last, sides)
        held = grid.held_bytes if learns else grid.passing_bytes
        return Plan((Segment(grid, at_once=False),), 4 * grid.work / plain, held)
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
                found.append(Plan(tuple(segments), work / plain, peak + kept))
    if not found:
        cell = _smallest(graph, learns)
        raise TooLittleMemory(
            f"a tile of one output cell holds about {cell / 2**20:.0f} MiB, more than the "
            f"{budget_bytes / 2**20:.0f} MiB allowed: allow more, take a narrower network, one "
            "with a smaller receptive field, or read at a coarser spacing"
        )
    return min(found, key=lambda plan: plan.work)


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
