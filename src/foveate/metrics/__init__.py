"""Every number that is reported about predictions, with an interval over patients.

Pure: no disk, no clock, no random draw. `prob` is ``(n, k)``, rows sum to 1, in the order of the
task's classes; `target` is ``(n,)``, the number of the class.
"""

from __future__ import annotations

from foveate.metrics.comparison import compare_scores, difference
from foveate.metrics.scores import Measured, score_all
from foveate.metrics.shares import proportion_interval, wilson_interval
from foveate.metrics.types import Difference, Score
from foveate.metrics.values import auroc, calibration_bins, confusion, threshold_youden

__all__ = [
    "Difference",
    "Measured",
    "Score",
    "auroc",
    "calibration_bins",
    "compare_scores",
    "confusion",
    "difference",
    "proportion_interval",
    "score_all",
    "threshold_youden",
    "wilson_interval",
]
