"""Every number that is reported about predictions, with an interval over patients.

Pure: no disk, no clock, no global seed. `prob` is ``(n, k)``, rows sum to 1, in the order of the
task's classes; `target` is ``(n,)``, the number of the class.
"""

from __future__ import annotations

from foveate.metrics._bounds import proportion_interval
from foveate.metrics._comparison import paired_bootstrap, paired_delong
from foveate.metrics._scores import delong_auroc, score_all
from foveate.metrics._values import (
    accuracy,
    auprc,
    auroc,
    balanced_accuracy,
    brier,
    calibration_bins,
    calibration_error,
    confusion,
    kappa,
    log_loss,
    threshold_youden,
)
from foveate.metrics.base import Difference, Score

__all__ = [
    "Difference",
    "Score",
    "accuracy",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "brier",
    "calibration_bins",
    "calibration_error",
    "confusion",
    "delong_auroc",
    "kappa",
    "log_loss",
    "paired_bootstrap",
    "paired_delong",
    "proportion_interval",
    "score_all",
    "threshold_youden",
]
