"""An image that turns out to be unreadable in the middle of a step is left out of the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from torch import nn

from foveate.batch import LoadedImage, ReadingFailed
from foveate.errors import TrainingError
from foveate.runtime import start_runtime
from foveate.table import Case
from foveate.training.state import Progress
from foveate.training.step import compute_readable
from foveate.training.team import CountOnce, StepCount, Team


def pair(image_id: str) -> tuple[Case, LoadedImage]:
    case = Case(image_id, image_id, Path(f"{image_id}.png"), "plain")
    return case, cast(LoadedImage, None)  # `compute` below looks at the cases only


class Reading:
    """Notes the images of each attempt, and fails at the first that is damaged."""

    def __init__(self, *damaged: str) -> None:
        self.damaged, self.attempts = damaged, list[list[str]]()

    def __call__(self, pairs: Sequence[tuple[Case, LoadedImage]]) -> None:
        ids = [case.image_id for case, _ in pairs]
        self.attempts.append(ids)
        for image_id in ids:
            if image_id in self.damaged:
                raise ReadingFailed(image_id, Path(f"{image_id}.png"), OSError("damaged"))


@pytest.mark.parametrize(
    ("damaged", "attempts"),
    [
        ((), [["a", "b", "c"]]),
        (("b",), [["a", "b", "c"], ["a", "c"]]),
        (("a", "c"), [["a", "b", "c"], ["b", "c"], ["b"]]),
        (("a", "b", "c"), [["a", "b", "c"], ["b", "c"], ["c"]]),
    ],
)
def test_a_step_begins_anew_without_each_unreadable_image(
    damaged: tuple[str, ...], attempts: list[list[str]]
) -> None:
    reading, left_out = Reading(*damaged), list[str]()
    pairs = [pair(name) for name in "abc"]
    compute_readable(pairs, reading, lambda error: left_out.append(error.image_id))
    assert reading.attempts == attempts
    assert left_out == list(damaged)


def test_nothing_is_computed_without_images() -> None:
    reading = Reading()
    compute_readable([], reading, pytest.fail)
    assert reading.attempts == []


def test_other_errors_end_the_step() -> None:
    def diverge(_: object) -> None:
        raise TrainingError("the loss became inf")

    with pytest.raises(TrainingError, match="became inf"):
        compute_readable([pair("a")], diverge, pytest.fail)


def test_processes_exchange_the_count_of_a_step_once() -> None:
    runtime = start_runtime(device="cpu", precision="32-true", seed=0, pretrained=False)
    team = Team(runtime, nn.Linear(1, 1))
    exchange = CountOnce(team)
    assert exchange(3, 2.0, 4.0) == StepCount(1.0, 3.0, 6.0, 12.0)
    assert exchange(2, 1.0, 1.0) == exchange() == StepCount(1.0, 3.0, 6.0, 12.0)
    assert CountOnce(team)() == StepCount(0.0, 0.0, 0.0, 0.0)


def test_a_restored_progress_equals_the_stored_one() -> None:
    progress = Progress(epoch=3, quarantined={"a": "damaged"})
    progress.add(seconds=2.0)
    progress.end_step(4, 1.5)
    restored = Progress(epoch=9, step=7, done=True)
    restored.restore(vars(progress))
    assert restored == progress
    with pytest.raises(TypeError):
        restored.restore({"epochs": 1})


def test_figures_of_a_trial_are_forgotten() -> None:
    progress = Progress(sums={"seconds": 1.0})
    with progress.without_sums():
        progress.add(seconds=5.0, images=2.0)
        assert progress.sums == {"seconds": 6.0, "images": 2.0}
    assert progress.sums == {"seconds": 1.0}
