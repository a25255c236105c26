"""Messages about a training: its progress, the time it will take, and that it learns nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

from foveate.memory import peak_memory_mib
from foveate.messages.display import Display
from foveate.parts.options import options as options_of
from foveate.presentation import write_duration
from foveate.runs.checkpoint import Model
from foveate.runs.schedule import Schedule
from foveate.training.state import Progress

_AT_CHANCE = (
    "the training loss rests at {loss:.3f} after {epoch} epochs and the validation part is not "
    "ranked: that is {chance}, so nothing is learnt yet. {advice}"
)
_ADVICE: tuple[tuple[str | None, float, str], ...] = (
    ("instance", 1.0, "the method's instance head (--method.instance, 1 or more)"),
    ("jitter", 1.0, "a lattice that moves (--method.jitter true)"),
    ("patches", math.inf, "more patches an image (--method.patches)"),
    ("kept", math.inf, "more patches an image (--method.kept)"),
    (None, math.inf, "more steps ({steps})"),
    (None, math.inf, "a lower or higher --train.lr"),
)
"""Advice: the option that the method must have, the value from which on it is set already, and the
text."""


def describe_chance_plateau(model: Model, row: Mapping[str, float], *, batch: int) -> str:
    """Describe that the training loss stays at chance, and advise options of the method.

    Args:
        model: the model, whose options are known.
        row: figures of the epoch that has just ended.
        batch: number of images of a step.
    """
    smaller = "smaller --train.batch-size, " if batch > 1 else ""
    chosen = model.card.method_options
    known = {key: option.default for key, option in options_of(type(model.method)).items()}
    advice = [
        text
        for key, enough, text in _ADVICE
        if key is None or (key in known and float(chosen.get(key, known[key])) < enough)
    ]
    return _AT_CHANCE.format(
        loss=row["train_loss"],
        epoch=int(row["epoch"]),
        chance=model.task.chance,
        advice="What ends such a plateau: "
        + ", ".join(advice).format(steps=f"{smaller}more --epochs"),
    )


def describe_stage(
    stage: str, epochs: int, steps: int, step_seconds: float, total_seconds: float
) -> str:
    """Describe in a line the time and memory that a stage of training will take.

    Args:
        stage: name of the stage.
        epochs: number of its epochs.
        steps: number of steps of an epoch.
        step_seconds: duration of a step.
        total_seconds: duration of the stage.
    """
    return (
        f"{stage}: {epochs} epochs of {steps} steps, about {step_seconds:.2g} s a step, "
        f"{write_duration(total_seconds)} in all; memory about {peak_memory_mib() / 1024:.1f} GiB"
    )


class StageDisplay:
    """Shows the progress of the present stage of a training, each stage as one bar.

    Args:
        display: display that shows the bars.
        title: title of the training, with which the title of each bar begins.
        schedule: schedule of the training.
        progress: progress of the training, which changes as it goes on.
    """

    def __init__(
        self, display: Display, title: str, schedule: Schedule, progress: Progress
    ) -> None:
        self._display, self._title = display, title
        self._schedule, self._progress = schedule, progress

    def features(self, done: float, total: int = 1) -> None:
        """Show how many images' features are read, before the first step.

        Args:
            done: number of images that are done.
            total: number of all images.
        """
        self._display.bar(f"{self._title}: reading features", done, total)

    def step(self, done: float, total: int = 1, validating: float | None = None) -> None:
        """Show that a number of steps of the present epoch is done.

        Args:
            done: number of steps that are done; fractions count parts of a step.
            total: number of steps of the epoch.
            validating: share of the validation part that is done; None before it begins.
        """
        epoch = self._progress.epoch
        begin, epochs = self._schedule.span(epoch)
        note, running = f"epoch {epoch + 1}", self._progress.running()
        if running.get("seconds_computing", 0) > 0:
            waiting = running["seconds_reading"] / running["seconds"]
            note += f"  loss {running['train_loss']:.4f}  waiting for pixels {waiting:.0%}"
        if validating is not None:
            note += f"  validating {validating:.0%}"
        title = f"{self._title}: {self._schedule.stage(epoch)}"
        self._display.bar(title, (epoch - begin) * total + done, epochs * total, note)

    def validation(self, done: float, total: int = 1) -> None:
        """Show that a number of images of the validation part is done.

        Args:
            done: number of images that are done; fractions count parts of an image.
            total: number of images of the validation part.
        """
        step = self._progress.step
        self.step(step, max(step, 1), validating=done / total)
