"""The figure of decision curves: what treating by the probability of a class gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.metrics.types import Floats
from foveate.presentation import BLUE, CYCLE, GREY, Chart, add_legend, read_number, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTION = (
    "Net benefit: true positives per image, less false positives weighed by the odds of the "
    "threshold. A model is of use where its curve lies above both treating all and treating none."
)
_KEYS = ("threshold", "value", "lo", "hi", "treat_all")


def build_benefit_chart(metrics: Mapping[str, Any], thresholds: Sequence[float] = ()) -> Chart:
    """Return the figure of decision curves; a text in its place where none were stored.

    Args:
        metrics: content of ``metrics.json``, which may be damaged.
        thresholds: thresholds of the models of the folds.
    """
    curves = _read_curves(metrics.get("benefit"))
    if not curves:
        return Chart("benefit", _CAPTION, "No decision curves were stored.")
    alt = f"Decision curves with 95 % bands: {', '.join(curves)}"
    plot = partial(_plot_curves, curves=curves, thresholds=thresholds)
    return Chart("benefit", _CAPTION, "", alt, plot)


def _read_curves(stored: object) -> dict[str, Floats]:
    """Return by class the well-formed points of its curve, ``(points, 5)``, as in `_KEYS`."""
    curves = {}
    for entry in stored if isinstance(stored, list) else ():
        points = entry.get("points") if isinstance(entry, dict) else None
        rows = [
            [read_number(point, key) for key in _KEYS]
            for point in (points if isinstance(points, list) else ())
            if isinstance(point, dict)
        ]
        known = [row for row in rows if None not in row]
        if known:
            curves[str(entry.get("class", ""))] = np.array(known, np.float64)
    return curves


def _plot_curves(figure: Figure, curves: Mapping[str, Floats], thresholds: Sequence[float]) -> None:
    """Draw the curve of each class with its band, beside treating all and treating none.

    Args:
        figure: an empty figure.
        curves: points by class, ``(points, 5)``, as in `_KEYS`.
        thresholds: thresholds of the models of the folds, drawn as lines.
    """
    axes = figure.subplots()
    axes.axhline(0.0, color=GREY, linewidth=1.2, label="treat none")
    for i, (name, points) in enumerate(curves.items()):
        colour = BLUE if len(curves) == 1 else CYCLE[i % len(CYCLE)]
        threshold, value, lo, hi, treat_all = points.T
        axes.plot(threshold, treat_all, color=colour, linestyle="--", linewidth=1, alpha=0.7,
                  label="treat all" if i == len(curves) - 1 else None)  # fmt: skip
        axes.fill_between(threshold, lo, hi, color=colour, alpha=0.15, linewidth=0)
        axes.plot(threshold, value, color=colour, linewidth=2, label=shorten(name))
    for i, threshold in enumerate(thresholds if len(curves) == 1 else ()):
        axes.axvline(threshold, color="#333333", linewidth=1, linestyle=":",
                     label=None if i else "threshold")  # fmt: skip
    top = max(float(points[:, (1, 4)].max()) for points in curves.values())
    top = max(top, 0.05)
    axes.set(xlim=(0, 1), ylim=(-0.3 * top, 1.15 * top), xlabel="threshold", ylabel="net benefit")
    add_legend(axes)
