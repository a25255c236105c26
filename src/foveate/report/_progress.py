"""How training goes, as a picture that is redrawn after each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foveate.atomic import write_aside
from foveate.report.base import Row, column
from foveate.run_folder import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "#1f5a99", "#c8641b", "#2e7d4f", "#8a8f98"


def redraw(fold: Path) -> None:
    """Write ``progress.png`` beside ``metrics.csv``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = fold / "metrics.csv"
    rows = read_rows(path) if path.is_file() else []
    if not rows:
        return
    figure = Figure(figsize=(11, 3.2), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    loss, score, seconds = figure.subplots(1, 3)
    draw_loss(loss, rows)
    draw_score(score, rows)
    draw_seconds(seconds, rows)
    for axes in (loss, score, seconds):
        axes.set_xlabel("epoch")
        axes.spines[["top", "right"]].set_visible(False)
    write_aside(fold / "progress.png", lambda aside: figure.savefig(aside, format="png"))


def draw_loss(axes: Axes, rows: list[Row], *, alpha: float = 1.0, legend: bool = True) -> None:
    """Loss of training and of validation."""
    epoch = column(rows, "epoch")
    for key, colour, name in (("train_loss", BLUE, "training"), ("val_loss", ORANGE, "validation")):
        values = column(rows, key)
        if not np.isnan(values).all():
            axes.plot(
                epoch, values, ".-", color=colour, alpha=alpha, label=name if legend else None
            )
    axes.set_title("loss")
    if legend:
        axes.legend(frameon=False)


def draw_score(axes: Axes, rows: list[Row], *, alpha: float = 1.0) -> None:
    """The validation score, whichever there is, its best epoch ringed."""
    name = score_column(rows)
    axes.set_title("validation score" if name is None else f"validation {name[4:]}")
    if name is None:
        return
    epoch, values = column(rows, "epoch"), column(rows, name)
    axes.plot(epoch, values, ".-", color=GREEN, alpha=alpha)
    if not np.isnan(values).all():
        best = int(np.nanargmax(values))
        axes.plot(epoch[best], values[best], "o", ms=9, mfc="none", mec=GREEN, alpha=alpha)


def draw_seconds(axes: Axes, rows: list[Row]) -> None:
    """Seconds per epoch, waiting for pixels below and computing above."""
    epoch = column(rows, "epoch")
    reading = np.nan_to_num(column(rows, "seconds_reading"))
    computing = np.nan_to_num(column(rows, "seconds_computing"))
    axes.bar(epoch, reading, color=GREY, label="reading")
    axes.bar(epoch, computing, bottom=reading, color=BLUE, label="computing")
    axes.set_ylim(0, 1.35 * max(float(np.max(reading + computing)), 1e-9))
    axes.set_title("seconds per epoch")
    axes.legend(frameon=False, ncols=2, loc="upper right")


def score_column(rows: list[Row]) -> str | None:
    """The first ``val_…`` column that is no loss."""
    names = (name for name in rows[0] if name.startswith("val_") and name != "val_loss")
    return next(names, None)
