"""The answer to one image, or why there is none: plain values, which other processes can send."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from foveate.images.evidence import Evidence
from foveate.table import Case


@dataclass(frozen=True)
class ModelAnswer:
    """The answer of one model for one image.

    Attributes:
        values: numbers of the answer, in the order of the columns of the task.
        logits: output of the method, before the task decodes it.
        evidence: boxes that the answer comes from.
        deviation: standard deviation of each logit over the draws of the method; None where the
            method does not state it.
        seconds_reading: seconds of waiting for pixels.
    """

    values: tuple[float, ...]
    logits: tuple[float, ...]
    evidence: Evidence
    deviation: tuple[float, ...] | None
    seconds_reading: float


@dataclass(frozen=True)
class AnsweredImage:
    """One of the images that an answer comes from.

    Attributes:
        image_id: id of the image.
        spacing_um: spacing of its full resolution by axis ``(z,) y, x``, in the unit of the answer.
        share: share of the weight of all boxes that lies in it.
    """

    image_id: str
    spacing_um: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class Answer:
    """The common answer of several models for one case, and its cost: plain values, picklable.

    Attributes:
        case: row of the table.
        answers: answer of each model.
        values: numbers of the answer; the mean over the models.
        logits: mean over the models.
        evidence: boxes that the answer comes from; the mean over the models.
        spacing_um: spacing of the full resolution by axis ``(z,) y, x``, in `unit`; that of the
            first image.
        unit: ``um`` or ``px``.
        decoded_px: decoded pixels of all levels; a stored tile counts with all its pixels.
        asked_px: pixels that the models received.
        level0_px: pixels of the full resolution.
        seconds: time for the image, with the wait until it was open and its glimpse read.
        seconds_reading: part of `seconds` that was spent waiting for pixels.
        deviation: standard deviation of each mean logit over the draws of the methods; None where a
            method does not state it.
        deviation_over_models: sample standard deviation of each value over the models; None for one
            model.
        unlike: how the image differs from those of training, in plain words; empty if it does not.
        factor: how many times larger the spacing in the table is than the one in the file; None
            where they agree.
        files: evidence and pictures as bytes, by image id and file suffix.
        images: the images that the answer comes from.
        left_out: by image id, why an image of the patient could not be read; the answer comes from
            the others.
    """

    case: Case
    answers: tuple[ModelAnswer, ...]
    values: tuple[float, ...]
    logits: tuple[float, ...]
    evidence: Evidence
    spacing_um: tuple[float, ...]
    unit: str
    decoded_px: int
    asked_px: int
    level0_px: int
    seconds: float
    seconds_reading: float
    deviation: tuple[float, ...] | None = None
    deviation_over_models: tuple[float, ...] | None = None
    unlike: str = ""
    factor: float | None = None
    files: Mapping[tuple[str, str], bytes] = field(default_factory=dict)
    images: tuple[AnsweredImage, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """An image that could not be predicted, with the reason."""

    case: Case
    reason: str


AnswerOrFailure = Answer | Failure
