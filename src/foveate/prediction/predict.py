"""The prediction of one image as a pure function of models and case, mapped over many images."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from foveate.batch import Batch, LoadedImage
from foveate.errors import (
    FoveateError,
    NotFinite,
    concerns_all_images,
    converting,
    explain_shortage,
    running_part,
)
from foveate.images.composed import ComposedImage
from foveate.images.evidence import Evidence, mean_evidence
from foveate.images.likeness import describe_unlikeness
from foveate.loading.loader import CaseLoader, timed
from foveate.loading.together import locate_glimpse
from foveate.memory import computes_in_bf16
from foveate.messages.display import OnProgress, within
from foveate.methods.base import check_prediction
from foveate.prediction.answer import Answer, AnswerOrFailure, ModelAnswer
from foveate.prediction.options import PredictOptions
from foveate.prediction.pictures import describe_images, list_shown, render_files
from foveate.prediction.rest import Loaded, predict_rest
from foveate.runs.checkpoint import Model
from foveate.runs.models import Ensemble
from foveate.table import Case


def predict_one(
    models: Ensemble,
    case: Case | Path | str,
    *,
    device: torch.device | str = "cpu",
    assume_spacing_um: float | None = None,
) -> Answer:
    """Predict one image in evaluation mode: a pure function, which writes nothing.

    Args:
        models: models that answer.
        case: the image, or only its path.
        device: device that computes.
        assume_spacing_um: spacing of an image that states none; with None, as in training.

    Raises:
        PartFault: the code of the method, the task or an export failed.
        FoveateError: the image cannot be read or predicted.

    Example:
        >>> models = foveate.load_model("runs/first")
        >>> answer = foveate.predict_one(models, "new/S1.svs")
        >>> dict(zip(models.task.columns, answer.values))
        {'prob_normal': …, 'prob_tumour': …}
    """
    if not isinstance(case, Case):
        case = Case(Path(case).stem, Path(case).stem, Path(case))
    with open_one(models, case, device=device, assume_spacing_um=assume_spacing_um) as opened:
        return _predict_with_all(models, opened)


@contextlib.contextmanager
def open_one(
    models: Ensemble,
    case: Case,
    *,
    device: torch.device | str = "cpu",
    assume_spacing_um: float | None = None,
) -> Iterator[OpenCase]:
    """Open one image for models, and close it at the end of the block.

    Args:
        models: models with whose view the image is read.
        case: the image.
        device: device that computes.
        assume_spacing_um: spacing of an image that states none; with None, as in training.

    Raises:
        FoveateError: the image cannot be opened or read.
    """
    with contextlib.closing(open_loader(models, assume_spacing_um)) as loader:
        waits: list[float] = []
        groups = timed(loader.ahead([[case]]), waits.append)  # the image stays open while it lives
        (item,) = next(groups)
        if isinstance(item, FoveateError):
            raise item
        yield OpenCase(case, item, loader, torch.device(device), seconds_waited=waits[-1])


def open_loader(models: Ensemble, assume_spacing_um: float | None = None) -> CaseLoader:
    """Return a loader that opens images for these models, each once, so that its cost is exact.

    A spacing that was assumed in training is assumed again only for images of a kind that the
    model was trained on, and only where an image of the training needed it.

    Args:
        models: models with whose view the images are read.
        assume_spacing_um: spacing of images that state none; with None, as in training.
    """
    known = models.card.trained_on
    kinds: tuple[str, ...] | None = None
    if assume_spacing_um is None and (known is None or known.assumed):
        assume_spacing_um = models.card.assume_spacing_um
        kinds = None if known is None else known.kinds
    return CaseLoader(
        models.card.view,
        assume_spacing_um=assume_spacing_um,
        assume_for=kinds,
        readers=models.card.readers,
        keep_bytes=0,
        keep_open=0,
    )


def predict_cases(
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    *,
    device: torch.device,
    shuffle_layout: bool = False,
    on_progress: OnProgress | None = None,
    options: PredictOptions | None = None,
    pictured: Collection[str] = (),
) -> Iterator[AnswerOrFailure]:
    """Map `predict_one` over cases in order, reading ahead; yield a `Failure` for a bad image.

    All models answer about an image while it is open, so that each image is opened once and its
    glimpse read once. The next image is opened and its glimpse read while the present one is
    computed.

    Args:
        models: models that answer.
        cases: images to predict.
        loader: opens the images.
        device: device that computes.
        shuffle_layout: whether the positions of the patches of an image are shuffled
            (`foveate.evaluation.audit`).
        on_progress: called with the number of images done, a fraction while an image takes long,
            and the number of all.
        options: how the models predict; with them, each answer has its evidence and pictures as
            files.
        pictured: ids of the images that get pictures.

    Raises:
        TooManyOpen: the system allows too few open files; no image is to blame.
        DiskFull: there is no room for the maps of a streamed image.
        PartFault, NotLocal: the code of a method, the task or an export failed; no image is to
            blame.
    """
    waits: list[float] = []

    def answer(
        case: Case, loader: CaseLoader, item: Loaded, step: OnProgress | None
    ) -> Answer | FoveateError:
        if isinstance(item, FoveateError):
            return item
        pictures = case.image_id in pictured
        opened = OpenCase(case, item, loader, device, shuffle_layout, waits[-1], options, pictures)
        return _try_predict(models, opened, step)

    loaded = timed(loader.ahead([c] for c in cases), waits.append)
    for done, (case, (item,)) in enumerate(zip(cases, loaded, strict=True)):
        step = within(on_progress, done, len(cases))
        outcome = answer(case, loader, item, step)
        if isinstance(outcome, Answer):
            yield outcome
        else:
            yield predict_rest(case, loader, outcome, functools.partial(answer, step=step))


def _try_predict(
    models: Ensemble, opened: OpenCase, on_progress: OnProgress | None
) -> Answer | FoveateError:
    """Predict an open image; return an error that concerns this image alone."""
    try:
        return _predict_with_all(models, opened, on_progress)
    except FoveateError as error:
        # One file that cannot be read, or is too large, must not stop the others.
        if concerns_all_images(error):
            raise
        return error


@dataclass(frozen=True)
class OpenCase:
    """A case whose image is open, and how models are asked about it.

    Attributes:
        case: row of the table.
        item: the open image with its glimpse.
        loader: reads the patches.
        device: device that computes.
        shuffle_layout: whether the positions of the patches are shuffled.
        seconds_waited: seconds until the image was open and its glimpse read.
        options: how the models predict; None for an answer without files.
        with_pictures: whether the image gets pictures.
    """

    case: Case
    item: LoadedImage
    loader: CaseLoader
    device: torch.device
    shuffle_layout: bool = False
    seconds_waited: float = 0.0
    options: PredictOptions | None = None
    with_pictures: bool = False


def predict_open(
    models: Ensemble,
    opened: OpenCase,
    on_progress: OnProgress | None = None,
) -> Answer:
    """Predict an open image with all models, average their answers, and draw the evidence.

    Args:
        models: models that answer.
        opened: the open image.
        on_progress: called with the share of the image that is done.

    Raises:
        PartFault: the code of a method, the task or an export failed.
        FoveateError: pixels cannot be read, memory does not suffice, or an answer is not a finite
            number.
    """
    return _predict_with_all(models, opened, on_progress)


def _predict_with_all(
    models: Ensemble, opened: OpenCase, on_progress: OnProgress | None = None
) -> Answer:
    """Predict an open image with all models, average their answers, and draw the evidence."""
    begun, answers, n = time.perf_counter(), [], len(models)
    draws = contextlib.nullcontext() if opened.shuffle_layout else _seeded_draws(opened.device)
    with converting(opened.case.path, explain_shortage):
        with draws:
            for i, member in enumerate(models.members):
                member.method.to(opened.device)
                answers.append(_predict_with_one(member, opened, within(on_progress, i, n)))
        averaged = _average(models, opened, answers, begun)
        if opened.options is None:
            return averaged
        return render_files(
            models, averaged, opened.item.image, opened.options, with_pictures=opened.with_pictures
        )


@contextlib.contextmanager
def _seeded_draws(device: torch.device) -> Iterator[None]:
    """Seed the random state, so that draws do not depend on the images that came before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


def _predict_with_one(
    model: Model, opened: OpenCase, on_progress: OnProgress | None
) -> ModelAnswer:
    """Predict one open image with one model.

    Raises:
        PartFault: the code of the method or the task failed.
        FoveateError: pixels cannot be read, or the answer is not a finite number.
    """
    method, device = model.method.eval(), opened.device
    batch = Batch(
        [opened.item],
        view=opened.loader.view,
        normalise=(method.encoder.mean, method.encoder.std),
        device=device,
        pool=opened.loader.threads,
        shuffle_layout=opened.shuffle_layout,
        on_progress=on_progress,
    )
    fast = device.type == "cpu" and not method.encoder.from_scratch and computes_in_bf16()
    with (
        running_part("method", method, opened.case.path),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16, enabled=fast),
    ):
        prediction = method(batch)
        check_prediction(prediction, model.task, 1)
    if not torch.isfinite(prediction.logits).all():
        raise NotFinite(
            f"{opened.case.path}: the prediction is not a finite number. If other images fare "
            "alike, train again with a lower --train.lr; otherwise look at this one"
        )
    deviation = prediction.deviation
    with running_part("task", model.task, opened.case.path):
        values = model.task.decode(prediction.logits.double(), model.card.provenance)
    return ModelAnswer(
        values=tuple(values[0].tolist()),
        logits=tuple(prediction.logits[0].tolist()),
        evidence=prediction.evidence[0] if prediction.evidence else _no_evidence(opened.item),
        deviation=None if deviation is None else tuple(deviation[0].tolist()),
        seconds_reading=batch.seconds_reading,
    )


def _no_evidence(item: LoadedImage) -> Evidence:
    """Return evidence without boxes, for a method that gives no evidence."""
    nowhere = np.zeros((0, item.image.ndim))
    extent = np.asarray(item.image.box_um.size)
    return Evidence(nowhere, nowhere, np.zeros(0), extent, remainder=1.0)


def _average(
    models: Ensemble, opened: OpenCase, answers: Sequence[ModelAnswer], begun: float
) -> Answer:
    """Average the answers of the models, and add the cost of the image.

    Args:
        models: models that answered.
        opened: the open image.
        answers: answer of each model.
        begun: `time.perf_counter` when the models began.
    """
    case, image, n = opened.case, opened.item.image, len(answers)
    by_column = list(zip(*(a.values for a in answers), strict=True))
    evidence = mean_evidence([a.evidence for a in answers])
    factors, ids = opened.loader.factors, {i.image_id for i in case.list_images()}
    deviations = [a.deviation for a in answers if a.deviation is not None]
    return Answer(
        case=case,
        answers=tuple(answers),
        values=tuple(map(statistics.fmean, by_column)),
        logits=tuple(map(statistics.fmean, zip(*(a.logits for a in answers), strict=True))),
        evidence=evidence,
        spacing_um=tuple(image.known_spacing_um),
        images=describe_images(list_shown(case, image, evidence)),
        unit=image.unit,
        decoded_px=image.count.decoded_px,
        asked_px=image.count.asked_px,
        level0_px=image.n_pixels,
        seconds=opened.seconds_waited + time.perf_counter() - begun,
        seconds_reading=opened.seconds_waited + sum(a.seconds_reading for a in answers),
        # The models draw independently, so the variance of their mean is the sum over n squared.
        deviation=tuple(math.hypot(*of_output) / n for of_output in zip(*deviations, strict=True))
        if len(deviations) == n
        else None,
        deviation_over_models=tuple(map(statistics.stdev, by_column)) if n > 1 else None,
        unlike=_describe_unlikeness(opened, models),
        factor=next((factors[i] for i in factors.keys() & ids), None),
    )


def _describe_unlikeness(opened: OpenCase, models: Ensemble) -> str:
    """Describe how an image differs from those of training; of several images, which do and how."""
    item, known = opened.item, models.trained_on
    if not isinstance(item.image, ComposedImage):
        return describe_unlikeness(item.image, item.glimpse, known)
    texts = []
    for slot in item.image.slots:
        glimpse = item.glimpse[locate_glimpse(slot, opened.loader.view)]
        if text := describe_unlikeness(slot.image, glimpse, known):
            texts.append(f"{slot.image_id}: {text}")
    return "; ".join(texts)
