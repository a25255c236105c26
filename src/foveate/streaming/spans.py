"""Interval arithmetic over the steps: the cells of every map that a part of the output needs."""

from __future__ import annotations

import numpy as np

from foveate.streaming.base import Ints, StepSpans
from foveate.streaming.graph import Graph

_FAR = 1 << 60


def axis_spans(graph: Graph, end: int, axis: int, low: Ints, high: Ints) -> StepSpans:
    """Compute the cells of every step that blocks of the map of step `end` depend on, on one axis.

    Args:
        graph: the steps.
        end: number of the step whose map is divided into blocks.
        axis: spatial axis.
        low: first cells of the blocks, ``(blocks,)``.
        high: ends of the blocks, ``(blocks,)``.

    Returns:
        First cells and ends ``(end + 1, blocks)``; the first cell is above the end where a block
        does not depend on a step.
    """
    lows = np.full((end + 1, len(low)), _FAR)
    highs = np.full((end + 1, len(low)), -_FAR)
    lows[-1], highs[-1] = low, high
    for t in range(end, 0, -1):
        step = graph.steps[t]
        used = highs[t] >= lows[t]
        if not used.any():
            continue
        a, b = step.op.needs(axis, lows[t, used], highs[t, used])
        for s in step.sources:
            lows[s, used] = np.minimum(lows[s, used], a)
            highs[s, used] = np.maximum(highs[s, used], b)
    return lows, highs


def split_evenly(n_cells: int, n: int) -> Ints:
    """Divide an extent into n nearly equal parts; return their borders ``(n + 1,)``.

    Args:
        n_cells: number of cells.
        n: number of parts.
    """
    return np.round(np.linspace(0, n_cells, n + 1)).astype(np.int64)
