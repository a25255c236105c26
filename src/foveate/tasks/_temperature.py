"""Calibration of logits by one temperature, for all tasks whose loss is a likelihood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def fit_temperature(
    logits: Float[Tensor, "n k"],
    surprise: Callable[[Float[Tensor, "n k"]], Float[Tensor, " n"]],
) -> float:
    """Fit the temperature that calibrates the logits of held-out images; from 1/20 to 20.

    It maximises the likelihood of the labels, with a normal prior of standard deviation 1/2 on its
    logarithm, because few images determine it badly.

    Args:
        logits: logits of the images, ``(n, k)``.
        surprise: computes the negative log-likelihood of each image from logits.
    """
    candidates = torch.logspace(-1.3, 1.3, 53, dtype=torch.float64)
    exact = logits.double()
    losses = [float(surprise(exact / t).sum()) for t in candidates]
    drawn = torch.tensor(losses, dtype=torch.float64) + 2 * candidates.log().square()
    return float(candidates[int(drawn.argmin())])


def pool_temperatures(points: Sequence[Mapping[str, Any]]) -> float:
    """Return the geometric mean of the temperatures of several models; 1 where one has none.

    Args:
        points: results of `AbstractTask.calibrate` for each model.
    """
    logs = np.log([point.get("temperature", 1.0) for point in points])
    return float(np.exp(np.mean(logs)))
