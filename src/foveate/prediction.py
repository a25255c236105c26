"""One image in, one report out: a pure function of model and path, mapped over many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from foveate.batch import Batch
from foveate.cases import Case
from foveate.checkpoint import Model
from foveate.errors import FoveateError
from foveate.evidence import Evidence
from foveate.image import AbstractImage
from foveate.loading import CaseLoader


@dataclass(frozen=True)
class Report:
    """What a model says of one image, and what that cost.

    Attributes:
        case: the row.
        probabilities: one per class, sum to 1.
        logits: as the method gave them.
        evidence: where it looked.
        image: still open while the report is being used.
        decoded_px: pixels decoded, all levels, stored tiles counted whole.
        asked_px: pixels that the model received.
        level0_px: pixels of the full resolution.
        seconds: all in all; `seconds_reading` of them waiting for pixels.
        deviation: standard deviation of each logit over a method's draws, where it says so.
    """

    case: Case
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]
    evidence: Evidence
    image: AbstractImage
    decoded_px: int
    asked_px: int
    level0_px: int
    seconds: float
    seconds_reading: float
    deviation: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Failure:
    """An image that could not be predicted, with the reason."""

    case: Case
    reason: str


def predict_cases(
    model: Model,
    cases: Sequence[Case],
    loader: CaseLoader,
    *,
    device: torch.device,
    shuffle_layout: bool = False,
    tell: Callable[[float], None] | None = None,
) -> Iterator[Report | Failure]:
    """Predict cases one by one, in order, in evaluation mode; a bad image gives a `Failure`.

    The next image is opened and its glimpse read while the present one is computed. With
    `shuffle_layout`, the patches of an image trade places at random (`foveate.audit`). `tell` is
    told how many images are done while one takes long, as a fraction.
    """
    method = model.method.to(device)
    every = zip(cases, loader.ahead([c] for c in cases), strict=True)
    for done, (case, (item,)) in enumerate(every):
        if isinstance(item, FoveateError):
            yield Failure(case, str(item))
            continue
        begun = time.perf_counter()
        method.eval()
        batch = Batch(
            [item],
            view=loader.view,
            normalise=(method.encoder.mean, method.encoder.std),
            device=device,
            pool=loader.crops,
            shuffle_layout=shuffle_layout,
            tell=tell and _counting(tell, done),
        )
        try:
            with torch.inference_mode():
                prediction = method(batch)
        except FoveateError as error:
            yield Failure(case, str(error))
            continue
        probabilities = model.task.probabilities(prediction.logits)[0]
        spread = prediction.deviation
        if not torch.isfinite(prediction.logits).all():
            yield Failure(case, f"{case.path}: the prediction is not a finite number")
            continue
        yield Report(
            case=case,
            probabilities=tuple(probabilities.tolist()),
            logits=tuple(prediction.logits[0].tolist()),
            evidence=prediction.evidence[0],
            image=item.image,
            decoded_px=item.image.count.decoded_px,
            asked_px=item.image.count.asked_px,
            level0_px=item.image.size_px,
            seconds=time.perf_counter() - begun,
            seconds_reading=batch.seconds_reading,
            deviation=None if spread is None else tuple(spread[0].tolist()),
        )


def _counting(tell: Callable[[float], None], done: int) -> Callable[[float], None]:
    return lambda share: tell(done + share)
