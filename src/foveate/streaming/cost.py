"""A model of the operations and the memory of tiles, for one tiling of a segment or for many."""

from __future__ import annotations

import functools
import itertools
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from foveate.streaming.graph import Graph
from foveate.streaming.spans import axis_spans, split_evenly

Cells = Float64[np.ndarray, "*tilings steps"]
"""Numbers of cells of each step, for many tilings."""
Estimate = Float64[np.ndarray, "*tilings"] | np.float64
"""An estimate for each tiling; a number for one tiling."""


class TileLengths(NamedTuple):
    """The lengths of tiles along an axis, for n numbers of tiles.

    Attributes:
        counts: the numbers of tiles, ``(n,)``.
        total: sum of the lengths of the tiles in the map of every step, ``(n, steps)``.
        largest: their maximum, ``(n, steps)``.
    """

    counts: Int64[np.ndarray, " n"]
    total: Float64[np.ndarray, "n steps"]
    largest: Float64[np.ndarray, "n steps"]


_WRITE_WORK = 64.0
"""Operations that writing an element is counted as: layers without arithmetic take time, too."""
_CALL_WORK = 5e6
"""Operations that calling a layer is counted as: small tiles take time, too."""
_MARGIN = {1: 1.1, 2: 1.1, 3: 1.35}
"""Measured memory over that of the model, by number of axes."""
_COUNTS = (1, 2, 3, 4, *(n << shift for shift in range(8) for n in (5, 6, 7, 8)))
"""Numbers of tiles along an axis that are tried, to 1024."""
MAX_TILES = 1 << 16


class CostModel:
    """Operations and memory of the tiles of a segment, from the cells that they compute.

    Every method takes the number of cells of each step, ``(…, steps)``, and returns ``(…)``.

    Args:
        graph: the steps of the stack.
        begin: step whose map is the segment's input.
        end: step whose map is its output.
    """

    def __init__(self, graph: Graph, begin: int, end: int) -> None:
        first, *others = steps = graph.steps[begin : end + 1]
        self.n_layers = len(others)
        self._per_cell = np.asarray(
            [0.0, *(s.channels * (s.op.work + _WRITE_WORK * s.op.fresh) for s in others)]
        )
        self._channels = np.asarray([s.channels for s in steps], np.float64)
        self._max_elements = np.inf if graph.max_elements is None else graph.max_elements
        self._bytes = np.asarray([s.cell_bytes for s in steps], np.float64)
        saved = [s.op.fresh and not getattr(s.op, "mutates", False) for s in others]
        extra = [s.op.saved_bytes * s.channels for s in steps]
        self._saved_bytes = self._bytes * [True, *saved] + extra
        self._margin = _MARGIN[len(first.extent_cell)]
        self._gradient_bytes = 2 * graph.gradient_bytes

    def fits_device(self, cells: Cells) -> Bool[np.ndarray, "*tilings"] | np.bool_:
        """Return ``(…)``, whether a device computes tiles of ``(…, steps)`` cells at full speed."""
        fits: Bool[np.ndarray, "*tilings"] = (cells * self._channels).max(-1) <= self._max_elements
        return fits

    def work(self, cells: Cells, n_tiles: Int64[np.ndarray, "*tilings"] | int) -> Estimate:
        """Estimate the operations ``(…)`` of one forward pass from all cells ``(…, steps)``.

        Args:
            cells: numbers of cells of each step ``(…, steps)``.
            n_tiles: numbers of tiles ``(…)``.
        """
        work: Estimate = cells @ self._per_cell + _CALL_WORK * self.n_layers * n_tiles
        return work

    def training_bytes(self, cells: Cells) -> Estimate:
        """Estimate the peak bytes ``(…)`` of a tile of ``(…, steps)`` cells, forward and backward.

        Each map that is new memory is saved for the backward pass. Added to these are three times
        the largest map (its gradient, the gradient before, and the workspace of a convolution), and
        the gradients of the parameters, both those of the tile and their sum so far.
        """
        largest = (cells * self._bytes).max(-1)
        saved: Estimate = cells @ self._saved_bytes
        peak: Estimate = self._margin * (saved + 3 * largest) + self._gradient_bytes
        return peak

    def forward_bytes(self, cells: Cells) -> Estimate:
        """Estimate the peak bytes ``(…)`` of a tile of ``(…, steps)`` cells without gradient."""
        peak: Estimate = 4 * (cells * self._bytes).max(-1)
        return peak


class TilingOptions:
    """Operations and memory of many tilings of a segment's output, by tiles per axis.

    Args:
        graph: the steps of the stack.
        begin: step whose map is the segment's input.
        end: step whose map is its output.

    Attributes:
        counts: numbers of tiles that are tried, per axis.
    """

    def __init__(self, graph: Graph, begin: int, end: int) -> None:
        axes = [_lengths(graph, end, axis) for axis in range(len(graph.steps[end].extent_cell))]
        self.counts = [counts for counts, _, _ in axes]
        n_tiles = functools.reduce(np.multiply.outer, self.counts)
        sides = np.stack(np.meshgrid(*self.counts, indexing="ij"))
        # Tried are tilings with similar numbers of tiles on all axes, or with few tiles.
        balanced = (sides.max(0) <= 8 * sides.min(0)) | (n_tiles <= 64)
        self._allowed = balanced & (n_tiles <= MAX_TILES)
        model = graph.of_segment(CostModel, begin, end)
        largest_cells = _outer([largest[:, begin:] for _, _, largest in axes])
        self._fits_device = model.fits_device(largest_cells)
        self._work = model.work(_outer([total[:, begin:] for _, total, _ in axes]), n_tiles)
        self._bytes = {
            "training": model.training_bytes(largest_cells),
            "forward": model.forward_bytes(largest_cells),
        }

    def find_cheapest(
        self, budget_bytes: float, mode: Literal["training", "forward"]
    ) -> tuple[int, ...] | None:
        """Find the tiling of the fewest operations whose tiles fit into a budget.

        Tilings with maps that are too large for their device to be fast are taken only where no
        other fits.

        Args:
            budget_bytes: memory of a tile.
            mode: whether the memory for a gradient counts.

        Returns:
            Tiles per axis; None where no tiling fits.
        """
        fits = self._allowed & (self._bytes[mode] <= budget_bytes)
        fits = fits & self._fits_device if (fits & self._fits_device).any() else fits
        if not fits.any():
            return None
        best = np.unravel_index(np.where(fits, self._work, np.inf).argmin(), fits.shape)
        return tuple(int(counts[i]) for counts, i in zip(self.counts, best, strict=True))


def _lengths(graph: Graph, end: int, axis: int) -> TileLengths:
    """Compute the lengths of tiles along an axis, for every number of tiles that is tried."""

    def compute() -> TileLengths:
        extent_cell = graph.steps[end].extent_cell[axis]
        counts = [n for n in _COUNTS if n < extent_cell] + [extent_cell]
        ends = [split_evenly(extent_cell, n) for n in counts]
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
        return TileLengths(np.asarray(counts), total.astype(np.float64), largest.astype(np.float64))

    # All numbers of tiles take one pass over the steps, whatever the beginning of the segment.
    lengths: TileLengths = graph.cached(("lengths", end, axis), compute)
    return lengths


def _outer(lengths: list[Float64[np.ndarray, "_n steps"]]) -> Cells:
    """Multiply lengths per axis ``(n, steps)`` to cells ``(n of the first axis, …, steps)``."""
    cells = lengths[0]
    for axis_lengths in lengths[1:]:
        cells = cells[..., None, :] * axis_lengths
    return cells
