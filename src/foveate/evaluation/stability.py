"""Stability: how alike the evidence and the answers of several models about one image are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from foveate.images.evidence import Evidence, Floats

_CELLS = 24
"""Cells of the grid along the longest side of an image."""
_MIN_CELLS = 4
_MIN_IMAGES = 5
"""Smallest number of images whose answers are ranked."""


def spread_on_grid(evidence: Evidence, extent_um: Floats) -> Floats:
    """Spread the weights of boxes over a grid of the image, by the area of each overlap.

    Args:
        evidence: the boxes.
        extent_um: extent of the image, ``(d,)``.

    Returns:
        Weight of each cell, ``(*cells)``.
    """
    side_um = float(extent_um.max()) / _CELLS
    shares = []
    for axis, extent in enumerate(extent_um):
        n = max(1, round(extent / side_um))
        edges = np.linspace(0, extent, n + 1)
        low = evidence.origin_um[:, axis, None]
        high = low + evidence.size_um[:, axis, None]
        overlap = np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None)
        shares.append(overlap / evidence.size_um[:, axis, None])
    letters = "yxz"[: len(shares)]
    inputs = ",".join(f"n{letter}" for letter in letters)
    grid: Floats = np.einsum(f"n,{inputs}->{letters}", evidence.weight, *shares)
    return grid


def correlate_evidence(members: Sequence[Evidence]) -> float | None:
    """Compute the mean rank correlation of the evidence of each pair of models about an image.

    Cells of the grid in which no model has weight are left out.

    Args:
        members: evidence of each model about the same image.

    Returns:
        The correlation from -1 to 1; None where it is undefined.
    """
    extent = next((e.extent_um for e in members if e.extent_um is not None), None)
    if extent is None or len(members) < 2:
        return None
    grids = [_scale(spread_on_grid(evidence, extent)).ravel() for evidence in members]
    used = np.sum(grids, 0) > 0
    if used.sum() < _MIN_CELLS:
        return None
    return _mean_correlation([grid[used] for grid in grids])


def _scale(grid: Floats) -> Floats:
    """Scale weights to a largest of 1, and round them, so that equal ones have one rank."""
    scaled: Floats = np.round(grid / max(float(grid.max()), 1e-300), 9)
    return scaled


def correlate_answers(answers: Floats) -> float | None:
    """Compute the mean rank correlation of the answers of each pair of models over images.

    Args:
        answers: numbers of the answers, ``(models, n, columns)``.

    Returns:
        The mean over pairs and columns; None where it is undefined or there are few images.
    """
    if answers.shape[1] < _MIN_IMAGES:
        return None
    values = [_mean_correlation(list(column)) for column in np.moveaxis(answers, 2, 0)]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _mean_correlation(rows: Sequence[Floats]) -> float | None:
    """Return the mean Spearman correlation of all pairs of rows that are not constant."""
    ranks = [rankdata(row) for row in rows]
    values = [
        float(np.corrcoef(a, b)[0, 1])
        for a, b in itertools.combinations(ranks, 2)
        if np.ptp(a) > 0 and np.ptp(b) > 0
    ]
    return float(np.mean(values)) if values else None
