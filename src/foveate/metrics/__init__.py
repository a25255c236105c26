"""Scores of predictions with intervals over patients, and comparisons of two runs.

The functions are pure: no disk, no clock, no random draw. `prob` is ``(n, k)``, rows sum to 1, in
the order of the task's classes; `target` is ``(n,)``, the number of each image's class.
"""

from __future__ import annotations

from foveate.metrics.benefit import measure_benefits
from foveate.metrics.comparison import (
    adjust_p_values,
    compare_scores,
    pick_front,
    subtract_all,
)
from foveate.metrics.means import measure_mean
from foveate.metrics.multilabel import average_auroc, score_label, score_labels
from foveate.metrics.ordered import score_concordance, score_grades
from foveate.metrics.scores import MeasuredScore, score_all
from foveate.metrics.shares import proportion_interval, wilson_interval
from foveate.metrics.survival import (
    concordance_of,
    kaplan_meier,
    log_rank_p,
    score_horizons,
    score_survival,
)
from foveate.metrics.types import Difference, Score
from foveate.metrics.values import auroc, calibration_bins, confusion, threshold_youden

__all__ = [
    "Difference",
    "MeasuredScore",
    "Score",
    "adjust_p_values",
    "auroc",
    "average_auroc",
    "calibration_bins",
    "compare_scores",
    "concordance_of",
    "confusion",
    "kaplan_meier",
    "log_rank_p",
    "measure_benefits",
    "measure_mean",
    "pick_front",
    "proportion_interval",
    "score_all",
    "score_concordance",
    "score_grades",
    "score_horizons",
    "score_label",
    "score_labels",
    "score_survival",
    "subtract_all",
    "threshold_youden",
    "wilson_interval",
]
