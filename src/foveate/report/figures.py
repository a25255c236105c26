"""The figures of the page: each as SVG for the page and as PNG for ``figures/``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.files.atomic import write_aside
from foveate.presentation import CYCLE, add_legend, fold_title
from foveate.report.progress import (
    draw_loss,
    draw_rate,
    draw_score,
    draw_seconds,
    fit_losses,
    fit_scores,
    score_column,
)
from foveate.report.run_files import FoldFiles, Row, column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "foveate",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Drawn:
    """A figure for the page.

    Attributes:
        source: a ``data:`` address with the SVG.
        alt: what it shows, in words.
    """

    source: str
    alt: str


def render(
    draw: Callable[[Figure], None], path: Path, alt: str, *, size: tuple[float, float] = (5.2, 4.0)
) -> Drawn:
    """Draw once; write the PNG to `path` and return the SVG for the page."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        write_aside(path, lambda aside: figure.savefig(aside, format="png"))
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return Drawn(f"data:image/svg+xml;base64,{data}", alt)


def draw_training(figure: Figure, folds: list[FoldFiles]) -> None:
    """Loss, validation score, learning rate and seconds; each of several folds in its colour."""
    (loss, score), (rate, seconds) = figure.subplots(2, 2)
    histories = [fold.history for fold in folds]
    for k, fold in enumerate(folds):
        own = None if len(folds) == 1 else CYCLE[k % len(CYCLE)]
        name = None if own is None else fold_title(fold.name.removeprefix("fold_"))
        draw_loss(loss, fold.history, colour=own)
        draw_score(score, fold.history, colour=own, name=name)
        draw_rate(rate, fold.history, colour=own, name=name)
    fit_losses(loss, histories)
    fit_scores(score, histories)
    draw_seconds(seconds, _mean_rows(histories))
    if len(folds) > 1:
        seconds.set_title(f"seconds per epoch, mean of {len(folds)} folds")
        add_legend(rate, "upper right")
    for axes in (loss, score, rate, seconds):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)


def describe_training(folds: list[FoldFiles]) -> str:
    """The training curves in words."""
    parts = []
    for fold in folds:
        last = fold.history[-1]
        said = (
            f"{fold.name}: {len(fold.history)} epochs, last training loss {last.get('train_loss')}"
        )
        name = score_column(fold.history)
        if name is not None:
            values = column(fold.history, name)
            if not np.isnan(values).all():
                said += f", best {name[4:]} {np.nanmax(values):.3f}"
        parts.append(said)
    return "Training curves. " + "; ".join(parts)


def _mean_rows(histories: list[list[Row]]) -> list[Row]:
    longest = max(histories, key=len)
    rows = []
    for i, row in enumerate(longest):
        at = [history[i] for history in histories if i < len(history)]
        means = {
            key: str(np.nan_to_num(np.mean(column(at, key))))
            for key in ("seconds_reading", "seconds_computing")
        }
        rows.append(row | means)
    return rows
