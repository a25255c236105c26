"""A map in disjoint blocks, and what each needs of every step before it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.streaming.base import AbstractSource, Flags, Region, Span
from foveate.streaming.cost import Cost, Floats, cost
from foveate.streaming.graph import Graph
from foveate.streaming.spans import axis_spans, split


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
        self.axes = [_block_spans(graph, begin, end, axis, n) for axis, n in enumerate(self.sides)]

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
        """Operations of one forward pass over all blocks."""
        return float(self._cost.work(self._cells(np.sum), len(self)))

    @property
    def held_bytes(self) -> float:
        """What the largest block holds with gradient."""
        return float(self._cost.held_bytes(self._cells(np.max)))

    @property
    def passing_bytes(self) -> float:
        """What the largest block holds without gradient."""
        return float(self._cost.passing_bytes(self._cells(np.max)))

    @property
    def quick(self) -> bool:
        """Whether no map of a block is larger than its device takes well."""
        return bool(self._cost.quick(self._cells(np.max)))

    @property
    def _cost(self) -> Cost:
        return cost(self.graph, self.begin, self.end)

    def _cells(self, over: Callable[..., Floats]) -> Floats:
        """Of each step, the cells of all blocks or of the largest."""
        found = np.ones(self.end - self.begin + 1)
        for low, high in self.axes:
            found = found * over(np.maximum(high - low, 0), axis=1)
        return found

    @functools.cached_property
    def _kinds(self) -> list[list[object]]:
        """Per axis and block its length where no step reaches a border, else its own cells."""
        steps = self.graph.steps[self.begin : self.end + 1]
        regular = self.graph.regular
        kinds: list[list[object]] = []
        for axis, (low, high) in enumerate(self.axes):
            extent = np.asarray([s.extent[axis] for s in steps])[:, None]
            free = (high <= low) | ((low > 0) & (high < extent))
            inside: Flags = np.logical_and.reduce(free) & regular
            own = zip(low[-1].tolist(), high[-1].tolist(), inside.tolist(), strict=True)
            kinds.append([b - a if within else (a, b) for a, b, within in own])
        return kinds

    def _region(self, t: int, place: Sequence[int]) -> Region:
        row = t - self.begin
        return tuple(
            (int(low[row, i]), int(high[row, i]))
            for (low, high), i in zip(self.axes, place, strict=True)
        )


def _block_spans(graph: Graph, begin: int, end: int, axis: int, n: int) -> Span:
    """Of n blocks along an axis, from step `begin` on; computed once."""
    ends = split(graph.steps[end].extent[axis], n)
    made = functools.partial(axis_spans, graph, end, axis, ends[:-1], ends[1:])
    low, high = graph.kept(("spans", end, axis, n), made)
    return low[begin:], high[begin:]
