"""The steps of a training in one process: gradients of batches, and answers for validation.

Every random draw of a step comes from ``(seed, epoch, step)`` and an image's place in its batch.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from foveate.batch import Augment, Batch, LoadedImage, ReadingFailed, augment_for
from foveate.batch.features import FeatureStore
from foveate.errors import FoveateError, NotFinite, TrainingError, running_part
from foveate.loading.loader import CaseLoader, timed
from foveate.messages.display import OnProgress, SetAsideMessages, within
from foveate.methods.base import check_prediction, further_loss
from foveate.nn.generators import Generators, seeded
from foveate.runs.checkpoint import Model
from foveate.runs.schedule import TrainOptions
from foveate.runtime import Runtime
from foveate.table import Case
from foveate.training.state import Progress
from foveate.training.team import CountOnce, StepCount, Team

log = logging.getLogger("foveate")

Loaded = LoadedImage | FoveateError


def compute_readable(
    pairs: Sequence[tuple[Case, LoadedImage]],
    compute: Callable[[Sequence[tuple[Case, LoadedImage]]], None],
    on_unreadable: Callable[[ReadingFailed], None],
) -> None:
    """Compute with all images that can be read; begin anew without each that cannot.

    Whether every region of an image can be read is known only when a method has read it, in the
    middle of the computation.

    Args:
        pairs: cases and their images.
        compute: computes with cases and images; not called where none is left.
        on_unreadable: called with the error of each image that is left out.
    """
    while pairs:
        try:
            compute(pairs)
            return
        except ReadingFailed as error:
            on_unreadable(error)
            pairs = [(c, item) for c, item in pairs if c.image_id != error.image_id]


class Steps:
    """Computes gradients and answers of batches, in one of the processes of a training.

    Args:
        model: the model that is trained.
        method: the model's method, as Fabric wraps it.
        loader: opens and reads images.
        options: options of the training.
        runtime: device and processes of the training.
        progress: progress of the training, which changes as it goes on; by default a new one.
        on_message: called with a line about images set aside.

    Attributes:
        set_aside: prints messages about images that cannot be read.
    """

    def __init__(
        self,
        model: Model,
        method: nn.Module,
        loader: CaseLoader,
        options: TrainOptions,
        runtime: Runtime,
        progress: Progress | None = None,
        on_message: Callable[[str], None] = log.info,
    ) -> None:
        self.model, self.method, self.loader = model, method, loader
        self.options, self.runtime = options, runtime
        self.team = Team(runtime, model.method)
        self.progress = Progress() if progress is None else progress
        self.set_aside = SetAsideMessages(on_message)

    def accumulate_gradients(
        self,
        cases: Sequence[Case],
        items: Sequence[Loaded],
        step: int,
        on_progress: OnProgress | None = None,
        store: FeatureStore | None = None,
    ) -> None:
        """Compute gradients of this process's part of a batch.

        Images that fail are set aside, and the rest is used. The weight of a process's loss is its
        share of the images that could be read, so processes exchange these numbers once a step.

        Args:
            cases: this process's cases of the batch.
            items: their images or errors.
            step: number of the step in its epoch.
            on_progress: called with the share of the step that is done.
            store: features of the frozen encoder; None where the encoder is trained.

        Raises:
            TrainingError: the loss or a score is not finite.
            PartFault: the code of the method or the task failed.
            OutOfMemory: memory does not suffice for the step.
        """
        pairs = self.readable(cases, items)
        seeds = self._seed_step(step, [case.image_id for case in cases])
        exchange = CountOnce(self.team)

        def compute(pairs: Sequence[tuple[Case, LoadedImage]]) -> None:
            generators = seeded([seeds[case.image_id] for case, _ in pairs])
            images = [item for _, item in pairs]
            batch = self.batch(images, on_progress=on_progress, generators=generators, store=store)
            self._add_gradients(batch, [case for case, _ in pairs], exchange)
            self.progress.add(seconds_reading=batch.seconds_reading)

        compute_readable(pairs, compute, self._set_unreadable_aside)
        count = self._finite(exchange())
        self.team.mean_buffers(count.share)
        self.progress.add(train_loss=count.loss, images=count.images)

    def _add_gradients(self, batch: Batch, cases: Sequence[Case], exchange: CountOnce) -> None:
        """Compute losses of a batch, and add their gradients to those of the parameters.

        Args:
            batch: the images.
            cases: their cases.
            exchange: exchanges the number and losses of the images with other processes.
        """
        try:
            with self.team.apart(self.method):
                loss, total = self._losses(batch, cases)
                count = self._finite(exchange(len(cases), loss.item(), total.item()))
                with running_part("method", self.model.method):
                    self.runtime.fabric.backward(total * count.share / self.options.accumulate)
        except NotFinite as error:
            # Other processes wait for the count; a loss that is not finite ends them, too.
            exchange(len(cases), math.nan, math.nan)
            raise TrainingError(self._diverged(str(error))) from error

    def _finite(self, count: StepCount) -> StepCount:
        """Return the count of a step; raise TrainingError if its loss is not finite."""
        if not math.isfinite(count.total):
            raise TrainingError(self._diverged(f"the loss became {count.total}"))
        return count

    def _losses(
        self, batch: Batch, cases: Sequence[Case]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Compute the task's loss of a batch, and its sum with all further losses; scalars."""
        target = self.targets(cases)
        with running_part("method", self.model.method):
            prediction = self.method(batch)
            check_prediction(prediction, self.model.task, len(cases))
        with running_part("task", self.model.task):
            loss = self.model.task.loss(prediction.logits, target)
        with running_part("method", self.model.method):
            return loss, loss + further_loss(self.model.task, prediction, target)

    def _seed_step(self, step: int, image_ids: Sequence[str]) -> dict[str, int]:
        """Seed a step's random draws, and return the seed of each image of this process by id.

        An image's seed follows from its place in the batch, whichever process has it. Dropout and
        similar layers draw from torch's global generator, which differs between processes.
        """
        epoch, places = self.progress.epoch, self.team.places(len(image_ids))
        torch.manual_seed(self.runtime.seed_of(epoch, step, 0, self.runtime.rank))
        return {
            image_id: self.runtime.seed_of(epoch, step, 1, place)
            for image_id, place in zip(image_ids, places, strict=True)
        }

    def answer(
        self,
        cases: Sequence[Case],
        on_progress: OnProgress | None = None,
        store: FeatureStore | None = None,
    ) -> tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]:
        """Compute logits ``(n, k)`` and targets of images that can be read, in evaluation mode.

        Images that linear answers were fitted to are answered by fits that did not see them.

        Args:
            cases: the cases to answer.
            on_progress: called with the number of images done, a fraction within an image, and the
                number of all.
            store: features of the frozen encoder; None where the encoder is trained.
        """
        answers: list[tuple[int, Tensor]] = []
        self.method.eval()
        places = self.team.pick(range(len(cases)))
        loaded = timed(self.loader.ahead([cases[i]] for i in places), self.waited)
        for done, (i, items) in enumerate(zip(places, loaded, strict=True)):
            on_image = within(on_progress, done, len(places))
            if on_image is not None:
                on_image(0)
            for _, item in self.readable([cases[i]], items):
                batch = self.batch([item], augment="none", on_progress=on_image, store=store)
                logits = self._answer_image(batch)
                answers += [] if logits is None else [(i, logits)]
        gathered = sorted(itertools.chain(*self.runtime.gather(answers)), key=lambda pair: pair[0])
        rows = [row for _, row in gathered]
        n_outputs = sum(head.size for head in self.model.task.heads)
        stacked = torch.cat(rows) if rows else torch.empty(0, n_outputs)
        return stacked.to(self.runtime.device), self.targets([cases[i] for i, _ in gathered])

    def _answer_image(self, batch: Batch) -> Float[Tensor, "1 k"] | None:
        """Compute logits ``(1, k)`` of one image; set it aside and return None if reading fails."""
        try:
            with running_part("method", self.model.method), torch.inference_mode():
                prediction = self.method(batch)
                check_prediction(prediction, self.model.task, 1)
                logits: Tensor = prediction.logits
                return logits.float().cpu()
        except ReadingFailed as error:
            self._set_unreadable_aside(error)
            return None
        finally:
            self.progress.add(seconds_reading=batch.seconds_reading)

    def batch(
        self,
        items: Sequence[LoadedImage],
        augment: Augment | None = None,
        on_progress: OnProgress | None = None,
        generators: Generators | None = None,
        store: FeatureStore | None = None,
    ) -> Batch:
        """Make a batch of open images, for a step or, with `augment` ``none``, for answers.

        Args:
            items: the images.
            augment: how images are changed; by default as the options say.
            on_progress: called with the share of the step that is done.
            generators: random generator of each image.
            store: features of the frozen encoder; None where the encoder is trained.
        """
        wanted = augment or self.options.augment
        if wanted == "auto":
            wanted = augment_for(items, self.loader.view)
        encoder, left_out_fold = self.model.method.encoder, None
        if self.progress.left_out_folds:
            rows = [self.progress.left_out_folds.get(item.image_id, -1) for item in items]
            left_out_fold = torch.tensor(rows, device=self.runtime.device)
        return Batch(
            items,
            view=self.loader.view,
            normalise=(encoder.mean, encoder.std),
            device=self.runtime.device,
            pool=self.loader.threads,
            augment=wanted,
            generators=generators,
            on_progress=on_progress,
            store=store,
            left_out_fold=left_out_fold,
        )

    def targets(self, cases: Sequence[Case]) -> Shaped[Tensor, "n ..."]:
        """Return the task's targets of cases, on the device."""
        labels = [str(case.label) for case in cases]
        return self.model.task.targets(labels).to(self.runtime.device)

    def readable(
        self, cases: Sequence[Case], items: Sequence[Loaded]
    ) -> list[tuple[Case, LoadedImage]]:
        """Pair cases with their images; set aside those that could not be opened.

        Args:
            cases: the cases.
            items: their images, or the errors of those that could not be opened.
        """
        pairs = []
        for case, item in zip(cases, items, strict=True):
            if isinstance(item, FoveateError):
                self._set_image_aside(case.image_id, case.path, str(item))
            else:
                pairs.append((case, item))
        return pairs

    def _set_unreadable_aside(self, error: ReadingFailed) -> None:
        self._set_image_aside(error.image_id, error.path, str(error))

    def _set_image_aside(self, image_id: str, path: Path, reason: str) -> None:
        if self.progress.set_aside(image_id, reason):
            self.set_aside.set_aside(image_id, str(path), reason)

    def waited(self, seconds: float) -> None:
        """Add seconds that the device waited for pixels to the progress."""
        self.progress.add(seconds=seconds, seconds_reading=seconds)

    def _diverged(self, event: str) -> str:
        return (
            f"{event} in epoch {self.progress.epoch + 1}: lower --train.lr, or use "
            "--train.precision 32-true"
        )
