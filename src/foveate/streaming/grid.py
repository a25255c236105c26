"""The division of a map into disjoint blocks, and the cells that they need of every step before."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from foveate.streaming.base import AbstractSource, Flags, Region, StepSpans
from foveate.streaming.cost import CostModel
from foveate.streaming.graph import Graph
from foveate.streaming.spans import axis_spans, split_evenly


@dataclass(frozen=True)
class OutputTile:
    """A block of a segment's output, with the part of its input that the block depends on.

    Attributes:
        output_region: output cells of the block; no other tile computes them.
        input_region: cells of the segment's input that they depend on, with the halo.
        index: number of the block per axis.
    """

    output_region: Region
    input_region: Region
    index: tuple[int, ...]


class TileGrid:
    """The tiles of a segment: its output in disjoint blocks, in the order of their indices.

    Args:
        graph: the steps of the stack.
        begin: step whose map is the segment's input.
        end: step whose map is its output.
        n_tiles: number of blocks per axis.

    Attributes:
        axes: per axis, first cells and ends that each block needs of every step, ``(steps,
            blocks)``.
    """

    def __init__(self, graph: Graph, begin: int, end: int, n_tiles: Sequence[int]) -> None:
        self.graph, self.begin, self.end = graph, begin, end
        extent_cell = graph.steps[end].extent_cell
        self.n_tiles = tuple(min(s, n) for s, n in zip(n_tiles, extent_cell, strict=True))
        self.axes = [
            _block_spans(graph, begin, end, axis, n) for axis, n in enumerate(self.n_tiles)
        ]

    def __len__(self) -> int:
        return math.prod(self.n_tiles)

    def __iter__(self) -> Iterator[OutputTile]:
        for index in itertools.product(*map(range, self.n_tiles)):
            yield OutputTile(self._region(self.end, index), self._region(self.begin, index), index)

    def spans(self, tile: OutputTile) -> dict[int, Region]:
        """Return the region of each step's map that a tile computes, by step; none where empty."""
        regions = {t: self._region(t, tile.index) for t in range(self.begin, self.end + 1)}
        return {t: region for t, region in regions.items() if all(a < b for a, b in region)}

    def key(self, tile: OutputTile) -> tuple[object, ...]:
        """Return a key of a tile: over background, tiles with equal keys have equal maps."""
        return tuple(kinds[i] for kinds, i in zip(self._kinds, tile.index, strict=True))

    def blank(self, source: AbstractSource) -> Flags:
        """Return which tiles contain background only, by index ``(tiles of the first axis, …)``."""
        if not source.has_blank:
            return np.zeros(self.n_tiles, np.bool_)
        return source.blank([(low[0], high[0]) for low, high in self.axes])

    def largest(self) -> tuple[int, ...]:
        """Return the cells of the segment's input that the largest block takes, per axis."""
        return tuple(int((high[0] - low[0]).max()) for low, high in self.axes)

    @property
    def work(self) -> float:
        """Operations of one forward pass over all blocks."""
        return float(self._model.work(self._cells(np.sum), len(self)))

    @property
    def training_bytes(self) -> float:
        """Peak memory of the largest block with its gradient, in bytes."""
        return float(self._model.training_bytes(self._cells(np.max)))

    @property
    def forward_bytes(self) -> float:
        """Peak memory of the largest block without gradient, in bytes."""
        return float(self._model.forward_bytes(self._cells(np.max)))

    @property
    def fits_device(self) -> bool:
        """Whether every map of a block is small enough for its device to be fast."""
        return bool(self._model.fits_device(self._cells(np.max)))

    @property
    def _model(self) -> CostModel:
        return self.graph.of_segment(CostModel, self.begin, self.end)

    def _cells(
        self, reduce: Callable[..., Float64[np.ndarray, " steps"]]
    ) -> Float64[np.ndarray, " steps"]:
        """Count the cells of each step ``(steps,)``, in all blocks (sum) or the largest (max)."""
        cells = np.ones(self.end - self.begin + 1)
        for low, high in self.axes:
            cells = cells * reduce(np.maximum(high - low, 0), axis=1)
        return cells

    @functools.cached_property
    def _kinds(self) -> list[list[object]]:
        """Keys of blocks per axis: their length if no step reaches a border, else their cells."""
        steps = self.graph.steps[self.begin : self.end + 1]
        regular = self.graph.regular
        kinds: list[list[object]] = []
        for axis, (low, high) in enumerate(self.axes):
            extent_cell = np.asarray([s.extent_cell[axis] for s in steps])[:, None]
            free = (high <= low) | ((low > 0) & (high < extent_cell))
            inside: Flags = np.logical_and.reduce(free) & regular
            blocks = zip(low[-1].tolist(), high[-1].tolist(), inside.tolist(), strict=True)
            kinds.append([b - a if within else (a, b) for a, b, within in blocks])
        return kinds

    def _region(self, t: int, index: Sequence[int]) -> Region:
        row = t - self.begin
        return tuple(
            (int(low[row, i]), int(high[row, i]))
            for (low, high), i in zip(self.axes, index, strict=True)
        )


def _block_spans(graph: Graph, begin: int, end: int, axis: int, n: int) -> StepSpans:
    """Return the cells that n blocks along an axis need of every step from `begin` on, cached."""
    ends = split_evenly(graph.steps[end].extent_cell[axis], n)
    compute = functools.partial(axis_spans, graph, end, axis, ends[:-1], ends[1:])
    low, high = graph.cached(("spans", end, axis, n), compute)
    return low[begin:], high[begin:]
