"""Figures of several labels: the ROC curve of each, and their calibration together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.errors import TableError
from foveate.metrics.types import Floats
from foveate.presentation import (
    CYCLE,
    GREY,
    Chart,
    add_legend,
    add_unit_square,
    read_number,
    shorten,
)
from foveate.tasks.base import Rows
from foveate.tasks.classes.benefit import build_benefit_chart
from foveate.tasks.classes.curves import Points, average_roc, compute_roc
from foveate.tasks.classes.figures import build_calibration_chart
from foveate.tasks.several.labels import read_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTION = "True positives against false positives of each label at every threshold."
_STYLES = ("-", "--", ":")


def build_charts(
    rows: Rows, labels: Sequence[str], none: str, metrics: Mapping[str, Any]
) -> list[Chart]:
    """Return the figures; a figure without data has a text in its place.

    Args:
        rows: stored answers; some may be damaged.
        labels: names of the labels.
        none: the word for an image that has none of them.
        metrics: content of ``metrics.json``, which may be damaged.
    """
    curves = _trace_labels(rows, labels, none)
    further = [build_calibration_chart(metrics), build_benefit_chart(metrics)]
    if not curves:
        absent = "No ROC curves: they need images with and without a label."
        return [Chart("roc", _CAPTION, absent), *further]
    alt = f"ROC curves of {len(curves)} labels"
    return [Chart("roc", _CAPTION, "", alt, partial(_plot_curves, curves=curves)), *further]


def _trace_labels(rows: Rows, labels: Sequence[str], none: str) -> dict[str, Points]:
    """Return the ROC curve of each label, the mean over folds, where a fold has both values."""
    prob, truth, folds = [], [], []
    for row in rows:
        stated = [read_number(row, f"prob_{name}") for name in labels]
        try:
            values = read_values(row.get("label", ""), labels, none)
        except TableError:
            continue
        if None not in stated:
            prob.append(stated)
            truth.append(values)
            folds.append(row.get("fold", ""))
    if not prob:
        return {}
    p, t = np.array(prob, np.float64), np.array(truth, np.float64)
    curves = {}
    for c, name in enumerate(labels):
        of_folds = [_trace_fold(p[:, c], t[:, c], np.array(folds) == f) for f in set(folds)]
        there = [points for points in of_folds if points is not None]
        if there:
            curves[name] = average_roc(there) if len(there) > 1 else there[0]
    return curves


def _trace_fold(prob: Floats, truth: Floats, inside: np.ndarray) -> Points | None:
    """Return the ROC curve of the images of a fold whose value is known."""
    known = inside & ~np.isnan(truth)
    return compute_roc(prob[known], truth[known] == 1)


def _plot_curves(figure: Figure, curves: Mapping[str, Points]) -> None:
    """Draw the curve of each label."""
    axes = add_unit_square(figure, "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance")
    for i, (name, points) in enumerate(curves.items()):
        style = _STYLES[i // len(CYCLE) % len(_STYLES)]
        axes.plot(*points, color=CYCLE[i % len(CYCLE)], linestyle=style, linewidth=1.8,
                  label=shorten(name))  # fmt: skip
    add_legend(axes)
