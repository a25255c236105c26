"""The one loop that trains every method, on Lightning Fabric.

The state is written atomically after optimiser steps, and all random draws depend only on the
position in the training, so a run that is killed and started again ends with the same weights as an
undisturbed one.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.batch import Batch, lay_kernels
from foveate.batch.features import FeatureStore
from foveate.errors import TrainingError, running_part
from foveate.files.atomic import write_text
from foveate.files.run_layout import FoldLayout
from foveate.loading.loader import CaseLoader, timed
from foveate.memory import peak_memory_mib, release_memory, trim
from foveate.messages.display import CallingDisplay, Display, OnProgress, within
from foveate.runs.checkpoint import Model, read_tensors
from foveate.runs.schedule import (
    Schedule,
    TrainOptions,
    epoch_groups,
    learning_rate,
    parameter_groups,
    settle_schedule,
)
from foveate.runtime import Runtime, start_runtime
from foveate.table import Case
from foveate.training.frozen_start import fit_start
from foveate.training.notice import StageDisplay, describe_chance_plateau, describe_stage
from foveate.training.state import (
    WORST_LOSS,
    Checkpoints,
    Progress,
    WeightAverage,
    as_csv,
)
from foveate.training.step import Steps

log = logging.getLogger("foveate")


@dataclass(frozen=True)
class _Fit:
    """Images and schedule of one call of `Trainer.fit`, and what follows from them."""

    train: Sequence[Case]
    val: Sequence[Case]
    schedule: Schedule
    display: StageDisplay
    chance: float


class Trainer:
    """Trains one model on one fold: first on stored features of a frozen encoder, then end to end.

    Source of the two stages: `docs/architecture.md`, "How training goes".

    Args:
        model: the model, with fresh weights.
        loader: opens and reads images.
        folder: folder of the fold, for checkpoints and ``metrics.csv``.
        options: options of the training.
        runtime: device and processes; by default one process on the device of the options.
        store: store of the frozen encoder's features, which trainings on other folds may share; by
            default a new one.
        folds: models of the folds, for a training on all images: what validation parts would
            fit is the mean of theirs.
        display: shows progress, the time that a stage will take, and images set aside; by default
            messages go to the log.
        title: title of the training on the display.
        after_epoch: called with the fold's folder when an epoch's row is written.
    """

    def __init__(
        self,
        model: Model,
        loader: CaseLoader,
        folder: Path,
        options: TrainOptions,
        *,
        runtime: Runtime | None = None,
        store: FeatureStore | None = None,
        folds: Sequence[Model] = (),
        display: Display | None = None,
        title: str = "training",
        after_epoch: Callable[[Path], None] | None = None,
    ) -> None:
        self.model, self.loader, self.folder, self.options = model, loader, folder, options
        self.pretrained = not model.method.encoder.from_scratch
        self.runtime = runtime or start_runtime(
            device=options.device,
            precision=options.precision,
            seed=options.seed,
            pretrained=self.pretrained,
        )
        self.fabric = self.runtime.fabric
        self.checkpoints = Checkpoints(folder, model.method, writes=self.runtime.is_main)
        self.average = WeightAverage(model.method)
        if store is None and self.pretrained:
            store = FeatureStore(FoldLayout(folder).features if self.runtime.is_main else None)
        self._store = store
        self._folds = tuple(folds)
        self._display, self._title = display or CallingDisplay(), title
        self._after_epoch = after_epoch or (lambda _: None)
        self._trained = [
            p for tier in model.method.encoder.tiers() for p in tier if p.requires_grad
        ]
        # AMSGrad: when the loss is near its minimum, the second moment is nearly zero, and a single
        # bag that happens to miss the decisive patches would throw the weights far off.
        groups = parameter_groups(model.method, options)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), amsgrad=True)
        lay_kernels(model.method)
        self.method, self.optimizer = self.fabric.setup(model.method, optimizer)
        self.progress = Progress()
        self.steps = Steps(
            model, self.method, loader, options, self.runtime, self.progress, self._display.say
        )

    def fit(self, train: Sequence[Case], val: Sequence[Case]) -> Progress:
        """Train to the end, from where the last run stopped, and load the best weights.

        Args:
            train: images of the training part.
            val: images of the inner validation part.

        Raises:
            TrainingError: the loss is not finite, or no training image is left.
            CheckpointError: the stored state does not fit.
        """
        self._resume()
        chance = self.model.task.chance_loss(self.steps.targets(train).cpu())
        display = self.display_of(len(train))
        fit = _Fit(train, val, self.schedule_of(len(train)), display, chance)
        while not self.progress.done:
            self._begin_stage(fit)
            if self.progress.epoch >= fit.schedule.total_epochs:
                self.progress.end()
                self._save()
                break
            self._train_epoch(fit)
            self._end_epoch(fit)
        self.steps.set_aside.end()
        if self.runtime.is_main and not FoldLayout(self.folder).epochs.is_file():
            write_text(FoldLayout(self.folder).epochs, as_csv(self.progress.history))
        self.steps.team.wait()  # until the best weights are written
        self.model.method.load_state_dict(read_tensors(self.checkpoints.best)[0])
        self._let_learn(True)
        return self.progress

    def schedule_of(self, n_images: int) -> Schedule:
        """Settle the schedule of a training on a number of images."""
        return settle_schedule(
            self.options,
            n_images,
            pretrained=self.pretrained,
            learns_frozen=self.model.method.learns_frozen,
            learns_pixels=self.model.method.encoder.reads_pixels,
        )

    def display_of(self, n_images: int) -> StageDisplay:
        """Build the display of the stages of a training on a number of images."""
        schedule = self.schedule_of(n_images)
        return StageDisplay(self._display, self._title, schedule, self.progress)

    def _resume(self) -> None:
        """Load the state that an earlier process has written, if there is one."""
        if self.checkpoints.latest.is_file():
            self.checkpoints.load(self.optimizer, self.progress, self.average)
            self.steps.team.resume(self.progress)
            log.info("resumed at epoch %d step %d", self.progress.epoch + 1, self.progress.step)
        self.steps.team.wait()  # until all know whether there is a state to go on from

    # -- stages -------------------------------------------------------------------------------

    def _begin_stage(self, fit: _Fit) -> None:
        """Prepare the encoder and the optimiser if the next epoch begins a stage."""
        epoch = self.progress.epoch
        stage, frozen = fit.schedule.stage(epoch), fit.schedule.is_frozen(epoch)
        if self.pretrained and not self.progress.stage:
            self._let_learn(False)
            self._fit_to_features([*fit.train, *fit.val], fit.display.features)
            if not frozen:
                self.checkpoints.keep_start(self.progress, self._validate(fit, self._store))
        self._let_learn(not frozen)
        if self.progress.stage != stage:
            self.progress.begin_stage(stage)
            self._reset_optimizer(fit.schedule)
            if self.pretrained and epoch < fit.schedule.total_epochs:
                self._announce_stage(fit)

    def _store_in_use(self, fit: _Fit) -> FeatureStore | None:
        """Return the store of features in the frozen start; None where the encoder is trained."""
        return self._store if fit.schedule.is_frozen(self.progress.epoch) else None

    def _reset_optimizer(self, schedule: Schedule) -> None:
        """Begin a stage at the averaged weights, with an optimiser without a past."""
        self.optimizer.state.clear()
        release_memory()
        if self.average.weights:
            self.model.method.load_state_dict(self.average.weights)
        if schedule.average > 0:
            self.average.begin()

    def _announce_stage(self, fit: _Fit) -> None:
        """Print the time that the stage will take, measured on one batch without an update.

        The batch is computed twice. The first time takes longer by the reading, which stored
        features spare all later epochs.
        """
        epoch, times, store = self.progress.epoch, [], self._store_in_use(fit)
        epochs, n_val = fit.schedule.span(epoch)[1], len(fit.val)
        size = fit.schedule.batch(epoch)
        groups = epoch_groups(fit.train, size, seed=self.options.seed, epoch=epoch)
        with self.progress.without_sums():
            for _ in range(2):
                begun = time.perf_counter()
                self.method.train()
                cases = self.steps.team.pick(groups[0])
                for items in self.loader.ahead([cases]):
                    self.steps.accumulate_gradients(cases, items, 0, store=store)
                stepped = time.perf_counter()
                self.steps.answer(fit.val[:1], fit.display.validation, store)
                times.append((stepped - begun, time.perf_counter() - stepped))
            self.optimizer.zero_grad(set_to_none=True)
        (first, first_answer), (step, answer) = times
        total = epochs * (step * len(groups) + answer * n_val)
        if store is not None:
            total += (first - step) * len(groups) + (first_answer - answer) * n_val
        stage = fit.schedule.stage(epoch)
        self._display.say(describe_stage(stage, epochs, len(groups), step, total))

    def _let_learn(self, learn: bool) -> None:
        """Enable or disable gradients of the encoder's pretrained parameters that are trained."""
        for parameter in self._trained:
            parameter.requires_grad_(learn)

    def _fit_to_features(self, cases: Sequence[Case], on_progress: OnProgress) -> None:
        """Read the features of images, and fit the linear answers to them.

        The validation part is among the images: they are answered by fits that did not see them.
        """
        method, task = self.model.method, self.model.task

        def batches() -> Iterator[tuple[Case, Batch]]:
            loaded = self.loader.ahead([case] for case in cases)
            for case, items in zip(cases, loaded, strict=True):
                for _, item in self.steps.readable([case], items):
                    yield case, self.steps.batch([item], store=self._store)

        on_progress(0, len(cases))
        method.eval()
        with (
            running_part("method", method),
            self.fabric.autocast(),
            self.progress.timed(),
        ):
            self.progress.leave_out(fit_start(method, task, cases, batches(), on_progress))
            self.steps.team.align()

    def _fit_trust(self, fit: _Fit) -> None:
        """Fit how far learnt answers are trusted, at the end of the frozen start."""
        if self._folds:
            self.model.method.share_trust([fold.method for fold in self._folds])
        else:
            each_loss, view = self.model.task.each_loss, self.loader.view
            store = self._store_in_use(fit)
            answer = functools.partial(self.steps.answer, fit.val, fit.display.validation, store)
            self.model.method.fit_trust(answer, each_loss, view)
        if self.average.weights:
            self.average.begin()  # the fitted factor is part of the averaged weights, too

    def _train_epoch(self, fit: _Fit) -> None:
        options, progress, schedule = self.options, self.progress, fit.schedule
        self.method.train()
        usable = [c for c in fit.train if c.image_id not in progress.excluded]
        if not usable:
            self.steps.set_aside.end()
            raise TrainingError("no training image is left: mend those in quarantine.csv")
        horizon = schedule.horizon(progress.epoch, len(usable), options.accumulate)
        size, store = schedule.batch(progress.epoch), self._store_in_use(fit)
        groups = epoch_groups(usable, size, seed=options.seed, epoch=progress.epoch)
        groups = [self.steps.team.pick(group) for group in groups]
        saved = time.monotonic()
        loaded = timed(self.loader.ahead(groups[progress.step :]), self.steps.waited)
        for step, items in enumerate(loaded, progress.step):
            begun = time.perf_counter()
            self._prepare_step(schedule, step, len(groups))
            on_progress = within(fit.display.step, step, len(groups))
            self.steps.accumulate_gradients(groups[step], items, step, on_progress, store)
            ends_update = (step + 1) % options.accumulate == 0 or step + 1 == len(groups)
            if ends_update:
                self._update(horizon)
            progress.end_step(step, time.perf_counter() - begun)
            fit.display.step(step + 1, len(groups))
            if ends_update and time.monotonic() - saved > options.checkpoint_seconds:
                self._save()
                saved = time.monotonic()

    def _prepare_step(self, schedule: Schedule, step: int, steps: int) -> None:
        """Set the learning rate of a step, and tell the method how far the training is.

        Args:
            schedule: schedule of the training.
            step: number of the step in its epoch, from 0.
            steps: number of steps of the epoch.
        """
        first, epoch = step - step % self.options.accumulate, self.progress.epoch
        rate = learning_rate(schedule, epoch + first / steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        done = 0.0 if schedule.is_frozen(epoch) else schedule.done(epoch + step / steps)
        with running_part("method", self.model.method):
            self.model.method.begin_step(done)

    def _update(self, horizon: float) -> None:
        self.steps.team.sum_gradients()
        if any(p.grad is not None for p in self.model.method.parameters()):
            self.fabric.clip_gradients(
                self.method, self.optimizer, max_norm=self.options.clip, error_if_nonfinite=False
            )
            self.optimizer.step()
            if self.average.weights:
                self.average.update(horizon)
        self.optimizer.zero_grad(set_to_none=True)

    def _end_epoch(self, fit: _Fit) -> None:
        """Validate, keep the weights if they are the best, and write the state."""
        schedule, progress = fit.schedule, self.progress
        with self.average.applied():
            if progress.epoch + 1 == schedule.frozen_epochs:
                self._fit_trust(fit)
            row = self._close_epoch(fit, self._validate(fit, self._store_in_use(fit)))
            self.checkpoints.keep_best(progress, schedule, row)
        if progress.rests_at(fit.chance, self.model.task.learnt):
            batch = schedule.batch(row["epoch"] - 1)
            log.warning(describe_chance_plateau(self.model, row, batch=batch))
        if progress.finished(self.options, schedule, fit.chance):
            progress.end()
        self._save()
        if self.runtime.is_main:
            self._after_epoch(self.folder)

    def _validate(self, fit: _Fit, store: FeatureStore | None) -> dict[str, float]:
        """Compute loss, ranking and score of the inner validation part, in evaluation mode."""
        with self.progress.timed():
            stacked, target = self.steps.answer(fit.val, fit.display.validation, store)
        if not len(stacked):
            return {}
        loss = float(self.model.task.loss(stacked, target))
        figures = {"val_loss": loss if math.isfinite(loss) else WORST_LOSS}
        if not torch.isfinite(stacked).all():
            return figures
        return figures | self.model.task.validate(stacked, target, fit.chance)

    def answer(
        self, cases: Sequence[Case], on_progress: OnProgress | None = None
    ) -> tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]:
        """Compute logits ``(n, k)`` and targets of the cases whose images can be read.

        Args:
            cases: the cases to answer.
            on_progress: called with the number of images done, a fraction within an image, and the
                number of all.
        """
        return self.steps.answer(cases, on_progress)

    def _close_epoch(self, fit: _Fit, validation: dict[str, float]) -> dict[str, float]:
        trim()  # steps of different sizes leave gaps, which would add up
        progress = self.progress
        progress.add(**self.loader.take_counts())
        for image_id, reason in self.steps.team.share(progress).items():
            self.steps.set_aside.set_aside(image_id, "", reason)
        row = {"epoch": float(progress.epoch + 1), **progress.running(), **validation}
        row |= {"chance_loss": fit.chance, **self.model.method.findings()}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "peak_memory_mib": peak_memory_mib()}
        progress.end_epoch(row)
        if self.runtime.is_main:
            write_text(FoldLayout(self.folder).epochs, as_csv(progress.history))
        log.info("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
        return row

    def _save(self) -> None:
        if self._store is not None:
            self._store.save()
        self.progress.add(**self.loader.take_counts())
        self.checkpoints.save(self.optimizer, self.progress, self.average)
