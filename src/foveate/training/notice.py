"""What a user is told of a training: what it will take, and that it learns nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from foveate.memory import peak_memory_mib
from foveate.parts import options as options_of
from foveate.runs.checkpoint import Model
from foveate.runs.schedule import Schedule
from foveate.training.state import Progress, Status, Tick

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
"""What helps: the option that a method must have for it, and from where on it is set already."""


def describe_chance_plateau(model: Model, row: Mapping[str, float], *, batch: int) -> str:
    """That the training loss rests at chance, and what ends that with this method.

    Args:
        model: whose options say what is set already.
        row: of the epoch that has just ended.
        batch: images of a step.
    """
    smaller = "smaller --train.batch-size, " if batch > 1 else ""
    given = model.card.method_options
    known = {key: option.default for key, option in options_of(type(model.method)).items()}
    advice = [
        text
        for key, enough, text in _ADVICE
        if key is None or (key in known and float(given.get(key, known[key])) < enough)
    ]
    return _AT_CHANCE.format(
        loss=row["train_loss"],
        epoch=int(row["epoch"]),
        chance=model.task.chance,
        advice="What ends such a plateau: "
        + ", ".join(advice).format(steps=f"{smaller}more --epochs"),
    )


def expectation(stage: str, epochs: int, steps: int, seconds: float, total: float) -> str:
    """What a stage of training will take, in a line.

    Args:
        stage: its name.
        epochs: of the stage.
        steps: of an epoch.
        seconds: of a step.
        total: of the whole stage, s.
    """
    return (
        f"{stage}: {epochs} epochs of {steps} steps, about {seconds:.2g} s a step, "
        f"{duration(total)} in all; memory about {peak_memory_mib() / 1024:.1f} GiB"
    )


def duration(seconds: float | None) -> str:
    """``15 ms``, ``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds is None:
        return "–"
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


class StageDisplay:
    """Shows how far the stage of a training is.

    Args:
        tick: the display.
        schedule: of the training.
        progress: of the training; it goes on.
    """

    def __init__(self, tick: Tick, schedule: Schedule, progress: Progress) -> None:
        self._tick, self._schedule, self._progress = tick, schedule, progress

    def step(self, step: float, steps: int, **more: float) -> None:
        """So many steps of the present epoch are done; `more` are figures beside the epoch's."""
        epoch = self._progress.epoch
        begin, epochs = self._schedule.span(epoch)
        done = (epoch - begin) * steps + step
        running = self._progress.running() | more
        stage = self._schedule.stage(epoch)
        self._tick(Status(stage, done, epochs * steps, epoch + 1, running))

    def within(self, step: int, steps: int) -> Callable[[float], None]:
        """What a long step tells its share to."""
        return lambda share: self.step(step + share, steps)

    def validated(self, done: int, of: int, share: float) -> None:
        """So much of the validation part is done, `share` of one more image included."""
        step = self._progress.step
        self.step(step, max(step, 1), validated=(done + share) / of)
