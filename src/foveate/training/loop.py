"""The one loop that trains every method, on Lightning Fabric.

Every random draw of a step comes from ``(seed, epoch, step)``, and the state is written whole after
optimiser steps, so a run that is killed and started again ends with the weights of an undisturbed
one.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from foveate.batch import Augment, Batch, CropError, LoadedImage, augment_for, lay_kernels
from foveate.batch.features import FeatureStore
from foveate.errors import FoveateError, NotFinite, TrainingError
from foveate.files.atomic import write_text
from foveate.loading.loader import CaseLoader, timed
from foveate.memory import peak_memory_mib, release_memory
from foveate.messages.display import QuarantineMessages
from foveate.methods.base import further_loss
from foveate.runs.checkpoint import Model, read_tensors
from foveate.runs.runtime import build_fabric
from foveate.runs.schedule import (
    TrainOptions,
    epoch_groups,
    learning_rate,
    parameter_groups,
    settle_schedule,
    step_seed,
)
from foveate.table import Case
from foveate.training.frozen_start import settle_start
from foveate.training.notice import Teller, at_chance, expectation
from foveate.training.state import (
    WORST_LOSS,
    Checkpoints,
    Progress,
    Status,
    Tick,
    WeightAverage,
    as_csv,
)

log = logging.getLogger("foveate")

Loaded = LoadedImage | FoveateError


class Trainer:
    """Trains one model on one fold: first on kept features of a frozen encoder, then end to end.

    Source of the two stages: `docs/ARCHITECTURE.md`, "How training goes".

    Args:
        model: with fresh weights.
        loader: opens and reads images.
        folder: of the fold; checkpoints and ``metrics.csv`` go there.
        options: how to train.
        store: for features of the frozen encoder, which trainings on other folds may share; one of
            its own by default.
        tick: progress display.
        say: told in a line what a stage will take before it begins, and of images set aside.
        after_epoch: called with the fold's folder when an epoch's row is written.
    """

    def __init__(
        self,
        model: Model,
        loader: CaseLoader,
        folder: Path,
        options: TrainOptions,
        *,
        store: FeatureStore | None = None,
        tick: Tick | None = None,
        say: Callable[[str], None] = log.info,
        after_epoch: Callable[[Path], None] | None = None,
    ) -> None:
        self.model, self.loader, self.folder, self.options = model, loader, folder, options
        self.checkpoints = Checkpoints(folder, model.method)
        self.progress = Progress()
        self.pretrained = not model.method.encoder.from_scratch
        self.average = WeightAverage(model.method)
        self._kept = store
        self._store: FeatureStore | None = None
        self._chance = math.nan
        self._tick = tick or (lambda _: None)
        self._say, self._reasons = say, QuarantineMessages(say)
        self._after_epoch = after_epoch or (lambda _: None)
        self._taught = [p for tier in model.method.encoder.tiers() for p in tier if p.requires_grad]
        self.fabric = build_fabric(options, pretrained=self.pretrained)
        # AMSGrad: once the loss is near its floor, a single bag that happens to miss what decides
        # would otherwise meet a second moment of nearly zero and throw the weights far off.
        groups = parameter_groups(model.method, options)
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), amsgrad=True)
        lay_kernels(model.method)
        self.method, self.optimizer = self.fabric.setup(model.method, optimizer)

    def fit(self, train: Sequence[Case], val: Sequence[Case]) -> Progress:
        """Train to the end, from wherever the last run stopped; the best weights are in the model.

        Raises:
            TrainingError: the loss is not finite, or no training image is left.
            CheckpointError: the stored state does not fit.
        """
        if self.checkpoints.latest.is_file():
            self.progress = self.checkpoints.load(self.optimizer, self.average)
            log.info("resumed at epoch %d step %d", self.progress.epoch + 1, self.progress.step)
        self._chance = self.model.task.chance_loss(self._targets(train).cpu())
        self.schedule = settle_schedule(
            self.options,
            len(train),
            pretrained=self.pretrained,
            learns_frozen=self.model.method.learns_frozen,
        )
        self._teller = Teller(self._tick, self.schedule, self.progress)
        while not self.progress.done:
            self._begin_stage(train, val)
            if self.progress.epoch >= self.schedule.total_epochs:
                self.progress.done = True
                self._save()
                break
            self._train_epoch(train)
            with self.average.applied():
                row = self._close_epoch(self._validate(val))
                self.checkpoints.keep_best(self.progress, self.schedule, row)
            if self.progress.rests_at(self._chance, self.model.task.learnt):
                log.warning(at_chance(self.model, row, batch=self.schedule.batch(row["epoch"] - 1)))
            self.progress.done = self.progress.finished(self.options, self.schedule, self._chance)
            self._save()
            self._after_epoch(self.folder)
        self._reasons.end()
        self.model.method.load_state_dict(read_tensors(self.checkpoints.best)[0])
        self._let_learn(True)
        self._store = None
        return self.progress

    # -- stages -------------------------------------------------------------------------------

    def _begin_stage(self, train: Sequence[Case], val: Sequence[Case]) -> None:
        """What has to be settled before the first step of each stage; nothing within one."""
        epoch = self.progress.epoch
        stage, frozen = self.schedule.stage(epoch), self.schedule.is_frozen(epoch)
        if self.pretrained and (frozen or not self.progress.stage):
            self._store = self._kept = self._kept or FeatureStore(self.folder / "features")
        if self.pretrained and not self.progress.stage:
            self._let_learn(False)
            self._settle([*train, *val])
            if not frozen:
                self.checkpoints.keep_start(self.progress, self._validate(val))
        self._let_learn(not frozen)
        if not frozen:
            self._store = None
        if self.progress.stage == stage:
            return
        self.progress.stage = stage
        self.optimizer.state.clear()
        release_memory()
        if self.average.weights:
            self.model.method.load_state_dict(self.average.weights)
        if self.schedule.average > 0:
            self.average.begin()
        if self.pretrained and self.progress.epoch < self.schedule.total_epochs:
            self._expect(train, val)

    def _expect(self, train: Sequence[Case], val: Sequence[Case]) -> None:
        """Say what the stage will take, from one batch taken twice; nothing is learnt from it.

        What the first time takes longer is reading, which kept features spare all later epochs.
        """
        epoch, seed, times, sums = self.progress.epoch, self.options.seed, [], self.progress.sums
        self.progress.sums, epochs = dict(sums), self.schedule.span(epoch)[1]
        groups = epoch_groups(train, self.schedule.batch(epoch), seed=seed, epoch=epoch)
        for _ in range(2):
            torch.manual_seed(step_seed(seed, epoch, 0))
            begun = time.perf_counter()
            self.method.train()
            for items in self.loader.ahead(groups[:1]):
                self._backward(groups[0], items, lambda _: None)
            stepped = time.perf_counter()
            self.answer(val[:1])
            times.append((stepped - begun, time.perf_counter() - stepped))
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.sums = sums  # without what this trial added
        (first, first_answer), (step, answer) = times
        total = epochs * (step * len(groups) + answer * len(val))
        if self._store is not None:
            total += (first - step) * len(groups) + (first_answer - answer) * len(val)
        self._say(expectation(self.schedule.stage(epoch), epochs, len(groups), step, total))

    def _let_learn(self, learn: bool) -> None:
        """Let gradients reach the pretrained part of the encoder, as far as it is to be taught."""
        for parameter in self._taught:
            parameter.requires_grad_(learn)

    def _settle(self, cases: Sequence[Case]) -> None:
        """Read the features of the images and fit what is fitted to the end.

        The validation part is among them: its images are answered by fits that did not see them.
        """
        method, total = self.model.method, len(cases)

        def batches() -> Iterator[tuple[Case, Batch]]:
            loaded = self.loader.ahead([case] for case in cases)
            for case, items in zip(cases, loaded, strict=True):
                for _, item in self._readable([case], items):
                    yield case, self._batch([item])

        def told(done: int) -> None:
            self._tick(Status("reading features", done, total, 0, {}))

        told(0)
        method.eval()
        with self.fabric.autocast(), self.progress.timed():
            self.progress.parts = settle_start(method, self.model.task, cases, batches(), told)

    def _train_epoch(self, train: Sequence[Case]) -> None:
        options, progress = self.options, self.progress
        self.method.train()
        usable = [c for c in train if c.image_id not in progress.excluded]
        if not usable:
            self._reasons.end()
            raise TrainingError("no training image is left: mend those in quarantine.csv")
        frozen = self._store is not None
        horizon = self.schedule.horizon(progress.epoch, len(usable), options.accumulate)
        size = self.schedule.batch(progress.epoch)
        groups = epoch_groups(usable, size, seed=options.seed, epoch=progress.epoch)
        saved = time.monotonic()
        loaded = timed(self.loader.ahead(groups[progress.step :]), self._waited)
        for step, items in enumerate(loaded, progress.step):
            begun = time.perf_counter()
            torch.manual_seed(step_seed(options.seed, progress.epoch, step))
            first = step - step % options.accumulate
            rate = learning_rate(self.schedule, progress.epoch + first / len(groups))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            share = self.schedule.done(progress.epoch + step / len(groups))
            self.model.method.begin_step(0.0 if frozen else share)
            self._backward(groups[step], items, self._teller.within(step, len(groups)))
            ends_update = (step + 1) % options.accumulate == 0 or step + 1 == len(groups)
            if ends_update:
                self._update(horizon)
            progress.step = step + 1
            progress.add(seconds=time.perf_counter() - begun)
            self._teller.step(step + 1, len(groups))
            if ends_update and time.monotonic() - saved > options.checkpoint_seconds:
                self._save()
                saved = time.monotonic()

    def _backward(
        self, cases: Sequence[Case], items: Sequence[Loaded], tell: Callable[[float], None]
    ) -> None:
        """Gradients of one batch; images that fail are set aside and the rest goes on."""
        pairs = self._readable(cases, items)
        while pairs:
            batch = self._batch([item for _, item in pairs], tell=tell)
            try:
                prediction = self.method(batch)
                target = self._targets([case for case, _ in pairs])
                loss = self.model.task.loss(prediction.logits, target)
                total = loss + further_loss(self.model.task, prediction, target)
                if not torch.isfinite(total):
                    raise TrainingError(self._diverged(f"the loss became {total.item()}"))
                self.fabric.backward(total / self.options.accumulate)
            except NotFinite as error:
                raise TrainingError(self._diverged(str(error))) from error
            except CropError as error:
                self._quarantine(error.image_id, error.path, str(error))
                pairs = [(c, item) for c, item in pairs if c.image_id != error.image_id]
                continue
            self.progress.add(
                train_loss=float(loss.detach()) * len(pairs),
                images=len(pairs),
                seconds_reading=batch.seconds_reading,
            )
            return

    def _diverged(self, what: str) -> str:
        return (
            f"{what} in epoch {self.progress.epoch + 1}: lower --train.lr, or use "
            "--train.precision 32-true"
        )

    def _update(self, horizon: float) -> None:
        if any(p.grad is not None for p in self.model.method.parameters()):
            self.fabric.clip_gradients(
                self.method, self.optimizer, max_norm=self.options.clip, error_if_nonfinite=False
            )
            self.optimizer.step()
            if self.average.weights:
                self.average.update(horizon)
        self.optimizer.zero_grad(set_to_none=True)

    def _validate(self, val: Sequence[Case]) -> dict[str, float]:
        """Loss, ranking and score of the inner validation part, in evaluation mode."""
        with self.progress.timed():
            stacked, target = self.answer(val)
        if not len(stacked):
            return {}
        loss = float(self.model.task.loss(stacked, target))
        found = {"val_loss": loss if math.isfinite(loss) else WORST_LOSS}
        if not torch.isfinite(stacked).all():
            return found
        return found | self.model.task.validate(stacked, target, self._chance)

    def answer(self, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        """Logits ``(n, k)`` and targets of the images that can be read, in evaluation mode.

        Images that linear answers were fitted to are answered by fits that did not see them.
        """
        logits, kept = [], []
        self.method.eval()
        loaded = timed(self.loader.ahead([c] for c in cases), self._waited)
        for done, (case, items) in enumerate(zip(cases, loaded, strict=True)):
            tell = functools.partial(self._teller.validated, done, len(cases))
            tell(0.0)
            for _, item in self._readable([case], items):
                batch = self._batch([item], augment="none", tell=tell)
                try:
                    with torch.inference_mode():
                        logits.append(self.method(batch).logits.float())
                    kept.append(case)
                except CropError as error:
                    self._quarantine(error.image_id, error.path, str(error))
                self.progress.add(seconds_reading=batch.seconds_reading)
        return torch.cat(logits) if logits else torch.empty(0), self._targets(kept)

    def _close_epoch(self, validation: dict[str, float]) -> dict[str, float]:
        release_memory()  # steps of ever new sizes leave gaps, which would add up
        progress = self.progress
        progress.epoch += 1
        progress.add(**self.loader.take_counts())
        row = {"epoch": float(progress.epoch), **progress.running(), **validation}
        row |= {"chance_loss": self._chance, **self.model.method.findings()}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "peak_memory_mib": peak_memory_mib()}
        progress.history.append(row)
        progress.step, progress.sums = 0, {}
        progress.excluded = sorted(progress.quarantined)
        write_text(self.folder / "metrics.csv", as_csv(progress.history))
        log.info("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
        return row

    def _save(self) -> None:
        if self._kept is not None:
            self._kept.save()
        self.progress.add(**self.loader.take_counts())
        self.checkpoints.save(self.optimizer, self.progress, self.average)

    def _waited(self, seconds: float) -> None:
        self.progress.add(seconds=seconds, seconds_reading=seconds)

    def _batch(
        self,
        items: Sequence[LoadedImage],
        augment: Augment | None = None,
        tell: Callable[[float], None] | None = None,
    ) -> Batch:
        wanted = augment or self.options.augment
        if wanted == "auto":
            wanted = augment_for(items, self.loader.view)
        encoder, part = self.model.method.encoder, None
        if self.progress.parts:
            rows = [self.progress.parts.get(item.image_id, -1) for item in items]
            part = torch.tensor(rows, device=self.fabric.device)
        return Batch(
            items,
            view=self.loader.view,
            normalise=(encoder.mean, encoder.std),
            device=self.fabric.device,
            pool=self.loader.crops,
            augment=wanted,
            tell=tell,
            store=self._store,
            part=part,
        )

    def _targets(self, cases: Sequence[Case]) -> Tensor:
        labels = [str(case.label) for case in cases]
        return self.model.task.targets(labels).to(self.fabric.device)

    def _readable(
        self, cases: Sequence[Case], items: Sequence[Loaded]
    ) -> list[tuple[Case, LoadedImage]]:
        kept = []
        for case, item in zip(cases, items, strict=True):
            if isinstance(item, FoveateError):
                self._quarantine(case.image_id, case.path, str(item))
            else:
                kept.append((case, item))
        return kept

    def _quarantine(self, image_id: str, path: Path, reason: str) -> None:
        if self.progress.quarantine(image_id, reason):
            self._reasons.set_aside(image_id, str(path), reason)
