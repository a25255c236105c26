"""A map in disjoint blocks: what each needs of every step before it, costs and holds."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.nn.streaming._graph import Graph
from foveate.nn.streaming.base import AbstractSource, Flags, Ints, Region, Span

Floats = NDArray[np.float64]

_FAR = 1 << 60
_MOVED = 64.0
"""Operations that writing an element is taken for: layers without arithmetic cost time, too."""
_MARGIN = {1: 1.1, 2: 1.1, 3: 1.35}
_CALLED = 5e6
"""Operations that calling a layer is taken for: small tiles cost time, too."""


@dataclass(frozen=True)
class Tile:
    """One part of a segment's output.

    Attributes:
        own: the output cells that this tile alone computes.
        region: the cells of the segment's input that they depend on.
        place: which block it is, per axis.
    """

    own: Region
    region: Region
    place: tuple[int, ...]


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
            yield Tile(self._region(self.end, place), self._region(self.begin, place), place)

    def spans(self, tile: Tile) -> dict[int, Region]:
        """Of each step from the segment's input to its output, the cells to compute."""
        every = {t: self._region(t, tile.place) for t in range(self.begin, self.end + 1)}
        return {t: region for t, region in every.items() if all(a < b for a, b in region)}

    def key(self, tile: Tile) -> tuple[object, ...]:
        """Tiles over background with equal keys give equal maps."""
        return tuple(kinds[i] for kinds, i in zip(self._kinds, tile.place, strict=True))

    def blank(self, source: AbstractSource) -> Flags:
        """Of which tiles the region holds nothing but background, by their places."""
        if not source.has_blank:
            return np.zeros(self.sides, np.bool_)
        return source.blank([(low[0], high[0]) for low, high in self.axes])

    def largest(self) -> tuple[int, ...]:
        """Cells of the segment's input that the largest block takes, per axis."""
        return tuple(int((high[0] - low[0]).max()) for low, high in self.axes)

    @property
    def work(self) -> float:
        """Operations of one forward pass over all blocks; see `_MOVED` and `_CALLED`."""
        calls = len(self) * (self.end - self.begin)
        return float(np.dot(self._per_cell(), self._volumes(np.sum))) + _CALLED * calls

    @property
    def held_bytes(self) -> float:
        """What the largest block holds with gradient, by a model: see `_held`."""
        return _held(self.graph, self.begin, self.end, self._volumes(np.max))

    @property
    def passing_bytes(self) -> float:
        """What the largest block holds without gradient: a few maps at a time."""
        steps = self.graph.steps[self.begin : self.end + 1]
        return float(4 * (self._volumes(np.max) * [s.cell_bytes for s in steps]).max())

    def _volumes(self, over: object) -> Floats:
        found = np.ones(self.end - self.begin + 1)
        for low, high in self.axes:
            found = found * over(np.maximum(high - low, 0), axis=1)  # type: ignore[operator]
        return found

    def _per_cell(self) -> Floats:
        steps = self.graph.steps[self.begin + 1 : self.end + 1]
        return np.asarray([0.0, *(s.channels * (s.op.work + _MOVED * s.op.fresh) for s in steps)])

    @functools.cached_property
    def _kinds(self) -> list[list[object]]:
        """Per axis and block its length where no step reaches a border, else its own cells."""
        steps = self.graph.steps[self.begin : self.end + 1]
        regular = all(s.op.regular for s in self.graph.steps)
        kinds: list[list[object]] = []
        for axis, (low, high) in enumerate(self.axes):
            extent = np.asarray([s.extent[axis] for s in steps])[:, None]
            inside = regular & ((high <= low) | ((low > 0) & (high < extent))).all(0)
            own = zip(low[-1].tolist(), high[-1].tolist(), inside.tolist(), strict=True)
            kinds.append([b - a if within else (a, b) for a, b, within in own])
        return kinds

    def _region(self, t: int, place: Sequence[int]) -> Region:
        row = t - self.begin
        return tuple(
            (int(low[row, i]), int(high[row, i]))
            for (low, high), i in zip(self.axes, place, strict=True)
        )


def split(extent: int, n: int) -> Ints:
    """Ends ``(n + 1,)`` of n nearly equal parts."""
    return np.round(np.linspace(0, extent, n + 1)).astype(np.int64)


def axis_spans(graph: Graph, begin: int, end: int, axis: int, ends: Ints) -> Span:
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


def _held(graph: Graph, begin: int, end: int, volume: Floats) -> float:
    """Bytes that a block holds at most between its forward and its backward pass.

    Each map that is new memory is kept by whoever takes it; beside them stand a few times the
    largest one: its gradient, the one before, and what a convolution rearranges; and the gradients
    of the parameters, the block's own and the sum so far. The share on top, by axes, was measured.
    """
    held, largest = 0.0, 0.0
    for t in range(begin, end + 1):
        step = graph.steps[t]
        size = step.cell_bytes * volume[t - begin]
        largest = max(largest, size)
        if t == begin or (step.op.fresh and not getattr(step.op, "mutates", False)):
            held += size
        held += step.op.held * step.channels * volume[t - begin]
    margin = _MARGIN[len(graph.steps[end].extent)]
    return margin * (held + 3 * largest) + 2 * graph.gradient_bytes
