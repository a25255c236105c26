"""The figures of the page: each as SVG for the page and as PNG for ``figures/``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.files.atomic import write_aside
from foveate.metrics import wilson_interval
from foveate.report.curves import (
    Points,
    Scored,
    mean_precision_recall,
    mean_roc,
    precision_recall,
    roc,
)
from foveate.report.progress import (
    BLUE,
    CYCLE,
    GREY,
    draw_loss,
    draw_rate,
    draw_score,
    draw_seconds,
    fit_losses,
    fit_scores,
    score_column,
)
from foveate.report.run_files import FoldFiles, Row, column, number
from foveate.report.words import fold_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--")
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


def draw_roc(figure: Figure, found: Scored, areas: Mapping[str, float]) -> None:
    """True against false positive rate; of several folds their mean, and each of two classes'.

    Args:
        figure: to draw on.
        found: the predictions.
        areas: to be said in the legend, by class, and of folds by ``fold <name>``.
    """
    axes = _square(figure, "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance")
    for k in found.shown():
        curves = found.by_fold(roc, k)
        _draw_curves(axes, found, k, curves, mean_roc, areas, "default")
    _legend(axes, "lower right")


def draw_precision_recall(figure: Figure, found: Scored, areas: Mapping[str, float]) -> None:
    """Precision against recall, with the share of positives as chance."""
    axes = _square(figure, "recall (sensitivity)", "precision")
    for k in found.shown():
        curves = found.by_fold(precision_recall, k)
        _draw_curves(axes, found, k, curves, mean_precision_recall, areas, "steps-pre")
        chance = float(np.mean(found.target == k))
        axes.plot([0, 1], [chance, chance], color=_colour(found, k), linestyle=":", linewidth=1,
                  label=f"chance  {chance:.3f}")  # fmt: skip
    _legend(axes, "lower left")


def _draw_curves(
    axes: Axes,
    found: Scored,
    k: int,
    curves: Mapping[str, Points],
    mean: Callable[[Sequence[Points]], Points],
    areas: Mapping[str, float],
    drawstyle: Any,
) -> None:
    """The curve of a class; of several folds their mean in bold, and of two classes each."""
    name, colour = found.classes[k], _colour(found, k)
    if not curves:
        return
    several = len(found.folds) > 1
    if several and len(found.classes) == 2:
        for i, (fold, points) in enumerate(curves.items()):
            label = _with_area(fold_title(fold), areas.get(f"fold {fold}"))
            axes.plot(*points, color=CYCLE[1 + i % (len(CYCLE) - 1)], linewidth=1.2, alpha=0.8,
                      linestyle=_DASHES[i // (len(CYCLE) - 1) % 2], label=label,
                      drawstyle=drawstyle)  # fmt: skip
    label = _with_area(f"mean of {len(curves)} folds" if several and len(found.classes) == 2
                       else _short(name), areas.get(name))  # fmt: skip
    points = mean(list(curves.values())) if several else next(iter(curves.values()))
    axes.plot(*points, color=colour, linewidth=2.4, label=label, drawstyle=drawstyle)


def _with_area(text: str, area: float | None) -> str:
    return text if area is None else f"{text}  {area:.3f}"


def _legend(axes: Axes, place: Any) -> None:
    """Smaller where it has many lines."""
    n = len(axes.get_legend_handles_labels()[0])
    axes.legend(loc=place, fontsize=10 if n <= 6 else 7.5, ncols=1 if n <= 8 else 2)


def draw_calibration(figure: Figure, bins: list[dict[str, Any]]) -> None:
    """Observed share against stated probability, with intervals and the images behind each."""
    axes = _square(figure, "stated probability", "share observed")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    triples = [(number(b, "mean_prob"), number(b, "fraction"), number(b, "n")) for b in bins]
    points = [(p, f, n) for p, f, n in triples if p is not None and f is not None and n]
    for p, f, n in points:
        limits = wilson_interval(round(f * n), round(n))
        axes.plot([p, p], limits, color=BLUE, linewidth=1.2, alpha=0.6)
    most = max(n for _, _, n in points)
    axes.plot([p for p, _, _ in points], [f for _, f, _ in points], color=BLUE, linewidth=1.2)
    axes.scatter(
        [p for p, _, _ in points],
        [f for _, f, _ in points],
        s=[25 + 120 * n / most for _, _, n in points],
        color=BLUE,
        edgecolor="white",
        zorder=3,
        label="observed, 95 % interval",
    )
    axes.legend(loc="upper left")


def draw_distribution(figure: Figure, found: Scored, thresholds: Sequence[float]) -> None:
    """Scores of the images of each class: of the second class, or of the true one."""
    axes = figure.subplots()
    two = len(found.classes) == 2
    edges = np.linspace(0, 1, 21)
    for k, (name, colour) in enumerate(zip(found.classes, _many(found), strict=True)):
        own = found.target == k
        values = found.prob[own, 1 if two else k]
        counts, _ = np.histogram(values, edges)
        axes.stairs(
            counts / max(counts.max(), 1) * 0.8, edges, baseline=0, fill=True, alpha=0.35,
            color=colour, label=f"{_short(name)} ({int(own.sum())})",
        )  # fmt: skip
        lift = -0.06 - 0.07 * k
        axes.plot(values, np.full(len(values), lift), "|", color=colour, markersize=9, alpha=0.8)
    for i, threshold in enumerate(thresholds if two else ()):
        label = f"threshold  {threshold:.3f}" if len(thresholds) == 1 else "thresholds of the folds"
        axes.axvline(threshold, color="#333333", linewidth=1, linestyle="--",
                     label=None if i else label)  # fmt: skip
    lowest = -0.06 - 0.07 * len(found.classes)
    axes.set(xlim=(0, 1), ylim=(lowest, 1.15), yticks=[], ylabel="share of the class")
    axes.set_xlabel(f"probability of {_short(found.classes[1])}" if two
                    else "probability of the true class")  # fmt: skip
    axes.legend(loc="upper center", ncols=2)


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
        _legend(rate, "upper right")
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


def _square(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y)
    return axes


def _colour(found: Scored, k: int) -> str:
    return BLUE if len(found.classes) == 2 else CYCLE[k % len(CYCLE)]


def _many(found: Scored) -> list[str]:
    return [CYCLE[k % len(CYCLE)] for k in range(len(found.classes))]


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}…{name[-11:]}"
