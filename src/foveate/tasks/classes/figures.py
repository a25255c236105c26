"""Figures of classes: ROC, precision and recall, calibration, distribution of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.metrics import wilson_interval
from foveate.presentation import (
    BLUE,
    CYCLE,
    GREY,
    ORANGE,
    Chart,
    add_legend,
    add_unit_square,
    read_number,
    shorten,
    write_count,
    write_fold,
)
from foveate.tasks.classes.benefit import build_benefit_chart
from foveate.tasks.classes.curves import (
    LabelledAnswers,
    Points,
    average_precision_recall,
    average_roc,
    compute_precision_recall,
    compute_roc,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--")
_ROC = "True positives against false positives at every threshold; the number is the area."
_PRECISION = "Precision at every recall; dotted: chance; the number is the area."
_CALIBRATION = "A calibrated model lies on the dashed line. Larger dots: more images."
_DISTRIBUTION = "Probabilities by true class; each stroke is an image."
_NEEDED = "predictions of labelled images of at least two classes"


def build_charts(
    answers: LabelledAnswers | None, metrics: Mapping[str, Any], thresholds: Sequence[float]
) -> list[Chart]:
    """Return the figures of answers; a figure without data has a text in its place.

    Args:
        answers: answers to labelled images; None without any.
        metrics: content of ``metrics.json``, which may be damaged.
        thresholds: thresholds of the models of the folds.
    """
    charts = [*_build_curves(answers, metrics), build_calibration_chart(metrics)]
    absent = "No distribution: predictions of labelled images are missing."
    benefit = build_benefit_chart(metrics, thresholds)
    if answers is None:
        return [*charts, Chart("scores", _DISTRIBUTION, absent), benefit]
    alt = f"Distribution of scores by class: {', '.join(answers.classes)}"
    plot = partial(plot_distribution, answers=answers, thresholds=thresholds)
    return [*charts, Chart("scores", _DISTRIBUTION, absent, alt, plot), benefit]


def _build_curves(answers: LabelledAnswers | None, metrics: Mapping[str, Any]) -> list[Chart]:
    """Return the ROC curve and the curve of precision; texts unless two classes occur."""
    if answers is None or len(np.unique(answers.target)) < 2:
        return [
            Chart("roc", _ROC, f"No ROC curve: it needs {_NEEDED}."),
            Chart("precision_recall", _PRECISION, f"No precision and recall: they need {_NEEDED}."),
        ]
    areas, n = read_areas(metrics, answers, "auroc"), len(answers.target)
    area_text = "".join(f"; area {value:.3f} for {name}" for name, value in areas.items())
    return [
        Chart("roc", _ROC, "", f"ROC curve over {n} images{area_text}",
              partial(plot_roc, answers=answers, areas=areas)),
        Chart("precision_recall", _PRECISION, "", f"Precision against recall over {n} images",
              partial(plot_precision_recall, answers=answers,
                      areas=read_areas(metrics, answers, "auprc"))),
    ]  # fmt: skip


def build_calibration_chart(metrics: Mapping[str, Any]) -> Chart:
    """Return the figure of calibration, or a text where no bins were stored.

    Args:
        metrics: content of ``metrics.json``, which may be damaged.
    """
    absent, bins = "No calibration was stored.", read_bins(metrics)
    if not bins:
        return Chart("calibration", _CALIBRATION, absent)
    alt = f"Calibration in {write_count(len(bins), 'bin')}: share observed against stated"
    stored = metrics.get("uncalibrated")
    before = stored if isinstance(stored, dict) else {}
    caption = f"{_CALIBRATION}{describe_change(before, metrics)}"
    plot = partial(plot_calibration, bins=bins, before=read_bins(before))
    return Chart("calibration", caption, absent, alt, plot)


def read_bins(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stored bins of calibration; empty where none holds images.

    Args:
        metrics: content of ``metrics.json``, or the part of it before the temperature.
    """
    stored = metrics.get("calibration")
    bins = [b for b in stored if isinstance(b, dict)] if isinstance(stored, list) else []
    return bins if _read_points(bins) else []


def describe_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Describe the losses before and after the temperature; empty where they are not known.

    Args:
        before: the part of ``metrics.json`` before the temperature.
        after: content of ``metrics.json``.
    """
    clauses = []
    for name, title in (("ece", "Calibration error"), ("log_loss", "Log loss")):
        was, now = (_read_score(part, name) for part in (before, after))
        if was is not None and now is not None:
            clauses.append(f" {title} {was:.3f} before the temperature, {now:.3f} after it.")
    return "".join(clauses)


def read_areas(metrics: Mapping[str, Any], answers: LabelledAnswers, name: str) -> dict[str, float]:
    """Return the stored areas under the curves of two classes, by class and fold.

    Args:
        metrics: content of ``metrics.json``.
        answers: answers with known labels.
        name: name of the score.
    """
    if len(answers.classes) != 2:
        return {}
    values = {answers.classes[1]: _read_score(metrics, name)}
    folds = metrics.get("folds")
    for fold in folds if isinstance(folds, list) and len(folds) > 1 else ():
        if isinstance(fold, dict):
            values[f"fold {fold.get('fold', '')}"] = _read_score(fold, name)
    return {title: value for title, value in values.items() if value is not None}


def _read_score(of_images: Mapping[str, Any], name: str) -> float | None:
    scores = of_images.get("metrics")
    score = scores.get(name) if isinstance(scores, dict) else None
    return read_number(score, "value") if isinstance(score, dict) else None


def plot_roc(figure: Figure, answers: LabelledAnswers, areas: Mapping[str, float]) -> None:
    """Draw true against false positive rates; with several folds, their mean curve.

    With two classes, the curves of the folds are drawn as well.

    Args:
        figure: figure to draw on.
        answers: answers to labelled images.
        areas: areas for the legend, by class, and for folds by ``fold <name>``.
    """
    axes = add_unit_square(figure, "false positive rate", "true positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance")
    for k in answers.drawn_classes():
        curves = answers.trace_folds(compute_roc, k)
        _draw_curves(axes, answers, k, curves, average_roc, areas, "default")
    add_legend(axes)


def plot_precision_recall(
    figure: Figure, answers: LabelledAnswers, areas: Mapping[str, float]
) -> None:
    """Draw precision against recall, with the share of positives as the level of chance.

    Args:
        figure: an empty figure.
        answers: answers with known labels.
        areas: areas under the curves, by class and fold.
    """
    axes = add_unit_square(figure, "recall (sensitivity)", "precision")
    for k in answers.drawn_classes():
        curves = answers.trace_folds(compute_precision_recall, k)
        _draw_curves(axes, answers, k, curves, average_precision_recall, areas, "steps-pre")
        chance = float(np.mean(answers.target == k))
        axes.plot([0, 1], [chance, chance], color=_choose_colour(answers, k), linestyle=":",
                  linewidth=1, label=f"chance  {chance:.3f}")  # fmt: skip
    add_legend(axes)


def _draw_curves(
    axes: Axes,
    answers: LabelledAnswers,
    k: int,
    curves: Mapping[str, Points],
    mean: Callable[[Sequence[Points]], Points],
    areas: Mapping[str, float],
    drawstyle: Any,
) -> None:
    """Draw the curve of class `k`; with several folds their mean, with two classes all folds."""
    name, colour = answers.classes[k], _choose_colour(answers, k)
    if not curves:
        return
    several = len(answers.folds) > 1
    if several and len(answers.classes) == 2:
        for i, (fold, points) in enumerate(curves.items()):
            label = _add_area(write_fold(fold), areas.get(f"fold {fold}"))
            axes.plot(*points, color=CYCLE[1 + i % (len(CYCLE) - 1)], linewidth=1.2, alpha=0.8,
                      linestyle=_DASHES[i // (len(CYCLE) - 1) % 2], label=label,
                      drawstyle=drawstyle)  # fmt: skip
    label = _add_area(f"mean of {len(curves)} folds" if several and len(answers.classes) == 2
                       else shorten(name), areas.get(name))  # fmt: skip
    points = mean(list(curves.values())) if several else next(iter(curves.values()))
    axes.plot(*points, color=colour, linewidth=2.4, label=label, drawstyle=drawstyle)


def _add_area(text: str, area: float | None) -> str:
    return text if area is None else f"{text}  {area:.3f}"


def plot_calibration(
    figure: Figure, bins: list[dict[str, Any]], before: list[dict[str, Any]]
) -> None:
    """Draw observed share against stated probability, with intervals and numbers of images.

    Args:
        figure: an empty figure.
        bins: bins of equal width, as ``metrics.json`` holds them.
        before: those of the answers before the temperature; empty where they are not known.
    """
    axes = add_unit_square(figure, "stated probability", "share observed")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
    if earlier := _read_points(before):
        axes.plot([p for p, _, _ in earlier], [f for _, f, _ in earlier], color=ORANGE,
                  linewidth=1.2, marker=".", alpha=0.8, label="before the temperature")  # fmt: skip
    points = _read_points(bins)
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
        clip_on=False,
        label="observed, 95 % interval",
    )
    add_legend(axes)


def _read_points(bins: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """Return mean probability, share observed and number of images of the bins that have them."""
    triples = [
        (read_number(b, "mean_prob"), read_number(b, "fraction"), read_number(b, "n")) for b in bins
    ]
    return [(p, f, n) for p, f, n in triples if p is not None and f is not None and n]


def plot_distribution(
    figure: Figure, answers: LabelledAnswers, thresholds: Sequence[float]
) -> None:
    """Draw the distribution of the probability of the second of two classes, or the true class.

    Args:
        figure: an empty figure.
        answers: answers with known labels.
        thresholds: thresholds of the folds, drawn as lines.
    """
    axes = figure.subplots()
    two = len(answers.classes) == 2
    edges = np.linspace(0, 1, 21)
    for k, (name, colour) in enumerate(zip(answers.classes, _list_colours(answers), strict=True)):
        of_class = answers.target == k
        values = answers.prob[of_class, 1 if two else k]
        counts, _ = np.histogram(values, edges)
        axes.stairs(
            counts / max(counts.max(), 1) * 0.8, edges, baseline=0, fill=True, alpha=0.35,
            color=colour, label=f"{shorten(name)} ({int(of_class.sum())})",
        )  # fmt: skip
        lift = -0.06 - 0.07 * k
        axes.plot(values, np.full(len(values), lift), "|", color=colour, markersize=9, alpha=0.8)
    for i, threshold in enumerate(thresholds if two else ()):
        label = f"threshold  {threshold:.3f}" if len(thresholds) == 1 else "thresholds of the folds"
        axes.axvline(threshold, color="#333333", linewidth=1, linestyle="--",
                     label=None if i else label)  # fmt: skip
    lowest = -0.06 - 0.07 * len(answers.classes)
    axes.set(xlim=(0, 1), ylim=(lowest, 0.85), yticks=[], ylabel="share of the class")
    axes.set_xlabel(f"probability of {shorten(answers.classes[1])}" if two
                    else "probability of the true class")  # fmt: skip
    add_legend(axes)


def _choose_colour(answers: LabelledAnswers, k: int) -> str:
    return BLUE if len(answers.classes) == 2 else CYCLE[k % len(CYCLE)]


def _list_colours(answers: LabelledAnswers) -> list[str]:
    return [CYCLE[k % len(CYCLE)] for k in range(len(answers.classes))]
