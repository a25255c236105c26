"""The curves of training of several runs: the mean over the folds, and a band around it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveate.presentation import CYCLE, add_legend, shorten
from foveate.reports.figures import Drawn, render
from foveate.reports.progress import find_score_column
from foveate.reports.run_files import Row, RunFiles, read_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histories = Mapping[str, Sequence[list[Row]]]
"""Rows of the training log of each fold, by name of the run."""


def draw_bands(runs: Mapping[str, RunFiles]) -> Drawn | None:
    """Draw the curves of training of all runs; None where no run has any.

    Args:
        runs: files of the runs by name.
    """
    histories = {
        name: [fold.history for fold in run.folds if fold.history] for name, run in runs.items()
    }
    histories = {name: folds for name, folds in histories.items() if folds}
    if not histories:
        return None
    alt = "Curves of training by epoch. " + "; ".join(
        f"{name}: {max(map(len, folds))} epochs in {len(folds)} trainings"
        for name, folds in histories.items()
    )
    plot = functools.partial(_plot_bands, histories=histories)
    return render(plot, None, alt, size_inches=(10.6, 3.9))


def _plot_bands(figure: Figure, histories: Histories) -> None:
    """Plot losses and validation scores by epoch, one colour per run."""
    training, validation, score = figure.subplots(1, 3)
    for k, (name, folds) in enumerate(histories.items()):
        colour, column = CYCLE[k % len(CYCLE)], find_score_column(folds[0])
        _plot_band(training, folds, "train_loss", colour, shorten(name))
        _plot_band(validation, folds, "val_loss", colour, shorten(name))
        if column is not None:
            _plot_band(score, folds, column, colour, shorten(name))
            score.set_title(f"validation {column.removeprefix('val_').replace('_', ' ')}")
    training.set_title("training loss")
    validation.set_title("validation loss")
    for axes in (training, validation, score):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    add_legend(training)


def _plot_band(axes: Axes, folds: Sequence[list[Row]], column: str, colour: str, name: str) -> None:
    """Plot the mean of a column over the folds that reached an epoch, and the band of all."""
    values = _collect(folds, column)
    known = ~np.isnan(values).all(0)
    if not known.any():
        return
    epoch, values = np.arange(1, values.shape[1] + 1)[known], values[:, known]
    axes.plot(epoch, np.nanmean(values, 0), ".-", color=colour, label=name)
    if len(values) > 1:
        low, high = np.nanmin(values, 0), np.nanmax(values, 0)
        axes.fill_between(epoch, low, high, color=colour, alpha=0.18, linewidth=0)


def _collect(folds: Sequence[list[Row]], column: str) -> NDArray[np.float64]:
    """Return a column of all folds, ``(folds, epochs)``; NaN where a fold has no number."""
    values = np.full((len(folds), max(map(len, folds))), np.nan)
    for k, rows in enumerate(folds):
        values[k, : len(rows)] = read_column(rows, column)
    return values
