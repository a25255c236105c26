"""The curves of training, and the picture ``progress.png`` that epochs redraw."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from foveate.files.atomic import write_aside
from foveate.files.run_layout import FoldLayout
from foveate.presentation import BLUE, CYCLE, GREEN, GREY, ORANGE, add_legend
from foveate.reports.run_files import Row, read_column
from foveate.runs.folder import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIN_SPAN = 0.2
"""Least range of an axis of scores, so that a score that hardly changes looks flat."""
_MIN_SECONDS = 10.0
"""Least time between two drawings, each of which takes half a second."""


def redraw(fold: Path) -> None:
    """Draw ``progress.png`` from the ``metrics.csv`` beside it, if that has rows.

    A picture that is younger than a few seconds stays as it is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path, curves = FoldLayout(fold).epochs, FoldLayout(fold).curves
    if curves.is_file() and 0 <= time.time() - curves.stat().st_mtime < _MIN_SECONDS:
        return
    rows = read_rows(path) if path.is_file() else []
    if not rows:
        return
    figure = Figure(figsize=(11, 3.2), dpi=90, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    loss, score, seconds = figure.subplots(1, 3)
    plot_loss(loss, rows)
    fit_losses(loss, [rows])
    plot_score(score, rows)
    fit_scores(score, [rows])
    plot_seconds(seconds, rows)
    for axes in (loss, score, seconds):
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
    write_aside(curves, canvas.print_png)  # `savefig` would draw twice


def plot_loss(axes: Axes, rows: list[Row], *, colour: str | None = None) -> None:
    """Draw the loss of training, and that of validation dashed; in two colours without `colour`.

    Args:
        axes: the panel.
        rows: rows of the training log, one per epoch.
        colour: colour of the fold.
    """
    epoch = read_column(rows, "epoch")
    for key, default_colour, line in (("train_loss", BLUE, ".-"), ("val_loss", ORANGE, ".--")):
        values = read_column(rows, key)
        if not np.isnan(values).all():
            axes.plot(epoch, values, line, color=colour or default_colour)


def fit_losses(axes: Axes, histories: list[list[Row]]) -> None:
    """Set title, legend and limits of the panel of losses.

    Args:
        axes: the panel.
        histories: rows of the training log of each fold.
    """
    from matplotlib.lines import Line2D

    several = len(histories) > 1
    kinds: tuple[tuple[str, str, Literal["-", "--"], str], ...] = (
        ("train_loss", BLUE, "-", "training"),
        ("val_loss", ORANGE, "--", "validation"),
    )
    lines = []
    for key, default_colour, line, name in kinds:
        if any(not np.isnan(read_column(rows, key)).all() for rows in histories):
            colour = GREY if several else default_colour
            lines.append(Line2D([], [], color=colour, linestyle=line, label=name))
    axes.set_title("loss")
    if not lines:
        _write_absent(axes, "no loss was stored")
        return
    add_legend(axes, lines)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def plot_score(
    axes: Axes, rows: list[Row], *, colour: str | None = None, name: str | None = None
) -> None:
    """Draw the validation score, with a ring around its best epoch.

    Args:
        axes: the panel.
        rows: rows of the training log, one per epoch.
        colour: colour of the fold.
        name: name of the fold in the legend; None for none.
    """
    key = find_score_column(rows)
    values = [] if key is None else read_column(rows, key)
    if not values or np.isnan(values).all():
        return
    epoch, line_colour = read_column(rows, "epoch"), colour or GREEN
    axes.plot(epoch, values, ".-", color=line_colour, label=name)
    best = int(np.nanargmax(values))
    ring: dict[str, Any] = {"ms": 9, "mfc": "none", "mec": line_colour}
    axes.plot(epoch[best], values[best], "o", label="best" if name is None else None, **ring)


def fit_scores(axes: Axes, histories: list[list[Row]]) -> None:
    """Set title, legend and limits of the panel of validation scores.

    Args:
        axes: the panel.
        histories: rows of the training log of each fold.
    """
    keys = [key for key in map(find_score_column, histories) if key is not None]
    values = [v for rows in histories for v in read_column(rows, find_score_column(rows) or "")]
    seen = np.array(values)[~np.isnan(values)] if values else np.zeros(0)
    axes.set_title("validation score" if not keys else f"validation {keys[0][4:]}")
    if not len(seen):
        _write_absent(axes, "no score: the validation part is empty,\nor cannot be ranked")
        return
    middle = (float(seen.min()) + float(seen.max())) / 2
    half = max(float(np.ptp(seen)) / 2 * 1.15, _MIN_SPAN / 2)
    low, high = middle - half, middle + half
    if seen.min() >= 0 and seen.max() <= 1:  # a share cannot lie beyond 0 and 1
        low, high = max(low, -0.02), min(high, 1.02)
    axes.set_ylim(low, high)
    add_legend(axes)


def plot_rate(
    axes: Axes, rows: list[Row], *, colour: str | None = None, name: str | None = None
) -> None:
    """Draw the learning rate by epoch.

    Args:
        axes: the panel.
        rows: rows of the training log, one per epoch.
        colour: colour of the fold.
        name: name of the fold in the legend; None for none.
    """
    values = read_column(rows, "lr")
    axes.set_title("learning rate")
    if np.isnan(values).all():
        _write_absent(axes, "none was stored")
        return
    axes.plot(read_column(rows, "epoch"), values, color=colour or CYCLE[3], label=name)
    axes.set_ylim(0, max(1.1 * float(np.nanmax(values)), axes.get_ylim()[1], 1e-12))


def _write_absent(axes: Axes, text: str) -> None:
    """Write a text in place of an empty panel, without ticks."""
    axes.set(yticks=[])
    axes.tick_params(bottom=False, labelbottom=False)
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)


def plot_seconds(axes: Axes, rows: list[Row]) -> None:
    """Draw the seconds per epoch: waiting for pixels below, computing above.

    Args:
        axes: the panel.
        rows: rows of the training log, one per epoch.
    """
    epoch = read_column(rows, "epoch")
    reading = np.nan_to_num(read_column(rows, "seconds_reading"))
    computing = np.nan_to_num(read_column(rows, "seconds_computing"))
    axes.bar(epoch, reading, color=GREY, label="reading")
    axes.bar(epoch, computing, bottom=reading, color=BLUE, label="computing")
    axes.set_ylim(0, 1.05 * max(float(np.max(reading + computing)), 1e-9))
    axes.set_title("seconds per epoch")
    add_legend(axes)


def find_score_column(rows: list[Row]) -> str | None:
    """Return the first ``val_…`` column whose larger values are better; None without one."""
    lower = ("val_loss", "val_score")
    names = (name for name in rows[0] if name.startswith("val_") and name not in lower)
    return next(names, None)
