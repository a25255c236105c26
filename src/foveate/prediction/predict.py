"""One image in, one answer out: a pure function of models and case, mapped over many."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
class Answer:
    """What models say of one image together, and what that cost: plain values, picklable.

    Attributes:
        case: the row.
        answers: of each model.
        values: the numbers of the answer; the mean over the models.
        logits: the mean over the models.
        evidence: where they looked; the mean over the models.
        spacing: of the full resolution by axis ``(z,) y, x``; in what `unit` says.
        unit: ``um`` or ``px``.
        decoded_px: pixels decoded, all levels, stored tiles counted whole.
        asked_px: pixels that the models received.
        level0_px: pixels of the full resolution.
        seconds: all in all; `seconds_reading` of them waiting for pixels.
        deviation: standard deviation of each mean logit over the methods' draws, where all say so.
        spread: sample standard deviation of each value over the models; None for one.
        unlike: what sets the image apart from those of training, in plain words; empty if nothing.
        factor: how many times the file's spacing the table's is, where they differ.
        files: evidence and pictures as the bytes of files, by suffix, where they were asked for.
    """

    case: Case
    answers: tuple[ModelAnswer, ...]
    values: tuple[float, ...]
    logits: tuple[float, ...]
    evidence: Evidence
    spacing: tuple[float, ...]
    unit: str
    decoded_px: int
    asked_px: int
    level0_px: int
    seconds: float
    seconds_reading: float
    deviation: tuple[float, ...] | None = None
    spread: tuple[float, ...] | None = None
    unlike: str = ""
    factor: float | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """An image that could not be predicted, with the reason."""

    case: Case
    reason: str


Outcome = Answer | Failure
Finish = Callable[[Ensemble, Answer, AbstractImage], Answer]
"""What is done with an answer while its image is still open, such as drawing pictures."""


def predict_one(
    models: Ensemble,
    case: Case | Path | str,
    *,
    device: torch.device | str = "cpu",
    assume_spacing_um: float | None = None,
    finish: Finish | None = None,
) -> Answer:
    """Predict one image in evaluation mode: a pure function, which writes nothing.

    Args:
        models: what answers.
        case: the image, or only its path.
        device: what computes.
        assume_spacing_um: of an image that states no spacing; None as in training.
        finish: completes the answer while the image is open.

    Raises:
        FoveateError: the image cannot be read or predicted.

    Example:
        >>> answer = predict_one(find_models(Path("runs/first")), "slides/S1.svs")
        >>> dict(zip(models.task.columns, answer.values))
        {'prob_normal': 0.03, 'prob_tumour': 0.97}
    """
    if not isinstance(case, Case):
        case = Case(Path(case).stem, Path(case).stem, Path(case))
    with contextlib.closing(open_loader(models, assume_spacing_um)) as loader:
        groups = loader.ahead([[case]])  # the image stays open as long as this lives
        (item,) = next(groups)
        try:
            if isinstance(item, FoveateError):
                raise item
            return _answer(models, case, item, loader, torch.device(device), finish)
        except Exception as error:
            raise as_ours(error, case.path) from error


def open_loader(models: Ensemble, assume_spacing_um: float | None = None) -> CaseLoader:
    """Return what opens images for these models, each once, so that its count is its own.

    A spacing that was assumed in training is assumed again only for images of a kind that the
    model was trained on, and only where an image of the training needed it.

    Args:
        models: whose view the images are read with.
        assume_spacing_um: of images that state no spacing; None as in training.
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
    tell: Tell | None = None,
    finish: Finish | None = None,
) -> Iterator[Outcome]:
    """Map `predict_one` over cases in order, reading ahead; a bad image gives a `Failure`.

    Every model is asked about an image while it is open, so each image is opened once and its
    glimpse read once. The next image is opened and its glimpse read while the present one is
    computed. With `shuffle_layout`, the patches of an image trade places at random
    (`foveate.evaluation.audit`). `tell` is told how many images are done while one takes long, as
    a fraction. `finish` completes each answer while its image is open.

    Raises:
        TooManyOpen: the system allows too few open files; no image is to blame.
    """
    every = zip(cases, loader.ahead([c] for c in cases), strict=True)
    for done, (case, (item,)) in enumerate(every):
        if isinstance(item, FoveateError):
            yield Failure(case, str(item))
            continue
        share = None if tell is None else _share_of(tell, done)
        try:
            yield _answer(models, case, item, loader, device, finish, shuffle_layout, share)
        except Exception as error:
            # Whatever one file does to a reader or a model, the others are predicted.
            if out_of_files(error):
                raise TooManyOpen() from error
            if disk_full(error):
                raise
            yield Failure(case, str(as_ours(error, case.path)))


def _answer(
    models: Ensemble,
    case: Case,
    item: LoadedImage,
    loader: CaseLoader,
    device: torch.device,
    finish: Finish | None,
    shuffle_layout: bool = False,
    tell: Tell | None = None,
) -> Answer:
    """Ask all models about one open image.

    Raises:
        FoveateError: pixels cannot be read, or an answer is not a finite number.
    """
    begun, answers, n = time.perf_counter(), [], len(models)
    with contextlib.nullcontext() if shuffle_layout else _same_draws(device):
        for i, member in enumerate(models.members):
            member.method.to(device)
            share = None if tell is None else _member_share(tell, i, n)
            answers.append(_ask(member, case, item, loader, device, shuffle_layout, share))
    averaged = _averaged(models, case, item, answers, begun, loader.factors.get(case.image_id))
    return averaged if finish is None else finish(models, averaged, item.image)


@contextlib.contextmanager
def _same_draws(device: torch.device) -> Iterator[None]:
    """Let a method that draws do so alike for every image, whichever images came before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield


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
    return Evidence(nowhere, nowhere, np.zeros(0))


def _averaged(
    models: Ensemble,
    case: Case,
    item: LoadedImage,
    answers: Sequence[ModelAnswer],
    begun: float,
    factor: float | None,
) -> Answer:
    """The models' mean, with what the image cost since `begun` (of `time.perf_counter`)."""
    image = item.image
    by_column = list(zip(*(a.values for a in answers), strict=True))
    deviations = [a.deviation for a in answers if a.deviation is not None]
    n = len(answers)
    return Answer(
        case=case,
        answers=tuple(answers),
        values=tuple(map(statistics.fmean, by_column)),
        logits=tuple(map(statistics.fmean, zip(*(a.logits for a in answers), strict=True))),
        evidence=mean_evidence([a.evidence for a in answers]),
        spacing=tuple(image.known_spacing_um),
        unit=image.unit,
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
        factor=factor,
    )


def _share_of(tell: Tell, done: int) -> Tell:
    """Tell the share of an image that is done as a number of images."""
    return lambda share: tell(done + share)


def _member_share(tell: Tell, i: int, n: int) -> Tell:
    """Tell the share of model i of n as a share of the image."""
    return lambda share: tell((i + share) / n)
