"""The progress and weights of a training, and the checkpoints that they are written to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from foveate.errors import CheckpointError
from foveate.files.csvtext import csv_text
from foveate.files.run_layout import FoldLayout
from foveate.runs.checkpoint import (
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    write_tensors,
)
from foveate.runs.schedule import Schedule, TrainOptions
from foveate.wording import one_line

WORST_LOSS = 1e30
"""Stands for a loss that is not finite."""


@dataclass
class Progress:
    """The progress of a training; it is written with the weights.

    Attributes:
        epoch: number, from 0, of the epoch of the next step.
        step: number, from 0, of the next step in its epoch.
        stage: the stage that has begun; empty before the first.
        sums: sums of figures over the present epoch so far.
        history: a row of figures per finished epoch.
        best_score: best score of the validation part; lower is better.
        best_epoch: number of the epoch with the best score.
        left_out_folds: by image id, number of the group with which the image was left out of the
            fits of linear answers; ``parts`` in files.
        quarantined: reasons by image id of the images set aside in training.
        excluded: ids of images that were set aside before the present epoch began; they are not
            drawn.
        done: whether the training has ended.
    """

    epoch: int = 0
    step: int = 0
    stage: str = ""
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_score: float = WORST_LOSS
    best_epoch: int = -1
    left_out_folds: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    excluded: list[str] = field(default_factory=list)
    done: bool = False

    def begin_stage(self, stage: str) -> None:
        """Note that a stage of this name has begun."""
        self.stage = stage

    def leave_out(self, folds: Mapping[str, int]) -> None:
        """Note with which group each image was left out of the fits of linear answers."""
        self.left_out_folds = dict(folds)

    def end_step(self, step: int, seconds: float) -> None:
        """Note that a step of the present epoch is done.

        Args:
            step: number of the step, from 0.
            seconds: duration of the step.
        """
        self.step = step + 1
        self.add(seconds=seconds)

    def end_epoch(self, row: dict[str, float]) -> None:
        """Close the present epoch with its row of figures, and begin the next."""
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        self.excluded = sorted(self.quarantined)

    def end(self) -> None:
        """Note that the training has ended."""
        self.done = True

    def set_best(self, epoch: int, score: float) -> None:
        """Note the epoch with the best score of the validation part so far.

        Args:
            epoch: number of the epoch.
            score: its score; lower is better.
        """
        self.best_epoch, self.best_score = epoch, score

    def restore(self, values: Mapping[str, Any]) -> None:
        """Replace everything by the values of a stored progress.

        Raises:
            TypeError: a value has a name that no progress has.
        """
        vars(self).update(vars(Progress(**values)))

    @contextlib.contextmanager
    def without_sums(self) -> Iterator[None]:
        """Forget, after a ``with`` block, what the block added to the sums of the epoch."""
        sums, self.sums = self.sums, dict(self.sums)
        yield
        self.sums = sums

    def add(self, **values: float) -> None:
        """Add to the sums of the present epoch."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds that a block takes, less those that it adds itself."""
        begun, known = time.perf_counter(), self.sums.get("seconds", 0.0)
        yield
        added = self.sums.get("seconds", 0.0) - known
        self.add(seconds=time.perf_counter() - begun - added)

    def set_aside(self, image_id: str, reason: str) -> bool:
        """Set an image aside; return False when it already was.

        Args:
            image_id: id of the image.
            reason: why it cannot be used.
        """
        if image_id in self.quarantined:
            return False
        self.quarantined[image_id] = reason
        return True

    def running(self) -> dict[str, float]:
        """Compute the figures of the present epoch so far."""
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
        """Return whether nothing was learnt in the last four epochs.

        Then the training loss lay within 3 % of chance, and the validation part does not show that
        anything was `learnt`. It is True at the fourth epoch of a plateau, and at every tenth after
        that.

        Args:
            chance: loss of answers by chance.
            learnt: tells from rows of epochs whether the validation part shows any learning.
        """
        length = next(
            (i for i, at in enumerate(reversed(self._at(chance))) if not at), len(self.history)
        )
        if learnt(self.history[-4:]):
            return False
        return length >= 4 and (length - 4) % 10 == 0

    def finished(self, options: TrainOptions, schedule: Schedule, chance: float) -> bool:
        """Return whether the epochs are used up or validation has stopped improving.

        Epochs in which the training loss lies at chance do not count for patience: attention often
        finds the decisive patches only after many of them, and validation cannot improve before.
        Averaged weights improve to the end of the schedule; they are never stopped early.

        Args:
            options: options of the training, with its patience.
            schedule: schedule of the training.
            chance: loss of answers by chance.
        """
        left = max((i for i, at in enumerate(self._at(chance), 1) if at), default=0)
        waited = self.epoch - max(self.best_epoch, left)
        stale = options.patience > 0 and waited >= options.patience and schedule.average == 0
        return self.epoch >= schedule.total_epochs or (stale and self.epoch >= options.min_epochs)

    def _at(self, chance: float) -> list[bool]:
        """Return for each epoch whether its training loss lay within 3 % of chance."""
        return [abs(row["train_loss"] - chance) <= 0.03 * chance for row in self.history]


class WeightAverage:
    """An exponential average of a method's weights, begun anew with each stage.

    Args:
        method: the method whose weights are averaged.
    """

    def __init__(self, method: nn.Module) -> None:
        self._method = method
        self.weights: dict[str, Tensor] = {}
        self.updates = 0

    def begin(self) -> None:
        """Begin at the present weights."""
        self.weights = {k: v.detach().clone() for k, v in self._method.state_dict().items()}
        self.updates = 0

    def restore(self, weights: dict[str, Shaped[Tensor, " ..."]], updates: int) -> None:
        """Replace the average by a stored one.

        Args:
            weights: averaged weights by name.
            updates: number of updates that they contain.
        """
        self.weights, self.updates = weights, updates

    @torch.no_grad()
    def update(self, horizon: float) -> None:
        """Add the present weights to the average.

        Args:
            horizon: number of updates over which weights are averaged.
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
        """Load the averaged weights, if any, within a ``with`` block; then restore the present."""
        if not self.weights:
            yield
            return
        present = {k: v.detach().clone() for k, v in self._method.state_dict().items()}
        self._method.load_state_dict(self.weights)
        try:
            yield
        finally:
            self._method.load_state_dict(present)


class Checkpoints:
    """Writes and reads the files of weights of one fold.

    Attributes:
        latest: file of the full state of a training, which it can continue from.
        best: file of the best weights.
        frozen: file of the weights at the end of the frozen start.

    Args:
        folder: folder of the fold.
        method: the method whose weights are written.
        writes: whether this process writes; the other processes only remember the best score.
    """

    def __init__(self, folder: Path, method: nn.Module, *, writes: bool = True) -> None:
        self._method, self._writes = method, writes
        layout = FoldLayout(folder).checkpoints
        self.latest, self.best, self.frozen = layout.latest, layout.best, layout.frozen

    def keep_start(self, progress: Progress, validation: Mapping[str, float]) -> None:
        """Write the fitted weights as the first candidate, where nothing is trained on features.

        Args:
            progress: progress of the training, whose best score is set.
            validation: figures of the validation part.
        """
        progress.set_best(0, validation.get("val_score", WORST_LOSS))
        for path in (self.best, self.frozen):
            self._write(path, self._method.state_dict(), {"epoch": 0})

    def keep_best(self, progress: Progress, schedule: Schedule, row: Mapping[str, float]) -> None:
        """Write the weights if the schedule allows it and none were better; later ones win ties.

        Args:
            progress: progress of the training, whose best score is updated.
            schedule: schedule of the training, which says whether weights of an epoch may be kept.
            row: figures of the epoch that has just ended.
        """
        epoch = int(row["epoch"])
        if not schedule.may_keep(epoch):
            return
        # Without validation, the last weights are kept.
        best = progress.best_score if "val_loss" in row else WORST_LOSS
        weights, note = self._method.state_dict(), {"epoch": epoch}
        if epoch == schedule.frozen_epochs:
            self._write(self.frozen, weights, note)
        score = row.get("val_score", row.get("val_loss", row["train_loss"]))
        if score <= best:
            progress.set_best(epoch, score)
            self._write(self.best, weights, note)

    def save(
        self, optimizer: torch.optim.Optimizer, progress: Progress, average: WeightAverage
    ) -> None:
        """Write weights, their average, optimiser and progress to one file, atomically.

        Args:
            optimizer: optimiser of the method.
            progress: progress of the training.
            average: average of the weights.
        """
        tensors = {f"method.{k}": v for k, v in self._method.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.weights.items()}
        note = asdict(progress) | {"averaged_updates": average.updates}
        note["parts"] = note.pop("left_out_folds")
        self._write(self.latest, tensors | optimizer_tensors(optimizer), note)

    def _write(
        self, path: Path, tensors: Mapping[str, Shaped[Tensor, " ..."]], note: Mapping[str, Any]
    ) -> None:
        if self._writes:
            write_tensors(path, tensors, note)

    def load(
        self, optimizer: torch.optim.Optimizer, progress: Progress, average: WeightAverage
    ) -> None:
        """Load the state that `save` wrote.

        Args:
            optimizer: optimiser, whose state is replaced.
            progress: progress of the training, which is replaced.
            average: average of the weights, which is replaced.

        Raises:
            CheckpointError: the file is damaged or belongs to another model.
        """
        tensors, note = read_tensors(self.latest)
        try:
            self._method.load_state_dict(_under("method.", tensors))
            restore_optimizer(optimizer, tensors)
            average.restore(_under("average.", tensors), int(note.pop("averaged_updates")))
            progress.restore({"left_out_folds": note.pop("parts"), **note})
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = one_line(str(error))
            raise CheckpointError(
                f"{self.latest} does not fit this run: {reason}. Delete {self.latest.parent} to "
                "train this fold anew"
            ) from error
        if progress.best_epoch >= 0 and not self.best.is_file():
            raise CheckpointError(
                f"{self.best} is missing: restore it from a copy, or delete {self.best.parent} to "
                "train this fold anew"
            )


def _under(
    prefix: str, tensors: dict[str, Shaped[Tensor, " ..."]]
) -> dict[str, Shaped[Tensor, " ..."]]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def as_csv(rows: Sequence[dict[str, float]]) -> str:
    """Return rows as CSV text, numbers with six digits; columns in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return csv_text([{k: f"{v:.6g}" for k, v in row.items()} for row in rows], columns)
