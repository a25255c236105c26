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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from foveate.atomic import write_text
from foveate.batch import Augment, Batch, CropError, LoadedImage, lay_kernels
from foveate.cases import Case
from foveate.checkpoint import Model, read_tensors, write_tensors
from foveate.errors import FoveateError, NotFinite, OptionError, TrainingError
from foveate.loading import CaseLoader
from foveate.memory import peak_memory_mib
from foveate.methods.base import Judge, Prediction
from foveate.plugins import options as options_of
from foveate.state import (
    Progress,
    TrainOptions,
    as_csv,
    epoch_groups,
    learning_rate,
    load_state,
    parameter_groups,
    save_state,
    step_seed,
)
from foveate.tasks.base import AbstractTask

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger("foveate")

Loaded = LoadedImage | FoveateError

_WORST_LOSS = 1e30
_AT_CHANCE = (
    "the training loss rests at {loss:.3f} after {epoch} epochs: that is the entropy of the "
    "labels, so nothing is learnt yet. What ends such a plateau: {advice}"
)
_ADVICE = (
    (None, "more steps (smaller --train.batch-size, more --epochs)"),
    ("instance", "the method's instance head (--method.instance, 1 or more)"),
    ("jitter", "a lattice that moves (--method.jitter true)"),
    ("patches", "more patches an image (--method.patches)"),
    ("kept", "more patches an image (--method.kept)"),
    (None, "a lower or higher --train.lr"),
)
"""What helps, and the option that a method must have for it."""

Tick = Callable[[int, float, int, dict[str, float]], None]
"""Called with epoch, steps done, steps per epoch, running figures; within long steps, too."""


class Trainer:
    """Trains one model on one fold.

    Args:
        model: with fresh weights.
        loader: opens and reads images.
        folder: of the fold; checkpoints and ``metrics.csv`` go there.
        options: how to train.
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
        tick: Tick | None = None,
        after_epoch: Callable[[Path], None] | None = None,
    ) -> None:
        self.model, self.loader, self.folder, self.options = model, loader, folder, options
        self.latest = folder / "checkpoints" / "latest.safetensors"
        self.best = folder / "checkpoints" / "best.safetensors"
        self.progress = Progress()
        self._chance = math.nan
        self._tick = tick or (lambda *_: None)
        self._after_epoch = after_epoch or (lambda _: None)
        self.fabric = build_fabric(options)
        # AMSGrad: once the loss is near its floor, a single bag that happens to miss what decides
        # would otherwise meet a second moment of nearly zero and throw the weights far off.
        groups = parameter_groups(model.method, options.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99), amsgrad=True)
        lay_kernels(model.method)
        self.method, self.optimizer = self.fabric.setup(model.method, optimizer)

    def fit(self, train: Sequence[Case], val: Sequence[Case]) -> Progress:
        """Train to the end, from wherever the last run stopped; the best weights are in the model.

        Raises:
            TrainingError: the loss is not finite, or no training image is left.
            CheckpointError: the stored state does not fit.
        """
        if self.latest.is_file():
            self.progress = load_state(self.latest, self.model.method, self.optimizer)
            log.info("resumed at epoch %d step %d", self.progress.epoch + 1, self.progress.step)
        self._chance = self.model.task.chance_loss(self._targets(train).cpu())
        while not self.progress.done:
            self._train_epoch(train)
            row = self._close_epoch(self._validate(val))
            self._keep_best(row)
            if self.progress.rests_at(self._chance):
                log.warning(self._at_chance(row))
            self.progress.done = self.progress.finished(self.options, self._chance)
            self._save()
            self._after_epoch(self.folder)
        weights, _ = read_tensors(self.best)
        self.model.method.load_state_dict(weights)
        return self.progress

    def _train_epoch(self, train: Sequence[Case]) -> None:
        options, progress = self.options, self.progress
        self.method.train()
        usable = [c for c in train if c.image_id not in progress.excluded]
        if not usable:
            raise TrainingError("no training image is left; see quarantine.csv for the reasons")
        groups = epoch_groups(usable, options, progress.epoch)
        saved = time.monotonic()
        loaded = self._timed(self.loader.ahead(groups[progress.step :]))
        for step, items in enumerate(loaded, progress.step):
            begun = time.perf_counter()
            torch.manual_seed(step_seed(options.seed, progress.epoch, step))
            first = step - step % options.accumulate
            rate = learning_rate(options, progress.epoch + first / len(groups))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.model.method.begin_step((progress.epoch + step / len(groups)) / options.epochs)
            self._backward(groups[step], items, self._teller(step, len(groups)))
            ends_update = (step + 1) % options.accumulate == 0 or step + 1 == len(groups)
            if ends_update:
                self._update()
            progress.step = step + 1
            progress.add(seconds=time.perf_counter() - begun)
            self._tick(progress.epoch, step + 1, len(groups), progress.running())
            if ends_update and time.monotonic() - saved > options.checkpoint_seconds:
                self._save()
                saved = time.monotonic()

    def _teller(self, step: int, steps: int) -> Callable[[float], None]:
        """What a step tells its share to."""
        epoch, running = self.progress.epoch, self.progress.running()
        return lambda share: self._tick(epoch, step + share, steps, running)

    def _validated(self, done: int, of: int, share: float) -> None:
        """Show how much of the validation part is done, `share` of one more image included."""
        progress = self.progress
        running = progress.running() | {"validated": (done + share) / of}
        self._tick(progress.epoch, progress.step, progress.step, running)

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

    def _update(self) -> None:
        if any(p.grad is not None for p in self.model.method.parameters()):
            self.fabric.clip_gradients(
                self.method, self.optimizer, max_norm=self.options.clip, error_if_nonfinite=False
            )
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _validate(self, val: Sequence[Case]) -> dict[str, float]:
        """Loss and AUROC of the inner validation part, in evaluation mode."""
        logits, kept = [], []
        begun = time.perf_counter()
        self.method.eval()
        loaded = self._timed(self.loader.ahead([c] for c in val))
        for done, (case, items) in enumerate(zip(val, loaded, strict=True)):
            tell = functools.partial(self._validated, done, len(val))
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
        self.progress.add(seconds=time.perf_counter() - begun)
        if not kept:
            return {}
        stacked, target = torch.cat(logits), self._targets(kept)
        loss = float(self.model.task.loss(stacked, target))
        found = {"val_loss": loss if math.isfinite(loss) else _WORST_LOSS}
        if not torch.isfinite(stacked).all():
            return found
        return found | self.model.task.validation(stacked, target)

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
        known = options_of(type(self.model.method))
        advice = ", ".join(text for key, text in _ADVICE if key is None or key in known)
        return _AT_CHANCE.format(loss=row["train_loss"], epoch=int(row["epoch"]), advice=advice)

    def _keep_best(self, row: dict[str, float]) -> None:
        loss = row.get("val_loss", row["train_loss"])
        if loss < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_epoch = loss, int(row["epoch"])
            write_tensors(self.best, self.model.method.state_dict(), {"epoch": int(row["epoch"])})

    def _save(self) -> None:
        save_state(self.latest, self.model.method, self.optimizer, self.progress)

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
        encoder = self.model.method.encoder
        return Batch(
            items,
            view=self.loader.view,
            normalise=(encoder.mean, encoder.std),
            device=self.fabric.device,
            pool=self.loader.crops,
            augment=wanted,
            tell=tell,
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


def build_fabric(options: TrainOptions) -> Fabric:
    """Fabric on one device; ``auto`` precision is bf16 on GPUs that have it, else float32."""
    from lightning.fabric import Fabric

    precision = options.precision
    if precision == "auto":
        cuda = options.device in ("auto", "cuda") and torch.cuda.is_available()
        precision = "bf16-mixed" if cuda and torch.cuda.is_bf16_supported() else "32-true"
    try:
        return Fabric(accelerator=options.device, devices=1, precision=precision)
    except RuntimeError as error:
        raise OptionError(f"train.device: '{options.device}' is not on this machine") from error
