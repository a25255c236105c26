"""Interval arithmetic over the steps: which cells of every map a part of the output needs."""

from __future__ import annotations

import numpy as np

from foveate.streaming.base import Ints, Span
from foveate.streaming.graph import Graph

_FAR = 1 << 60


def axis_spans(graph: Graph, end: int, axis: int, low: Ints, high: Ints) -> Span:
    """Per step up to `end`, the cells that blocks ``low <= i < high`` of its map need.

    Returns:
        Ends ``(end + 1, blocks)``; where a block needs nothing of a step, the low one is above the
        high one.
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


def split(extent: int, n: int) -> Ints:
    """Ends ``(n + 1,)`` of n nearly equal parts."""
    return np.round(np.linspace(0, extent, n + 1)).astype(np.int64)
