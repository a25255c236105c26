"""One process's steps of a training: forwards and backwards, and answers in between.

Every random draw of a step comes from ``(seed, epoch, step)`` and an image's place in its batch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.batch import Augment, Batch, CropError, LoadedImage, augment_for
from foveate.batch.features import FeatureStore
from foveate.errors import FoveateError, NotFinite, TrainingError
from foveate.loading.loader import CaseLoader, timed
from foveate.messages.display import QuarantineMessages
from foveate.methods.base import further_loss
from foveate.nn.generators import Generators, seeded
from foveate.runs.checkpoint import Model
from foveate.runs.schedule import TrainOptions
from foveate.runtime import Runtime
from foveate.table import Case
from foveate.training.state import Progress
from foveate.training.team import StepCount, Team

Loaded = LoadedImage | FoveateError


class Steps:
    """Computes gradients and answers of batches, in one of the processes of a training.

    Args:
        model: that is trained.
        method: the model's, as Fabric wraps it.
        loader: opens and reads images.
        options: how to train.
        runtime: where to.
        say: told of images set aside.

    Attributes:
        progress: of the training; it goes on.
        store: of what a frozen encoder said; None where it learns.
        set_aside: tells of images that cannot be read.
    """

    def __init__(
        self,
        model: Model,
        method: Any,
        loader: CaseLoader,
        options: TrainOptions,
        runtime: Runtime,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.method, self.loader = model, method, loader
        self.options, self.runtime = options, runtime
        self.team = Team(runtime, model.method)
        self.progress = Progress()
        self.store: FeatureStore | None = None
        self.set_aside = QuarantineMessages(say)

    def backward(
        self,
        cases: Sequence[Case],
        items: Sequence[Loaded],
        step: int,
        tell: Callable[[float], None],
    ) -> None:
        """Compute gradients of this process's part of a batch.

        Images that fail are set aside and the rest goes on. What the loss of a process weighs
        follows from how many images it could read: once a step, processes tell each other.
        """
        pairs = self.readable(cases, items)
        seeds = self._seed_step(step, [case.image_id for case in cases])
        count: StepCount | None = None
        while pairs:
            generators = seeded([seeds[case.image_id] for case, _ in pairs])
            batch = self.batch([item for _, item in pairs], tell=tell, generators=generators)
            try:
                with self.team.apart(self.method):
                    loss, total = self._losses(batch, [case for case, _ in pairs])
                    count = count or self.team.count(
                        len(pairs), float(loss.detach()), float(total.detach())
                    )
                    if not math.isfinite(count.total):
                        raise TrainingError(self._diverged(f"the loss became {count.total}"))
                    self.runtime.fabric.backward(total * count.share / self.options.accumulate)
            except NotFinite as error:
                if count is None:
                    self.team.count(len(pairs), math.nan, math.nan)  # the others end, too
                raise TrainingError(self._diverged(str(error))) from error
            except CropError as error:
                self._quarantine(error.image_id, error.path, str(error))
                pairs = [(c, item) for c, item in pairs if c.image_id != error.image_id]
                continue
            self.progress.add(seconds_reading=batch.seconds_reading)
            break
        count = count or self.team.count(0)
        if not math.isfinite(count.total):
            raise TrainingError(self._diverged(f"the loss became {count.total}"))
        self.team.mean_buffers(count.share)
        self.progress.add(train_loss=count.loss, images=count.images)

    def _losses(self, batch: Batch, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        """Compute the task's loss of a batch, and all that is learnt from; scalars."""
        prediction = self.method(batch)
        target = self.targets(cases)
        loss = self.model.task.loss(prediction.logits, target)
        return loss, loss + further_loss(self.model.task, prediction, target)

    def _seed_step(self, step: int, image_ids: Sequence[str]) -> dict[str, int]:
        """Seed what networks draw in a step; returns the seed of each image of this process.

        An image's seed is that of its place in the batch, whichever process has it. Dropout and
        the like draw from torch's global generator, which is another one in each process.
        """
        epoch, places = self.progress.epoch, self.team.places(len(image_ids))
        torch.manual_seed(self.runtime.seed_of(epoch, step, 0, self.runtime.rank))
        return {
            image_id: self.runtime.seed_of(epoch, step, 1, place)
            for image_id, place in zip(image_ids, places, strict=True)
        }

    def answer(
        self, cases: Sequence[Case], tell_done: Callable[[int, int, float], None]
    ) -> tuple[Tensor, Tensor]:
        """Compute logits ``(n, k)`` and targets of what can be read, in evaluation mode.

        Images that linear answers were fitted to are answered by fits that did not see them.

        Args:
            cases: that are answered.
            tell_done: told how many are done, of how many, and the share of one more.
        """
        answers: list[tuple[int, Tensor]] = []
        self.method.eval()
        own = self.team.part(range(len(cases)))
        loaded = timed(self.loader.ahead([cases[i]] for i in own), self.waited)
        for done, (i, items) in enumerate(zip(own, loaded, strict=True)):
            case, tell = cases[i], functools.partial(tell_done, done, len(own))
            tell(0.0)
            for _, item in self.readable([case], items):
                batch = self.batch([item], augment="none", tell=tell)
                try:
                    with torch.inference_mode():
                        answers.append((i, self.method(batch).logits.float().cpu()))
                except CropError as error:
                    self._quarantine(error.image_id, error.path, str(error))
                self.progress.add(seconds_reading=batch.seconds_reading)
        every = sorted(itertools.chain(*self.runtime.gather(answers)), key=lambda pair: pair[0])
        logits = [row for _, row in every]
        stacked = torch.cat(logits) if logits else torch.empty(0)
        return stacked.to(self.runtime.device), self.targets([cases[i] for i, _ in every])

    def batch(
        self,
        items: Sequence[LoadedImage],
        augment: Augment | None = None,
        tell: Callable[[float], None] | None = None,
        generators: Generators | None = None,
    ) -> Batch:
        """Make a batch of open images, for a step or, with `augment` ``none``, to be answered."""
        wanted = augment or self.options.augment
        if wanted == "auto":
            wanted = augment_for(items, self.loader.view)
        encoder, part = self.model.method.encoder, None
        if self.progress.parts:
            rows = [self.progress.parts.get(item.image_id, -1) for item in items]
            part = torch.tensor(rows, device=self.runtime.device)
        return Batch(
            items,
            view=self.loader.view,
            normalise=(encoder.mean, encoder.std),
            device=self.runtime.device,
            pool=self.loader.crops,
            augment=wanted,
            generators=generators,
            tell=tell,
            store=self.store,
            part=part,
        )

    def targets(self, cases: Sequence[Case]) -> Tensor:
        """The task's targets of these images, on the device."""
        labels = [str(case.label) for case in cases]
        return self.model.task.targets(labels).to(self.runtime.device)

    def readable(
        self, cases: Sequence[Case], items: Sequence[Loaded]
    ) -> list[tuple[Case, LoadedImage]]:
        """Pair cases with their images; those that could not be opened are set aside."""
        kept = []
        for case, item in zip(cases, items, strict=True):
            if isinstance(item, FoveateError):
                self._quarantine(case.image_id, case.path, str(item))
            else:
                kept.append((case, item))
        return kept

    def _quarantine(self, image_id: str, path: Path, reason: str) -> None:
        if self.progress.quarantine(image_id, reason):
            self.set_aside.set_aside(image_id, str(path), reason)

    def waited(self, seconds: float) -> None:
        """Count seconds that the device waited for pixels."""
        self.progress.add(seconds=seconds, seconds_reading=seconds)

    def _diverged(self, what: str) -> str:
        return (
            f"{what} in epoch {self.progress.epoch + 1}: lower --train.lr, or use "
            "--train.precision 32-true"
        )
