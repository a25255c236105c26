"""Bins of time with equal numbers of events, and survival between their edges."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from foveate.errors import OptionError, TableError

_MIN_EVENTS = 2


def settle_edges(targets: Sequence[tuple[float, float] | None], n_bins: int) -> list[float]:
    """Compute the ends of bins that hold equal numbers of events; the last is the longest time.

    Args:
        targets: time of each image, and 1 for an event; None where the label says neither.
        n_bins: number of bins at most.

    Raises:
        TableError: there are too few events; the message continues a sentence that begins with the
            name of the column.
    """
    known = np.array([target for target in targets if target], np.float64).reshape(-1, 2)
    if 2 * len(known) <= len(targets):
        raise TableError(
            f"holds {len(known)} survival times in {len(targets)} usable rows; name "
            "both columns with --label TIME,EVENT"
        )
    time, event = known.T
    seen = np.unique(time[event > 0])
    if len(seen) < _MIN_EVENTS:
        raise TableError(
            f"holds events at {len(seen)} different times in {len(time)} usable rows; "
            f"add patients with events, at {_MIN_EVENTS} different times or more"
        )
    n_bins = min(n_bins, len(seen))
    cuts = np.unique(np.quantile(time[event > 0], np.arange(1, n_bins) / n_bins))
    last = float(time.max())
    return [*(float(cut) for cut in cuts if 0 < cut < last), last]


def choose_horizons(edges: Sequence[float]) -> list[float]:
    """Choose the times at which survival is stated: the inner edges, with three digits.

    Args:
        edges: ends of the bins of the whole table.
    """
    inner = edges[:-1] or edges
    short = [float(f"{edge:.3g}") for edge in inner]
    return short if len(set(short)) == len(short) and short[0] > 0 else list(inner)


def write_time(time: float) -> str:
    """Write a time for names of columns and for messages, such as ``412`` or ``1.25``."""
    return np.format_float_positional(time, precision=6, trim="-", fractional=False)


def check_rising(name: str, values: object) -> None:
    """Check that settled values are rising numbers above 0.

    Args:
        name: name of the values, for the message.
        values: the values.

    Raises:
        OptionError: they are not.
    """
    numbers = values if isinstance(values, list | tuple) else ()
    finite = all(isinstance(v, int | float) and math.isfinite(v) for v in numbers)
    if not numbers or not finite or (np.diff([0.0, *numbers]) <= 0).any():
        raise OptionError(f"{name}: got {values!r}, expected rising numbers above 0")


def read_median(survival: Sequence[float], horizons: Sequence[float]) -> tuple[float, bool]:
    """Return the time at which survival falls to one half, with four digits, and True.

    Where it is higher at the last horizon, that horizon and False are returned.

    Args:
        survival: probability of no event until each horizon.
        horizons: the horizons.
    """
    hazard = -np.log(np.maximum([1.0, *survival], 1e-12))
    if hazard[-1] < math.log(2):
        return float(f"{horizons[-1]:.4g}"), False
    return float(f"{np.interp(math.log(2), hazard, [0.0, *horizons]):.4g}"), True


class Bins:
    """Bins of time: the first begins at 0, each ends where the next begins.

    Args:
        edges: ends of the bins, rising.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self.ends = torch.tensor(edges, dtype=torch.float64)
        self.starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])

    def count_passed(
        self, target: Shaped[Tensor, "m 2"]
    ) -> tuple[Int[Tensor, " m"], Bool[Tensor, " m"]]:
        """Return how many bins were survived, and whether the event followed in the next bin.

        Args:
            target: times, and 1 for an event, ``(m, 2)``.
        """
        time, event = target[:, 0].double().cpu(), target[:, 1].cpu() > 0
        index = torch.searchsorted(self.ends, time.contiguous()).clamp_max(len(self.ends) - 1)
        half = (self.starts[index] + self.ends[index]) / 2
        return index + (~event & (time >= half)).long(), event

    def compute_survival(
        self, logits: Float[Tensor, "m bins"], at: Sequence[float]
    ) -> Float[Tensor, "m times"]:
        """Compute the probability of no event until some times, ``(m, times)`` in float64.

        Within a bin, the hazard is constant; after the last bin survival stays as it is.

        Args:
            logits: log odds of the event in each bin, ``(m, bins)``.
            at: the times.
        """
        times = torch.tensor(at, dtype=torch.float64)[None]
        share = (times - self.starts[:, None]) / (self.ends - self.starts)[:, None]
        log_survived = functional.logsigmoid(-logits.double())
        return (log_survived @ share.clamp(0, 1).to(logits.device)).exp()
