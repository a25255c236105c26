"""The figures of the page: each as SVG for the page and as PNG for ``figures/``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.atomic import write_aside
from foveate.report._curves import Scored, precision_recall, roc, wilson
from foveate.report._progress import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_loss,
    draw_score,
    draw_seconds,
    score_column,
)
from foveate.report.base import FoldFiles, Row, column, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CYCLE = (BLUE, ORANGE, GREEN, "#7a4fa3", "#b03060", "#5c6b7a", "#8a7a1f", "#1f8a8a")
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


def draw_roc(figure: Figure, found: Scored, aurocs: dict[str, float]) -> None:
    """True against false positive rate."""
    axes = _square(figure, "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance")
    for colour, (name, score, positive) in zip(_colours(found), found.shown(), strict=True):
        curve = roc(score, positive)
        if curve is not None:
            area = aurocs.get(name)
            label = _short(name) if area is None else f"{_short(name)}  {area:.3f}"
            axes.plot(*curve, color=colour, linewidth=2, label=label)
    axes.legend(loc="lower right")


def draw_precision_recall(figure: Figure, found: Scored) -> None:
    """Precision against recall, with the share of positives as chance."""
    axes = _square(figure, "recall (sensitivity)", "precision")
    for colour, (name, score, positive) in zip(_colours(found), found.shown(), strict=True):
        curve = precision_recall(score, positive)
        if curve is not None:
            axes.plot(*curve, color=colour, linewidth=2, label=_short(name), drawstyle="steps-pre")
            chance = float(np.mean(positive))
            axes.plot([0, 1], [chance, chance], color=colour, linestyle=":", linewidth=1)
    axes.legend(loc="lower left")


def draw_calibration(figure: Figure, bins: list[dict[str, Any]]) -> None:
    """Observed share against stated probability, with intervals and the images behind each."""
    axes = _square(figure, "stated probability", "share observed")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    triples = [(number(b, "mean_prob"), number(b, "fraction"), number(b, "n")) for b in bins]
    points = [(p, f, n) for p, f, n in triples if p is not None and f is not None and n]
    for p, f, n in points:
        axes.plot([p, p], wilson(f, n), color=BLUE, linewidth=1.2, alpha=0.6)
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


def draw_distribution(figure: Figure, found: Scored, threshold: float | None) -> None:
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
    if two and threshold is not None:
        axes.axvline(threshold, color="#333333", linewidth=1, linestyle="--", label="threshold")
    lowest = -0.06 - 0.07 * len(found.classes)
    axes.set(xlim=(0, 1), ylim=(lowest, 1.0), yticks=[], ylabel="share of the class")
    axes.set_xlabel(f"probability of {_short(found.classes[1])}" if two
                    else "probability of the true class")  # fmt: skip
    axes.legend(loc="upper center", ncols=2)


def draw_training(figure: Figure, folds: list[FoldFiles]) -> None:
    """Loss, validation score, learning rate and seconds; several folds in one panel each."""
    (loss, score), (rate, seconds) = figure.subplots(2, 2)
    alpha = 1.0 if len(folds) == 1 else 0.65
    for k, fold in enumerate(folds):
        draw_loss(loss, fold.history, alpha=alpha, legend=k == 0)
        draw_score(score, fold.history, alpha=alpha)
        rate.plot(
            column(fold.history, "epoch"), column(fold.history, "lr"), color="#7a4fa3", alpha=alpha
        )
    rate.set_title("learning rate")
    draw_seconds(seconds, _mean_rows([fold.history for fold in folds]))
    if len(folds) > 1:
        seconds.set_title(f"seconds per epoch, mean of {len(folds)} folds")
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


def _colours(found: Scored) -> list[str]:
    n = len(found.shown())
    return [CYCLE[k % len(CYCLE)] for k in range(n)]


def _many(found: Scored) -> list[str]:
    return [CYCLE[k % len(CYCLE)] for k in range(len(found.classes))]


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}…{name[-11:]}"
