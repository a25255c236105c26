"""Where a training stands, which weights it keeps, and how both are written and read again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import CheckpointError, one_line
from foveate.files.csvtext import csv_text
from foveate.runs.checkpoint import (
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    write_tensors,
)
from foveate.runs.schedule import Schedule, TrainOptions

WORST_LOSS = 1e30
"""Stands for one that is not finite."""


@dataclass(frozen=True)
class Status:
    """Where a training stands.

    Attributes:
        stage: ``reading features``, ``frozen start`` or ``end to end``.
        done, total: of all steps of the stage; within long steps, too.
        epoch: counted from 1; 0 while features are read.
        running: figures of the epoch so far.
    """

    stage: str
    done: float
    total: float
    epoch: int
    running: dict[str, float]


Tick = Callable[[Status], None]


@dataclass
class Progress:
    """Where a run stands; all of it is written with the weights.

    Attributes:
        epoch, step: of the next step to do.
        stage: the one that has been begun, empty before the first.
        sums: of the present epoch so far.
        history: one row per finished epoch.
        best_score, best_epoch: of validation; the lower, the better.
        parts: by image, with which part it was left out of the fits of linear answers.
        quarantined: image ids set aside in training, with reasons.
        excluded: those of them that were known when the present epoch began; they are not drawn.
        done: training has ended.
    """

    epoch: int = 0
    step: int = 0
    stage: str = ""
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_score: float = WORST_LOSS
    best_epoch: int = -1
    parts: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    done: bool = False

    def add(self, **values: float) -> None:
        """Add to the sums of the present epoch."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds that a block takes; those that it has added itself count once."""
        begun, known = time.perf_counter(), self.sums.get("seconds", 0.0)
        yield
        added = self.sums.get("seconds", 0.0) - known
        self.add(seconds=time.perf_counter() - begun - added)

    def quarantine(self, image_id: str, reason: str) -> bool:
        """Set an image aside; False when it already was."""
        if image_id in self.quarantined:
            return False
        self.quarantined[image_id] = reason
        return True

    def running(self) -> dict[str, float]:
        """Figures of the present epoch so far."""
        seconds = self.sums.get("seconds", 0.0)
        reading = self.sums.get("seconds_reading", 0.0)
        return {
            "train_loss": self.sums.get("train_loss", 0.0) / max(self.sums.get("images", 0.0), 1.0),
            "seconds": seconds,
            "seconds_reading": reading,
            "seconds_computing": max(seconds - reading, 0.0),
            "decoded_px": self.sums.get("decoded_px", 0.0),
            "asked_px": self.sums.get("asked_px", 0.0),
        }

    def rests_at(self, chance: float, learnt: Callable[[list[dict[str, float]]], bool]) -> bool:
        """Whether nothing was learnt in the last four epochs.

        That is, the training loss lay within 3 % of chance and the validation part does not show
        that anything was `learnt`. True once per plateau: at its fourth epoch, and at every tenth
        after that.
        """
        length = next(
            (i for i, at in enumerate(reversed(self._at(chance))) if not at), len(self.history)
        )
        if learnt(self.history[-4:]):
            return False
        return length >= 4 and (length - 4) % 10 == 0

    def finished(self, options: TrainOptions, schedule: Schedule, chance: float) -> bool:
        """Whether the epochs are used up or validation has stopped improving.

        Epochs in which the training loss lies at chance do not wear out patience: attention often
        finds what decides only after many of them, and validation cannot improve before. Averaged
        weights improve to the end of the schedule; they are never stopped early.
        """
        left = max((i for i, at in enumerate(self._at(chance), 1) if at), default=0)
        waited = self.epoch - max(self.best_epoch, left)
        stale = options.patience > 0 and waited >= options.patience and schedule.average == 0
        return self.epoch >= schedule.total_epochs or (stale and self.epoch >= options.min_epochs)

    def _at(self, chance: float) -> list[bool]:
        """Of each epoch, whether its training loss lay within 3 % of chance."""
        return [abs(row["train_loss"] - chance) <= 0.03 * chance for row in self.history]


class WeightAverage:
    """An exponential average of a method's weights, begun anew with each stage.

    Args:
        method: whose weights.
    """

    def __init__(self, method: nn.Module) -> None:
        self._method = method
        self.weights: dict[str, Tensor] = {}
        self.updates = 0

    def begin(self) -> None:
        """Begin at the present weights."""
        self.weights = {k: v.detach().clone() for k, v in self._method.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self, horizon: float) -> None:
        """Take the present weights in.

        Args:
            horizon: over how many updates they are averaged.
        """
        self.updates += 1
        keep = min(1 - 1 / max(horizon, 1.0), self.updates / (self.updates + 9))
        for name, value in self._method.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights are the method's meanwhile; nothing changes where there is none."""
        if not self.weights:
            yield
            return
        own = {k: v.detach().clone() for k, v in self._method.state_dict().items()}
        self._method.load_state_dict(self.weights)
        try:
            yield
        finally:
            self._method.load_state_dict(own)


class Checkpoints:
    """The files of weights of one fold, and which weights are kept in them.

    Attributes:
        latest: the whole state, to go on from.
        best: the weights that are kept.
        frozen: those at the end of the frozen start.

    Args:
        folder: of the fold.
        method: whose weights.
        writes: whether this process does; the others of a training keep the same score.
    """

    def __init__(self, folder: Path, method: nn.Module, *, writes: bool = True) -> None:
        self._method, self._writes = method, writes
        self.latest = folder / "checkpoints" / "latest.safetensors"
        self.best = folder / "checkpoints" / "best.safetensors"
        self.frozen = folder / "checkpoints" / "frozen.safetensors"

    def keep_start(self, progress: Progress, validation: Mapping[str, float]) -> None:
        """Keep what was settled as the first candidate, where nothing is trained on features."""
        progress.best_score = validation.get("val_score", WORST_LOSS)
        progress.best_epoch = 0
        for path in (self.best, self.frozen):
            self._write(path, self._method.state_dict(), {"epoch": 0})

    def keep_best(self, progress: Progress, schedule: Schedule, row: Mapping[str, float]) -> None:
        """Keep these weights if they may be kept and none are better; later ones win ties.

        Args:
            progress: is told of the best score.
            schedule: says whether they may be kept.
            row: of the epoch that has just ended.
        """
        epoch = int(row["epoch"])
        if not schedule.may_keep(epoch):
            return
        if "val_loss" not in row:
            progress.best_score = WORST_LOSS  # nothing to choose by: the last weights are kept
        weights, note = self._method.state_dict(), {"epoch": epoch}
        if epoch == schedule.frozen_epochs:
            self._write(self.frozen, weights, note)
        score = row.get("val_score", row.get("val_loss", row["train_loss"]))
        if score <= progress.best_score:
            progress.best_score, progress.best_epoch = score, epoch
            self._write(self.best, weights, note)

    def save(
        self, optimizer: torch.optim.Optimizer, progress: Progress, average: WeightAverage
    ) -> None:
        """Weights, their average, optimiser and progress in one file, whole or not at all."""
        tensors = {f"method.{k}": v for k, v in self._method.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.weights.items()}
        note = asdict(progress) | {"averaged_updates": average.updates}
        self._write(self.latest, tensors | optimizer_tensors(optimizer), note)

    def _write(self, path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        if self._writes:
            write_tensors(path, tensors, note)

    def load(self, optimizer: torch.optim.Optimizer, average: WeightAverage) -> Progress:
        """Put back what `save` wrote.

        Raises:
            CheckpointError: the file is damaged or belongs to another model.
        """
        tensors, note = read_tensors(self.latest)
        try:
            self._method.load_state_dict(_under("method.", tensors))
            restore_optimizer(optimizer, tensors)
            average.weights = _under("average.", tensors)
            average.updates = int(note.pop("averaged_updates"))
            return Progress(**note)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = one_line(str(error))
            raise CheckpointError(
                f"{self.latest} does not fit this run: {reason}. Delete {self.latest.parent} to "
                "train "
                "this fold anew"
            ) from error


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def as_csv(rows: Sequence[dict[str, float]]) -> str:
    """Return rows as CSV text, numbers with six digits; columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return csv_text([{k: f"{v:.6g}" for k, v in row.items()} for row in rows], columns)
