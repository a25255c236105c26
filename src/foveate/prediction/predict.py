"""One image in, one report out: a pure function of models and path, mapped over many."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from foveate.batch import Batch, LoadedImage
from foveate.errors import FoveateError, NotFinite, TooManyOpen, as_ours, disk_full, out_of_files
from foveate.images.evidence import Evidence, mean_evidence
from foveate.images.image import AbstractImage
from foveate.images.likeness import unlike
from foveate.loading.loader import CaseLoader
from foveate.memory import computes_in_bf16
from foveate.runs.checkpoint import Model
from foveate.runs.models import Ensemble
from foveate.table import Case

Tell = Callable[[float], None]


@dataclass(frozen=True)
class ModelAnswer:
    """What one model says of one image.

    Attributes:
        values: the numbers of the answer, in the order of the task's columns.
        logits: as the method gave them.
        evidence: where it looked.
        deviation: standard deviation of each logit over a method's draws, where it says so.
        seconds_reading: waiting for pixels.
    """

    values: tuple[float, ...]
    logits: tuple[float, ...]
    evidence: Evidence
    deviation: tuple[float, ...] | None
    seconds_reading: float


@dataclass(frozen=True)
class Report:
    """What models say of one image together, and what that cost.

    Attributes:
        case: the row.
        answers: of each model.
        values: the numbers of the answer; the mean over the models.
        logits: the mean over the models.
        evidence: where they looked; the mean over the models.
        image: still open while the report is being used.
        decoded_px: pixels decoded, all levels, stored tiles counted whole.
        asked_px: pixels that the models received.
        level0_px: pixels of the full resolution.
        seconds: all in all; `seconds_reading` of them waiting for pixels.
        deviation: standard deviation of each mean logit over the methods' draws, where all say so.
        spread: sample standard deviation of each value over the models; None for one.
        unlike: what sets the image apart from those of training, in plain words; empty if nothing.
    """

    case: Case
    answers: tuple[ModelAnswer, ...]
    values: tuple[float, ...]
    logits: tuple[float, ...]
    evidence: Evidence
    image: AbstractImage
    decoded_px: int
    asked_px: int
    level0_px: int
    seconds: float
    seconds_reading: float
    deviation: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    unlike: str = ""


@dataclass(frozen=True)
class Failure:
    """An image that could not be predicted, with the reason."""

    case: Case
    reason: str


def predict_cases(
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    *,
    device: torch.device,
    shuffle_layout: bool = False,
    tell: Tell | None = None,
) -> Iterator[Report | Failure]:
    """Predict cases one by one, in order, in evaluation mode; a bad image gives a `Failure`.

    Every model is asked about an image while it is open, so each image is opened once and its
    glimpse read once. The next image is opened and its glimpse read while the present one is
    computed. With `shuffle_layout`, the patches of an image trade places at random
    (`foveate.evaluation.audit`). `tell` is told how many images are done while one takes long, as
    a fraction.

    Raises:
        TooManyOpen: the system allows too few open files; no image is to blame.
    """
    for member in models.members:
        member.method.to(device)
    every = zip(cases, loader.ahead([c] for c in cases), strict=True)
    for done, (case, (item,)) in enumerate(every):
        if isinstance(item, FoveateError):
            yield Failure(case, str(item))
            continue
        begun = time.perf_counter()
        answers = []
        try:
            for i, member in enumerate(models.members):
                share = tell and _share_of(tell, done, i, len(models))
                answers.append(_ask(member, case, item, loader, device, shuffle_layout, share))
        except Exception as error:
            # Whatever one file does to a reader or a model, the others are predicted.
            if out_of_files(error):
                raise TooManyOpen() from error
            if disk_full(error):
                raise
            yield Failure(case, str(as_ours(error, case.path)))
            continue
        yield _averaged(models, case, item, answers, begun)


def _ask(
    model: Model,
    case: Case,
    item: LoadedImage,
    loader: CaseLoader,
    device: torch.device,
    shuffle_layout: bool,
    tell: Tell | None,
) -> ModelAnswer:
    """One model's answer on one open image.

    Raises:
        FoveateError: pixels cannot be read, or the answer is not a finite number.
    """
    method = model.method.eval()
    batch = Batch(
        [item],
        view=loader.view,
        normalise=(method.encoder.mean, method.encoder.std),
        device=device,
        pool=loader.crops,
        shuffle_layout=shuffle_layout,
        tell=tell,
    )
    fast = device.type == "cpu" and not method.encoder.from_scratch and computes_in_bf16()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=fast):
        prediction = method(batch)
    if not torch.isfinite(prediction.logits).all():
        raise NotFinite(f"{case.path}: the prediction is not a finite number")
    spread = prediction.deviation
    values = model.task.decode(prediction.logits.double(), model.card.provenance)
    return ModelAnswer(
        values=tuple(values[0].tolist()),
        logits=tuple(prediction.logits[0].tolist()),
        evidence=prediction.evidence[0] if prediction.evidence else _no_evidence(item),
        deviation=None if spread is None else tuple(spread[0].tolist()),
        seconds_reading=batch.seconds_reading,
    )


def _no_evidence(item: LoadedImage) -> Evidence:
    """Of a method that does not say where it looked: no regions, which its picture then says."""
    nowhere = np.zeros((0, item.image.ndim))
    extent = np.asarray(item.image.box_um.size)
    return Evidence(nowhere, nowhere, np.zeros(0), extent, remainder=1.0)


def _averaged(
    models: Ensemble, case: Case, item: LoadedImage, answers: Sequence[ModelAnswer], begun: float
) -> Report:
    """The models' mean, with what the image cost since `begun` (of `time.perf_counter`)."""
    image = item.image
    by_column = list(zip(*(a.values for a in answers), strict=True))
    deviations = [a.deviation for a in answers if a.deviation is not None]
    n = len(answers)
    return Report(
        case=case,
        answers=tuple(answers),
        values=tuple(map(statistics.fmean, by_column)),
        logits=tuple(map(statistics.fmean, zip(*(a.logits for a in answers), strict=True))),
        evidence=mean_evidence([a.evidence for a in answers]),
        image=image,
        decoded_px=image.count.decoded_px,
        asked_px=image.count.asked_px,
        level0_px=image.size_px,
        seconds=time.perf_counter() - begun,
        seconds_reading=sum(a.seconds_reading for a in answers),
        # The models draw independently, so the variance of their mean is the sum over n squared.
        deviation=tuple(math.hypot(*each) / n for each in zip(*deviations, strict=True))
        if len(deviations) == n
        else None,
        spread=tuple(map(statistics.stdev, by_column)) if n > 1 else None,
        unlike=unlike(image, item.glimpse, models.card.trained_on),
    )


def _share_of(tell: Tell, done: int, i: int, n: int) -> Tell:
    """Tells a model's share of an image as a share of all images; it is model i of n."""
    return lambda share: tell(done + (i + share) / n)
