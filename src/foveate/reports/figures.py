"""The figures of the page, as SVG for the page and as PNG for ``figures/``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.files.atomic import write_aside
from foveate.files.run_layout import fold_number
from foveate.presentation import CYCLE, Chart, add_legend, write_fold
from foveate.reports.progress import (
    find_score_column,
    fit_losses,
    fit_scores,
    plot_loss,
    plot_rate,
    plot_score,
    plot_seconds,
)
from foveate.reports.run_files import FoldFiles, Row, read_column

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
        alt: description of the figure in words.
    """

    source: str
    alt: str


def render(
    plot: Callable[[Figure], None],
    path: Path | None,
    alt: str,
    *,
    size_inches: tuple[float, float] = (5.2, 4.0),
) -> Drawn:
    """Draw a figure; write it as PNG to `path`, and return it as SVG for the page.

    Args:
        plot: plots on an empty figure.
        path: the PNG file; None writes none.
        alt: text for readers who do not see the figure.
        size_inches: width and height.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size_inches, dpi=120, layout="constrained")
        canvas, out = FigureCanvasAgg(figure), io.BytesIO()
        plot(figure)
        # `savefig` would draw each file twice, in case that the layout is to be found.
        if path is None:
            figure.draw_without_rendering()
        else:
            write_aside(path, canvas.print_png)
        figure.set_layout_engine("none")  # the places are found; finding them again takes as long
        svg: Any = FigureCanvasSVG(figure)
        svg.print_svg(out, metadata={"Date": None})
    data = base64.b64encode(out.getvalue()).decode("ascii")
    return Drawn(f"data:image/svg+xml;base64,{data}", alt)


def render_charts(charts: Sequence[Chart], folder: Path | None) -> list[tuple[Chart, Drawn | None]]:
    """Draw the figures of a task; None stands for one whose data is missing.

    Args:
        charts: the figures.
        folder: folder of the PNG files; None writes none.
    """
    return [
        (
            chart,
            None
            if chart.plot is None
            else render(chart.plot, folder and folder / f"{chart.name}.png", chart.alt),
        )
        for chart in charts
    ]


def plot_training(figure: Figure, folds: list[FoldFiles]) -> None:
    """Draw loss, validation score, learning rate and seconds by epoch, one colour per fold.

    Args:
        figure: an empty figure.
        folds: files of the folds.
    """
    (loss, score), (rate, seconds) = figure.subplots(2, 2)
    histories = [fold.history for fold in folds]
    for k, fold in enumerate(folds):
        fold_colour = None if len(folds) == 1 else CYCLE[k % len(CYCLE)]
        name = None if fold_colour is None else write_fold(fold_number(fold.name))
        plot_loss(loss, fold.history, colour=fold_colour)
        plot_score(score, fold.history, colour=fold_colour, name=name)
        plot_rate(rate, fold.history, colour=fold_colour, name=name)
    fit_losses(loss, histories)
    fit_scores(score, histories)
    plot_seconds(seconds, _average_rows(histories))
    if len(folds) > 1:
        seconds.set_title(f"seconds per epoch, mean of {len(folds)} folds")
        add_legend(rate)
    for axes in (loss, score, rate, seconds):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)


def describe_training(folds: list[FoldFiles]) -> str:
    """Describe the training curves in words."""
    parts = []
    for fold in folds:
        last = fold.history[-1]
        text = (
            f"{fold.name}: {len(fold.history)} epochs, last training loss {last.get('train_loss')}"
        )
        name = find_score_column(fold.history)
        if name is not None:
            values = read_column(fold.history, name)
            if not np.isnan(values).all():
                text += f", best {name[4:]} {np.nanmax(values):.3f}"
        parts.append(text)
    return "Training curves. " + "; ".join(parts)


def _average_rows(histories: list[list[Row]]) -> list[Row]:
    longest = max(histories, key=len)
    rows = []
    for i, row in enumerate(longest):
        at = [history[i] for history in histories if i < len(history)]
        means = {
            key: str(np.nan_to_num(np.mean(read_column(at, key))))
            for key in ("seconds_reading", "seconds_computing")
        }
        rows.append(row | means)
    return rows
