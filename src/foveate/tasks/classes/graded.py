"""Figures of ordered grades."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from foveate.presentation import BLUE, GREY, Chart, add_legend, shorten
from foveate.tasks.classes.curves import LabelledAnswers
from foveate.tasks.classes.figures import build_calibration_chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GRADES = "Expected rank of each image by its true grade; short bars: medians; dashed: exact."


def build_grade_charts(answers: LabelledAnswers | None, metrics: Mapping[str, Any]) -> list[Chart]:
    """Return the figures of expected ranks by true grade, and of calibration.

    Args:
        answers: answers to labelled images; None without any.
        metrics: content of ``metrics.json``, which may be damaged.
    """
    if answers is None:
        absent = "No expected ranks: predictions of labelled images are missing."
        return [Chart("grades", _GRADES, absent), build_calibration_chart(metrics)]
    alt = f"Expected rank by true grade of {len(answers.target)} images"
    plot = partial(_plot_grades, answers=answers)
    return [Chart("grades", _GRADES, "", alt, plot), build_calibration_chart(metrics)]


def _plot_grades(figure: Figure, answers: LabelledAnswers) -> None:
    """Draw the expected rank of each image above its true grade."""
    axes = figure.subplots()
    rank = np.arange(len(answers.classes))
    expected = answers.prob @ rank
    axes.plot(rank, rank, color=GREY, linestyle="--", linewidth=1, label="exact")
    for k in rank:
        values = np.sort(expected[answers.target == k])
        if len(values):
            # Neighbours in rank lie apart, so that equal answers do not cover each other.
            aside = (np.arange(len(values)) % 5 - 2) * 0.06
            axes.scatter(k + aside, values, color=BLUE, edgecolor="white", s=30, alpha=0.8,
                         zorder=3, label=None if k else "image")  # fmt: skip
            axes.plot([k - 0.25, k + 0.25], [np.median(values)] * 2, color="#333333", linewidth=2)
    names = [shorten(name) for name in answers.classes]
    axes.set_xticks(rank, names)
    axes.set_yticks(rank, names)
    axes.set(xlabel="true grade", ylabel="expected rank", xlim=(-0.5, rank[-1] + 0.5),
             ylim=(-0.3, rank[-1] + 0.3))  # fmt: skip
    add_legend(axes)
