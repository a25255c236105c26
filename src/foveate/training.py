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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.atomic import write_text
from foveate.batch import Augment, Batch, CropError, LoadedImage, lay_kernels
from foveate.cases import Case
from foveate.checkpoint import Model, read_tensors, write_tensors
from foveate.errors import FoveateError, NotFinite, OptionError, TrainingError
from foveate.features import FeatureStore
from foveate.frozen_start import settle_start
from foveate.loading import CaseLoader
from foveate.memory import computes_in_bf16, peak_memory_mib
from foveate.methods.base import Judge, Prediction
from foveate.plugins import options as options_of
from foveate.state import (
    Progress,
    TrainOptions,
    WeightAverage,
    as_csv,
    epoch_groups,
    learning_rate,
    load_state,
    parameter_groups,
    save_state,
    settle_schedule,
    step_seed,
)
from foveate.tasks.base import AbstractTask

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger("foveate")

Loaded = LoadedImage | FoveateError

_WORST_LOSS = 1e30
_AT_CHANCE = (
    "the training loss rests at {loss:.3f} after {epoch} epochs and the validation part is not "
    "ranked: that is the entropy of the labels, so nothing is learnt yet. {advice}"
)
_ADVICE: tuple[tuple[str | None, float, str], ...] = (
    ("instance", 1.0, "the method's instance head (--method.instance, 1 or more)"),
    ("jitter", 1.0, "a lattice that moves (--method.jitter true)"),
    ("patches", math.inf, "more patches an image (--method.patches)"),
    ("kept", math.inf, "more patches an image (--method.kept)"),
    (None, math.inf, "more steps (smaller --train.batch-size, more --epochs)"),
    (None, math.inf, "a lower or higher --train.lr"),
)
"""What helps: the option that a method must have for it, and from where on it is set already."""


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
        after_epoch: Callable[[Path], None] | None = None,
    ) -> None:
        self.model, self.loader, self.folder, self.options = model, loader, folder, options
        self.latest = folder / "checkpoints" / "latest.safetensors"
        self.best = folder / "checkpoints" / "best.safetensors"
        self.frozen = folder / "checkpoints" / "frozen.safetensors"
        self.progress = Progress()
        self.pretrained = not model.method.encoder.from_scratch
        self.average = WeightAverage(model.method)
        self._kept = store
        self._store: FeatureStore | None = None
        self._chance = math.nan
        self._tick = tick or (lambda _: None)
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
        if self.latest.is_file():
            self.progress = load_state(self.latest, self.model.method, self.optimizer, self.average)
            log.info("resumed at epoch %d step %d", self.progress.epoch + 1, self.progress.step)
        self._chance = self.model.task.chance_loss(self._targets(train).cpu())
        self.schedule = settle_schedule(
            self.options,
            len(train),
            pretrained=self.pretrained,
            learns_frozen=self.model.method.learns_frozen,
        )
        while not self.progress.done:
            self._begin_stage(train, val)
            if self.progress.epoch >= self.schedule.total_epochs:
                self.progress.done = True
                self._save()
                break
            self._train_epoch(train)
            with self.average.applied():
                row = self._close_epoch(self._validate(val))
                self._keep_best(row)
            if self.progress.rests_at(self._chance):
                log.warning(self._at_chance(row))
            self.progress.done = self.progress.finished(self.options, self.schedule, self._chance)
            self._save()
            self._after_epoch(self.folder)
        weights, _ = read_tensors(self.best)
        self.model.method.load_state_dict(weights)
        self._let_learn(True)
        return self.progress

    # -- stages -------------------------------------------------------------------------------

    @property
    def _stage(self) -> str:
        return "frozen start" if self.schedule.is_frozen(self.progress.epoch) else "end to end"

    def _begin_stage(self, train: Sequence[Case], val: Sequence[Case]) -> None:
        """What has to be settled before the first step of each stage; nothing within one."""
        frozen = self._stage == "frozen start"
        if self.pretrained and (frozen or not self.progress.stage):
            self._store = self._kept = self._kept or FeatureStore(self.folder / "features")
        if self.pretrained and not self.progress.stage:
            self._let_learn(False)
            self._settle([*train, *val])
            if not frozen:
                self._keep_start(self._validate(val))
        self._let_learn(not frozen)
        if not frozen:
            self._store = None
        if self.progress.stage == self._stage:
            return
        self.progress.stage = self._stage
        self.optimizer.state.clear()
        if self.average.weights:
            self.model.method.load_state_dict(self.average.weights)
        if self.schedule.average > 0:
            self.average.begin()

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
        with self.fabric.autocast():
            found = settle_start(method, self.model.task, cases, batches(), told)
        self.progress.corrections = found

    def _keep_start(self, validation: dict[str, float]) -> None:
        """Keep what was settled as the first candidate, where nothing is trained on features."""
        self.progress.best_score = validation.get("val_score", _WORST_LOSS)
        self.progress.best_epoch = 0
        for path in (self.best, self.frozen):
            write_tensors(path, self.model.method.state_dict(), {"epoch": 0})

    def _train_epoch(self, train: Sequence[Case]) -> None:
        options, progress = self.options, self.progress
        self.method.train()
        usable = [c for c in train if c.image_id not in progress.excluded]
        if not usable:
            raise TrainingError("no training image is left; see quarantine.csv for the reasons")
        frozen, horizon = self._store is not None, self._horizon(len(usable))
        size = self.schedule.frozen_batch if frozen else self.schedule.batch_size
        groups = epoch_groups(usable, size, seed=options.seed, epoch=progress.epoch)
        saved = time.monotonic()
        loaded = self._timed(self.loader.ahead(groups[progress.step :]))
        for step, items in enumerate(loaded, progress.step):
            begun = time.perf_counter()
            torch.manual_seed(step_seed(options.seed, progress.epoch, step))
            first = step - step % options.accumulate
            rate = learning_rate(self.schedule, progress.epoch + first / len(groups))
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            share = self.schedule.done(progress.epoch + step / len(groups))
            self.model.method.begin_step(0.0 if frozen else share)
            self._backward(groups[step], items, self._teller(step, len(groups)))
            ends_update = (step + 1) % options.accumulate == 0 or step + 1 == len(groups)
            if ends_update:
                self._update(horizon)
            progress.step = step + 1
            progress.add(seconds=time.perf_counter() - begun)
            self._tell(step + 1, len(groups), progress.running())
            if ends_update and time.monotonic() - saved > options.checkpoint_seconds:
                self._save()
                saved = time.monotonic()

    def _horizon(self, n_images: int) -> float:
        """Over how many updates of this stage weights are averaged."""
        schedule = self.schedule
        if self._store is not None:
            return schedule.average * schedule.frozen_epochs * n_images / schedule.frozen_batch
        updates = schedule.epochs * n_images / schedule.batch_size / self.options.accumulate
        return schedule.average * updates

    def _tell(self, step: float, steps: int, running: dict[str, float]) -> None:
        """Show how far the stage is."""
        epoch, schedule = self.progress.epoch, self.schedule
        frozen = schedule.is_frozen(epoch)
        epochs = schedule.frozen_epochs if frozen else schedule.epochs
        before = epoch if frozen else epoch - schedule.frozen_epochs
        done = before * steps + step
        self._tick(Status(self._stage, done, epochs * steps, epoch + 1, running))

    def _teller(self, step: int, steps: int) -> Callable[[float], None]:
        """What a step tells its share to."""
        running = self.progress.running()
        return lambda share: self._tell(step + share, steps, running)

    def _validated(self, done: int, of: int, share: float) -> None:
        """Show how much of the validation part is done, `share` of one more image included."""
        steps = max(self.progress.step, 1)
        running = self.progress.running() | {"validated": (done + share) / of}
        self._tell(self.progress.step, steps, running)

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
                self._quarantine(error.image_id, str(error))
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
        begun = time.perf_counter()
        stacked, target = self.answer(val)
        self.progress.add(seconds=time.perf_counter() - begun)
        if not len(stacked):
            return {}
        loss = float(self.model.task.loss(stacked, target))
        found = {"val_loss": loss if math.isfinite(loss) else _WORST_LOSS}
        if not torch.isfinite(stacked).all():
            return found
        score = self.model.task.score(stacked, target, self._chance)
        return found | {"val_score": score} | self.model.task.validation(stacked, target)

    def answer(self, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        """Logits ``(n, k)`` and targets of the images that can be read, in evaluation mode.

        Linear answers that were fitted to an image count as if they had not seen it.
        """
        logits, kept = [], []
        self.method.eval()
        loaded = self._timed(self.loader.ahead([c] for c in cases))
        for done, (case, items) in enumerate(zip(cases, loaded, strict=True)):
            tell = functools.partial(self._validated, done, len(cases))
            tell(0.0)
            for _, item in self._readable([case], items):
                batch = self._batch([item], augment="none", tell=tell)
                try:
                    with torch.inference_mode():
                        logits.append(self.method(batch).logits.float())
                    kept.append(case)
                except CropError as error:
                    self._quarantine(error.image_id, str(error))
                self.progress.add(seconds_reading=batch.seconds_reading)
        return torch.cat(logits) if logits else torch.empty(0), self._targets(kept)

    def _close_epoch(self, validation: dict[str, float]) -> dict[str, float]:
        progress = self.progress
        progress.epoch += 1
        decoded_px, asked_px = self.loader.take_counts()
        progress.add(decoded_px=decoded_px, asked_px=asked_px)
        row = {"epoch": float(progress.epoch), **progress.running(), **validation}
        row |= {"chance_loss": self._chance, **self.model.method.findings()}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "peak_memory_mib": peak_memory_mib()}
        progress.history.append(row)
        progress.step, progress.sums = 0, {}
        progress.excluded = sorted(progress.quarantined)
        write_text(self.folder / "metrics.csv", as_csv(progress.history))
        log.info("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
        return row

    def _at_chance(self, row: dict[str, float]) -> str:
        given = self.model.card.method_options
        known = {key: option.default for key, option in options_of(type(self.model.method)).items()}
        advice = [
            text
            for key, enough, text in _ADVICE
            if key is None or (key in known and float(given.get(key, known[key])) < enough)
        ]
        return _AT_CHANCE.format(
            loss=row["train_loss"],
            epoch=int(row["epoch"]),
            advice="What ends such a plateau: " + ", ".join(advice),
        )

    def _keep_best(self, row: dict[str, float]) -> None:
        """Keep these weights if they may be kept and none are better; later ones win ties."""
        progress, epoch = self.progress, int(row["epoch"])
        if not self.schedule.may_keep(epoch):
            return
        if "val_loss" not in row:
            progress.best_score = _WORST_LOSS  # nothing to choose by: the last weights are kept
        weights, note = self.model.method.state_dict(), {"epoch": epoch}
        if epoch == self.schedule.frozen_epochs:
            write_tensors(self.frozen, weights, note)
        score = row.get("val_score", row.get("val_loss", row["train_loss"]))
        if score <= progress.best_score:
            progress.best_score, progress.best_epoch = score, epoch
            write_tensors(self.best, weights, note)

    def _save(self) -> None:
        save_state(self.latest, self.model.method, self.optimizer, self.progress, self.average)

    def _timed(self, groups: Iterator[list[Loaded]]) -> Iterator[list[Loaded]]:
        """Pass groups on and count how long each was waited for as reading."""
        while True:
            begun = time.perf_counter()
            found = next(groups, None)
            if found is None:
                return
            waited = time.perf_counter() - begun
            self.progress.add(seconds=waited, seconds_reading=waited)
            yield found

    def _batch(
        self,
        items: Sequence[LoadedImage],
        augment: Augment | None = None,
        tell: Callable[[float], None] | None = None,
    ) -> Batch:
        wanted = augment or self.options.augment
        if wanted == "auto":
            kinds = {item.image.kind for item in items}
            wanted = "slide" if kinds == {"slide"} else "picture"
            wanted = "volume" if self.loader.view.axes == 3 else wanted
        encoder, correction = self.model.method.encoder, None
        if all(item.image_id in self.progress.corrections for item in items):
            rows = [self.progress.corrections[item.image_id] for item in items]
            correction = torch.tensor(rows, device=self.fabric.device)
        return Batch(
            items,
            view=self.loader.view,
            normalise=(encoder.mean, encoder.std),
            device=self.fabric.device,
            pool=self.loader.crops,
            augment="none" if self._store is not None else wanted,
            tell=tell,
            store=self._store,
            correction=correction,
        )

    def _targets(self, cases: Sequence[Case]) -> Tensor:
        labels = [self.model.task.target(str(case.label)) for case in cases]
        return torch.tensor(labels, device=self.fabric.device)

    def _readable(
        self, cases: Sequence[Case], items: Sequence[Loaded]
    ) -> list[tuple[Case, LoadedImage]]:
        kept = []
        for case, item in zip(cases, items, strict=True):
            if isinstance(item, FoveateError):
                self._quarantine(case.image_id, str(item))
            else:
                kept.append((case, item))
        return kept

    def _quarantine(self, image_id: str, reason: str) -> None:
        if self.progress.quarantine(image_id, reason):
            log.warning("set aside %s: %s", image_id, reason)


def further_loss(task: AbstractTask, prediction: Prediction, target: Tensor) -> Tensor:
    """What a method's own losses add to the task's loss of its prediction; a scalar."""
    total = prediction.logits.new_zeros(()) + sum(prediction.losses.values())
    for weight, logits in prediction.auxiliary.values():
        total = total + weight * task.loss(logits, target)
    judge = Judge(task, target)
    for objective in prediction.objectives.values():
        total = total + objective(judge)
    return total


def build_fabric(options: TrainOptions, *, pretrained: bool = False) -> Fabric:
    """Fabric on one device; ``auto`` precision is bf16 where the device computes in it."""
    from lightning.fabric import Fabric

    precision = options.precision
    if precision == "auto":
        cuda = options.device in ("auto", "cuda") and torch.cuda.is_available()
        fast = torch.cuda.is_bf16_supported() if cuda else computes_in_bf16()
        precision = "bf16-mixed" if fast and (cuda or pretrained) else "32-true"
    try:
        return Fabric(accelerator=options.device, devices=1, precision=precision)
    except RuntimeError as error:
        raise OptionError(f"train.device: '{options.device}' is not on this machine") from error
