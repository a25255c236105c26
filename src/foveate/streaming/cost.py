"""What tiles cost and hold, by a model: of one way to cut a segment, or of every way at once."""

from __future__ import annotations

import functools
import itertools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveate.streaming.base import Flags, Ints
from foveate.streaming.graph import Graph
from foveate.streaming.spans import axis_spans, split

Floats = NDArray[np.float64]

_MOVED = 64.0
"""Operations that writing an element is taken for: layers without arithmetic cost time, too."""
_CALLED = 5e6
"""Operations that calling a layer is taken for: small tiles cost time, too."""
_MARGIN = {1: 1.1, 2: 1.1, 3: 1.35}
"""What is held over what the model says, by axes, as measured."""
_FEW = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
_MANY = (160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
MOST_TILES = 1 << 16


class Cost:
    """Of a segment, from the cells ``(…, steps)`` that tiles take of each of its steps."""

    def __init__(self, graph: Graph, begin: int, end: int) -> None:
        first, *others = steps = graph.steps[begin : end + 1]
        self.n_layers = len(others)
        self._per_cell = np.asarray(
            [0.0, *(s.channels * (s.op.work + _MOVED * s.op.fresh) for s in others)]
        )
        self._channels = np.asarray([s.channels for s in steps], np.float64)
        self._most = np.inf if graph.most_elements is None else graph.most_elements
        self._bytes = np.asarray([s.cell_bytes for s in steps], np.float64)
        own = [s.op.fresh and not getattr(s.op, "mutates", False) for s in others]
        more = [s.op.held * s.channels for s in steps]
        self._held = self._bytes * [True, *own] + more
        self._margin = _MARGIN[len(first.extent)]
        self._gradients = 2 * graph.gradient_bytes

    def quick(self, cells: Floats) -> Flags:
        """Whether no map of a tile is larger than its device takes well."""
        found: Flags = (cells * self._channels).max(-1) <= self._most
        return found

    def work(self, cells: Floats, n_tiles: Ints | int) -> Floats:
        """Operations of one forward pass; `cells` of all tiles together."""
        found: Floats = cells @ self._per_cell + _CALLED * self.n_layers * n_tiles
        return found

    def held_bytes(self, cells: Floats) -> Floats:
        """What a tile holds at most between its forward and its backward pass.

        Each map that is new memory is kept by whoever takes it; beside them stand a few times the
        largest one: its gradient, the one before, and what a convolution rearranges; and the
        gradients of the parameters, the tile's own and the sum so far.
        """
        largest = (cells * self._bytes).max(-1)
        found: Floats = self._margin * (cells @ self._held + 3 * largest) + self._gradients
        return found

    def passing_bytes(self, cells: Floats) -> Floats:
        """What a tile holds without gradient: a few maps at a time."""
        found: Floats = 4 * (cells * self._bytes).max(-1)
        return found


def cost(graph: Graph, begin: int, end: int) -> Cost:
    """Of a segment; made once."""
    made: Cost = graph.kept(("cost", begin, end), functools.partial(Cost, graph, begin, end))
    return made


class Ways:
    """Every way to cut a segment's output into tiles: operations and bytes by tiles per axis."""

    def __init__(self, graph: Graph, begin: int, end: int) -> None:
        each = [_lengths(graph, end, axis) for axis in range(len(graph.steps[end].extent))]
        self.counts = [counts for counts, _, _ in each]
        n_tiles = functools.reduce(np.multiply.outer, self.counts)
        every = np.stack(np.meshgrid(*self.counts, indexing="ij"))
        near = (every.max(0) <= 8 * every.min(0)) | (n_tiles <= 64)
        self._allowed = near & (n_tiles <= MOST_TILES)
        model = cost(graph, begin, end)
        most = _outer([largest[:, begin:] for _, _, largest in each])
        self._quick = model.quick(most)
        self._work = model.work(_outer([total[:, begin:] for _, total, _ in each]), n_tiles)
        self._bytes = {"held": model.held_bytes(most), "passing": model.passing_bytes(most)}

    def cheapest(self, budget: float, holds: Literal["held", "passing"]) -> tuple[int, ...] | None:
        """Tiles per axis with the fewest operations, of those that fit; of slow ones last."""
        fits = self._allowed & (self._bytes[holds] <= budget)
        fits = fits & self._quick if (fits & self._quick).any() else fits
        if not fits.any():
            return None
        best = np.unravel_index(np.where(fits, self._work, np.inf).argmin(), fits.shape)
        return tuple(int(counts[i]) for counts, i in zip(self.counts, best, strict=True))


def ways(graph: Graph, begin: int, end: int) -> Ways:
    """Of a segment; made once."""
    made: Ways = graph.kept(("ways", begin, end), functools.partial(Ways, graph, begin, end))
    return made


def _lengths(graph: Graph, end: int, axis: int) -> tuple[Ints, Floats, Floats]:
    """Numbers of blocks along an axis; of each step, their lengths' sum and maximum ``(n, steps)``.

    Of all numbers in one pass over the steps, once per `end`.
    """

    def made() -> tuple[Ints, Floats, Floats]:
        extent = graph.steps[end].extent[axis]
        counts = [n for n in (*_FEW, *_MANY) if n < extent] + [extent]
        ends = [split(extent, n) for n in counts]
        low, high = axis_spans(
            graph,
            end,
            axis,
            np.concatenate([e[:-1] for e in ends]),
            np.concatenate([e[1:] for e in ends]),
        )
        lengths = np.maximum(high - low, 0)
        first = [0, *itertools.accumulate(counts[:-1])]
        total = np.add.reduceat(lengths, first, axis=1).T
        largest = np.maximum.reduceat(lengths, first, axis=1).T
        return np.asarray(counts), total.astype(np.float64), largest.astype(np.float64)

    found: tuple[Ints, Floats, Floats] = graph.kept(("lengths", end, axis), made)
    return found


def _outer(lengths: list[Floats]) -> Floats:
    """Per axis ``(n, steps)``, to cells ``(n of the first axis, …, steps)``."""
    found = lengths[0]
    for each in lengths[1:]:
        found = found[..., None, :] * each
    return found
