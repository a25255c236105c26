"""Kaplan-Meier curves of images of high and of low risk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from foveate.metrics import kaplan_meier, log_rank_p
from foveate.metrics.types import Floats
from foveate.presentation import BLUE, GREY, ORANGE, Chart, add_legend, read_number
from foveate.tasks.base import Rows
from foveate.tasks.events.labels import parse_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIN_IMAGES = 4
_CAPTION = (
    "Share without an event (Kaplan-Meier) of the images whose risk is above and below the median "
    "of their fold; strokes: censored; dots: mean stated survival."
)


def build_charts(rows: Rows, horizons: Sequence[float], columns: Sequence[str]) -> list[Chart]:
    """Return the figure of the curves; a text in its place without enough answers.

    Args:
        rows: stored answers; some may be damaged.
        horizons: times at which survival is stated.
        columns: columns of the answers: the risk, then survival at each horizon.
    """
    values, truth, folds = [], [], []
    for row in rows:
        pair = parse_label(row.get("label", ""))
        stated = [read_number(row, column) for column in columns]
        if pair is not None and None not in stated:
            values.append(stated)
            truth.append(pair)
            folds.append(row.get("fold", ""))
    if len(values) < _MIN_IMAGES:
        return [Chart("survival", _CAPTION, "No curves: they need answers of labelled images.")]
    known, pairs = np.array(values, np.float64), np.array(truth, np.float64)
    high = _divide_by_median(known[:, 0], folds)
    p = log_rank_p(pairs[:, 0], pairs[:, 1].astype(np.int64), high)
    plot = partial(_plot_curves, known=known, pairs=pairs, high=high, horizons=horizons, p=p)
    alt = f"Kaplan-Meier curves of {int(high.sum())} images of high and {int((~high).sum())} of low"
    return [Chart("survival", _CAPTION, "", f"{alt} risk; {_write_p(p)}", plot)]


def _divide_by_median(risk: Floats, folds: Sequence[str]) -> np.ndarray:
    """Return whether each risk lies above the median of its fold, ``(n,)`` bool."""
    of_fold: dict[str, list[float]] = defaultdict(list)
    for value, fold in zip(risk, folds, strict=True):
        of_fold[fold].append(float(value))
    median = {fold: np.median(values) for fold, values in of_fold.items()}
    return np.array([v > median[f] for v, f in zip(risk, folds, strict=True)])


def _write_p(p: float | None) -> str:
    if p is None:
        return "no log-rank test"
    return "log-rank p < 0.001" if p < 0.001 else f"log-rank p = {p:.3f}"


def _plot_curves(
    figure: Figure,
    known: Floats,
    pairs: Floats,
    high: np.ndarray,
    horizons: Sequence[float],
    p: float | None,
) -> None:
    """Draw the curves of both halves, with censored times and the survival that was stated.

    Args:
        figure: an empty figure.
        known: risk, and survival at each horizon, ``(n, columns)``.
        pairs: times, and 1 for an event, ``(n, 2)``.
        high: whether an image has a high risk, ``(n,)`` bool.
        horizons: times at which survival is stated.
        p: p value of the log-rank test; None without.
    """
    axes = figure.subplots()
    for name, group, colour in (("high risk", high, ORANGE), ("low risk", ~high, BLUE)):
        if not group.any():
            continue
        time, event = pairs[group, 0], pairs[group, 1].astype(np.int64)
        steps, share = kaplan_meier(time, event)
        label = f"{name} ({int(group.sum())}, {int(event.sum())} events)"
        axes.step(steps, share, where="post", color=colour, linewidth=2, label=label)
        censored = np.sort(time[event == 0])
        at = share[np.searchsorted(steps, censored, side="right") - 1]
        axes.plot(censored, at, "|", color=colour, markersize=8, alpha=0.8)
        axes.plot(horizons, known[group, 1:].mean(0), "o", color=colour, markeredgecolor="white",
                  markersize=8, zorder=3)  # fmt: skip
    axes.plot([], [], "o", color=GREY, label="stated")
    axes.set(xlim=(0, None), ylim=(-0.02, 1.02), xlabel="time", ylabel="share without an event")
    axes.set_title(_write_p(p), fontsize=10)
    add_legend(axes)
