"""The cost of a training counts what no finished epoch holds."""

from __future__ import annotations

import pytest

from foveate.training.state import Progress
from foveate.workflows.folds import _sum_training_cost


def test_what_comes_after_the_last_epoch_is_counted() -> None:
    progress = Progress()
    progress.add(seconds=5.0, seconds_reading=2.0, decoded_px=10.0, asked_px=4.0)
    alone = _sum_training_cost(progress)
    assert alone == {
        "seconds": 5.0, "seconds_reading": 2.0, "seconds_computing": 3.0,
        "decoded_px": 10.0, "asked_px": 4.0,
    }  # fmt: skip
    progress.end_epoch({"epoch": 1.0, **progress.running()})
    progress.add(seconds=1.0)
    assert _sum_training_cost(progress)["seconds"] == pytest.approx(6.0)
